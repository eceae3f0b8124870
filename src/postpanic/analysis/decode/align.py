"""
Where instructions begin in the bytes before a known one, on machines whose instructions differ in length.

The bytes before the instruction that trapped begin anywhere, often inside another one. Where the code of the function
is known from its file, or the function begins within the bytes, that decides. Else every start within the longest
instruction is tried: possible is one from which an instruction ends exactly where the known one begins. Of the
possible ones the likeliest is taken: each byte that is explained is worth :data:`_BYTE_BITS`, and each instruction
costs what its opcode is seldom in kernels (:mod:`postpanic.analysis.decode.opcodes`). Three listings of four are right
to the first byte then; in the others the first one or two instructions are wrong or missing.
"""

from __future__ import annotations

from functools import lru_cache

from postpanic.analysis.code.instructions import Disassembler, Instruction
from postpanic.analysis.decode.opcodes import BITS, RARE_BITS

__all__ = ["decode_before"]

_LONGEST = {"x86_64": 15, "i386": 15}
_BYTE_BITS = 8
_BAD_BITS = 24
_MOST_BYTES = 16
_REX_W, _OPERAND_SIZE = 8, 0x66


@lru_cache(maxsize=256)
def decode_before(
    disassembler: Disassembler,
    data: bytes,
    end: int,
    vaddr: int,
    *,
    function_start: int | None = None,
    boundary: int | None = None,
) -> tuple[Instruction, ...]:
    """
    Decode the instructions before a known one.

    Parameters
    ----------
    data : bytes
        Code; more of it behind the instruction does no harm.
    end : int
        Where in it the known instruction begins.
    vaddr : int
        Address of the first byte.
    function_start : int, optional
        Where in the data its function begins; negative or behind *end*: outside.
    boundary : int, optional
        Where in the data the first whole instruction begins, if that is known.

    Returns
    -------
    tuple of Instruction
        They end where the known one begins; empty if there are none.
    """
    if disassembler.machine not in _LONGEST:
        return tuple(_decode_words(disassembler, data, end, vaddr))
    if boundary is not None and (known := _chain(disassembler, data, boundary, end, vaddr)) is not None:
        return tuple(known)
    if function_start is not None and 0 <= function_start < end:
        inside = _chain(disassembler, data, function_start, end, vaddr)
        if inside is not None:
            return (*_search(disassembler, data, function_start, vaddr), *inside)
    return tuple(_search(disassembler, data, end, vaddr))


def _decode_words(disassembler: Disassembler, data: bytes, end: int, vaddr: int) -> list[Instruction]:
    found = _chain(disassembler, data, 0, end, vaddr)
    start = 0
    while found is None and start < min(end, 4):
        start += 2
        found = _chain(disassembler, data, start, end, vaddr)
    return found or []


def _chain(disassembler: Disassembler, data: bytes, start: int, end: int, vaddr: int) -> list[Instruction] | None:
    """Decode from a start on; None unless an instruction ends exactly at the end."""
    # A few bytes more, so that the last instruction is not taken for one that was cut.
    found: list[Instruction] = []
    position = start
    for instruction in disassembler.decode(data[start : end + 16].ljust(end - start + 16, b"\x90"), vaddr + start):
        if position >= end:
            break
        found.append(instruction)
        position += len(instruction.data)
    return found if position == end else None


def _search(disassembler: Disassembler, data: bytes, end: int, vaddr: int) -> list[Instruction]:
    """Find the likeliest chain that ends where it must: from the end to the front, each place decoded once."""
    behind: dict[int, tuple[int, Instruction | None]] = {end: (0, None)}
    for start in range(end - 1, -1, -1):
        code = data[start : start + _MOST_BYTES].ljust(_MOST_BYTES, b"\x90")
        instruction = next(iter(disassembler.decode(code, vaddr + start)), None)
        if instruction is not None and (rest := behind.get(start + len(instruction.data))) is not None:
            behind[start] = rest[0] + _cost_of(instruction), instruction
    starts = [start for start in range(min(_LONGEST[disassembler.machine], end)) if start in behind]
    found: list[Instruction] = []
    if starts:
        instruction = behind[min(starts, key=lambda start: behind[start][0])][1]
        while instruction is not None:
            found.append(instruction)
            instruction = behind[instruction.end - vaddr][1]
    return found


def _cost_of(instruction: Instruction) -> int:
    decoded = instruction.decoded
    if decoded is None:
        return _BAD_BITS
    opcode = bytes(decoded.opcode)
    length = 1 if opcode[0] != 0x0F else 3 if opcode[1] in {0x38, 0x3A} else 2
    lock, segment, operand, _ = decoded.prefix
    key = "w" if decoded.rex & _REX_W else "r" if decoded.rex else "n"
    key += "o" if operand == _OPERAND_SIZE else ""
    key += "s" if lock or segment else ""
    explained = int(decoded.rex != 0) + bool(operand) + bool(lock or segment) + min(length, 2)
    bits = BITS.get(key + opcode[:length].hex(), RARE_BITS)
    return int(bits) - _BYTE_BITS * explained
