"""``sbitmapq``: a scalable bitmap with its waiters, as block and target drivers allocate tags from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from drgn import Object, Program, sizeof
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.wait import waitqueue_active

from postpanic.analysis.cells import absent, cell, problem
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, choose_style
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.structures import write_members
from postpanic.analysis.commands.values import parse_cpus, parse_vaddr
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.objects.braces import MEMBERS, ValueWriter
from postpanic.analysis.objects.contents import object_contents
from postpanic.analysis.objects.members import members_table
from postpanic.analysis.objects.paths import TypePath, parse_type_path
from postpanic.analysis.objects.style import Style
from postpanic.analysis.workspace import Workspace
from postpanic.errors import CorruptError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["sbitmapq"]

_MAX_DEPTH = 1 << 22
_WAIT_QUEUES = 8
"""``SBQ_WAIT_QUEUES`` of ``include/linux/sbitmap.h``."""
_NO_MEMBER = (AttributeError, LookupError)

_WAITERS = Shape(
    "ws",
    (
        Column("index", Kind.NUMBER, help="From 0."),
        Column(
            "wait_count", Kind.NUMBER, prefix=".wait_cnt = ", suffix=", ", help="wait_cnt; not in kernels of today."
        ),
        Column("wait", help="Whether somebody waits: active or inactive."),
    ),
    Layout.LINES,
    "        {wait_count}.wait = {wait}",
    title="ws:",
)
_QUEUE = Shape(
    "queue",
    (
        Column("depth", Kind.NUMBER, help="Bits."),
        Column("busy", Kind.NUMBER, help="Bits that are in use."),
        Column("cleared", Kind.NUMBER, help="Bits that are free, and still set in their word."),
        Column("bits_per_word", Kind.NUMBER, help="Bits in each word."),
        Column("map_nr", Kind.NUMBER, help="Words."),
        Column("alloc_hint", help="Where each CPU looks first."),
        Column("wake_batch", Kind.NUMBER, help="How many bits are to be freed before somebody is woken."),
        Column("wake_index", Kind.NUMBER, help="Wait queue that is woken next."),
        Column("ws_active", Kind.NUMBER, help="Wait queues with waiters."),
        Column("completion_count", Kind.NUMBER, help="Bits that were freed; 6.1 and newer."),
        Column("wakeup_count", Kind.NUMBER, help="Waiters that were woken; 6.1 and newer."),
        Column("round_robin", Kind.NUMBER, help="Whether bits are given out in order."),
        Column("min_shallow_depth", Kind.NUMBER, help="Least depth that a caller limits itself to."),
        Column("waiters", Kind.ROWS, shape=_WAITERS, help="Its wait queues."),
    ),
    Layout.LINES,
    "depth = {depth}\nbusy = {busy}\ncleared = {cleared}\nbits_per_word = {bits_per_word}\nmap_nr = {map_nr}\n"
    "alloc_hint = {{{alloc_hint}}}\nwake_batch = {wake_batch}\nwake_index = {wake_index}\nws_active = {ws_active}\n"
    "completion_cnt = {completion_count}\nwakeup_cnt = {wakeup_count}\nround_robin = {round_robin}\n"
    "min_shallow_depth = {min_shallow_depth}",
)
_BITMAP = Shape(
    "bitmap",
    (
        Column("offset", Kind.HEX, format="08x", help="Of the first byte; bit 0 is the lowest of byte 0."),
        Column("bytes", help="16 bytes."),
    ),
    Layout.LINES,
    "{offset}: {bytes}",
)
_ENTRIES = Shape(
    "entries",
    (
        Column("index", Kind.NUMBER, help="Number of the bit that is set."),
        Column("address", Kind.ADDRESS, prefix="0x", help="Its structure."),
        Column("structure", Kind.ROWS, shape=MEMBERS, help="What is in it (-v, or a member)."),
    ),
    Layout.LINES,
    "{index}: {address}",
)


@command(
    "sbitmapq",
    summary="sbitmap_queue struct contents",
    description=(
        "Show a struct sbitmap_queue and which of its bits are in use; with -s and -a the structures of an array that "
        "the bits are the indexes of."
    ),
    operands=(Operand("address", "hexadecimal address of a struct sbitmap_queue", required=True),),
    options=(
        Option("-s", "structure", "structure in the array; or structure.member,member to show these", "STRUCT"),
        Option("-a", "array", "hexadecimal address of the array", "ADDRESS"),
        Option("-p", "pointers", "the array has pointers to the structures"),
        Option("-v", "verbose", "show the structures whole"),
        HEXADECIMAL,
        DECIMAL,
    ),
    shapes=(_QUEUE, _BITMAP, _ENTRIES),
    examples=(
        Example("sbitmapq c0000000e118c808", "the bitmap"),
        Example("sbitmapq -s iscsi_cmd -a c0000000671c0000 c0000000e118c808", "the structures whose bits are set"),
    ),
)
def sbitmapq(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show a scalable bitmap."""
    problems: list[Problem] = []
    structure, array = arguments.get("structure"), arguments.get("array")
    if (structure is None) != (array is None):
        raise UsageError("sbitmapq: -s and -a need each other", hint="help sbitmapq")
    if structure is None and (arguments.has("pointers") or arguments.has("verbose")):
        raise UsageError("sbitmapq: -p and -v need -s and -a", hint="help sbitmapq")
    queue = Object(workspace.prog, "struct sbitmap_queue *", parse_vaddr(workspace, arguments.operands[0]))
    try:
        bits = _read_bits(queue.sb)
    except UNREADABLE as exc:
        problems.append(problem(f"sbitmap_queue at {queue.value_():#x}", exc))
        return Answer("sbitmapq", (), tuple(problems))
    if structure is not None and array is not None:
        walk = _Array.parse(workspace, structure, array, arguments)
        rows = [walk.row(int(index)) for index in np.flatnonzero(bits.busy)]
        return Answer("sbitmapq", (_ENTRIES.table(rows, title=None if rows else "no bit is in use"),), ())
    bitmap = _BITMAP.table(list(_bitmap_rows(bits.busy)))
    return Answer("sbitmapq", (_QUEUE.table([_queue_row(workspace, queue, bits)]), bitmap), tuple(problems))


