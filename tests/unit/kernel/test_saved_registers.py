"""Where functions keep the registers that they must preserve, told by their code and their table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.debuginfo.saved_registers import SAME, SAVED, UNKNOWN, find_saved_registers
from postpanic.kernel.orc import OrcLayout, OrcRegister, OrcTable, OrcType

BASE = 0xFFFF_FFFF_8100_0000
PUSH = {"rbx": "53", "rbp": "55", "r12": "4154", "r13": "4155", "r14": "4156", "r15": "4157"}
POP = {"rbx": "5b", "rbp": "5d", "r12": "415c", "r13": "415d", "r14": "415e", "r15": "415f"}
NUMBERS = {"rbx": 3, "r12": 12, "r13": 13, "r14": 14, "r15": 15}


class Assembler:
    """Code, and the table that objtool makes of it: a row wherever the way to the frame changes."""

    def __init__(self) -> None:
        self.code = b""
        self.rows: list[tuple[int, int, OrcRegister]] = []
        self.functions: list[int] = []
        self.depth = 8
        self.by = OrcRegister.SP

    def function(self, depth: int = 8) -> Assembler:
        self.functions.append(len(self.code))
        return self.row(depth)

    def row(self, depth: int, by: OrcRegister = OrcRegister.SP) -> Assembler:
        if not self.rows or (self.depth, self.by) != (depth, by):
            self.rows.append((len(self.code), depth, by))
        self.depth, self.by = depth, by
        return self

    def code_of(self, text: str) -> Assembler:
        self.code += bytes.fromhex(text)
        return self

    def push(self, *names: str) -> Assembler:
        for name in names:
            self.code_of(PUSH[name])
            if self.by is OrcRegister.SP:
                self.row(self.depth + 8)
        return self

    def pop(self, *names: str) -> Assembler:
        for name in names:
            self.code_of(POP[name])
            if self.by is OrcRegister.SP:
                self.row(self.depth - 8)
        return self

    def mark(self) -> int:
        """Put an instruction here, and return where it is."""
        self.code_of("90")
        return len(self.code) - 1

    def find(self, *places: int) -> list[dict[str, int]]:
        """Tell of the registers at some places."""
        vaddrs, depths, registers = zip(*[*self.rows, (len(self.code), 8, OrcRegister.SP)], strict=True)
        count = len(vaddrs)
        table = OrcTable(
            OrcLayout.V3,
            np.array(vaddrs, dtype=np.uint64) + np.uint64(BASE),
            np.full(count, OrcType.CALL, dtype=np.uint8),
            np.array(registers, dtype=np.uint8),
            np.array(depths, dtype=np.int16),
            np.zeros(count, dtype=np.uint8),
            np.zeros(count, dtype=np.int16),
            np.zeros(count, dtype=np.bool_),
        )

        def read(vaddr: int, size_bytes: int) -> NDArray[np.uint8]:
            start = vaddr - BASE
            data = bytes(max(0, -start)) + self.code[max(0, start) :]
            return np.frombuffer((data + bytes(size_bytes))[:size_bytes], dtype=np.uint8)

        functions = np.array(self.functions, dtype=np.uint64) + np.uint64(BASE)
        found = find_saved_registers(table, functions, read)
        return [self._row(found, vaddrs, place) for place in places]

    @staticmethod
    def _row(found: NDArray[np.uint8], vaddrs: Sequence[int], place: int) -> dict[str, int]:
        row = found[int(np.searchsorted(np.array(vaddrs), place, side="right")) - 1]
        return {name: int(row[SAVED.index(number)]) for name, number in NUMBERS.items()}


ALL_SAME = dict.fromkeys(NUMBERS, SAME)
ALL_UNKNOWN = dict.fromkeys(NUMBERS, UNKNOWN)


def test_registers_are_where_they_were_pushed() -> None:
    made = Assembler().function()
    entry = made.mark()
    made.push("r12", "rbp", "rbx").code_of("4883ec20").row(64)
    body = made.mark()
    made.code_of("4883c420").row(32).pop("rbx")
    after = made.mark()
    made.pop("rbp", "r12").code_of("c3")
    assert made.find(entry, body, after) == [
        ALL_SAME,
        {**ALL_SAME, "r12": 2, "rbx": 4},
        {**ALL_SAME, "r12": 2},
    ]


def test_what_follows_a_return_has_the_frame_again() -> None:
    made = Assembler().function().push("r15", "rbx")
    made.mark()
    made.pop("rbx", "r15").code_of("c3").row(24)
    behind = made.mark()
    assert made.find(behind) == [{**ALL_SAME, "r15": 2, "rbx": 3}]


def test_a_frame_pointer_hides_the_pushes_and_the_end_tells() -> None:
    made = Assembler().function().push("rbp").code_of("4889e5").row(16, OrcRegister.BP)
    made.push("r15", "r14").code_of("49c7c700000000").push("rbx").code_of("4883ec20")
    body = made.mark()
    made.code_of("488d65e8").pop("rbx", "r14", "r15").code_of(POP["rbp"]).row(8).code_of("c3")
    assert made.find(body) == [{**ALL_SAME, "rbx": 5, "r14": 4, "r15": 3}]


def test_a_frame_pointer_without_an_end_tells_nothing() -> None:
    made = Assembler().function().push("rbp").code_of("4889e5").row(16, OrcRegister.BP).push("rbx")
    body = made.mark()
    assert made.find(body) == [ALL_UNKNOWN]


def test_pushes_and_pops_that_do_not_agree() -> None:
    made = Assembler().function().push("r12", "rbx")
    body = made.mark()
    made.pop("r13", "r12").code_of("c3")
    assert made.find(body) == [{**ALL_SAME, "r12": 2, "rbx": UNKNOWN, "r13": UNKNOWN}]


def test_a_frame_that_is_taken_before_the_pushes() -> None:
    """On the short way the words of the pushes hold something else."""
    made = Assembler().function().code_of("4883ec18").row(32)
    short = made.mark()
    made.code_of("4883c418").row(8).code_of("c3").push("rbx").code_of("4883ec10").row(32)
    made.code_of("4883c410").row(16).pop("rbx").code_of("c3")
    assert made.find(short) == [ALL_UNKNOWN]


def test_part_of_another_function() -> None:
    made = Assembler().function().push("rbx")
    made.pop("rbx").code_of("c3").function(48)
    cold = made.mark()
    assert made.find(cold) == [ALL_UNKNOWN]


def test_a_function_that_never_returns_need_not_preserve_anything() -> None:
    made = Assembler().function().push("rbx").code_of("4883ec10").row(32)
    body = made.mark()
    made.function().mark()
    assert made.find(body) == [{**ALL_UNKNOWN, "rbx": 2}]


def test_a_second_push_is_an_argument() -> None:
    made = Assembler().function().push("rbx", "r12", "rbx")
    body = made.mark()
    made.code_of("4883c408").row(24).pop("r12", "rbx").code_of("c3")
    assert made.find(body) == [{**ALL_SAME, "rbx": 2, "r12": 3}]


def test_nothing_to_tell() -> None:
    made = Assembler().function()
    assert made.find(made.mark()) == [ALL_SAME]
    made.functions = []
    assert made.find(0) == [ALL_UNKNOWN]
