"""
Stack traces as ``bt`` of crash shows them, by symbols and ORC alone.

Modules are what this cannot see: where a module's symbols and unwind tables are
is known by the type ``struct module`` only. A stack that passes through a module
is picked up again above it: at the first return address into the kernel image
from which the tables lead to the regular end of the stack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from postpanic.analysis.symbols_only.kernel import SymbolsOnly
from postpanic.analysis.symbols_only.registers import PT_REGS_NAMES, CpuRegisters, decode_registers
from postpanic.errors import AbsentError, FactAbsentError, FileFaultError, PostpanicError, UsageError
from postpanic.kernel.orc import OrcTable, StackFrame, unwind

__all__ = ["choose_cpus", "format_registers", "parse_cpus", "read_trace_lines"]

_ROWS = (
    ("rip", "rsp", "rflags"),
    ("rax", "rbx", "rcx"),
    ("rdx", "rsi", "rdi"),
    ("rbp", "r8", "r9"),
    ("r10", "r11", "r12"),
    ("r13", "r14", "r15"),
    ("cs", "ss"),
)
_DIGITS = {"rflags": 8, "cs": 4, "ss": 4}
_USER_MODE = 3
"""Privilege level in ``cs``."""
_SEARCH_BYTES = 32 << 10
"""How far above a module's frame its caller is looked for: ``THREAD_SIZE`` is 16 KiB, with KASAN 32."""
_CANDIDATE_LIMIT = 64
"""How many return addresses are tried there: a damaged stack must not cost minutes."""
_CALL_BYTES = 7
"""The longest call instruction that the kernel is compiled to."""


def format_registers(registers: dict[str, int]) -> Iterator[str]:
    """Write the registers of x86-64 in crash's rows; those of another machine three in a row."""
    names: Sequence[Sequence[str]] = _ROWS
    if "rip" not in registers:
        known = list(registers)
        names = [known[at : at + 3] for at in range(0, len(known), 3)]
    for row in names:
        cells = (f"{name.upper():>3}: {registers[name]:0{_DIGITS.get(name, 16)}x}" for name in row)
        yield "    " + "  ".join(cells)


def parse_cpus(text: str) -> list[int]:
    """
    Read a list of CPU numbers.

    Raises
    ------
    UsageError
        If it is none.

    >>> parse_cpus("0,4-6")
    [0, 4, 5, 6]
    """
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and len(first) <= 5 and len(last) <= 5):
            raise UsageError(f"{text!r} is no list of CPUs", hint="as in 0,2 or 0-3")
        chosen += range(int(first), int(last) + 1)
    return chosen


def choose_cpus(kernel: SymbolsOnly, *, every: bool, numbers: Iterable[int] | None) -> list[CpuRegisters]:
    """
    Choose whose stack to show: all, some, or else that of the CPU that panicked (without one, the first).

    Raises
    ------
    AbsentError
        If the notes have no registers of a CPU that is wanted.
    """
    if not kernel.cpus:
        raise FactAbsentError("the dump's notes hold no registers of any CPU")
    by_number = {cpu.cpu: cpu for cpu in kernel.cpus}
    panicked = by_number.get(kernel.panic_cpu) if kernel.panic_cpu is not None else None
    if numbers is not None:
        missing = [number for number in numbers if number not in by_number]
        if missing:
            raise FactAbsentError(f"CPU {missing[0]} left no registers, only {', '.join(map(str, by_number))} did")
        return [by_number[number] for number in numbers]
    if every:
        others = [cpu for cpu in kernel.cpus if cpu is not panicked]
        return [panicked, *others] if panicked is not None else others
    return [panicked if panicked is not None else kernel.cpus[0]]


