"""What following code needs to know of a machine: how its instructions are decoded, and where they lead."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any, Protocol

from postpanic.analysis.stacks.arguments.state import State, Value

__all__ = ["Control", "Instruction", "Machine", "Operand"]

Instruction = Any
"""``capstone.CsInsn``, which has no types."""
Operand = Any
"""``capstone.x86.X86Op``, ``capstone.arm64.Arm64Op``."""


class Control(enum.Enum):
    """Where control goes behind an instruction."""

    NEXT = "on"
    CALL = "to the target and back"
    JUMP = "to the target"
    BRANCH = "to the target, or on"
    RETURN = "back"
    TRAP = "nowhere, or on"
    """``ud2``, ``brk``: behind a warning it goes on."""
    STOP = "nowhere"


class Machine(Protocol):
    """One machine."""

    @property
    def name(self) -> str:
        """As ``uname -m`` spells it."""

    @property
    def sp(self) -> str:
        """The stack pointer."""

    @property
    def frame_pointer(self) -> str:
        """The register that points to the frame, where one does."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Registers of the first arguments."""

    @property
    def caller_saved(self) -> frozenset[str]:
        """Registers that a call does not keep."""

    @property
    def callee_saved(self) -> frozenset[str]:
        """Registers that a call keeps."""

    @property
    def call_sizes(self) -> tuple[int, ...]:
        """How many bytes a call may have."""

    def entry_state(self) -> State:
        """Give what is where when a function is entered."""

    def decode(self, code: bytes, vaddr: int) -> list[Instruction]:
        """Decode a stretch of code; bytes that are no instruction are passed over."""

    def control(self, instruction: Instruction) -> Control:
        """Tell where control goes."""

    def target(self, instruction: Instruction) -> int | None:
        """Give the target of a direct call, jump or branch, as the instruction has it."""

    def branches_on_zero(self, instruction: Instruction) -> bool | None:
        """Tell whether a branch is taken if what was asked for is zero, or if not; None: it asks for something else."""

    def step(self, instruction: Instruction, state: State, *, is_traced_entry: bool = False) -> State:
        """Give the state behind an instruction; a call returns as the ABI wants it."""

    def address(self, instruction: Instruction, state: State) -> Value | None:
        """Give the address that an instruction accesses; None: it is not known, or it accesses nothing."""

    def value_of(self, instruction: Instruction, number: int, state: State) -> Value | None:
        """Give the value of an operand that is a register or a number."""

    def addresses_taken(self, before: State, after: State) -> Iterator[int]:
        """Give the slots whose address an instruction put into a register, where others may get it from."""

    def saved_slots(self, instruction: Instruction, after: State) -> Iterator[int]:
        """Give the slots in which an instruction saves registers for the caller."""
