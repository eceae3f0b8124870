"""Fill the tables of ``bt``."""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Program

from postpanic.analysis.commands.backtrace.contents import ContentReader
from postpanic.analysis.commands.backtrace.shapes import (
    ARM64_KERNEL_REGISTERS,
    ARM64_USER_REGISTERS,
    OTHER_REGISTERS,
    REGISTERS,
    REGISTERS_OF_OTHERS,
    REGISTERS_OF_PROCESSOR,
    frames_shape,
)
from postpanic.analysis.commands.per_task import task_cells
from postpanic.analysis.stacks import arm64, x86_64
from postpanic.analysis.stacks.code_index import Place
from postpanic.analysis.stacks.frames import Frame, Saved, Trace, number_frames
from postpanic.analysis.tasks import TaskFacts
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Cell, Shape, Table

__all__ = ["SourceLines", "TraceTables", "entry_registers", "place_cells", "registers_table", "task_row"]

_NO_SYMBOL = Absent(Reason.NOT_PRESENT, "no symbol covers the address")


class SourceLines:
    """Source lines by address of code, from the debug information."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._found: dict[int, tuple[tuple[str, str, int], ...]] = {}
        self.asked = self.known = 0

    def find(self, pc: int) -> tuple[tuple[str, str, int], ...]:
        """Give function, file and line of each level of inlining, innermost first."""
        if pc not in self._found:
            self._found[pc] = self._read(pc)
            self.asked += 1
            self.known += bool(self._found[pc])
        return self._found[pc]

    def _read(self, pc: int) -> tuple[tuple[str, str, int], ...]:
        try:
            places = self._prog.source_location(pc)
            found = [(place.name() or "", place.filename, place.line) for place in places]
        except (LookupError, ValueError):
            return ()
        return tuple(entry for entry in found if entry[1] and entry[2])


def place_cells(place: Place | None) -> tuple[Cell, Cell, Cell]:
    """Give function, offset and module of a place."""
    if place is None or not place.function:
        return _NO_SYMBOL, None, (place.module or None) if place else None
    return place.function, place.offset, place.module or None


def registers_table(saved: Saved, *, hexadecimal: bool = False) -> Table:
    """Make the table of saved registers, under the line that names the interrupted instruction."""
    registers = saved.registers
    place = saved.place
    is_arm64 = "pstate" in registers
    at = _spell_place(place, hexadecimal=hexadecimal)
    title = ""
    if not saved.user and not is_arm64:
        title = f"[exception {'RIP' if 'rip' in registers else 'PC'}: {at}]"
    function, offset, module = place_cells(place) if not saved.user else (None, None, None)
    row: tuple[Cell, ...] = (
        "user" if saved.user else "kernel",
        saved.vaddr or None,
        function,
        offset,
        module,
        *(registers.get(name) for names in x86_64.REGISTER_ROWS for name in names),
        _arm64_table(saved, at, hexadecimal=hexadecimal) if is_arm64 else None,
        None if "rip" in registers or is_arm64 else OTHER_REGISTERS.table(list(registers.items())),
    )
    shape = REGISTERS_OF_PROCESSOR if "rip" in registers else REGISTERS_OF_OTHERS
    if "rax" in registers:
        shape = REGISTERS
    return shape.table([row], title=title)


def _spell_place(place: Place | None, *, hexadecimal: bool) -> str:
    if place is None or not place.function:
        return "unknown or invalid address"
    return place.function + (f"+{place.offset:{'#x' if hexadecimal else 'd'}}" if place.offset else "")


def _arm64_table(saved: Saved, at: str, *, hexadecimal: bool = False) -> Table:
    """Make the table of the registers of arm64."""
    values = {"lr": saved.return_pc or saved.registers.get("x30"), **saved.registers}
    names = [name for row in arm64.REGISTER_ROWS for name in row]
    shape = ARM64_USER_REGISTERS if saved.user else ARM64_KERNEL_REGISTERS
    places = (None, None) if saved.user else (at, _spell_place(saved.caller, hexadecimal=hexadecimal))
    return shape.table([(*(values.get(name) for name in names), *places)])


def entry_registers(trace: Trace) -> Table | None:
    """Give the registers of user code at its entry into the kernel, if the trace ends there."""
    saved = trace.frames[-1].saved if trace.frames else trace.start
    return registers_table(saved) if saved is not None and saved.user else None


class TraceTables:
    """
    Turns traces into tables.

    Parameters
    ----------
    offsets : str
        As :func:`frames_shape` takes it.
    lines : SourceLines, optional
        Where inlined functions and source lines come from.
    show_lines : bool
    contents : ContentReader, optional
        Reads what lies on the stack, where it is wanted.
    """

    def __init__(
        self,
        *,
        offsets: str = "",
        lines: SourceLines | None = None,
        show_lines: bool = False,
        contents: ContentReader | None = None,
        hexadecimal: bool = False,
    ) -> None:
        self.shape: Shape = frames_shape(offsets)
        self._lines = lines
        self._show_lines = show_lines
        self._contents = contents
        self._hexadecimal = hexadecimal

    def registers(self, saved: Saved) -> Table:
        """Make the table of saved registers."""
        return registers_table(saved, hexadecimal=self._hexadecimal)

    def frames(self, trace: Trace) -> Table:
        """Make the table of the frames of a trace."""
        return Table(self.shape, tuple(self._rows(trace)))

    def _rows(self, trace: Trace) -> Iterator[tuple[Cell, ...]]:
        before: Frame | None = None
        numbered = [frame for frame, number in number_frames(trace.frames) if number is not None]
        following = dict(zip(map(id, numbered), numbered[1:], strict=False))
        for number, frame in enumerate(numbered):
            left = None
            if before is not None and before.area is not None and before.area != frame.area:
                left = before.area.title
            if self._lines is not None:
                yield from self._inline_rows(frame)
            yield self._row(frame, number, left, following.get(id(frame)))
            before = frame

    def _row(self, frame: Frame, number: int, left: str | None, following: Frame | None) -> tuple[Cell, ...]:
        function, offset, module = place_cells(frame.place)
        saved = frame.saved
        file, line = self._source(frame) if self._show_lines else (None, None)
        return (
            left,
            number,
            "frame",
            frame.slot,
            function,
            offset or None,
            frame.pc,
            module,
            frame.reliable,
            frame.area.name if frame.area is not None else None,
            None if frame.reliable else "not certain",
            file,
            line,
            None if saved is None else self.registers(saved),
            self._contents.frame_table(frame, following) if self._contents is not None else None,
        )

    def _source(self, frame: Frame) -> tuple[Cell, Cell]:
        found = self._lines.find(_call_site(frame)) if self._lines is not None else ()
        return (found[-1][1], found[-1][2]) if found else (None, None)

    def _inline_rows(self, frame: Frame) -> Iterator[tuple[Cell, ...]]:
        """Give the functions that were inlined there, innermost first."""
        if self._lines is None or frame.place is None:
            return
        module = frame.place.module or None
        area = frame.area.name if frame.area is not None else None
        for name, file, line in self._lines.find(_call_site(frame))[:-1]:
            shown = (file, line) if self._show_lines else (None, None)
            yield (
                *(None, None, "inline", None, name, None, None, module),
                *(frame.reliable, area, "inline", *shown, None, None),
            )


def _call_site(frame: Frame) -> int:
    return frame.pc if frame.interrupted else frame.pc - 1


def task_row(facts: TaskFacts, problem: str, **tables: Cell) -> tuple[Cell, ...]:
    """Fill a row of the table of tasks."""
    names = ("start", "at", "frames", "text_addresses", "raw", "exceptions", "user")
    return (*task_cells(facts), facts.state_cell, problem or None, *(tables.get(name) for name in names))