def read_trace_lines(kernel: SymbolsOnly, cpu: CpuRegisters, *, offsets: bool = False) -> Iterator[str]:
    """
    Unwind the stack of one CPU.

    Parameters
    ----------
    offsets : bool
        Whether names are followed by ``+`` and the offset in the function, as with ``bt -s``.
    """
    yield _header(kernel, cpu)
    registers = cpu.registers
    if kernel.memory.machine != "x86_64":
        yield from format_registers(registers)
        yield "    (not unwound: kernels of this machine have no ORC)"
        return
    if registers["cs"] & _USER_MODE == _USER_MODE:
        yield from format_registers(registers)
        yield "    (the CPU ran in user mode)"
        return
    try:
        table = kernel.orc
    except (AbsentError, FileFaultError) as exc:
        yield from format_registers(registers)
        yield f"    (not unwound: {exc})"
        return
    frames = unwind(kernel.memory, table, kernel.symbols, pc=registers["rip"], sp=registers["rsp"], fp=registers["rbp"])
    yield from _frame_lines(kernel, table, frames, offsets=offsets)


def _header(kernel: SymbolsOnly, cpu: CpuRegisters) -> str:
    pid = str(cpu.pid) if cpu.pid is not None else "(unavailable)"
    task = kernel.detect_current_task(cpu.cpu)
    task_text = f"{task:x}" if task else "(unavailable)"
    return f"PID: {pid:<7}  TASK: {task_text}  CPU: {cpu.cpu}  COMMAND: (unavailable)"


def _frame_lines(kernel: SymbolsOnly, table: OrcTable, frames: Sequence[StackFrame], *, offsets: bool) -> Iterator[str]:
    number = 0
    gaps = 0
    while True:
        for frame in frames:
            yield _frame_line(kernel, number, frame, offsets=offsets)
            number += 1
            if frame.regs_vaddr:
                yield from _interrupted_lines(kernel, frame.regs_vaddr)
        last = frames[-1]
        if not last.stopped:
            return
        resumed = [] if kernel.is_text(last.pc) or gaps >= 2 else _find_caller(kernel, table, last)
        gaps += 1
        if not resumed:
            yield f"    (ends here: {_reason(kernel, last)})"
            return
        yield f"    ({resumed[0].sp - last.sp} bytes of stack passed over: {_reason(kernel, last)})"
        frames = resumed


def _frame_line(kernel: SymbolsOnly, number: int, frame: StackFrame, *, offsets: bool) -> str:
    name = frame.symbol if kernel.is_text(frame.pc) else ""
    if not offsets:
        name = name.rpartition("+")[0]
    return f"{f'#{number}':>3} [{frame.sp:016x}] {name or '(unknown)'} at {frame.pc:x}"


def _interrupted_lines(kernel: SymbolsOnly, vaddr: int) -> Iterator[str]:
    try:
        data = kernel.memory.read(vaddr, 8 * len(PT_REGS_NAMES))
    except PostpanicError:
        return
    yield from format_registers(decode_registers(PT_REGS_NAMES, data))


def _reason(kernel: SymbolsOnly, last: StackFrame) -> str:
    if kernel.is_text(last.pc):
        return last.stopped
    return f"{last.pc:#x} is not in the kernel image, and without types modules cannot be found"


def _find_caller(kernel: SymbolsOnly, table: OrcTable, last: StackFrame) -> list[StackFrame]:
    """Find the nearest return address above a frame from which the stack unwinds to its regular end."""
    try:
        data, present = kernel.memory.read_available(last.sp & ~7, _SEARCH_BYTES)
    except PostpanicError:
        return []
    tried = 0
    for slot, (pc,) in enumerate(struct.iter_unpack("<Q", data.tobytes())):
        if not present[8 * slot] or not _is_return_address(kernel, pc):
            continue
        tried += 1
        if tried > _CANDIDATE_LIMIT:
            break
        frames = unwind(
            kernel.memory, table, kernel.symbols, pc=pc, sp=(last.sp & ~7) + 8 * (slot + 1), interrupted=False
        )
        if not frames[-1].stopped:
            return frames
    return []


def _is_return_address(kernel: SymbolsOnly, pc: int) -> bool:
    """Tell whether a call instruction of x86-64 ends there: direct, or through a register or memory."""
    if not kernel.is_text(pc):
        return False
    try:
        code = kernel.memory.read(pc - _CALL_BYTES, _CALL_BYTES)
    except PostpanicError:
        return False
    if code[-5] == 0xE8:
        return True
    # FF /2, with a ModRM byte alone, or one and a displacement; a SIB byte only for rsp and r12.
    return any(code[-size] == 0xFF and code[1 - size] >> 3 & 7 == 2 for size in (2, 3, 4, 6, 7))
