"""``struct``, ``union`` and ``*``: definitions of types, and objects in memory."""

from __future__ import annotations

import struct as packing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from drgn.helpers.linux.mm import access_process_vm

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, choose_style, is_hex
from postpanic.analysis.commands.per_cpu_words import Target, find_targets
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_number
from postpanic.analysis.objects.braces import MEMBERS, ValueWriter
from postpanic.analysis.objects.contents import Contents, Read, read_contents, size_of
from postpanic.analysis.objects.declarations import DEFINITION, base_name, definition_rows, member_rows
from postpanic.analysis.objects.paths import MemberPath, TypePath, parse_type_path
from postpanic.analysis.objects.pointers import write_targets
from postpanic.analysis.objects.style import Style
from postpanic.analysis.workspace import Workspace
from postpanic.errors import TruncatedError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["parse_offset", "pointer_to", "struct", "union", "write_members"]

_COUNT_LIMIT = 100_000
_WORD_BYTES = 8
_WORDS_PER_LINE = 2

RAW = Shape(
    "raw",
    (
        Column("address", Kind.ADDRESS, suffix=":", help="Of the first byte of the line."),
        Column("word0", Kind.HEX, format="016x", help="64 bits."),
        Column("word1", Kind.HEX, format="016x", help="The next 64 bits; empty at the end."),
        Column("ascii", help="The bytes as ASCII; a dot where they are none."),
    ),
    Layout.LINES,
    "{address}  {word0:16} {word1:16}   {ascii}",
)

_OPTIONS = (
    Option("-o", "offsets", "show the offset of each member; with an address, the address of each member"),
    Option("-l", "offset", "the address is that of a member inside: its offset, or struct.member", "OFFSET"),
    Option("-r", "raw", "show the bytes as they are"),
    Option("-f", "file_offset", "the address is an offset in the dump file"),
    Option("-u", "user", "the address is one of the current task's own memory"),
    HEXADECIMAL,
    Option("-h", HEXADECIMAL.name, "the same as -x"),
    DECIMAL,
    Option("-p", "pointers", "show the type of each member that is a pointer, and what it points to"),
    Option("-c", "count", "show so many, one behind the other; negative: those that end at the address", "COUNT"),
)
_OPERANDS = (
    Operand("name", "structure or union, and members: name.member,member.member[index]", required=True),
    Operand("address", "hexadecimal address, symbol or (expression); with :CPUS the copies of these CPUs"),
    Operand("number", "how many, one behind the other"),
)
_DESCRIPTION = (
    "Without an address, the definition and its size; a member's alone with its offset. With an address, what lies "
    "there. Members may be nested (se.on_rq), elements of arrays (pids[2]), and several (comm,pid).\n\n"
    "The word struct may be left out where no command has the name of the type. Memory that is not in the dump spoils "
    "the members that lie in it, and no others."
)


@dataclass(slots=True)
class _Request:
    """What is asked of each object."""

    workspace: Workspace
    path: TypePath
    style: Style
    keyword: str
    read: Read
    is_hex: bool
    offsets: bool
    raw: bool
    pointers: bool
    problems: list[Problem] = field(default_factory=list)


def _run(workspace: Workspace, arguments: Arguments, name: str, keyword: str) -> Answer:
    words, count = _split_words(arguments)
    path = parse_type_path(workspace.prog, words[0], keyword)
    hexadecimal = is_hex(workspace, arguments)
    if len(words) == 1:
        if given := [flag for flag in ("raw", "pointers", "user", "file_offset", "offset") if arguments.has(flag)]:
            raise UsageError(f"{name}: {given[0]} needs an address", hint=f"help {name}")
        return Answer(name, (_define(path, offsets=arguments.has("offsets"), is_hex=hexadecimal),))
    request = _Request(
        workspace=workspace,
        path=path,
        style=choose_style(workspace, arguments),
        keyword=keyword,
        read=_choose_memory(workspace, arguments),
        is_hex=hexadecimal,
        offsets=arguments.has("offsets"),
        raw=arguments.has("raw"),
        pointers=arguments.has("pointers"),
    )
    back = parse_offset(workspace, arguments.get("offset") or "0")
    targets = find_targets(workspace, words[1])
    size = size_of(path.type)
    if not size and abs(count) > 1:
        raise UsageError(f"{path.name} has no size, so none lies behind another")
    tables = [
        table for target in targets for place in _places(target, back, size, count) for table in _show(request, place)
    ]
    return Answer(name, tuple(tables), tuple(request.problems))


def _split_words(arguments: Arguments) -> tuple[list[str], int]:
    """Tell the operands from the count, which is the last of them or -c."""
    words = list(arguments.operands)
    text = arguments.get("count")
    if len(words) == 3:
        text = words.pop()
    count = parse_number(text, "count") if text is not None else 1
    if not 0 < abs(count) <= _COUNT_LIMIT:
        raise UsageError(f"count is {count}, 1 to {_COUNT_LIMIT} are possible")
    return words, count


def _places(target: Target, back: int, size: int, count: int) -> Iterator[Target]:
    start = target.vaddr - back + (min(count, -1) + 1) * size
    for number in range(abs(count)):
        yield Target(start + number * size, target.cpu)


def _choose_memory(workspace: Workspace, arguments: Arguments) -> Read:
    if arguments.has("user") and arguments.has("file_offset"):
        raise UsageError("-u and -f exclude each other")
    if arguments.has("user"):
        task = workspace.task
        return lambda vaddr, size: access_process_vm(task, vaddr, size)
    if arguments.has("file_offset"):
        paths = workspace.opened.dump.description.paths
        return lambda offset, size: _read_file(paths[0], offset, size)
    read: Read = workspace.prog.read
    return read


