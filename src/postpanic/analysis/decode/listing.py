"""
The instructions of a ``Code:`` line as a listing, with the one that trapped and what it accessed.

Where the file of the kernel is at hand, instructions begin where they do there; the bytes shown are those of the log,
as alternatives, static calls and tracing change the text of a running kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from postpanic.analysis.code.instructions import MACHINES, Disassembler, Flow, Instruction
from postpanic.analysis.decode.addresses import describe_address, is_noncanonical
from postpanic.analysis.decode.align import decode_before
from postpanic.analysis.decode.codebytes import CodeBytes
from postpanic.analysis.decode.kernel import KernelSymbols, Place
from postpanic.analysis.decode.operands import MemoryAccess, find_accesses
from postpanic.analysis.decode.spots import Spot

__all__ = ["ListedInstruction", "Listing", "list_code", "render_listing"]

_ORIGIN_64 = 0x5A7B00000000
_ORIGIN_32 = 0x5A7B0000
"""Where a function is put whose address is not known: no number in code looks like it by chance."""
_REACH = 1 << 22
_NUMBER = re.compile(r"#?\b0x[0-9a-f]{6,16}\b")
_THIRTY_TWO = frozenset({"i386", "arm", "armt", "mips", "micromips", "riscv32", "ppc"})
_VERBS = {(True, True): "reads and writes", (False, True): "writes to"}
_MOST_BEFORE = 4096
_UNTAGGED = (1 << 56) - 1
_WIDEST_BYTES = 16
"""What an instruction may access whose width nothing tells: a pair of registers."""


class ListedInstruction(NamedTuple):
    """
    One line of a listing.

    Parameters
    ----------
    place : str
        ``function+0xoffset``; empty: not known.
    """

    is_trap: bool
    place: str
    data: bytes
    text: str


class Listing(NamedTuple):
    """
    Code with its instructions.

    Parameters
    ----------
    trap : Instruction, optional
        That which trapped.
    accesses : tuple of MemoryAccess
        Of the instruction that trapped.
    judgement : str
        What was bad; empty: nothing tells.
    problem : str
        Why there are no instructions.
    """

    instructions: tuple[ListedInstruction, ...]
    trap: Instruction | None = None
    accesses: tuple[MemoryAccess, ...] = ()
    judgement: str = ""
    problem: str = ""


@lru_cache(maxsize=32)
def _disassembler(machine: str) -> Disassembler:
    return Disassembler(machine)


def list_code(
    code: CodeBytes,
    pc: Spot | None,
    place: Place | None = None,
    kernel: KernelSymbols | None = None,
    registers: Mapping[str, int] | None = None,
    fault_vaddr: int | None = None,
) -> Listing:
    """
    Disassemble the bytes of a ``Code:`` line.

    Parameters
    ----------
    pc : Spot, optional
        Where the instruction is, as the log says.
    place : Place, optional
        The same, found in the kernel's file.
    registers : mapping, optional
        By the names of the report.
    fault_vaddr : int, optional
        The address that the kernel could not access.
    """
    if code.machine not in MACHINES:
        return _list_words(code)
    mark = code.mark if code.mark is not None else 0
    offset = pc.offset if pc is not None and pc.function else None
    origin = _origin(code, mark, offset, place)
    disassembler = _disassembler(code.machine)
    start = None if offset is None else mark - offset
    boundary = _known_boundary(disassembler, mark, place, kernel)
    before = decode_before(disassembler, code.data, mark, origin, function_start=start, boundary=boundary)
    behind = list(disassembler.decode(code.data[mark:], origin + mark))
    namer = _Namer(origin + mark - (offset or 0), pc, kernel if place is not None else None)
    listed = [
        ListedInstruction(
            code.mark is not None and instruction.vaddr == origin + mark,
            namer.place(instruction.vaddr),
            instruction.data,
            namer.spell(instruction),
        )
        for instruction in (*before, *behind)
    ]
    trap = behind[0] if behind and code.mark is not None else None
    accesses = tuple(find_accesses(trap, code.machine, registers)) if trap is not None and registers else ()
    return Listing(tuple(listed), trap, accesses, _judge(trap, accesses, fault_vaddr, code.machine))


def _origin(code: CodeBytes, mark: int, offset: int | None, place: Place | None) -> int:
    """Choose the address of the first byte: the true one as linked, else one at which the function is easily known."""
    if place is not None:
        return place.vaddr - mark
    if code.vaddr is not None:
        return code.vaddr
    return (_ORIGIN_32 if code.machine in _THIRTY_TWO else _ORIGIN_64) + (offset or 0) - mark


def _known_boundary(
    disassembler: Disassembler, mark: int, place: Place | None, kernel: KernelSymbols | None
) -> int | None:
    """Find the first instruction within the bytes, by the code of the function in its file; None: it does not tell."""
    if place is None or kernel is None or disassembler.machine not in {"x86_64", "i386"}:
        return None
    offset = place.vaddr - place.symbol.vaddr
    if not mark < offset <= _MOST_BEFORE:
        return None
    data = kernel.read_code(place.symbol.vaddr, offset + 16)
    if len(data) < offset:
        return None
    vaddrs = [instruction.vaddr for instruction in disassembler.decode(data, place.symbol.vaddr)]
    if place.vaddr not in vaddrs:
        return None
    return next((vaddr - (place.vaddr - mark) for vaddr in vaddrs if vaddr >= place.vaddr - mark), None)


class _Namer:
    """Names addresses in a listing."""

    def __init__(self, function_vaddr: int, pc: Spot | None, kernel: KernelSymbols | None) -> None:
        self._start = function_vaddr
        self._function = pc.function if pc is not None else ""
        self._size = pc.size if pc is not None else None
        self._kernel = kernel

    def place(self, vaddr: int) -> str:
        """Name the place of an instruction; empty before the function."""
        if not self._function:
            return f"{vaddr - self._start:+#x}"
        offset = vaddr - self._start
        return f"{self._function}+{offset:#x}" if offset >= 0 else ""

    def name(self, vaddr: int) -> str:
        """Name the target of a branch, or data."""
        offset = vaddr - self._start
        if self._function and 0 <= offset < (self._size or _REACH):
            return f"{self._function}+{offset:#x}" if offset else self._function
        if self._kernel is not None:
            symbol = self._kernel.symbol_at(vaddr)
            if symbol is not None:
                return f"{symbol.name}+{vaddr - symbol.vaddr:#x}" if vaddr != symbol.vaddr else symbol.name
        if abs(offset) < _REACH or self._kernel is None:
            return f"{self._function or '.'}{offset:+#x}"
        return ""

    def spell(self, instruction: Instruction) -> str:
        """Spell an instruction with the names of what it refers to."""
        operands = instruction.operands
        if instruction.target is not None and instruction.flow is not Flow.RETURN:
            name = self.name(instruction.target)
            operands = operands.replace(f"{instruction.target:#x}", name) if name else operands
        else:
            operands = _NUMBER.sub(self._number, operands)
        text = f"{instruction.mnemonic:<7} {operands}".rstrip()
        if instruction.reference is not None and self._kernel is not None:
            name = self.name(instruction.reference)
            text += f"        # {name}" if name else ""
        return text

    def _number(self, match: re.Match[str]) -> str:
        number = int(match[0].lstrip("#"), 16)
        is_near = self._function and abs(number - self._start) < _REACH and number > _ORIGIN_32 - _REACH
        return self.name(number) if is_near else match[0]


def _list_words(code: CodeBytes) -> Listing:
    """List the numbers of a machine that cannot be disassembled."""
    size = code.word_bytes
    listed = tuple(
        ListedInstruction(place == code.mark, "", code.data[place : place + size], "")
        for place in range(0, len(code.data), size)
    )
    return Listing(listed, problem=f"code of {code.machine or 'an unknown machine'} cannot be disassembled")


def _judge(trap: Instruction | None, accesses: Sequence[MemoryAccess], fault_vaddr: int | None, machine: str) -> str:
    """Say which operand was bad: that whose address is the fault's, else one that no page table maps."""
    if trap is None:
        return ""
    if trap.flow is Flow.TRAP and fault_vaddr is not None:
        # It accesses nothing: it was itself what could not be fetched.
        return f"what lies at {fault_vaddr:#x} could not be executed"
    if trap.flow is Flow.TRAP:
        return f"{trap.mnemonic} traps by itself: the kernel's own check failed (BUG, WARN or a sanitizer)"
    chosen = _choose(accesses, fault_vaddr, machine)
    if chosen is None:
        return ""
    vaddr = chosen.vaddr if chosen.vaddr is not None else 0
    what = describe_address(vaddr, machine)
    verb = _VERBS.get((chosen.is_read, chosen.is_write), "reads")
    values = ", ".join(f"{name} = {value:#x}" for name, value in chosen.registers if value is not None)
    text = f"{verb} {chosen.text} = {vaddr:#x}" + (f" ({what})" if what else "") + (f", {values}" if values else "")
    if fault_vaddr is None:
        return text
    if _covers(chosen, fault_vaddr, machine):
        return f"{text}: the address of the fault"
    return f"{text}: not the address of the fault, {fault_vaddr:#x}"


