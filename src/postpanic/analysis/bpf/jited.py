"""Machine code that a BPF program was compiled to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import capstone

from postpanic.errors import UnsupportedError

__all__ = ["MachineInstruction", "disassemble"]

_TARGET = re.compile(r"\A\*?(0x[0-9a-f]+)\Z|\A#(0x[0-9a-f]+)\Z")


@dataclass(frozen=True, slots=True)
class MachineInstruction:
    """One instruction."""

    vaddr: int
    text: str
    target: str
    """What a call or jump leads to, if that has a name; else empty."""


def disassemble(machine: str, code: bytes, vaddr: int, name: Callable[[int], str]) -> Iterator[MachineInstruction]:
    """
    Disassemble machine code.

    Parameters
    ----------
    machine : str
        ``x86_64`` (in the syntax of AT&T, as crash's) or ``aarch64``.
    name : callable
        Names an address; empty where it has no name.

    Raises
    ------
    UnsupportedError
        If the machine is another one.
    """
    if machine == "x86_64":
        engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        engine.syntax = capstone.CS_OPT_SYNTAX_ATT
    elif machine == "aarch64":
        engine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    else:
        raise UnsupportedError(f"machine code of {machine} cannot be disassembled")
    for address, _, mnemonic, operands in engine.disasm_lite(code, vaddr):
        match = _TARGET.match(operands)
        target = name(int(match[1] or match[2], 16)) if match and not operands.startswith("*") else ""
        yield MachineInstruction(address, f"{mnemonic:<6} {operands}".rstrip(), target)