@dataclass(frozen=True, slots=True)
class _Bits:
    """The bits of a bitmap, one element each."""

    busy: np.ndarray
    cleared: int
    per_word: int
    words: int


def _read_bits(bitmap: Object) -> _Bits:
    """
    Read a ``struct sbitmap``.

    Raises
    ------
    CorruptError
        If it cannot be one.
    """
    depth, shift, words = (int(bitmap.member_(name).value_()) for name in ("depth", "shift", "map_nr"))
    if not (0 <= depth <= _MAX_DEPTH and 0 <= shift <= 6 and words == -(-depth >> shift)):
        raise CorruptError(f"it cannot be one: depth {depth}, shift {shift}, map_nr {words}")
    busy = np.zeros(words << shift, dtype=np.bool_)
    cleared = 0
    for number in range(words):
        entry = bitmap.map[number]
        word = int(entry.word.value_())
        try:
            gone = int(entry.cleared.value_())
        except AttributeError:
            gone = 0
        cleared += (gone & word).bit_count()
        bits = np.unpackbits(np.frombuffer((word & ~gone).to_bytes(8, "little"), np.uint8), bitorder="little")
        busy[number << shift : (number + 1) << shift] = bits[: 1 << shift]
    return _Bits(busy[:depth], cleared, 1 << shift, words)


def _queue_row(workspace: Workspace, queue: Object, bits: _Bits) -> tuple[Cell, ...]:
    return (
        len(bits.busy),
        int(bits.busy.sum()),
        bits.cleared,
        bits.per_word,
        bits.words,
        cell(lambda: _alloc_hints(workspace, queue)),
        cell(lambda: int(queue.wake_batch.value_())),
        cell(lambda: int(queue.wake_index.counter.value_())),
        cell(lambda: int(queue.ws_active.counter.value_())),
        cell(lambda: int(queue.completion_cnt.counter.value_())),
        cell(lambda: int(queue.wakeup_cnt.counter.value_())),
        cell(lambda: int(_first_member(queue.sb, queue, "round_robin").value_())),
        cell(lambda: int(queue.min_shallow_depth.value_())),
        _waiters(queue),
    )


def _first_member(newer: Object, older: Object, name: str) -> Object:
    """Get a member that moved from ``struct sbitmap_queue`` into ``struct sbitmap`` (5.12)."""
    try:
        return newer.member_(name)
    except LookupError:
        return older.member_(name)


def _alloc_hints(workspace: Workspace, queue: Object) -> str:
    hints = _first_member(queue.sb, queue, "alloc_hint")
    if not hints:
        return ""
    return ", ".join(str(int(per_cpu(hints[0], cpu).value_())) for cpu in parse_cpus(workspace, "all"))


def _waiters(queue: Object) -> Cell:
    rows: list[tuple[Cell, ...]] = []
    for number in range(_WAIT_QUEUES):
        try:
            state = queue.ws[number]
            active = "active" if waitqueue_active(state.wait) else "inactive"
        except UNREADABLE as exc:
            rows.append((number, None, absent(exc)))
            continue
        try:
            count: Cell = int(state.wait_cnt.counter.value_())
        except _NO_MEMBER:
            count = None
        rows.append((number, count, active))
    return _WAITERS.table(rows)


def _bitmap_rows(busy: np.ndarray) -> Iterator[tuple[Cell, ...]]:
    data = np.packbits(busy, bitorder="little").tobytes()
    for start in range(0, len(data), 16):
        yield start, data[start : start + 16].hex(" ", -2)


@dataclass(frozen=True, slots=True)
class _Array:
    """The array that the bits are the indexes of."""

    prog: Program
    base: int
    path: TypePath
    pointers: bool
    verbose: bool
    style: Style

    @classmethod
    def parse(cls, workspace: Workspace, structure: str, array: str, arguments: Arguments) -> _Array:
        """
        Find the type of the elements.

        Raises
        ------
        FactAbsentError
            If there is no such type or member.
        """
        path = parse_type_path(workspace.prog, structure)
        base = parse_vaddr(workspace, array)
        style = choose_style(workspace, arguments)
        return cls(workspace.prog, base, path, arguments.has("pointers"), arguments.has("verbose"), style)

    def row(self, index: int) -> tuple[Cell, ...]:
        """Make the row of the element of one bit."""
        vaddr = cell(lambda: self._vaddr(index))
        if not isinstance(vaddr, int) or not (self.verbose or self.path.members):
            return index, vaddr, None
        try:
            return index, vaddr, self._members(vaddr)
        except UNREADABLE as exc:
            return index, vaddr, absent(exc)

    def _vaddr(self, index: int) -> int:
        if self.pointers:
            return int(Object(self.prog, "void *", address=self.base + 8 * index).value_())
        return self.base + int(sizeof(self.path.type)) * index

    def _members(self, vaddr: int) -> Table:
        element = Object(self.prog, self.path.type, address=vaddr)
        if not self.path.members:
            return members_table([element], self.style)
        writer = ValueWriter(self.prog, self.style)
        write_members(writer, self.path.members, object_contents(self.prog, element), vaddr, tail=",")
        return MEMBERS.table(writer.table_rows())
