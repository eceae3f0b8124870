"""The frames of a stack, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from postpanic.analysis.stacks.code_index import Place
from postpanic.findings.absent import Absent
from postpanic.findings.table import Problem

__all__ = ["Area", "Frame", "Saved", "Trace", "number_frames"]


@dataclass(frozen=True, slots=True)
class Area:
    """
    One stack.

    Parameters
    ----------
    name : str
        ``task``, ``IRQ``, or what crash calls an exception stack: ``NMI``, ``DOUBLEFAULT``.
    start, end : int
        ``[start, end)``.
    cpu : int
        -1 for the stack of a task.
    """

    name: str
    start: int
    end: int
    cpu: int = -1

    @property
    def title(self) -> str:
        """What it is called where one stack ends and another goes on."""
        return f"{self.name} stack" if self.name in {"IRQ", "task", "SOFTIRQ"} else f"{self.name} exception stack"

    def __contains__(self, vaddr: int) -> bool:
        return self.start <= vaddr < self.end


@dataclass(slots=True)
class Saved:
    """
    Registers that an entry into the kernel saved: ``struct pt_regs``.

    Parameters
    ----------
    vaddr : int
        Where they are; 0: they come from a note of the dump.
    registers : mapping
        By the names of the architecture.
    user : bool
        Whether user code was interrupted.
    place : Place, optional
        Of the interrupted instruction; None: it is not in code of the kernel.
    return_pc : int, optional
        Where a register says that the interrupted function returns to (arm64), without an authentication code.
    caller : Place, optional
        The place of that.
    """

    vaddr: int
    registers: Mapping[str, int]
    user: bool
    place: Place | None = None
    return_pc: int | None = None
    caller: Place | None = None


@dataclass(slots=True)
class Frame:
    """
    One frame.

    Parameters
    ----------
    pc : int
        Where its function goes on, or was interrupted.
    sp : int
        Stack pointer in it: for a caller, right behind the return address.
    fp : int
        Frame pointer register in it.
    place : Place or None
    interrupted : bool
        Whether it was interrupted there, and did not call.
    reliable : bool
        False: it was found by scanning the stack, not by unwinding.
    area : Area or None
        The stack it is on; None: no stack that is known.
    saved : Saved, optional
        The registers between it and its caller, which did not call but was interrupted.
    return_bytes : int
        What a call pushes: 8 on x86-64, nothing where the return address is in a register.
    """

    pc: int
    sp: int
    fp: int
    place: Place | None
    interrupted: bool = False
    reliable: bool = True
    area: Area | None = None
    saved: Saved | None = None
    return_bytes: int = 8

    @property
    def slot(self) -> int:
        """Where crash says the frame is: its return address, or the stack pointer where it was interrupted."""
        return self.sp if self.interrupted else self.sp - self.return_bytes


@dataclass(slots=True)
class Trace:
    """
    The frames of one stack, innermost first.

    Parameters
    ----------
    frames : list of Frame
    start : Saved, optional
        Registers that the trace begins with, where they come from a note of the dump.
    complete : bool
        Whether it reached the regular end of the stack.
    problems : list of Problem
    absent : Absent, optional
        Why there is nothing to unwind, where that is as it should be.
    registers : mapping, optional
        Of the innermost frame, as far as they are known.
    """

    frames: list[Frame] = field(default_factory=list)
    start: Saved | None = None
    complete: bool = False
    problems: list[Problem] = field(default_factory=list)
    absent: Absent | None = None
    registers: Mapping[str, int] | None = None


def number_frames(frames: Sequence[Frame]) -> Iterator[tuple[Frame, int | None]]:
    """
    Count the frames as crash does.

    A function that was interrupted is named above its registers, and is not
    counted; only where an interrupt or an exception had a stack of its own is it
    counted as well.
    """
    number = 0
    for index, frame in enumerate(frames):
        near = frames[max(0, index - 2) : index]
        if index and frame.interrupted and all(other.area == frame.area for other in near):
            yield frame, None
        else:
            yield frame, number
            number += 1
