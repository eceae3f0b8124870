"""
Follow a stack of x86-64 from frame to frame by the kernel's unwind tables.

drgn unwinds too, by DWARF where there is some; here a stack of a sleeping task
costs microseconds, a trace may begin anywhere, and one that is lost goes on
from what lies on the stack, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from postpanic.analysis.stacks.code_index import CodeIndex, Place
from postpanic.analysis.stacks.frames import Area, Frame, Saved, Trace
from postpanic.analysis.stacks.orc_rows import OrcRows
from postpanic.analysis.stacks.words import Words
from postpanic.analysis.stacks.x86_64 import (
    CALL_BYTES,
    IRET_OFFSET,
    PT_REGS_BYTES,
    decode_registers,
    ends_with_call,
    is_user_mode,
)
from postpanic.errors import AbsentError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem
from postpanic.kernel.orc import OrcEntry, OrcRegister, OrcType
from postpanic.kernel.prologue import FrameLayout, decode_frame_layout

__all__ = ["MAX_FRAMES", "Start", "Walker"]

MAX_FRAMES = 8192
"""A stack of 64 KiB (KASAN) whose every word is a return address has as many."""
_MAX_GAPS = 16
_MAX_TRIALS = 64
_TRIAL_FRAMES = 512
_CODE_LIMIT_BYTES = 64 << 10
_WORD = (1 << 64) - 1
_DWARF_RBP = 6
_CALL = OrcType.CALL
_BY_SP = OrcRegister.SP
_BY_BP = OrcRegister.BP

_NAMES = {
    OrcRegister.BP: "rbp",
    OrcRegister.SP: "rsp",
    OrcRegister.R10: "r10",
    OrcRegister.R13: "r13",
    OrcRegister.DX: "rdx",
    OrcRegister.DI: "rdi",
    OrcRegister.AX: "rax",
}


@dataclass(frozen=True, slots=True)
class Start:
    """
    Where a trace begins.

    Parameters
    ----------
    pc, sp, fp : int
        The registers ``rip``, ``rsp`` and ``rbp``.
    interrupted : bool
        Whether *pc* is an interrupted instruction; False: a return address.
    registers : mapping, optional
        All of them, where they are known.
    """

    pc: int
    sp: int
    fp: int = 0
    interrupted: bool = False
    registers: Mapping[str, int] | None = None


class _LostError(Exception):
    """There is no way on from here; the message says why."""


class Walker:
    """
    Follows stacks.

    Parameters
    ----------
    words : Words
    rows : OrcRows
    code : CodeIndex
    areas : sequence of Area
        The stacks of all CPUs.
    """

    def __init__(self, words: Words, rows: OrcRows, code: CodeIndex, areas: Sequence[Area] = ()) -> None:
        self.words = words
        self.code = code
        self.areas = tuple(areas)
        self.rows = rows
        self._entries: dict[int, OrcEntry | None] = {}
        self._layouts: dict[int, FrameLayout | None] = {}
        self._calls: dict[int, bool] = {}

    def trace(self, start: Start, task_area: Area | None) -> Trace:
        """Follow a stack to its end; where that fails, go on from what lies on the stack."""
        trace = Trace()
        at: Start | None = start
        reliable = True
        for _ in range(_MAX_GAPS):
            walk = _Walk(self, task_area, trace.frames)
            why = walk.run(at, reliable=reliable, limit=MAX_FRAMES)
            if why is None:
                trace.complete = True
                break
            at, how = self._find_way_on(walk.last, task_area)
            reliable = how == _TOP
            trace.problems.append(_describe_gap(why, walk.last, at, how))
            if at is None:
                break
        return trace

    def try_trace(self, start: Start, task_area: Area | None) -> Trace:
        """Follow a stack, and give up where the unwinder is lost."""
        trace = Trace()
        trace.complete = _Walk(self, task_area, trace.frames).run(start, reliable=True, limit=_TRIAL_FRAMES) is None
        return trace

    def find_area(self, vaddr: int, task_area: Area | None) -> Area | None:
        """Find the stack that an address lies in."""
        if task_area is not None and task_area.start <= vaddr <= task_area.end:
            return task_area
        for area in self.areas:
            if area.start <= vaddr < area.end:
                return area
        return None

    def entry(self, key: int) -> OrcEntry | None:
        """Find the unwind row of an address."""
        try:
            return self._entries[key]
        except KeyError:
            entry = self._entries[key] = self.rows.find(key)
            return entry

    def layout(self, place: Place) -> FrameLayout | None:
        """Find how the frame of a function is laid out that has no unwind rows."""
        if place.start not in self._layouts:
            layout = None
            if 0 < place.size_bytes <= _CODE_LIMIT_BYTES:
                try:
                    layout = decode_frame_layout(self.words.memory.read(place.start, place.size_bytes))
                except AbsentError:
                    layout = None
            self._layouts[place.start] = layout
        return self._layouts[place.start]

    def is_return_address(self, pc: int) -> bool:
        """Tell whether an address is in code, behind a call."""
        found = self._calls.get(pc)
        if found is None:
            found = False
            if self.code.is_text(pc):
                try:
                    found = ends_with_call(self.words.memory.read(pc - CALL_BYTES, CALL_BYTES))
                except AbsentError:
                    # The code is not in the dump: nothing speaks against it.
                    found = True
            self._calls[pc] = found
        return found

    def _find_way_on(self, last: Frame, task_area: Area | None) -> tuple[Start | None, str]:
        """Find the caller of a frame from which there is no way on."""
        if last.interrupted and last.place is None:
            try:
                pc = self.words.read(last.sp)
            except AbsentError:
                pc = 0
            if self.is_return_address(pc):
                return Start(pc, last.sp + 8, last.fp), _TOP
        if (start := self._by_frame_pointer(last, task_area)) is not None:
            return start, _POINTER
        return self._scan(last, task_area), _SCAN

    def _by_frame_pointer(self, last: Frame, task_area: Area | None) -> Start | None:
        """Code that is made at runtime (BPF) has no unwind rows, and keeps frame pointers."""
        area = self.find_area(last.sp, task_area)
        if last.place is not None or area is None or last.fp & 7 or not last.sp <= last.fp < area.end:
            return None
        try:
            fp, pc = self.words.read(last.fp), self.words.read(last.fp + 8)
        except AbsentError:
            return None
        return Start(pc, last.fp + 16, fp) if self.is_return_address(pc) else None

    def _scan(self, last: Frame, task_area: Area | None) -> Start | None:
        """Find the nearest return address from which the stack unwinds to its end; else the nearest."""
        area = self.find_area(last.sp, task_area)
        if area is None:
            return None
        first: Start | None = None
        for trial, start in enumerate(self.candidates(last.sp, area.end, last.fp)):
            if trial >= _MAX_TRIALS:
                break
            first = first or start
            if self.try_trace(start, task_area).complete:
                return start
        return first

    def candidates(self, start: int, end: int, fp: int = 0) -> list[Start]:
        """List the return addresses in a part of a stack as places where a trace may begin, by rising address."""
        start = (start + 7) & ~7
        if not 0 <= end - start <= 1 << 20:
            return []
        words, present = self.words.read_range(start, end)
        places = (self.code.text_mask(words) & present).nonzero()[0].tolist()
        found = [(int(words[place]), start + 8 * place) for place in places]
        return [Start(pc, slot + 8, fp) for pc, slot in found if self.is_return_address(pc)]


_TOP, _POINTER, _SCAN = "top", "pointer", "scan"


def _describe_gap(why: str, last: Frame, at: Start | None, how: str) -> Problem:
    what = f"the unwinder is lost at {last.pc:#x}, stack pointer {last.sp:#x}: {why}"
    if at is None:
        return Problem(f"{what}; nothing on the stack leads on", Reason.DAMAGED)
    ways = {
        _TOP: "its caller is the return address at the stack pointer",
        _POINTER: "its caller is found by the frame pointer, not certain",
        _SCAN: f"goes on from the return address at {at.sp - 8:#x}, not certain",
    }
    return Problem(f"{what}; {ways[how]}", Reason.DAMAGED)


class _Walk:
    """One stretch of frames that the unwinder can follow."""

    def __init__(self, walker: Walker, task_area: Area | None, frames: list[Frame]) -> None:
        self.last = Frame(0, 0, 0, None)
        self._walker = walker
        self._task_area = task_area
        self._frames = frames
        self._left: set[Area] = set()
        self._area: Area | None = None

    def run(self, start: Start | None, *, reliable: bool, limit: int) -> str | None:
        """Add frames; None: the stack ended as it should, else why it did not."""
        if start is None:
            return "nowhere to begin"
        code, entry_of = self._walker.code, self._walker.entry
        pc, sp, fp, interrupted, registers = start.pc, start.sp, start.fp, start.interrupted, start.registers
        self._area = self._walker.find_area(sp, self._task_area)
        try:
            while len(self._frames) < limit:
                key = pc if interrupted else (pc - 1) & _WORD
                place = code.find(pc) if interrupted else code.find_caller(pc)
                frame = self.last = Frame(pc, sp, fp, place, interrupted, reliable, self._area)
                self._frames.append(frame)
                entry = entry_of(key)
                if entry is None:
                    pc, sp, fp = self._step_by_code(frame)
                    interrupted, registers = False, None
                elif entry.type is _CALL:
                    pc, sp, fp = self._step(entry, frame, registers)
                    interrupted, registers = False, None
                else:
                    saved = self._step_over_entry(entry, frame, registers)
                    if saved is None:
                        return None
                    registers, interrupted = saved.registers, True
                    pc, sp, fp = registers["rip"], registers["rsp"], registers.get("rbp", fp)
                self._enter(sp)
        except _LostError as lost:
            return str(lost)
        except AbsentError as error:
            return error.message
        return f"more than {limit} frames"

    def _step(self, entry: OrcEntry, frame: Frame, registers: Mapping[str, int] | None) -> tuple[int, int, int]:
        """Go to a caller: its ``rip``, ``rsp`` and ``rbp``."""
        read = self._walker.words.read
        if entry.sp_register is _BY_SP:
            cfa = frame.sp + entry.sp_offset
        elif entry.sp_register is _BY_BP:
            cfa = frame.fp + entry.sp_offset
        else:
            cfa = self._find_cfa(entry, frame, registers)
        if cfa <= frame.sp and entry.sp_register in (_BY_SP, _BY_BP):
            raise _LostError(f"the stack does not rise: {cfa & _WORD:#x} after {frame.sp:#x}")
        fp = frame.fp
        if entry.bp_register is OrcRegister.PREV_SP:
            fp = read((cfa + entry.bp_offset) & _WORD)
        elif entry.bp_register is _BY_BP:
            fp = read((frame.fp + entry.bp_offset) & _WORD)
        return read((cfa - 8) & _WORD), cfa & _WORD, fp

    def _find_cfa(self, entry: OrcEntry, frame: Frame, registers: Mapping[str, int] | None) -> int:
        read = self._walker.words.read
        register = entry.sp_register
        if register is OrcRegister.BP_INDIRECT:
            return read((frame.fp + entry.sp_offset) & _WORD)
        if register is OrcRegister.SP_INDIRECT:
            # The saved pointer is at the top; the offset counts from it (87ccc826bf1c).
            return (read(frame.sp) + entry.sp_offset) & _WORD
        if register is _BY_SP or register is _BY_BP:
            return ((frame.sp if register is _BY_SP else frame.fp) + entry.sp_offset) & _WORD
        name = _NAMES.get(register, "")
        if registers is None or name not in registers:
            raise _LostError(f"the frame is found by {name or register.name}, which is not known")
        return (registers[name] + entry.sp_offset) & _WORD

    def _step_over_entry(self, entry: OrcEntry, frame: Frame, registers: Mapping[str, int] | None) -> Saved | None:
        """Go over the registers that an entry into the kernel saved; None: the stack ends here."""
        if entry.type is OrcType.END_OF_STACK:
            return None
        vaddr = self._find_cfa(entry, frame, registers)
        memory = self._walker.words.memory
        if entry.type is OrcType.REGS:
            values = decode_registers(memory.read(vaddr, PT_REGS_BYTES))
        else:
            values = decode_registers(memory.read(vaddr, PT_REGS_BYTES - IRET_OFFSET))
            values["rbp"] = frame.fp
        if not values["rip"] and not values["cs"]:
            # A kernel thread: nothing ever entered the kernel.
            return None
        user = is_user_mode(values)
        saved = Saved(vaddr, values, user, None if user else self._walker.code.find(values["rip"]))
        frame.saved = saved
        if not user and values["rsp"] <= frame.sp and values["rsp"] in (self._area or ()):
            raise _LostError(f"the stack does not rise: {values['rsp']:#x} after {frame.sp:#x}")
        return None if user else saved

    def _step_by_code(self, frame: Frame) -> tuple[int, int, int]:
        """Go to the caller of a function without unwind rows, by the function's own code."""
        place = frame.place
        if place is None:
            raise _LostError(f"{frame.pc:#x} is not in code of the kernel or its modules")
        layout = self._walker.layout(place) if place.start else None
        if layout is None:
            raise _LostError(f"nothing tells how {place.function or hex(frame.pc)} unwinds")
        row = layout.at(place.offset)
        cfa = (frame.sp + row.cfa_offset) & _WORD
        read = self._walker.words.read
        fp = frame.fp
        for register, below in row.saved:
            if register == _DWARF_RBP:
                fp = read((cfa - below) & _WORD)
        return read((cfa - 8) & _WORD), cfa, fp

    def _enter(self, sp: int) -> None:
        """Follow the stack pointer to another stack; to each of them once."""
        area = self._area
        if area is not None and area.start <= sp <= area.end:
            return
        new = self._walker.find_area(sp, self._task_area)
        if new is None:
            raise _LostError(f"the stack pointer {sp:#x} is in no stack that is known")
        if new in self._left:
            raise _LostError(f"the stack pointer {sp:#x} is in a stack that was left before")
        if area is not None:
            self._left.add(area)
        self._area = new
