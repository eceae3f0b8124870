"""
Follow a stack of arm64 by its frame records.

The kernel keeps a frame pointer everywhere (``CONFIG_FRAME_POINTER`` is always set): ``x29`` points to a record of two
words, the caller's ``x29`` and the return address. An exception builds one inside the registers that it saves
(``struct pt_regs``, member ``stackframe``), so the chain leads through it; that is where registers are shown. A
function that was interrupted before it made its record, or makes none, has its caller in ``x30`` alone.

Sources: ``arch/arm64/kernel/stacktrace.c``, ``entry.S``, ``Documentation/arch/arm64/pointer-authentication.rst``; Arm
"Procedure Call Standard for the Arm 64-bit Architecture", 6.4.6 (the frame pointer).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import drgn
import numpy as np
from drgn import Program
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.percpu import per_cpu
from numpy.typing import NDArray

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.code_index import CodeIndex, Place
from postpanic.analysis.stacks.frames import Area, Frame, Saved, Trace
from postpanic.analysis.stacks.words import Words
from postpanic.errors import AbsentError, FactAbsentError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Problem

__all__ = ["REGISTER_NAMES", "REGISTER_ROWS", "FrameRecords", "State"]

REGISTER_NAMES = (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate")
"""The beginning of ``struct pt_regs`` (``arch/arm64/include/asm/ptrace.h``): ``struct user_pt_regs``."""
REGISTER_ROWS = (
    ("pc", "lr", "sp"),
    *(tuple(f"x{number}" for number in range(first, first - 3, -1)) for first in range(29, 0, -3)),
    ("orig_x0", "syscallno", "pstate"),
)
"""How crash lays them out; ``lr`` is ``x30``."""
_SWITCHED = tuple(f"x{number}" for number in range(19, 29))
"""Members of ``struct cpu_context`` (``arch/arm64/include/asm/processor.h``)."""
_SYSCALLNO_MASK = 0xFFFF_FFFF
"""An ``int`` behind ``orig_x0``."""
_MAX_FRAMES = 4096
_MODE_MASK = 0xF
"""``PSR_MODE_MASK``; 0 is EL0, user mode."""
_ENTRY = re.compile(r"(?:el1[ht]?_(?:64_)?(?:sync|irq|fiq|error)(?:_invalid)?|__bad_stack)\Z")
"""Vectors of exceptions taken in the kernel itself (``entry.S``), the names of 5.10 too."""
_VECTORS = "vectors"
"""The table of vectors (``entry.S``): where a CPU is right after it took an exception."""
_KERNEL_BIT = 1 << 55
"""Tells the kernel's half from the user's, whatever the bits above it are used for."""
_MODE_32_BITS = 1 << 4
"""``PSR_MODE32_BIT``."""
_KIND_FINAL, _KIND_REGISTERS = 1, 2
"""``FRAME_META_TYPE_FINAL`` and ``FRAME_META_TYPE_PT_REGS`` (``arch/arm64/include/asm/stacktrace/frame.h``)."""
_FP, _SP, _PC, _PSTATE = 29, 31, 32, 33
"""Where these are in ``struct pt_regs``, words."""
_PROLOGUE_BYTES = 4 << 10
# Arm ARM C6.2: STP x29, x30 (pre-index, signed offset), LDP likewise (post-index), MOV/ADD x29, sp, #imm, RET.
_STP = ((0xFFC07FFF, 0xA9807BFD), (0xFFC07FFF, 0xA9007BFD))
_LDP = ((0xFFC07FFF, 0xA8C07BFD), (0xFFC07FFF, 0xA9407BFD))
_SET_FP = (0xFFC003FF, 0x910003FD)
_RETURNS = frozenset({0xD65F03C0, 0xD65F0BFF, 0xD65F0FFF})
_BRANCH_MASK, _BRANCH = 0xFC000000, 0x14000000


@dataclass(frozen=True, slots=True)
class State:
    """
    Registers that a trace begins with.

    Parameters
    ----------
    pc, fp, sp : int
    lr : int, optional
        ``x30``, where the function was interrupted and may not have saved it.
    registers : mapping, optional
        All of them; of a task that sleeps those that a call keeps.
    interrupted : bool
        Whether the function was interrupted there, and did not call.
    """

    pc: int
    fp: int
    sp: int
    lr: int | None = None
    registers: Mapping[str, int] | None = None
    interrupted: bool = False


class FrameRecords:
    """
    Follows frame records.

    Parameters
    ----------
    prog : Program
    words : Words
    code : CodeIndex
    thread_size : int
        Bytes of a stack.
    """

    def __init__(self, prog: Program, words: Words, code: CodeIndex, thread_size: int) -> None:
        self._prog = prog
        self._words = words
        self._code = code
        self._thread_size = thread_size
        self._has_record: dict[int, bool] = {}
        memory = words.memory
        # Since 5.10 (VMCOREINFO's, if pointers are signed); the bits above those of addresses would hold it.
        mask = memory.vmcoreinfo.get_number("KERNELPACMASK")
        self.code_mask = mask or (1 << 64) - (1 << memory.layout.va_bits)
        """The bits of an address that an authentication code may be in."""
        regs = prog.type("struct pt_regs")
        self._regs_bytes = drgn.sizeof(regs)
        self.record_offset = int(drgn.offsetof(regs, "stackframe"))
        """Bytes from ``struct pt_regs`` to the record in it."""
        self._has_kind = _has_kind(regs)
        self.areas = tuple(self._read_areas())
        """The stacks of the CPUs."""

    def _read_areas(self) -> Iterator[Area]:
        """Read the stacks of interrupts and of overflows of each CPU."""
        for cpu in for_each_possible_cpu(self._prog):
            for name, symbol, is_pointer in (("IRQ", "irq_stack_ptr", True), ("OVERFLOW", "overflow_stack", False)):
                try:
                    found = per_cpu(self._prog[symbol], cpu)
                    start = int(found.value_()) if is_pointer else int(found.address_of_())
                except UNREADABLE:
                    continue
                size = self._thread_size if is_pointer else drgn.sizeof(found.type_)
                if start:
                    yield Area(name, start, start + size, cpu)

    def strip(self, pc: int) -> int:
        """Take the authentication code out of a kernel's return address; without one its bits are all ones."""
        return pc | self.code_mask if pc & _KERNEL_BIT else pc

    def strip_all(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Take it out of many words; those of the user's half stay as they are."""
        is_kernel = words & np.uint64(_KERNEL_BIT) != 0
        return np.where(is_kernel, words | np.uint64(self.code_mask), words)

    def find_entry_frames(self, words: NDArray[np.uint64]) -> list[int]:
        """
        Find what may be a ``struct pt_regs`` among the words of a stack.

        The entry code makes a record in it (``kernel_entry`` of ``entry.S``): of the interrupted function's ``x29`` and
        ``pc``, or zeroes where user code was interrupted; since 6.13 zeroes and what kind it is. Those of user code are
        at the very beginning of a stack (``task_pt_regs()``).

        Returns
        -------
        list of int
            Index of the first word of each, rising.
        """
        size, record = self._regs_bytes // 8, self.record_offset // 8
        if len(words) < size:
            return []
        count = len(words) - size + 1
        sp, pc, state, fp = (words[place : place + count] for place in (_SP, _PC, _PSTATE, _FP))
        above, back = words[record : record + count], words[record + 1 : record + 1 + count]
        is_kernel = pc & np.uint64(_KERNEL_BIT) != 0
        # EL0 of 64 bits; other than that only the kernel's own EL1 and EL2.
        mode = state & np.uint64(_MODE_MASK | _MODE_32_BITS)
        from_user = ~is_kernel & (mode == 0) & (pc != 0) & (above == 0) & (back == 0) & (sp >> np.uint64(63) == 0)
        from_user[:-1] = False
        from_kernel = is_kernel & (mode != 0) & (state >> np.uint64(32) == 0) & (sp >> np.uint64(63) == 1)
        if self._has_kind:
            kind = words[record + 2 : record + 2 + count]
            from_user &= kind == np.uint64(_KIND_FINAL)
            from_kernel &= (kind == np.uint64(_KIND_REGISTERS)) & (above == 0) & (back == 0)
        else:
            from_kernel &= (above == fp) & (back == pc)
        return [int(place) for place in np.flatnonzero(from_user | from_kernel)]

    def begin_at(self, sp: int, pc: int | None) -> State:
        """
        Begin at a frame record, or at the return address in one.

        Raises
        ------
        FactAbsentError
            If neither is there.
        """
        for place in (sp, sp - 8):
            above, back = self._words.read_many(place, 2)
            if self._code.find_caller(self.strip(back)) is not None and above & _KERNEL_BIT:
                return State(pc if pc is not None else self.strip(back), above, above)
        raise FactAbsentError(f"no frame record at {sp:#x}")

    def sleeping(self, context: drgn.Object) -> State:
        """
        Begin where ``cpu_switch_to()`` left a task.

        Parameters
        ----------
        context : Object
            ``thread.cpu_context``: what a call keeps, ``fp``, ``sp``, and as ``pc`` where it returns to.
        """
        known = {name: int(context.member_(name).value_()) for name in _SWITCHED}
        fp = int(context.fp.value_())
        return State(self.strip(int(context.pc.value_())), fp, int(context.sp.value_()), None, known | {"x29": fp})

    def running(self, registers: Mapping[str, int]) -> State:
        """Begin with all registers of a CPU."""
        # drgn has both names of x29 and x30.
        known = {name: registers[name] for name in REGISTER_NAMES if name in registers}
        return State(known["pc"], known.get("x29", 0), known["sp"], known.get("x30"), known, interrupted=True)

    def trace(self, state: State, task_area: Area | None) -> Trace:
        """Follow a stack to its end, or as far as it leads."""
        trace = Trace(registers=state.registers)
        areas = (*((task_area,) if task_area is not None else ()), *self.areas)
        interrupted = state.interrupted
        fp, pc, sp, lr = state.fp, state.pc, state.sp, state.lr
        place = self._code.find(pc) if interrupted else self._code.find_caller(pc)
        trace.frames.append(self._frame(pc, sp, fp, place, areas, interrupted=interrupted))
        try:
            self._follow(trace, areas, fp, lr if interrupted else None, place, pc)
        except (AbsentError, struct.error) as exc:
            trace.problems.append(problem(f"the frame record at {trace.frames[-1].fp:#x}", exc))
        return trace

    def _follow(
        self, trace: Trace, areas: Sequence[Area], fp: int, lr: int | None, place: Place | None, pc: int
    ) -> None:
        while len(trace.frames) < _MAX_FRAMES:
            area = _find(areas, fp)
            if lr is not None and self._returns_by_register(place, pc, lr, fp if area is not None else None):
                trace.frames.append(self._caller(self.strip(lr), fp, areas))
            lr = None
            if area is None or fp & 7:
                if fp:
                    what = f"frame pointer {fp:#x} is in no stack that is known"
                    trace.problems.append(Problem(what, Reason.DAMAGED))
                trace.complete = not fp
                return
            above, back = self._words.read_many(fp, 2)
            if not above and not back:
                # Since 6.13 the record says whether registers go on (c2c6b27b5aa1), for code of any name.
                found = self._exception(trace, areas, fp) if self._is_of_registers(fp) else None
                if found is None:
                    trace.complete = True
                    self._end(trace, fp)
                    return
                fp, pc, lr, place = found
                continue
            if area is _find(areas, above) and above <= fp:
                trace.problems.append(Problem(f"the frame record at {fp:#x} leads back to {above:#x}", Reason.DAMAGED))
                return
            frame = self._caller(self.strip(back), above, areas)
            trace.frames.append(frame)
            fp, pc, place = above, frame.pc, frame.place
            if place is not None and _ENTRY.match(place.function):
                found = self._exception(trace, areas, fp)
                if found is not None:
                    fp, pc, lr, place = found

    def _is_of_registers(self, fp: int) -> bool:
        return self._has_kind and self._words.read(fp + 16) == _KIND_REGISTERS

    def _exception(self, trace: Trace, areas: Sequence[Area], fp: int) -> tuple[int, int, int, Place | None] | None:
        """Step over the registers that an exception saved; None: there are none where they should be."""
        saved = self.read_registers(fp - self.record_offset)
        if saved.user or (_find(areas, saved.registers["sp"]) is None and not saved.registers["x29"]):
            return None
        trace.frames[-1].saved = saved
        pc, registers = saved.registers["pc"], saved.registers
        frame = self._frame(pc, registers["sp"], registers["x29"], saved.place, areas, interrupted=True)
        trace.frames.append(frame)
        return registers["x29"], pc, registers["x30"], saved.place

    def read_registers(self, vaddr: int) -> Saved:
        """Read a ``struct pt_regs``; raises as :meth:`.Words.read`."""
        *values, original, number = self._words.read_many(vaddr, len(REGISTER_NAMES) + 2)
        registers = dict(zip(REGISTER_NAMES, values, strict=True))
        user = not registers["pstate"] & _MODE_MASK
        returns = self.strip(registers["x30"])
        if user:
            registers |= {"orig_x0": original, "syscallno": number & _SYSCALLNO_MASK}
            return Saved(vaddr, registers, user, None, returns)
        return Saved(vaddr, registers, user, self._code.find(registers["pc"]), returns, self._code.find(returns))

    def _end(self, trace: Trace, fp: int) -> None:
        """Show the registers of user code, which lie at the end of the stack of a process."""
        saved = self.read_registers(fp - self.record_offset)
        if saved.user and saved.registers["pc"] and trace.frames:
            trace.frames[-1].saved = saved

    def _caller(self, pc: int, fp: int, areas: Sequence[Area]) -> Frame:
        return self._frame(pc, fp, fp, self._code.find_caller(pc), areas, interrupted=False)

    def _frame(
        self, pc: int, sp: int, fp: int, place: Place | None, areas: Sequence[Area], *, interrupted: bool
    ) -> Frame:
        return Frame(pc, sp, fp, place, interrupted=interrupted, area=_find(areas, sp), return_bytes=0)

    def _returns_by_register(self, place: Place | None, pc: int, lr: int, fp: int | None) -> bool:
        """Tell whether what was interrupted returns to ``x30``, and not to where the record at *fp* says."""
        if place is None:
            # A call through a bad pointer: nothing ran there that could have made a record.
            return self._code.find_caller(self.strip(lr)) is not None
        if self._made_record(place, pc):
            return False
        if place.function != _VECTORS or fp is None:
            return True
        # At an exception vector: the record may be made, and nothing called since.
        return self.strip(self._words.read(fp + 8)) != self.strip(lr)

    def _made_record(self, place: Place, pc: int) -> bool:
        """Tell whether a function that was interrupted at *pc* has its frame record in ``x29``."""
        known = self._has_record.get(pc)
        if known is None:
            known = self._has_record[pc] = self._look_at_prologue(place, pc)
        return known

    def _look_at_prologue(self, place: Place, pc: int) -> bool:
        if not place.size_bytes:
            return True
        start = max(place.start, pc - _PROLOGUE_BYTES)
        code = self._words.memory.read(start, pc - start)
        words = struct.unpack(f"<{len(code) // 4}I", code[: len(code) // 4 * 4])
        is_made = False
        for number, word in enumerate(words):
            if word & _SET_FP[0] == _SET_FP[1]:
                is_made = True
            elif any(word & mask == value for mask, value in _LDP):
                # What comes behind an epilogue is reached by a jump from before it.
                is_made = any(
                    later in _RETURNS or later & _BRANCH_MASK == _BRANCH for later in words[number + 1 : number + 4]
                )
        return is_made


def _has_kind(regs: drgn.Type) -> bool:
    """Tell whether the record in saved registers says what it is: ``struct frame_record_meta``."""
    record = regs.member("stackframe").type
    return record.kind is drgn.TypeKind.STRUCT and record.has_member("type")


def _find(areas: Sequence[Area], vaddr: int) -> Area | None:
    return next((area for area in areas if vaddr in area), None)
