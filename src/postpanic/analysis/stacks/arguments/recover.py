"""
Recover what the registers of a frame held, and what its function was called with.

Two ways lead to an argument. The function itself may have put it away: into a
stack slot, or into a register that its callees must keep, and which they in
turn saved on the stack. Or its caller made it of values that it still has.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from postpanic.analysis.stacks.arguments.flow import CodeFlow, FunctionFlow
from postpanic.analysis.stacks.arguments.machine import Instruction
from postpanic.analysis.stacks.arguments.state import (
    Added,
    Doubtful,
    Entry,
    FrameAddress,
    Loaded,
    Location,
    Low,
    Number,
    State,
    Value,
)
from postpanic.analysis.stacks.code_index import CodeIndex
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.stacks.words import Words
from postpanic.errors import AbsentError

__all__ = ["Certainty", "Recovered", "Recovery"]

_WORD = (1 << 64) - 1
_DEEPEST = 48
_DENIED = -1


class Certainty(enum.IntEnum):
    """How sure a value is."""

    LIKELY = 1
    PROVEN = 2


@dataclass(frozen=True, slots=True)
class Recovered:
    """
    A value that was recovered.

    Parameters
    ----------
    value : int
    size_bytes : int
        How many of its low bytes are known.
    certainty : Certainty
    reason : str
        Where it was found; one line.
    """

    value: int
    size_bytes: int
    certainty: Certainty
    reason: str

    def but(self, reason: str, certainty: Certainty = Certainty.PROVEN) -> Recovered:
        """Add to the reason, and lower the certainty."""
        return Recovered(self.value, self.size_bytes, min(self.certainty, certainty), reason)


@dataclass(frozen=True, slots=True)
class _Point:
    """A frame, its function's flow, and what is known where it is."""

    index: int
    frame: Frame
    flow: FunctionFlow
    state: State
    call: Instruction | None
    before_call: State | None
    cfa: int | None
    """The stack pointer of the caller, from which slots are counted."""


