"""A made-up kernel for the unwinder: some functions, unwind rows, and stacks laid out word by word."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

from postpanic.analysis.stacks.code_index import CodeIndex, Place
from postpanic.analysis.stacks.frames import Area
from postpanic.analysis.stacks.orc_rows import OrcRows
from postpanic.analysis.stacks.walk import Walker
from postpanic.analysis.stacks.words import Words
from postpanic.analysis.stacks.x86_64 import REGISTER_NAMES
from postpanic.errors import TranslationError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.orc import OrcEntry, OrcRegister, OrcType

__all__ = ["CALL", "END", "TASK", "Kernel", "call_row", "regs_row"]

PAGE = 4096
TEXT = 0xFFFFFFFF81000000
FUNCTION_BYTES = 0x100
TASK = Area("task", 0xFFFFC90000010000, 0xFFFFC90000014000)
CALL = bytes.fromhex("e800000000")


def call_row(size_bytes: int) -> OrcEntry:
    """Make a row: a frame of so many bytes below the caller's stack pointer."""
    return OrcEntry(OrcType.CALL, OrcRegister.SP, size_bytes, OrcRegister.UNDEFINED, 0, signal=False)


def regs_row(offset: int = 0) -> OrcEntry:
    """Make a row: the registers of an entry into the kernel, so far above the stack pointer."""
    return OrcEntry(OrcType.REGS, OrcRegister.SP, offset, OrcRegister.UNDEFINED, 0, signal=True)


END = OrcEntry(OrcType.END_OF_STACK, OrcRegister.UNDEFINED, 0, OrcRegister.UNDEFINED, 0, signal=False)


class _Memory:
    """Pages by address."""

    page_size_bytes = PAGE

    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.pages: dict[int, bytearray] = {}

    def write(self, vaddr: int, data: bytes) -> None:
        for number, byte in enumerate(data):
            at = vaddr + number
            self.pages.setdefault(at & -PAGE, bytearray(PAGE))[at % PAGE] = byte

    def read(self, vaddr: int, size_bytes: int) -> bytes:
        out = bytearray()
        for at in range(vaddr, vaddr + size_bytes):
            page = self.pages.get(at & -PAGE)
            if page is None:
                raise TranslationError(f"virtual address {at:#x} is not mapped", vaddr=at)
            out.append(page[at % PAGE])
        return bytes(out)

    def read_u64(self, vaddr: int) -> int:
        return int.from_bytes(self.read(vaddr, 8), "little")

    def read_available(self, vaddr: int, size_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        data = np.zeros(size_bytes, dtype=np.uint8)
        present = np.zeros(size_bytes, dtype=np.bool_)
        for number in range(size_bytes):
            page = self.pages.get((vaddr + number) & -PAGE)
            if page is not None:
                data[number], present[number] = page[(vaddr + number) % PAGE], True
        return data, present


class _Code:
    """Functions side by side, by name."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def start(self, name: str) -> int:
        return TEXT + FUNCTION_BYTES * self.names.index(name)

    def find(self, pc: int) -> Place | None:
        number, offset = divmod(pc - TEXT, FUNCTION_BYTES)
        if not 0 <= number < len(self.names):
            return None
        return Place(self.names[number], offset, "", pc - offset, FUNCTION_BYTES)

    def find_caller(self, pc: int) -> Place | None:
        place = self.find(pc - 1)
        return place and Place(place.function, place.offset + 1, "", place.start, place.size_bytes)

    def is_text(self, pc: int) -> bool:
        return self.find(pc) is not None

    def text_mask(self, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return np.array([self.is_text(int(word)) for word in words], dtype=np.bool_)


class _Rows:
    def __init__(self, code: _Code, rows: Mapping[str, OrcEntry]) -> None:
        self._code = code
        self._rows = rows

    def find(self, vaddr: int) -> OrcEntry | None:
        place = self._code.find(vaddr)
        return self._rows.get(place.function) if place is not None else None


class Kernel:
    """
    The made-up kernel.

    Parameters
    ----------
    rows : mapping
        Unwind row of each function by its name; None: the function has none.
    machine : str
        Whose code is in it.
    """

    def __init__(self, rows: Mapping[str, OrcEntry | None], *areas: Area, machine: str = "x86_64") -> None:
        self.memory = _Memory(machine)
        self.code = _Code(list(rows))
        known = {name: row for name, row in rows.items() if row is not None}
        for area in (TASK, *areas):
            self.memory.write(area.start, bytes(area.end - area.start))
        for name in rows:
            # Every function is full of calls: one ends at each multiple of 16.
            self.memory.write(self.code.start(name), (bytes(11) + CALL) * (FUNCTION_BYTES // 16))
        self.walker = Walker(
            Words(cast("KernelMemory", self.memory)),
            cast("OrcRows", _Rows(self.code, known)),
            cast("CodeIndex", self.code),
            areas,
        )

    def back(self, name: str) -> int:
        """Give a return address in a function."""
        return self.code.start(name) + 0x20

    def put(self, vaddr: int, *words: int) -> None:
        """Write words to a stack."""
        self.memory.write(vaddr, struct.pack(f"<{len(words)}Q", *words))

    def put_registers(self, vaddr: int, **registers: int) -> None:
        """Write a ``struct pt_regs``."""
        values = {"cs": 0x10, "ss": 0x18, "rflags": 0x246} | registers
        self.put(vaddr, *(values.get(name, 0) for name in REGISTER_NAMES))
