"""The kernel of a dump as far as its symbols and its own tables tell, without types."""

from __future__ import annotations

from functools import cached_property

from postpanic.analysis.symbols_only.registers import (
    CpuRegisters,
    read_cpu_registers,
    read_panic_cpu,
    read_per_cpu_pointer,
)
from postpanic.dumps.memory import DumpDescription
from postpanic.errors import AbsentError, FactAbsentError, PostpanicError
from postpanic.kernel.kallsyms import Symbol, SymbolTable
from postpanic.kernel.ksymtab import read_symbols
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.orc import OrcTable, read_orc
from postpanic.units import VirtAddr

__all__ = ["SymbolsOnly", "parse_address"]

_CURRENT_TASK = ("current_task", "pcpu_hot")
"""
Per-CPU variables that begin with the pointer to the task that runs.

``struct pcpu_hot`` replaced the variable in 6.2 (e57ef2ed97c1) and went in 6.15;
the pointer is its first member.
"""


class SymbolsOnly:
    """
    A kernel without types.

    Parameters
    ----------
    memory : KernelMemory
        Its memory.
    description : DumpDescription
        Of the dump, for the notes.
    symbols : SymbolTable, optional
        Its symbols, if they have been read already.
    """

    def __init__(self, memory: KernelMemory, description: DumpDescription, symbols: SymbolTable | None = None) -> None:
        self.memory = memory
        self.description = description
        if symbols is not None:
            self.symbols = symbols

    @cached_property
    def symbols(self) -> SymbolTable:
        """The kernel's symbols; raises as :func:`.read_symbols` does."""
        return read_symbols(self.memory)

    @cached_property
    def orc(self) -> OrcTable:
        """The kernel's unwind tables; raises as :func:`read_orc` does."""
        return read_orc(self.memory, self.symbols)

    @cached_property
    def cpus(self) -> tuple[CpuRegisters, ...]:
        """Registers of each CPU that left some."""
        return read_cpu_registers(self.memory, self.symbols, self.description)

    @cached_property
    def panic_cpu(self) -> int | None:
        """The CPU that panicked; None if none did or it cannot be told."""
        return read_panic_cpu(self.memory, self.symbols)

    @cached_property
    def image_range(self) -> tuple[int, int]:
        """Addresses of the kernel image, ``[start, end)``: only there do symbols mean something."""
        start = self.memory.vmcoreinfo.symbol("_stext")
        end = self.symbols.get("_end")
        return start, end if end is not None and end > start else int(self.symbols.vaddrs[-1]) + 1

    @cached_property
    def text_ranges(self) -> tuple[tuple[int, int], ...]:
        """Addresses of the kernel's code (``include/asm-generic/sections.h``)."""
        pairs = [(self.symbols.get(f"_s{name}"), self.symbols.get(f"_e{name}")) for name in ("text", "inittext")]
        return tuple((start, end) for start, end in pairs if start is not None and end is not None)

    def is_text(self, vaddr: int) -> bool:
        """Tell whether an address is code of the kernel image."""
        return any(start <= vaddr < end for start, end in self.text_ranges)

    def symbol_at(self, vaddr: int) -> tuple[Symbol, int] | None:
        """Find the symbol of the kernel image that an address lies in, and the distance; None outside."""
        start, end = self.image_range
        if not start <= vaddr < end:
            return None
        try:
            return self.symbols.at(vaddr)
        except FactAbsentError:
            return None

    def find_symbol(self, name: str) -> Symbol:
        """
        Find a symbol; a global one comes before local ones of the same name.

        Raises
        ------
        FactAbsentError
            If there is none.
        """
        found = self.symbols.find_all(name)
        if not found:
            raise FactAbsentError(f"could not find symbol with name {name!r}")
        return next((symbol for symbol in found if symbol.type.isupper()), found[0])

    def detect_current_task(self, cpu: int) -> int | None:
        """Give the address of the ``struct task_struct`` that ran on a CPU (x86-64), or None."""
        for name in _CURRENT_TASK:
            try:
                return read_per_cpu_pointer(self.memory, self.symbols, name, cpu)
            except PostpanicError:
                continue
        return None

    def find_address(self, word: str) -> VirtAddr:
        """
        Read an address as it is typed: hexadecimal, a symbol, or a symbol and an offset.

        Raises
        ------
        AbsentError
            If there is no such symbol.
        """
        number = parse_address(word)
        if number is not None:
            return VirtAddr(number)
        if word in self.symbols:
            return self.find_symbol(word).vaddr
        name, sign, offset_text = _split_offset(word)
        offset = parse_address(offset_text) if sign else 0
        if offset is None:
            raise AbsentError(f"could not find symbol with name {word!r}")
        vaddr = self.find_symbol(name).vaddr + (-offset if sign == "-" else offset)
        return VirtAddr(vaddr & (1 << 64) - 1)


def parse_address(word: str) -> int | None:
    """
    Read a hexadecimal number of 64 bits, with or without ``0x``; None if it is none.

    >>> parse_address("ffffffff81000000") == parse_address("0xffffffff81000000")
    True
    >>> parse_address("panic") is None
    True
    """
    digits = word.lower().removeprefix("0x")
    if not digits or len(digits) > 16 or any(letter not in "0123456789abcdef" for letter in digits):
        return None
    return int(digits, 16)


def _split_offset(word: str) -> tuple[str, str, str]:
    for sign in "+-":
        name, found, offset = word.rpartition(sign)
        if found and name:
            return name, found, offset
    return word, "", ""
