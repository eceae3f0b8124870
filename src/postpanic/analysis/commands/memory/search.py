"""``search``: find numbers and text in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.analysis.cells import problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.memory.read import WORDS, word_rows
from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE, task_cells
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_number, parse_vaddr
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.expressions import evaluate_number
from postpanic.analysis.memory.direct_map import direct_map_offset
from postpanic.analysis.memory.mappings import Mappings, read_mappings
from postpanic.analysis.memory.search import (
    Match,
    Needle,
    number_needle,
    search_bytes,
    search_mapped,
    search_physical,
    text_needle,
)
from postpanic.analysis.memory.spaces import AddressKind, Space, is_kernel_vaddr, open_space, process_memory
from postpanic.analysis.stacks.engine import open_stacks
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.tasks.facts import read_all_facts
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["kernel_mappings", "linear_runs", "search"]

_COLUMNS = (
    Column("address", Kind.HEX, help="Where it was found."),
    Column("value", Kind.HEX, help="The number that is there; empty for text."),
    Column("text", help="The text that is there, and what follows it, a dot for each byte that is not printable."),
    Column("name", prefix=" (", suffix=")", help="The symbol or expression that was searched for."),
)
_MATCHES = Shape("matches", _COLUMNS, Layout.LINES, "{address}: {value}{text}{name}")
_IN_CONTEXT = Shape(
    "matches_in_context",
    (*_COLUMNS, Column("context", Kind.ROWS, shape=WORDS, help="The memory before, at and behind it.")),
    Layout.LINES,
    "",
    gap=True,
)
_TASKS = Shape(
    "tasks",
    (*TASK_COLUMNS, Column("matches", Kind.ROWS, help="What was found on its stack.")),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)
_TEXT_SHOWN = 56
_WORD = (1 << 64) - 1
_HIDDEN_X86 = (0xFFFF_FE00_0000_0000, 0xFFFF_FF80_0000_0000)
"""cpu_entry_area and espfix (``Documentation/arch/x86/x86_64/mm.rst``): other views of per-CPU pages."""


@dataclass(frozen=True)
class _Wanted:
    """What is searched for, and where."""

    needles: tuple[Needle, ...]
    start: int
    end: int
    context: int


@command(
    "search",
    summary="search memory",
    description=(
        "Search memory for numbers or text. By default all kernel memory is searched: the direct mapping, vmalloc, "
        "modules, the array of struct page, the kernel image; what is mapped twice is found twice. Every page is read "
        "once, so that a search of all takes little longer than reading the dump.\n\n"
        "A value is a hexadecimal number, a symbol, or an expression in parentheses. Only what is really mapped is "
        "found, and only in pages that the dump holds."
    ),
    options=(
        Option("-k", "kernel", "kernel virtual memory, which is the default"),
        Option("-K", "unmapped", "kernel virtual memory without vmalloc, modules and the array of struct page"),
        Option("-V", "mapped", "kernel virtual memory without the direct mapping and the kernel image"),
        Option("-u", "user", "user memory of the current task"),
        Option("-p", "physical", "physical memory"),
        Option("-t", "stacks", "the kernel stacks of all tasks"),
        Option("-T", "active_stacks", "the kernel stacks of the tasks that were running"),
        Option("-s", "start", "start here", value="ADDRESS"),
        Option("-e", "end", "end before this address", value="ADDRESS"),
        Option("-l", "length", "search this many bytes", value="BYTES"),
        Option("-m", "mask", "ignore the bits that are set in it", value="MASK"),
        Option("-x", "context", "show this many values before and behind each match", value="COUNT"),
        Option("-c", "text", "the values are text"),
        Option("-w", "ints", "the values are 32-bit numbers"),
        Option("-h", "shorts", "the values are 16-bit numbers"),
    ),
    operands=(Operand("value", "number, symbol, (expression), or text with -c", many=True, required=True),),
    shapes=(_MATCHES, _IN_CONTEXT, _TASKS),
    examples=(
        Example("search init_task", "who points to a symbol"),
        Example("search -c panic-maker", "text, anywhere in kernel memory"),
        Example("search -t (init_task+8)", "an address, on the stacks of all tasks"),
        Example("search -p -w -m ffff babe0000", "the upper half of a 32-bit number, in physical memory"),
    ),
)
def search(workspace: Workspace, arguments: Arguments) -> Answer:
    """Search memory."""
    kinds = [name for name in _KINDS if arguments.has(name)]
    if len(kinds) > 1:
        raise UsageError(f"search: only one of {' '.join(_KINDS.values())}")
    kind = kinds[0] if kinds else "kernel"
    wanted = _read_wanted(workspace, arguments, kind)
    problems: list[Problem] = []
    if kind in {"stacks", "active_stacks"}:
        tables = _search_stacks(workspace, wanted, problems, active=kind == "active_stacks")
        return Answer("search", tables, tuple(problems))
    if kind == "physical":
        found = _search_frames(workspace, wanted, problems)
        space = open_space(workspace, AddressKind.PHYSICAL)
    elif kind == "user":
        found = _search_user(workspace, wanted, problems)
        space = open_space(workspace, AddressKind.USER)
    else:
        found = _search_kernel(workspace, wanted, kind, problems)
        space = open_space(workspace, AddressKind.KERNEL)
    return Answer("search", (_table(space, wanted, found, problems),), tuple(problems))


_KINDS = {
    "kernel": "-k", "unmapped": "-K", "mapped": "-V", "user": "-u", "physical": "-p", "stacks": "-t",
    "active_stacks": "-T",
}  # fmt: skip


def _read_wanted(workspace: Workspace, arguments: Arguments, kind: str) -> _Wanted:
    needles = _read_needles(workspace, arguments)
    start_word, end_word, length = (arguments.get(name) for name in ("start", "end", "length"))
    if end_word is not None and length is not None:
        raise UsageError("search: -e and -l contradict each other")
    lowest, highest = (1 << 63, 1 << 64) if kind in {"kernel", "unmapped", "mapped"} else (0, 1 << 63)
    if kind in {"stacks", "active_stacks"}:
        lowest, highest = 0, 1 << 64
        if start_word is not None or end_word is not None or length is not None:
            raise UsageError("search: -s, -e and -l do not go with -t and -T")
    start = parse_vaddr(workspace, start_word) if start_word is not None else lowest
    end = parse_vaddr(workspace, end_word) if end_word is not None else highest
    if length is not None:
        end = start + parse_number(length, "search -l")
    for flag, address in (("-s", start), ("-e", end)):
        if not lowest <= address <= highest:
            space = "kernel" if lowest else "user" if kind == "user" else "physical"
            raise UsageError(f"search {flag}: {address:#x} is not an address of {space} memory", hint="-k, -u or -p")
    if start >= end:
        raise UsageError(f"search: {end:#x} is not above {start:#x}")
    context = parse_number(arguments.get("context") or "0", "search -x")
    if context < 0 or (context and arguments.has("text")):
        raise UsageError("search -x: a positive count, and not with -c")
    return _Wanted(needles, start, end, context)


def _read_needles(workspace: Workspace, arguments: Arguments) -> tuple[Needle, ...]:
    if arguments.has("text"):
        if arguments.has("ints") or arguments.has("shorts") or arguments.has("mask"):
            raise UsageError("search -c: not with -w, -h and -m")
        needles = tuple(text_needle(word.encode("utf-8", "surrogateescape")) for word in arguments.operands)
        if not all(needle.text for needle in needles):
            raise UsageError("search -c: the text is empty")
        return needles
    if arguments.has("ints") and arguments.has("shorts"):
        raise UsageError("search: only one of -w and -h")
    size = 4 if arguments.has("ints") else 2 if arguments.has("shorts") else 8
    mask_word = arguments.get("mask")
    mask = parse_vaddr(workspace, mask_word) if mask_word is not None else 0
    needles = tuple(_number(workspace, word, size, mask) for word in arguments.operands)
    if mask & (1 << 8 * size) - 1 == (1 << 8 * size) - 1:
        raise UsageError("search -m: a mask of all bits matches everything")
    return needles


def _number(workspace: Workspace, word: str, size: int, mask: int) -> Needle:
    if word.startswith("(") and word.endswith(")"):
        value, name = evaluate_number(workspace.prog, word[1:-1]) & _WORD, word
    else:
        value = parse_vaddr(workspace, word)
        is_number = all(letter in "0123456789abcdefABCDEFx" for letter in word)
        name = "" if is_number else word
    if value >> 8 * size:
        raise UsageError(f"search: {word} is wider than {8 * size} bits")
    return number_needle(value, size, mask, name)


def kernel_mappings(workspace: Workspace, problems: list[Problem]) -> Mappings:
    """Give all that the kernel's page tables map, but for what shows the same pages once more."""

    def read() -> tuple[Mappings, tuple[Problem, ...]]:
        found: list[Problem] = []
        mappings = read_mappings(workspace.memory.tables, workspace.memory.physical, found, kernel=True)
        if workspace.memory.machine == "x86_64":
            low, high = (np.uint64(limit) for limit in _HIDDEN_X86)
            mappings = mappings.select((mappings.vaddrs < low) | (mappings.vaddrs >= high))
        return mappings, tuple(found)

    mappings, found = workspace.once("kernel mappings", read)
    problems += [one for one in found if one not in problems]
    return mappings