def _read_file(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - a path as the dump describes itself
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise TruncatedError(f"the file ends before {offset + size:#x}", where=path)
    return data


def parse_offset(workspace: Workspace, text: str) -> int:
    """
    Parse an offset: a number of bytes, or ``struct.member``.

    Raises
    ------
    UsageError
        If it is neither.
    FactAbsentError
        If there is no such structure or member.
    """
    if text[:1].isdigit() or text.startswith("-"):
        return parse_number(text, "offset")
    path = parse_type_path(workspace.prog, text)
    if len(path.members) != 1:
        raise UsageError(f"{text!r} is no offset", hint="a number of bytes, or struct.member")
    return path.members[0].offset


def _define(path: TypePath, *, offsets: bool, is_hex: bool, vaddr: int | None = None) -> Table:
    if not path.members:
        return DEFINITION.table(definition_rows(path.type, offsets=offsets, vaddr=vaddr, is_hex=is_hex))
    members = ((member.path, member.type, member.bit_offset, member.bit_size) for member in path.members)
    return DEFINITION.table(member_rows(path.type, members, vaddr=vaddr, is_hex=is_hex))


def _show(request: _Request, place: Target) -> Iterator[Table]:
    if request.offsets:
        table = _define(request.path, offsets=True, is_hex=request.is_hex, vaddr=place.vaddr)
        yield Table(table.shape, table.rows, place.title)
        return
    size = size_of(request.path.type)
    if not size:
        # Nothing is read, and nothing can be wrong with it.
        contents = Contents(b"")
    else:
        contents = read_contents(request.read, place.vaddr, size)
    if contents.is_lost:
        reason = contents.gaps[0][2]
        request.problems.append(
            Problem(f"{base_name(request.path.type)} {place.vaddr:x}: {reason.detail}", reason.reason)
        )
        return
    if request.raw:
        rows = list(_raw_rows(contents, place.vaddr, request.path.members))
        yield RAW.table(rows, title=place.title)
        return
    writer = ValueWriter(request.workspace.prog, request.style)
    if request.pointers:
        write_targets(request.workspace.prog, writer, request.path, contents, place.vaddr, request.problems)
    elif request.path.members:
        write_members(writer, request.path.members, contents, place.vaddr, tail=",")
    else:
        keyword = request.keyword or ""
        head = base_name(request.path.type)
        # crash says "struct" even of a typedef.
        head = head if " " in head else f"{keyword or 'struct'} {head}"
        writer.write(request.path.type, contents, vaddr=place.vaddr, name=head, lead=f"{head} ")
    yield MEMBERS.table(writer.table_rows(), title=place.title)


def write_members(
    writer: ValueWriter, members: Sequence[MemberPath], contents: Contents, vaddr: int, *, tail: str = ""
) -> None:
    """Write some members of an object, each on lines of its own."""
    for member in members:
        writer.write(
            member.type,
            contents,
            vaddr=vaddr,
            bit_offset=member.bit_offset,
            bit_size=member.bit_size,
            name=member.path,
            lead=f"  {member.path} = ",
            tail=tail,
            indent=2,
            depth=1,
        )


def _raw_rows(contents: Contents, vaddr: int, members: Sequence[MemberPath]) -> Iterator[tuple[Cell, ...]]:
    parts = [(member.offset, max(1, size_of(member.type))) for member in members] or [(0, len(contents.data))]
    for start, size in parts:
        for offset in range(start, start + size, _WORD_BYTES * _WORDS_PER_LINE):
            yield (vaddr + offset, *_raw_line(contents, offset, min(start + size, len(contents.data))))


def _raw_line(contents: Contents, offset: int, end: int) -> tuple[Cell, Cell, Cell]:
    words: list[Cell] = []
    text = ""
    for start in range(offset, offset + _WORD_BYTES * _WORDS_PER_LINE, _WORD_BYTES):
        data = contents.data[start : min(end, start + _WORD_BYTES)]
        missing = contents.missing(start, len(data)) if data else None
        if not data or missing:
            words.append(missing)
            continue
        words.append(packing.unpack("<Q", data.ljust(_WORD_BYTES, b"\0"))[0])
        text += "".join(chr(code) if 32 <= code < 127 else "." for code in data)
    return words[0], words[1], text


@command(
    "struct",
    summary="structure contents",
    description=_DESCRIPTION,
    options=_OPTIONS,
    operands=_OPERANDS,
    shapes=(MEMBERS, DEFINITION, RAW),
    examples=(
        Example("struct list_head", "the definition"),
        Example("struct page -o", "the definition with offsets"),
        Example("struct task_struct.comm,pid,se.on_rq ffff8801314d2080", "some members"),
        Example("struct task_struct.mm init_task -p", "a pointer, and what it points to"),
        Example("struct rq.nr_running runqueues:a", "of every CPU"),
    ),
)
def struct(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show a structure's definition or contents."""
    return _run(workspace, arguments, "struct", "struct")


@command(
    "union",
    summary="union contents",
    description=_DESCRIPTION,
    options=_OPTIONS,
    operands=_OPERANDS,
    shapes=(MEMBERS, DEFINITION, RAW),
    examples=(Example("union rcu_special", "the definition"),),
)
def union(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show a union's definition or contents."""
    return _run(workspace, arguments, "union", "union")


@command(
    "*",
    summary="pointer to a structure or union",
    description=f"The short form of struct and union. {_DESCRIPTION}",
    options=_OPTIONS,
    operands=_OPERANDS,
    shapes=(MEMBERS, DEFINITION, RAW),
    examples=(
        Example("*page", "the definition"),
        Example("*task_struct.pid init_task", "a member"),
    ),
)
def pointer_to(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show a structure's or union's definition or contents."""
    return _run(workspace, arguments, "*", "")
