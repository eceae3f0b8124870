"""Functions and the text of their instructions, with symbols and source lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from drgn import FaultError, Program

from postpanic.analysis.cells import problem
from postpanic.analysis.code.instructions import Disassembler, Instruction
from postpanic.analysis.code.symbols import SymbolIndex
from postpanic.errors import AbsentError
from postpanic.findings.table import Problem

__all__ = ["CodeReader", "Function", "spell_instruction"]

_PAGE_BYTES = 4096
_LARGEST_FUNCTION_BYTES = 1 << 22
_LONGEST_INSTRUCTION_BYTES = 16
_FTRACE_NOP = bytes.fromhex("0f1f440000")
_PADDING = frozenset({"nop", "nopw", "nopl"})

Read = Callable[[int, int], bytes]
"""Reads bytes at an address; raises ``FaultError`` or ``AbsentError``."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function: its symbol, and where it lies."""

    name: str
    module: str
    start: int
    end: int


class CodeReader:
    """
    Reads and decodes code.

    Parameters
    ----------
    read : callable
        Of the kernel's memory, or a process's.
    index : SymbolIndex
        Where functions begin and end.
    """

    def __init__(self, prog: Program, disassembler: Disassembler, read: Read, index: SymbolIndex) -> None:
        self._prog = prog
        self._disassembler = disassembler
        self._read = read
        self._index = index

    def find_function(self, vaddr: int) -> Function | None:
        """Find the function that an address lies in; None: there is no symbol."""
        place = self._index.at(vaddr)
        if place is None:
            return None
        symbol = self._index.symbols[place]
        behind = self._index.neighbour(place, 1)
        end = behind.vaddr if behind is not None else symbol.vaddr + _PAGE_BYTES
        try:
            known = self._prog.symbol(symbol.vaddr)
            if known.address == symbol.vaddr and known.size and vaddr < symbol.vaddr + known.size:
                end = min(end, symbol.vaddr + known.size)
        except LookupError:
            pass
        end = min(end, symbol.vaddr + _LARGEST_FUNCTION_BYTES)
        return Function(symbol.name, symbol.module, symbol.vaddr, end) if vaddr < end else None

    def decode(self, start: int, end: int, problems: list[Problem]) -> list[Instruction]:
        """Decode the code between two addresses; what cannot be read ends it, with a problem."""
        return list(self._disassembler.decode(self._read_some(start, end, problems), start))

    def decode_function(self, function: Function, problems: list[Problem]) -> list[Instruction]:
        """Decode a function; the padding behind it is left out."""
        found = self.decode(function.start, function.end, problems)
        while len(found) > 1 and _is_padding(found[-1]):
            found.pop()
        return found

    def decode_count(self, start: int, count: int, problems: list[Problem]) -> list[Instruction]:
        """Decode so many instructions from an address on."""
        return self.decode(start, start + count * _LONGEST_INSTRUCTION_BYTES, problems)[:count]

    def _read_some(self, start: int, end: int, problems: list[Problem]) -> bytes:
        """Read up to what cannot be read."""
        try:
            return self._read(start, end - start)
        except (FaultError, AbsentError):
            pass
        data = b""
        while start < end:
            step = min(end, (start // _PAGE_BYTES + 1) * _PAGE_BYTES) - start
            try:
                data += self._read(start, step)
            except (FaultError, AbsentError) as exc:
                problems.append(problem(f"code at {start:x}", exc))
                break
            start += step
        return data


def _is_padding(instruction: Instruction) -> bool:
    return instruction.mnemonic.rpartition(" ")[2] in _PADDING


def spell_instruction(
    instruction: Instruction, name: Callable[[int], str], *, function: Function | None = None
) -> tuple[str, str, str]:
    """
    Spell an instruction with symbols.

    Parameters
    ----------
    name : callable
        Names an address: ``symbol+offset``; empty where there is none.

    Returns
    -------
    text, symbol, comment : str
        The whole text, the symbol of the target or reference, and what stands behind the operands.
    """
    operands = instruction.operands
    symbol = comment = ""
    if instruction.target is not None:
        symbol = name(instruction.target)
        operands += f" <{symbol}>" if symbol else ""
    elif instruction.reference is not None:
        symbol = name(instruction.reference)
        comment = f"# {instruction.reference:#x}" + (f" <{symbol}>" if symbol else "")
    if function is not None and instruction.data == _FTRACE_NOP and instruction.vaddr - function.start in {0, 4}:
        comment = "[FTRACE NOP]"
        return f"{instruction.mnemonic:<6} {operands} {comment}", symbol, comment
    text = f"{instruction.mnemonic:<6} {operands}".rstrip()
    return (f"{text}        {comment}" if comment else text), symbol, comment
