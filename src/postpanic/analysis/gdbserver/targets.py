"""
The registers of a machine as gdb is told of them, and their values in packets.

Sources: gdb manual, "Standard Target Features" (i386, AArch64); order and sizes
of ``gdb/features/i386/64bit-core.xml``, ``64bit-segments.xml`` and
``gdb/features/aarch64-core.xml``, ``aarch64-pauth.c``. The operating system is given as none: gdb
then takes the list of modules from us and looks for no dynamic linker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from postpanic.analysis.gdbserver.packets import decode_hex
from postpanic.errors import UnsupportedError

__all__ = ["PAUTH_MASKS", "Register", "Target", "find_target"]


class Register(NamedTuple):
    """One register: its name in gdb, its size and its type."""

    name: str
    bits: int
    type: str = "int64"
    group: str = ""


@dataclass(frozen=True)
class Target:
    """
    A machine.

    Parameters
    ----------
    architecture : str
        As gdb's ``set architecture`` names it.
    features : tuple
        Name of each feature, types that it declares, its registers.
    program_counter, stack_pointer : str
        Names of these two.
    """

    architecture: str
    features: tuple[tuple[str, str, tuple[Register, ...]], ...]
    program_counter: str
    stack_pointer: str

    @cached_property
    def registers(self) -> tuple[Register, ...]:
        """All registers, by number."""
        return tuple(register for _, _, registers in self.features for register in registers)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {register.name: number for number, register in enumerate(self.registers)}

    @cached_property
    def _unknown(self) -> list[bytes]:
        return [self._encode_one(register, None) for register in self.registers]

    @cached_property
    def description(self) -> bytes:
        """``target.xml``."""
        lines = [
            '<?xml version="1.0"?>',
            '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
            '<target version="1.0">',
            f"<architecture>{self.architecture}</architecture>",
            "<osabi>none</osabi>",
        ]
        for name, types, registers in self.features:
            lines.append(f'<feature name="{name}">{types}')
            for register in registers:
                group = f' group="{register.group}"' if register.group else ""
                lines.append(f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>')
            lines.append("</feature>")
        return "\n".join([*lines, "</target>", ""]).encode()

    def encode(self, values: Mapping[str, int]) -> bytes:
        """Write all registers in hexadecimal, those that are not known as ``x``."""
        parts = self._unknown.copy()
        for name, value in values.items():
            number = self._numbers.get(name)
            if number is not None:
                parts[number] = self._encode_one(self.registers[number], value)
        return b"".join(parts)

    def encode_register(self, number: int, values: Mapping[str, int]) -> bytes:
        """
        Write one register.

        Raises
        ------
        ValueError
            If there is none of that number.
        """
        register = self._register(number)
        return self._encode_one(register, values.get(register.name))

    def decode(self, text: bytes) -> dict[str, int]:
        """
        Read all registers; those that are not known are left out.

        Raises
        ------
        ValueError
            If they are not registers of this machine.
        """
        values: dict[str, int] = {}
        at = 0
        for register in self.registers:
            size = register.bits // 4
            part = text[at : at + size]
            at += size
            if not part or part.startswith(b"x"):
                continue
            values[register.name] = int.from_bytes(decode_hex(part), "little")
        return values

    def decode_register(self, number: int, text: bytes) -> tuple[str, int]:
        """
        Read one register: its name and value.

        Raises
        ------
        ValueError
            If there is none of that number, or the value is not one of its size.
        """
        register = self._register(number)
        if len(text) != register.bits // 4:
            raise ValueError(f"{register.name} has {register.bits} bits")
        return register.name, int.from_bytes(decode_hex(text), "little")

    def _register(self, number: int) -> Register:
        if not 0 <= number < len(self.registers):
            raise ValueError(f"no register {number}")
        return self.registers[number]

    @staticmethod
    def _encode_one(register: Register, value: int | None) -> bytes:
        size = register.bits // 8
        if value is None:
            return b"xx" * size
        return (value & ((1 << register.bits) - 1)).to_bytes(size, "little").hex().encode()


_FLAGS = (
    *(("CF", 0), ("", 1), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10), ("OF", 11)),
    *(("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("VIF", 19), ("VIP", 20), ("ID", 21)),
)
_X86_FLAGS = (
    '<flags id="i386_eflags" size="4">'
    + "".join(f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in _FLAGS)
    + "</flags>"
)
_X86_64 = Target(
    "i386:x86-64",
    (
        (
            "org.gnu.gdb.i386.core",
            _X86_FLAGS,
            (
                *(Register(name, 64) for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi")),
                *(Register(name, 64, "data_ptr") for name in ("rbp", "rsp")),
                *(Register(f"r{number}", 64) for number in range(8, 16)),
                Register("rip", 64, "code_ptr"),
                Register("eflags", 32, "i386_eflags"),
                *(Register(name, 32, "int32") for name in ("cs", "ss", "ds", "es", "fs", "gs")),
                *(Register(f"st{number}", 80, "i387_ext") for number in range(8)),
                *(
                    Register(name, 32, "int", "float")
                    for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
                ),
            ),
        ),
        ("org.gnu.gdb.i386.segments", "", (Register("fs_base", 64, "int"), Register("gs_base", 64, "int"))),
    ),
    "rip",
    "rsp",
)
PAUTH_MASKS = ("pauth_dmask", "pauth_cmask", "pauth_dmask_high", "pauth_cmask_high")
"""The bits of authentication codes in addresses of data and code, of the user's half and the kernel's."""
_AARCH64 = Target(
    "aarch64",
    (
        (
            "org.gnu.gdb.aarch64.core",
            "",
            (
                *(Register(f"x{number}", 64, "int") for number in range(31)),
                Register("sp", 64, "data_ptr"),
                Register("pc", 64, "code_ptr"),
                Register("cpsr", 32, "int"),
            ),
        ),
        # By these gdb (14 and newer) takes authentication codes out where it follows DWARF.
        ("org.gnu.gdb.aarch64.pauth_v2", "", tuple(Register(name, 64, "int") for name in PAUTH_MASKS)),
    ),
    "pc",
    "sp",
)
_TARGETS = {"x86_64": _X86_64, "aarch64": _AARCH64}


def find_target(machine: str) -> Target:
    """
    Find the description of a machine, by its ``uname -m``.

    Raises
    ------
    UnsupportedError
        If gdb cannot be told of it.
    """
    if machine not in _TARGETS:
        raise UnsupportedError(f"machine {machine!r} cannot be shown to gdb, only {' and '.join(_TARGETS)}")
    return _TARGETS[machine]
