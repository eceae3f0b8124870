"""``dis``: disassembled code, and the source that it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drgn.helpers.linux.mm import access_process_vm

from postpanic.analysis.code.instructions import Disassembler, Instruction, Syntax
from postpanic.analysis.code.listing import CodeReader, Function, Read, spell_instruction
from postpanic.analysis.code.symbols import SymbolIndex
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, is_hex
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.sym import source_of, workspace_symbols
from postpanic.analysis.commands.values import parse_number, parse_vaddr
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["dis"]

_SKIP = "bytes behind ud2"
_SYNTAX = "disassembly"
_COUNT_LIMIT = 100_000
_SOURCE_LINES_BEFORE = 5
_MOST_SOURCE_LINES = 2000
_MOST_SKIPPED_BYTES = 64

_CODE = Shape(
    "instructions",
    (
        Column("address", Kind.ADDRESS, help="Of the instruction."),
        Column("function", help="Symbol that it belongs to."),
        Column("offset", Kind.NUMBER, help="Bytes from the symbol."),
        Column("module", help="Module of the symbol; empty: the kernel."),
        Column("bytes", help="Machine code, hexadecimal."),
        Column("mnemonic", help="Name of the instruction, with prefixes."),
        Column("operands", help="Operands."),
        Column("target", Kind.ADDRESS, help="Of a direct branch or call."),
        Column("reference", Kind.ADDRESS, help="Address of the data that it names relative to itself."),
        Column("symbol", help="Symbol of the target or reference."),
        Column("comment", help="What stands behind the operands."),
        Column("file", help="Source file, where the debug information tells."),
        Column("line", Kind.NUMBER, help="Line in it."),
        Column("text", help="As it is shown."),
    ),
    Layout.LINES,
    "{text}",
)
_SOURCE = Shape(
    "source",
    (
        Column("line", Kind.NUMBER, help="Number of the line."),
        Column("marked", Kind.BOOL, help="Whether it is that of the address."),
        Column("source", help="The line."),
        Column("text", help="As it is shown."),
    ),
    Layout.LINES,
    "{text}",
)
_SKIPPED = Shape(
    "skipped",
    (Column("bytes", Kind.NUMBER, help="Bytes behind ud2 that are no code."),),
    Layout.LINES,
    "encoded bytes being skipped after ud2a: {bytes}",
)


@dataclass(frozen=True, slots=True)
class _Place:
    """What is to be shown: an address, and how it was named."""

    vaddr: int
    is_whole: bool
    """Named by a symbol alone: the whole function is meant."""


@command(
    "dis",
    summary="disassemble",
    description=(
        "Show the code at an address: one instruction, so many as the count says, or the whole function if it is "
        "named by its symbol alone. The code is that of the memory in the dump, with all that the kernel patched. "
        "Targets of branches and data that is addressed relative to the instruction have their symbols.\n\n"
        "Operands of x86 are in AT&T syntax, or in Intel's (--intel). Files and lines need real debug information: "
        "what is synthesized has none. The source (-s) is shown where the file is on this machine."
    ),
    options=(
        Option("-l", "lines", "show source files and line numbers"),
        Option("-r", "reverse", "from the start of the function up to the address"),
        Option("-f", "forward", "from the address to the end of the function"),
        Option("-u", "user", "the address is one of the current task's own memory"),
        HEXADECIMAL,
        DECIMAL,
        Option("-s", "source", "show the source instead of the code"),
        Option("-b", "skip", "show or set (-b NUMBER) how many bytes behind ud2 are no code"),
        Option("--intel", "intel", "operands in Intel's syntax"),
        Option("--att", "att", "operands in AT&T syntax"),
    ),
    operands=(
        Operand("address", "hexadecimal address, symbol, symbol+offset or (expression)"),
        Operand("count", "how many instructions; with -s, how many lines behind the address"),
    ),
    shapes=(_CODE, _SOURCE, _SKIPPED),
    examples=(
        Example("dis schedule", "a function"),
        Example("dis -r ffffffff81a00d34", "what led to a return address"),
        Example("dis -f vfs_read+320", "the rest of a function"),
        Example("dis -l schedule 10", "with source files and lines"),
    ),
)
def dis(workspace: Workspace, arguments: Arguments) -> Answer:
    """Disassemble."""
    if arguments.has("skip"):
        return _skip(workspace, arguments)
    if not arguments.operands:
        raise UsageError("dis: address is missing", hint="help dis")
    if arguments.has("reverse") and arguments.has("forward"):
        raise UsageError("dis: -r and -f exclude each other")
    count = parse_number(arguments.operands[1], "count") if len(arguments.operands) > 1 else None
    if count is not None and not 0 < count <= _COUNT_LIMIT:
        raise UsageError(f"count is {count}, 1 to {_COUNT_LIMIT} are possible")
    index = workspace_symbols(workspace)
    place = _find_place(workspace, index, arguments.operands[0], is_user=arguments.has("user"))
    reader = _make_reader(workspace, arguments, index)
    problems: list[Problem] = []
    if arguments.has("source"):
        return _show_source(workspace, reader, place.vaddr, count)
    function = None if arguments.has("user") else reader.find_function(place.vaddr)
    found = _decode(reader, place, function, arguments, count, problems)
    rows = list(_rows(workspace, arguments, reader, index, found))
    return Answer("dis", (_CODE.table(rows),), tuple(problems))


def _skip(workspace: Workspace, arguments: Arguments) -> Answer:
    if arguments.operands:
        number = parse_number(arguments.operands[0], "bytes")
        if not 0 <= number <= _MOST_SKIPPED_BYTES:
            raise UsageError(f"{number} bytes behind ud2, 0 to {_MOST_SKIPPED_BYTES} are possible")
        workspace.settings[_SKIP] = number
    return Answer("dis", (_SKIPPED.table([(workspace.settings.get(_SKIP, 0),)]),))


def _find_place(workspace: Workspace, index: SymbolIndex, word: str, *, is_user: bool) -> _Place:
    named = [] if is_user else index.named(word)
    if named:
        # Of several, text comes before data.
        text = [place for place in named if index.symbols[place].type in "TtWw"]
        return _Place(index.symbols[(text or named)[0]].vaddr, is_whole=True)
    return _Place(parse_vaddr(workspace, word), is_whole=False)


def _make_reader(workspace: Workspace, arguments: Arguments, index: SymbolIndex) -> CodeReader:
    if arguments.has("intel") and arguments.has("att"):
        raise UsageError("dis: --intel and --att exclude each other")
    is_intel = arguments.has("intel") or workspace.settings.get(_SYNTAX) == Syntax.INTEL
    syntax = Syntax.INTEL if is_intel and not arguments.has("att") else Syntax.ATT
    read: Read = workspace.prog.read
    if arguments.has("user"):
        task = workspace.task
        read = lambda vaddr, size: access_process_vm(task, vaddr, size)  # noqa: E731
    return CodeReader(workspace.prog, Disassembler(workspace.memory.machine, syntax), read, index)


def _decode(
    reader: CodeReader,
    place: _Place,
    function: Function | None,
    arguments: Arguments,
    count: int | None,
    problems: list[Problem],
) -> list[Instruction]:
    """Decode what is asked for: a function, a part of it, or so many instructions."""
    is_part = arguments.has("reverse") or arguments.has("forward")
    if function is None:
        if is_part and not arguments.has("user"):
            raise FactAbsentError(f"no function at {place.vaddr:x}")
        return reader.decode_count(place.vaddr, count or 1, problems)
    if arguments.has("reverse"):
        found = [one for one in reader.decode_function(function, problems) if one.vaddr <= place.vaddr]
        return found[-count:] if count is not None else found
    if arguments.has("forward"):
        found = [one for one in reader.decode_function(function, problems) if one.vaddr >= place.vaddr]
        return found[:count] if count is not None else found
    if place.is_whole and count is None:
        return reader.decode_function(function, problems)
    return reader.decode_count(place.vaddr, count or 1, problems)


def _rows(
    workspace: Workspace,
    arguments: Arguments,
    reader: CodeReader,
    index: SymbolIndex,
    found: Sequence[Instruction],
) -> Iterator[tuple[Cell, ...]]:
    hexadecimal = is_hex(workspace, arguments)
    is_user = arguments.has("user")
    shows_lines = arguments.has("lines") and not is_user
    skip = int(workspace.settings.get(_SKIP, 0))
    last_source: tuple[str, int] | None = None
    behind = 0

    def name(vaddr: int) -> str:
        return "" if is_user else _name(index, vaddr, is_hex=hexadecimal)

    for one in found:
        if one.vaddr < behind:
            continue
        function = None if is_user else reader.find_function(one.vaddr)
        source = source_of(workspace.prog, one.vaddr) if not is_user and shows_lines else None
        label = name(one.vaddr) if function is not None else ""
        spelt, symbol, comment = spell_instruction(one, name, function=function)
        text = f"{one.vaddr:#x}{f' <{label}>' if label else ''}:\t{spelt}"
        if source is not None and source != last_source:
            text = f"{source[0]}: {source[1]}\n{text}"
        last_source = source or last_source
        yield (
            one.vaddr,
            function.name if function else "",
            one.vaddr - function.start if function else None,
            function.module if function else "",
            one.data.hex(),
            one.mnemonic,
            one.operands,
            one.target,
            one.reference,
            symbol,
            comment,
            source[0] if source else None,
            source[1] if source else None,
            text,
        )
        behind = one.end + skip if one.mnemonic == "ud2" else one.end


def _name(index: SymbolIndex, vaddr: int, *, is_hex: bool) -> str:
    place = index.at(vaddr)
    if place is None:
        return ""
    symbol = index.symbols[place]
    offset = vaddr - symbol.vaddr
    if symbol.module and index.in_module(vaddr) != symbol.module:
        return ""
    number = f"{offset:#x}" if is_hex else str(offset)
    return f"{symbol.name}+{number}" if offset else symbol.name


def _show_source(workspace: Workspace, reader: CodeReader, vaddr: int, count: int | None) -> Answer:
    source = source_of(workspace.prog, vaddr)
    if source is None:
        raise FactAbsentError(
            f"no source line is known for {vaddr:x}", hint="real debug information (a vmlinux given to open) has them"
        )
    file, line = source
    title = f"FILE: {file}\nLINE: {line}\n"
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="backslashreplace").splitlines()
    except OSError as exc:
        why = Problem(f"{file} is not on this machine: {exc.strerror or exc}", Reason.NOT_PRESENT)
        return Answer("dis", (_SOURCE.table(title=title.rstrip()),), (why,))
    last = line + count if count is not None else _last_line(workspace, reader, vaddr, source)
    first = max(1, line - _SOURCE_LINES_BEFORE)
    rows = [
        (
            number,
            number == line,
            lines[number - 1],
            f"{'*' if number == line else ' '} {number:<4}  {lines[number - 1]}",
        )
        for number in range(first, min(last, len(lines)) + 1)
    ]
    return Answer("dis", (_SOURCE.table(rows, title=title),))


def _last_line(workspace: Workspace, reader: CodeReader, vaddr: int, source: tuple[str, int]) -> int:
    """Find the last line of the function that an address lies in, as its code tells."""
    file, line = source
    function = reader.find_function(vaddr)
    last = line
    if function is not None:
        for one in reader.decode_function(function, []):
            place = source_of(workspace.prog, one.vaddr)
            if place is not None and place[0] == file and line <= place[1] <= line + _MOST_SOURCE_LINES:
                last = max(last, place[1])
    return last
