"""``wr``: change memory in the overlay of the dump, and write a dump that has the changes."""

from __future__ import annotations

from pathlib import Path

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_vaddr
from postpanic.analysis.memory.save_dump import save_dump
from postpanic.analysis.memory.spaces import AddressKind, is_kernel_vaddr, open_space
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Column, Kind, Layout, Shape

__all__ = ["wr"]

_CHANGES = Shape(
    "changes",
    (
        Column("address", Kind.HEX, format="16x", help="Address that was written to."),
        Column("paddr", Kind.HEX, help="Physical address of it."),
        Column("before", Kind.HEX, help="The value before."),
        Column("after", Kind.HEX, help="The value that is read from now on."),
        Column("bytes", Kind.NUMBER, help="Size of the value."),
    ),
    Layout.LINES,
    "{address}:  {before} => {after}",
)
_SAVED = Shape(
    "saved",
    (
        Column("file", help="The new dump."),
        Column("pages", Kind.NUMBER, help="Pages in it."),
        Column("changed", Kind.NUMBER, help="Of these, pages that were written to."),
    ),
    Layout.LINES,
    "{file}: {pages} pages, {changed} of them changed",
)


@command(
    "wr",
    summary="write memory",
    description=(
        "Write a value over what the dump holds. The dump file is never touched: the change lives in memory, every "
        "command sees it, and it is gone with the session. ``wr --save-as FILE`` writes a new dump that has all "
        "changes, in the format of the one that is open.\n\n"
        "A page that was left out of the dump cannot be changed."
    ),
    options=(
        Option("-u", "user", "the address is a user address of the current task"),
        Option("-k", "kernel", "the address is a kernel address"),
        Option("-p", "physical", "the address is a physical address"),
        Option("-8", "width8", "an 8-bit value"),
        Option("-16", "width16", "a 16-bit value"),
        Option("-32", "width32", "a 32-bit value"),
        Option("-64", "width64", "a 64-bit value, which is the default"),
        Option("--save-as", "save_as", "write a new dump with the changes", value="FILE"),
    ),
    operands=(
        Operand("address", "address or symbol"),
        Operand("value", "hexadecimal number, or symbol"),
    ),
    shapes=(_CHANGES, _SAVED),
    examples=(
        Example("wr -32 panic_timeout 5", "set an int"),
        Example("wr --save-as changed.dump", "keep the changes in a file"),
    ),
)
def wr(workspace: Workspace, arguments: Arguments) -> Answer:
    """Write memory."""
    tables = []
    if arguments.operands:
        tables.append(_CHANGES.table([_write(workspace, arguments)]))
    elif not arguments.has("save_as"):
        raise UsageError("wr: an address and a value are needed", hint="help wr")
    file = arguments.get("save_as")
    if file is not None:
        if workspace.is_live:
            raise UsageError("wr --save-as: a running kernel is not a dump")
        pages = save_dump(workspace.opened.overlay, workspace.memory, Path(file))
        tables.append(_SAVED.table([(file, pages, len(workspace.opened.overlay.written_pfns))]))
    return Answer("wr", tuple(tables))


def _write(workspace: Workspace, arguments: Arguments) -> tuple[int, int, int, int, int]:
    if len(arguments.operands) != 2:
        raise UsageError("wr: an address and a value are needed", hint="help wr")
    if workspace.is_live:
        raise UsageError("wr: the memory of the running kernel is not written")
    sizes = [size for size in (1, 2, 4, 8) if arguments.has(f"width{size * 8}")]
    kinds = [name for name in ("user", "kernel", "physical") if arguments.has(name)]
    if len(sizes) > 1 or len(kinds) > 1:
        raise UsageError("wr: only one width, and only one of -u, -k and -p")
    size = sizes[0] if sizes else 8
    address, value = (parse_vaddr(workspace, word) for word in arguments.operands)
    value &= (1 << 64) - 1
    if value >> 8 * size:
        raise UsageError(f"wr: {value:#x} is wider than {8 * size} bits")
    kind = AddressKind(kinds[0]) if kinds else AddressKind.KERNEL if is_kernel_vaddr(address) else AddressKind.USER
    space = open_space(workspace, kind)
    before = int.from_bytes(space.read(address, size), "little")
    data = value.to_bytes(size, "little")
    # A value may lie across two pages, which need not be neighbours in physical memory.
    page = workspace.memory.page_size_bytes
    head = min(size, page - address % page)
    pieces = [(space.translate(address), data[:head])]
    if head < size:
        pieces.append((space.translate(address + head), data[head:]))
    for paddr, part in pieces:
        workspace.opened.overlay.write(paddr, part)
    return address, pieces[0][0], before, value, size