def _choose(accesses: Sequence[MemoryAccess], fault_vaddr: int | None, machine: str) -> MemoryAccess | None:
    known = [access for access in accesses if access.vaddr is not None]
    if fault_vaddr is not None:
        covering = next((access for access in known if _covers(access, fault_vaddr, machine)), None)
        return covering or (known[0] if known else None)
    return next(
        (access for access in known if is_noncanonical(access.vaddr or 0, machine)), known[0] if known else None
    )


def _covers(access: MemoryAccess, vaddr: int, machine: str) -> bool:
    if access.vaddr is None:
        return False
    # The top byte of a pointer of arm64 may be a tag, which the kernel takes off before it prints the address.
    mask = _UNTAGGED if machine == "aarch64" else ~0
    return 0 <= (vaddr & mask) - (access.vaddr & mask) < (access.size_bytes or _WIDEST_BYTES)


def render_listing(listing: Listing) -> list[str]:
    """Lay a listing out as lines, for a log: ``=>`` stands before the instruction that trapped."""
    if not listing.instructions:
        return []
    width = max(len(one.place) for one in listing.instructions)
    longest = max(len(one.data) for one in listing.instructions) * 3 - 1
    return [
        f"{'=>' if one.is_trap else '  '} {one.place:<{width}}  {one.data.hex(' '):<{longest}}  {one.text}".rstrip()
        for one in listing.instructions
    ]
