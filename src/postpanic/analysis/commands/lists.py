"""``list``: a linked list of any kind."""

from __future__ import annotations

import re
from dataclasses import dataclass

from postpanic.analysis.cells import problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.elements import MEMBERS_COLUMN, STRUCT, STRUCT_SHORT, ElementWriter
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL
from postpanic.analysis.commands.per_cpu_words import find_vaddr
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.structures import parse_offset
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.objects.paths import find_type_keyword
from postpanic.analysis.walks.linked_list import ListWalk
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["list_elements"]

_POINTER_BYTES = 8
_OFFSET_LIMIT = 1 << 24
"""No structure is larger: a number below is an offset, one above an address."""

_ELEMENTS = Shape(
    "list",
    (
        Column("address", Kind.ADDRESS, format="x", help="Of the element, or of the link where no offset is known."),
        MEMBERS_COLUMN,
    ),
    Layout.LINES,
    "{address}",
)
_LOOP = Shape(
    "loop",
    (
        Column("length", Kind.NUMBER, help="Elements in the loop."),
        Column("start", Kind.ADDRESS, format="x", help="The element that is reached a second time."),
        Column("last", Kind.ADDRESS, format="x", help="The element that leads back to it."),
    ),
    Layout.LINES,
    "loop detected, loop length: {length}\nhead node starting address: {start}\nlast node: {last}",
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a list is walked, by its kind."""

    first: int
    offset: int
    """From a link to the pointer to the next one."""
    back: int
    """From the start of an element to its link."""
    ends: frozenset[int]
    closing: int


@command(
    "list",
    summary="linked list",
    description=(
        "Follow a list and show the address of each element. Without -h or -H the start is an element that points to "
        "the next one, at an offset. With -H the start is a list_head outside of the elements, with -h an element "
        "with a list_head inside, at the offset; -O is the offset of the head where the first one is of another kind."
        "\n\nThe list ends at NULL, where it began, or at -e. A list that comes back to another element loops: that is "
        "always found and said, with -B also how long the loop is."
    ),
    options=(
        Option("-o", "offset", "offset of the link in an element: bytes, or struct.member", "OFFSET"),
        Option("-O", "head_offset", "with -h: offset of the list_head in the first element", "OFFSET"),
        Option("-e", "end", "end before this address", "ADDRESS"),
        STRUCT,
        STRUCT_SHORT,
        Option("-l", "link", "with -s: the addresses are those of links, at this offset in the structure", "OFFSET"),
        Option("-h", "inside", "the start is an element with a list_head inside"),
        Option("-H", "outside", "the start is a list_head outside of the elements"),
        Option("-r", "reverse", "follow prev instead of next"),
        Option("-B", "brent", "say where a loop begins and how long it is"),
        HEXADECIMAL,
        DECIMAL,
    ),
    operands=(
        Operand("start", "address, symbol or (expression), with or without the offset before it", required=True),
        Operand("more", "the start, if an offset stands before it"),
    ),
    shapes=(_ELEMENTS, _LOOP),
    examples=(
        Example("list task_struct.real_parent ffff8801314d2080", "a task and those above it"),
        Example("list -H modules -o module.list -s module.name", "all modules"),
        Example("list task_struct.tasks -s task_struct.pid,comm -h init_task", "all processes"),
        Example("list -h ffff9c585b81a180 -O dentry.d_subdirs -o dentry.d_child", "children of a directory"),
    ),
)
def list_elements(workspace: Workspace, arguments: Arguments) -> Answer:
    """Follow a list."""
    problems: list[Problem] = []
    offset, start = _split_operands(workspace, arguments)
    plan = _make_plan(workspace, arguments, offset, start, problems)
    writer = ElementWriter(workspace, arguments, problems)
    link = parse_offset(workspace, arguments.get("link") or "0")
    if link and writer.is_idle:
        raise UsageError("list -l: only with -s or -S", hint="help list")
    rows: list[tuple[Cell, ...]] = []
    if plan is None:
        return Answer("list", (_ELEMENTS.table(),), tuple(problems))
    walk = ListWalk(workspace.prog, plan.first, plan.offset, plan.ends, problems, closing=plan.closing)
    for place in walk:
        element = place - plan.back
        rows.append((element, None if writer.is_idle else writer.members(element - link)))
    tables = [_ELEMENTS.table(rows)]
    if walk.loop is not None and arguments.has("brent"):
        loop = walk.loop
        tables.append(_LOOP.table([(loop.length, loop.start - plan.back, loop.last - plan.back)]))
    return Answer("list", tuple(tables), tuple(problems))


def _split_operands(workspace: Workspace, arguments: Arguments) -> tuple[int, int]:
    """Tell the offset from the start: either may come first."""
    words = list(arguments.operands)
    given = arguments.get("offset")
    if given is None:
        place = next((number for number, word in enumerate(words) if _is_offset(workspace, word)), None)
        if place is not None and len(words) > 1:
            given = words.pop(place)
    if len(words) != 1:
        raise UsageError(f"list: {words[-1]!r} is one word too many", hint="list OFFSET START")
    return parse_offset(workspace, given or "0"), find_vaddr(workspace, words[0])


def _is_offset(workspace: Workspace, word: str) -> bool:
    if re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", word):
        return int(word, 0 if word.lower().startswith("0x") else 10) < _OFFSET_LIMIT
    name, dot, _ = word.partition(".")
    return bool(dot) and bool(find_type_keyword(workspace.prog, name))


def _make_plan(
    workspace: Workspace, arguments: Arguments, offset: int, start: int, problems: list[Problem]
) -> _Plan | None:
    if arguments.has("inside") and arguments.has("outside"):
        raise UsageError("list: -h and -H exclude each other")
    if arguments.has("head_offset") and not arguments.has("inside"):
        raise UsageError("list -O: only with -h", hint="help list")
    step = _POINTER_BYTES if arguments.has("reverse") else 0
    text = arguments.get("end")
    end = find_vaddr(workspace, text) if text is not None else None
    if not arguments.has("inside") and not arguments.has("outside"):
        return _Plan(start, offset + step, 0, frozenset({end} if end is not None else ()), 1)
    ends = frozenset({end, end + offset} if end is not None else ())
    if arguments.has("inside") and not arguments.has("head_offset"):
        return _Plan(start + offset, step, offset, ends, 0)
    head = start + parse_offset(workspace, arguments.get("head_offset") or "0")
    try:
        first = int(workspace.prog.read_word(head + step))
    except UNREADABLE as exc:
        problems.append(problem(f"the head {head:x}", exc))
        return None
    return _Plan(first, step, offset, ends | {head}, -1)