class Recovery:
    """
    Recovers values of the frames of one trace.

    Parameters
    ----------
    registers : mapping, optional
        Of the innermost frame.
    """

    def __init__(
        self,
        words: Words,
        code: CodeIndex,
        flows: CodeFlow,
        trace: Trace,
        registers: Mapping[str, int] | None = None,
    ) -> None:
        self._words = words
        self._code = code
        self._flows = flows
        self._machine = flows.machine
        self._frames = trace.frames
        self._registers = registers
        self._points: dict[int, _Point | None] = {}
        self._known: dict[tuple[int, str], Recovered | None] = {}

    def argument(self, index: int, register: str, _depth: int = 0) -> Recovered | None:
        """
        Recover what a register held when the function of a frame was entered.

        Parameters
        ----------
        index : int
            Of the frame in the trace.
        register : str
            ``rdi``, ``x0``, or ``stack0`` for the first argument on the stack.
        """
        own = self._entry(index, register, _depth)
        if own is not None and own.certainty is Certainty.PROVEN:
            return own
        passed = self._passed(index, register, _depth)
        if own is None or (passed is not None and passed.certainty is Certainty.PROVEN):
            return passed
        if passed is not None and passed.value == own.value:
            return own.but(f"{own.reason}; the caller has the same")
        return own

    def kept(self, index: int, register: str) -> Recovered | None:
        """Recover what a register held at a frame's entry, only from where its function put it away."""
        return self._entry(index, register, 0)

    def register(self, index: int, register: str, _depth: int = 0) -> Recovered | None:
        """Recover what a register holds in a frame, where it goes on or was interrupted."""
        key = (index, register)
        if key not in self._known:
            # A value that leads back to itself is not known.
            self._known[key] = None
            self._known[key] = self._find_register(index, register, _depth)
        return self._known[key]

    def _find_register(self, index: int, register: str, depth: int) -> Recovered | None:
        if depth > _DEEPEST or not 0 <= index < len(self._frames):
            return None
        frame = self._frames[index]
        if register == self._machine.sp and (frame.return_bytes or not index or frame.interrupted):
            return Recovered(frame.sp, 8, Certainty.PROVEN, "stack pointer")
        registers = self._registers if not index else None
        saved = self._frames[index - 1].saved if index else None
        if frame.interrupted and saved is not None:
            registers = saved.registers
        if registers is not None and register in registers:
            return Recovered(registers[register], 8, Certainty.PROVEN, "which is known")
        if not index or frame.interrupted or register not in self._machine.callee_saved:
            return None
        return self._entry(index - 1, register, depth + 1)

    def _entry(self, index: int, register: str, depth: int) -> Recovered | None:
        """Recover what a register held at the entry of a frame's function, from where the function put it."""
        point = self._point(index)
        if point is None or depth > _DEEPEST:
            return None
        return self._find_value(point, Entry(register), depth)

    def _find_value(self, point: _Point, wanted: Value, depth: int) -> Recovered | None:
        """Find a value in the slots of a frame, or in registers that are still known."""
        best: Recovered | None = None
        for location, size, minus in _places_of(point.state, wanted):
            found = self._read(point, location, depth)
            if found is None:
                continue
            value = Recovered((found.value - minus) & _WORD, min(size, found.size_bytes), found.certainty, found.reason)
            if value.certainty is Certainty.PROVEN and value.size_bytes == 8:
                return value
            if best is None or (value.certainty, value.size_bytes) > (best.certainty, best.size_bytes):
                best = value
        return best

    def _read(self, point: _Point, location: Location, depth: int) -> Recovered | None:
        """Read a location as it is now."""
        name = point.frame.place.function if point.frame.place is not None else "?"
        certainty = Certainty.PROVEN if point.flow.is_certain else Certainty.LIKELY
        if isinstance(location, str):
            found = self.register(point.index, location, depth + 1)
            if found is None:
                return None
            return found.but(f"{name} keeps it in {location}, {found.reason}", certainty)
        if point.cfa is None:
            return None
        vaddr = (point.cfa + location) & _WORD
        try:
            word = self._words.read(vaddr)
        except AbsentError:
            return None
        where = f"at {vaddr:#x}, where {name} put it"
        if point.flow.is_doubtful(location):
            return Recovered(word, 8, Certainty.LIKELY, f"{where}; others may have written there since")
        return Recovered(word, 8, certainty, where)

    def _passed(self, index: int, register: str, depth: int) -> Recovered | None:
        """Recover an argument from what the caller made it of."""
        frame = self._frames[index]
        caller = self._point(index + 1)
        if caller is None or depth > _DEEPEST or caller.call is None or caller.before_call is None:
            return None
        location: Location = register
        if register.startswith("stack"):
            top = caller.before_call.get(self._machine.sp)
            if not isinstance(top, FrameAddress):
                return None
            location = top.offset + 8 * int(register.removeprefix("stack"))
        value = caller.before_call.get(location)
        if value is None:
            return None
        found = self._evaluate(caller, value, depth + 1)
        if found is None:
            return None
        target = self._flows.target(caller.call)
        name = caller.frame.place.function if caller.frame.place is not None else "?"
        if target is None:
            return found.but(f"{found.reason}; {name} calls through a pointer", Certainty.LIKELY)
        start = frame.place.start if frame.place is not None else 0
        if target != start:
            # The function that was called jumped on to this one.
            return None
        return found

    def _evaluate(self, point: _Point, value: Value, depth: int) -> Recovered | None:
        """Find what a value of the caller was."""
        if depth > _DEEPEST:
            return None
        name = point.frame.place.function if point.frame.place is not None else "?"
        if isinstance(value, Number):
            return Recovered(value.number, 8, Certainty.PROVEN, f"constant in {name}")
        if isinstance(value, FrameAddress):
            if point.cfa is None:
                return None
            return Recovered((point.cfa + value.offset) & _WORD, 8, Certainty.PROVEN, f"address on the stack of {name}")
        if isinstance(value, Doubtful):
            found = self._evaluate(point, value.base, depth + 1)
            return (
                found.but(f"{found.reason}, put away where others may have written since", Certainty.LIKELY)
                if found
                else None
            )
        if isinstance(value, Low):
            found = self._evaluate(point, value.base, depth + 1)
            return (
                None
                if found is None
                else Recovered(
                    found.value & ((1 << 8 * value.size_bytes) - 1), value.size_bytes, found.certainty, found.reason
                )
            )
        held = self._find_value(point, value, depth)
        if held is not None and held.certainty is Certainty.PROVEN:
            return held
        other = self._evaluate_parts(point, value, depth, name)
        return other if held is None or (other is not None and other.certainty > held.certainty) else held

    def _evaluate_parts(self, point: _Point, value: Value, depth: int, name: str) -> Recovered | None:
        if isinstance(value, Added):
            found = self._evaluate(point, value.base, depth + 1)
            if found is None or found.size_bytes < 8:
                return None
            return Recovered((found.value + value.number) & _WORD, 8, found.certainty, found.reason)
        if isinstance(value, Entry):
            passed = self.argument(point.index, value.register, depth + 1)
            return passed.but(f"{name} passes its own {value.register} on: {passed.reason}") if passed else None
        if isinstance(value, Loaded):
            return self._load_again(point, value, depth, name)
        return None

    def _load_again(self, point: _Point, value: Loaded, depth: int, name: str) -> Recovered | None:
        address = self._evaluate(point, value.address, depth + 1)
        if address is None or address.size_bytes < 8:
            return None
        try:
            data = self._words.memory.read(address.value, value.size_bytes)
        except AbsentError:
            return None
        reason = f"{name} loaded it from {address.value:#x}, where it may have changed since"
        return Recovered(int.from_bytes(data, "little"), value.size_bytes, Certainty.LIKELY, reason)

    def _cfa(self, index: int, state: State) -> int | None:
        """
        Give the stack pointer of a frame's caller at the call; None: it is not known, or the code denies it.

        By the code it is some way from the stack pointer, or from the frame pointer where
        return addresses are not on the stack; where the stack was unwound by that, it tells as well.
        """
        frame = self._frames[index]
        following = self._frames[index + 1] if index + 1 < len(self._frames) else None
        known = None
        if frame.return_bytes and following is not None and frame.saved is None and not following.interrupted:
            known = following.sp
        has_sp = bool(frame.return_bytes) or not index or frame.interrupted
        held = state.get(self._machine.sp if has_sp else self._machine.frame_pointer)
        if not isinstance(held, FrameAddress):
            return known
        by_code = ((frame.sp if has_sp else frame.fp) - held.offset) & _WORD
        # Where the code does not agree with the stack, neither can be believed.
        return by_code if known in {None, by_code} else _DENIED

    def _point(self, index: int) -> _Point | None:
        if index not in self._points:
            self._points[index] = self._find_point(index)
        return self._points[index]

    def _find_point(self, index: int) -> _Point | None:
        if not 0 <= index < len(self._frames):
            return None
        frame = self._frames[index]
        if frame.place is None or not frame.place.start or not frame.reliable:
            return None
        flow = self._flows.find(frame.place)
        if flow is None:
            return None
        call = before = None
        if frame.interrupted:
            state = flow.before(frame.pc)
        else:
            call = self._flows.call_before(flow, frame.pc)
            before = flow.before(call.address) if call is not None else None
            state = self._flows.after(flow, call, before) if call is not None and before is not None else None
        if state is None:
            return None
        cfa = self._cfa(index, state)
        if cfa == _DENIED:
            return None
        if not frame.interrupted:
            state = {place: held for place, held in state.items() if place not in self._machine.caller_saved}
        return _Point(index, frame, flow, state, call, before, cfa)


def _places_of(state: State, wanted: Value) -> Iterator[tuple[Location, int, int]]:
    """Find the locations that hold a value: with the bytes that are known, and what was added to it."""
    for location, held in state.items():
        if isinstance(held, Doubtful):
            held = held.base
        if held == wanted:
            yield location, 8, 0
        elif isinstance(held, Low) and held.base == wanted:
            yield location, held.size_bytes, 0
        elif isinstance(held, Added) and held.base == wanted:
            yield location, 8, held.number
