"""Where a value came from: steps through code, the one that gave the value first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from postpanic.analysis.triage.faults.pointees import Pointee

__all__ = ["Origin", "Step", "StepKind"]


class StepKind(StrEnum):
    """How a value got where it was found."""

    LOAD = "loaded from memory"
    ADDRESS = "reckoned"
    """An offset was added to it."""
    CONSTANT = "a constant of the code"
    RESULT = "the result of a call"
    ARGUMENT = "an argument"
    CHANGE = "changed in another way"
    """Nobody follows it further."""


@dataclass(frozen=True, slots=True)
class Step:
    """
    One step of a value's way; the next explains where its base came from.

    Attributes
    ----------
    kind : StepKind
    vaddr : int
        Of the instruction; of an argument, of the function.
    text : str
        The instruction.
    function, module : str
        Whose instruction it is.
    register : str
        That it gave the value to.
    value : int, optional
        None: not known.
    address : int, optional
        Of the memory that was read.
    base : str
        Register that the address was made with.
    base_value : int, optional
    offset : int
        From the base.
    type, member : str
        What the base points to, and what lies at the offset; empty: not known.
    pointee : Pointee, optional
        What the value points to.
    name : str
        Of the function called, the parameter, or the variable that was read.
    is_verified : bool
        Whether memory still holds the value where it was read.
    is_function : bool
        Whether by its type the value is a pointer to a function.
    rounds : int
        How often a loop came by before: elements of a list that were passed.
    size_bytes : int
        Of what was read.
    """

    kind: StepKind
    vaddr: int
    text: str = ""
    function: str = ""
    module: str = ""
    register: str = ""
    value: int | None = None
    address: int | None = None
    base: str = ""
    base_value: int | None = None
    offset: int = 0
    type: str = ""
    member: str = ""
    pointee: Pointee | None = None
    name: str = ""
    is_verified: bool = False
    is_function: bool = False
    rounds: int = 0
    size_bytes: int = 8

    @property
    def where(self) -> str:
        """What was read, in words: ``member book of struct account at 0xffff…``."""
        if self.kind is StepKind.RESULT:
            return f"the result of {self.name or 'a call'}"
        if self.kind is StepKind.ARGUMENT:
            return f"argument {self.name or self.register} of {self.function}"
        if self.kind is StepKind.CONSTANT:
            return f"{self.name or 'a constant'}"
        if self.kind is not StepKind.LOAD:
            return self.kind.value
        if self.name:
            return f"the variable {self.name}"
        at = f" at {self.base_value:#x}" if self.base_value is not None else ""
        if self.member and self.type:
            return f"{self.type}.{self.member} (offset {self.offset:#x}) of the object{at}"
        return f"offset {self.offset:#x} of the object{at}"


@dataclass(frozen=True)
class Origin:
    """
    Where a value came from.

    Attributes
    ----------
    register : str
    value : int, optional
    steps : tuple of Step
        From the instruction that gave the value backwards.
    is_certain : bool
        Whether no other way could have led there, or memory confirms this one.
    """

    register: str
    value: int | None
    steps: tuple[Step, ...] = field(default=())
    is_certain: bool = False

    @property
    def loads(self) -> Iterator[Step]:
        """The steps that read memory, the nearest to the fault first."""
        return (step for step in self.steps if step.kind is StepKind.LOAD)

    @property
    def load(self) -> Step | None:
        """The step that read the value itself, with nothing but offsets added since; None: it was not read."""
        for step in self.steps:
            if step.kind is StepKind.LOAD:
                return step
            if step.kind not in {StepKind.ADDRESS, StepKind.ARGUMENT}:
                return None
        return None

    @property
    def pointee(self) -> Pointee | None:
        """What the value points to, by its type."""
        return self.steps[0].pointee if self.steps else None