def linear_runs(workspace: Workspace, mappings: Mappings) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which runs are of the direct mapping, and which of the kernel image."""
    try:
        base = direct_map_offset(workspace)
    except UNREADABLE:
        base = 0
    offsets = mappings.vaddrs - mappings.paddrs
    direct = offsets == np.uint64(base)
    start, end = workspace.memory.layout.image_range
    image = offsets == np.uint64(workspace.memory.layout.image_voffset)
    image &= (mappings.vaddrs >= np.uint64(start)) & (mappings.vaddrs <= np.uint64(end - 1))
    return np.asarray(direct), np.asarray(image)


def _search_kernel(workspace: Workspace, wanted: _Wanted, kind: str, problems: list[Problem]) -> list[Match]:
    mappings = kernel_mappings(workspace, problems).clip(wanted.start, wanted.end)
    direct, image = linear_runs(workspace, mappings)
    if kind != "kernel":
        chosen = direct | image if kind == "unmapped" else ~(direct | image)
        mappings, direct = mappings.select(chosen), direct[chosen]
    return search_mapped(workspace.memory.physical, mappings, wanted.needles, problems, direct)


def _search_user(workspace: Workspace, wanted: _Wanted, problems: list[Problem]) -> list[Match]:
    memory = process_memory(workspace, workspace.task)
    mappings = read_mappings(memory.tables, memory.physical, problems, kernel=False).clip(wanted.start, wanted.end)
    none = np.zeros(len(mappings.vaddrs), dtype=bool)
    return search_mapped(memory.physical, mappings, wanted.needles, problems, none)


def _search_frames(workspace: Workspace, wanted: _Wanted, problems: list[Problem]) -> list[Match]:
    memory = workspace.memory.physical
    size = memory.page_size_bytes
    parts = [
        np.arange(max(start, wanted.start) // size, -(-min(end, wanted.end) // size), dtype=np.uint64)
        for start, end in memory.ram_ranges.tolist()
        if max(start, wanted.start) < min(end, wanted.end)
    ]
    pfns = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)
    found = search_physical(memory, pfns, wanted.needles, problems)
    return sorted(
        (match for match in found if wanted.start <= match.address < wanted.end),
        key=lambda match: (match.address, match.needle),
    )


def _table(space: Space, wanted: _Wanted, found: Sequence[Match], problems: list[Problem]) -> Table:
    if not wanted.context:
        return _MATCHES.table([_row(space, wanted, match) for match in found])
    rows = []
    for match in found:
        size = wanted.needles[match.needle].size_bytes
        lines = word_rows(space, match.address - wanted.context * size, size, wanted.context, problems)
        lines += word_rows(space, match.address, size, 1, problems, text=False)
        lines += word_rows(space, match.address + size, size, wanted.context, problems)
        rows.append((*_row(space, wanted, match), WORDS.table(lines)))
    return _IN_CONTEXT.table(rows)


def _row(space: Space, wanted: _Wanted, match: Match) -> tuple[Cell, ...]:
    needle = wanted.needles[match.needle]
    if not needle.text:
        return (match.address, match.value, None, needle.name or None)
    data, present = space.read_available(match.address, max(_TEXT_SHOWN, len(needle.text)))
    shown = data[: len(present) if present.all() else int(np.argmin(present))].tobytes()
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in shown)
    return (match.address, None, text, None)


def _search_stacks(
    workspace: Workspace, wanted: _Wanted, problems: list[Problem], *, active: bool
) -> tuple[Table, ...]:
    stacks = open_stacks(workspace)
    space = open_space(workspace, AddressKind.KERNEL)
    rows: list[tuple[Cell, ...]] = []
    for facts in read_all_facts(workspace, problems):
        if active and facts.vaddr not in stacks.running:
            continue
        try:
            found = _search_stack(workspace, facts, stacks.thread_size, wanted)
        except UNREADABLE as exc:
            problems.append(problem(f"the stack of the task at {facts.vaddr:#x}", exc))
            continue
        if found:
            rows.append((*task_cells(facts), _table(space, wanted, found, problems)))
    return (_TASKS.table(rows),)


def _search_stack(workspace: Workspace, facts: TaskFacts, size_bytes: int, wanted: _Wanted) -> list[Match]:
    base = facts.number("stack")
    if not is_kernel_vaddr(base):
        return []
    data, present = workspace.memory.read_available(base, size_bytes)
    found = []
    for offset, number, value in search_bytes(data, wanted.needles):
        if present[offset : offset + wanted.needles[number].size_bytes].all():
            found.append(Match(base + offset, number, value))
    return sorted(found, key=lambda match: match.address)
