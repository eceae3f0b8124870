"""
Which locks a function holds at each of its instructions, by its code.

The code is followed on all ways from its entry: a call that takes a lock adds it,
one that releases it takes it away. A function that can reach its end with a lock
that it took, where it gives the same lock back on other ways, leaks it there.

What a function does that only takes or releases locks for its caller is done to
the caller's, within one module. What cannot be seen: locks that are taken by
inlined code, and correlated conditions (``if (x) lock(); … if (x) unlock();`` looks like a leak).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from postpanic.analysis.stacks.arguments.flow import CodeFlow, FunctionFlow
from postpanic.analysis.stacks.arguments.machine import Control, Instruction
from postpanic.analysis.stacks.arguments.state import Added, Entry, Location, Number, Value, add
from postpanic.analysis.stacks.arguments.state import State as Registers
from postpanic.analysis.stacks.code_index import CodeIndex, Place

__all__ = ["Held", "LockFlow", "LockReader", "classify_call"]

_TAKES: tuple[tuple[str, str], ...] = (
    # beginnings of names, kind; kernel/locking, include/linux
    ("mutex_lock", "mutex"),
    ("ww_mutex_lock", "mutex"),
    ("down_read", "rwsem"),
    ("down_write", "rwsem"),
    ("percpu_down_", "percpu-rwsem"),
    ("_raw_spin_lock", "spinlock"),
    ("_raw_read_lock", "rwlock"),
    ("_raw_write_lock", "rwlock"),
    # Where the rest of taking it is inlined.
    ("queued_spin_lock_slowpath", "spinlock"),
    ("queued_read_lock_slowpath", "rwlock"),
    ("queued_write_lock_slowpath", "rwlock"),
)
_RELEASES: tuple[tuple[str, str], ...] = (
    ("mutex_unlock", "mutex"),
    ("ww_mutex_unlock", "mutex"),
    ("up_read", "rwsem"),
    ("up_write", "rwsem"),
    ("percpu_up_", "percpu-rwsem"),
    ("_raw_spin_unlock", "spinlock"),
    ("_raw_read_unlock", "rwlock"),
    ("_raw_write_unlock", "rwlock"),
)
_TRIES = ("mutex_trylock", "_raw_spin_trylock", "_raw_read_trylock", "_raw_write_trylock")
_RETURN_THUNK = "__x86_return_thunk"
_DEEPEST_CALL = 3
_MOST_STATES = 12
_MOST_STEPS = 60_000


@dataclass(frozen=True, slots=True)
class Held:
    """
    A lock that is held.

    Attributes
    ----------
    value : Value
        Its address, as the code of the function makes it.
    take : int
        The instruction that took it.
    if_result : str
        ``zero`` or ``other``: it is held if the call returned that; empty: it is.
    """

    kind: str
    value: Value
    take: int
    if_result: str = ""


State = frozenset[Held]


@dataclass(slots=True)
class LockFlow:
    """
    Locks in one function.

    Attributes
    ----------
    place : Place
    before : dict
        What may be held before each instruction: one set for each way to it.
    ends : list of tuple
        Instructions that end the function, and what is held there.
    released : set of tuple
        Kinds and addresses of the locks that it gives back somewhere.
    """

    place: Place
    before: dict[int, set[State]] = field(default_factory=dict)
    ends: list[tuple[int, State]] = field(default_factory=list)
    released: set[tuple[str, Value]] = field(default_factory=set)

    def leaks(self) -> Iterator[tuple[Held, int, bool]]:
        """Yield what is held at an end: the lock, the end, and whether the function gives it back on other ways."""
        seen: set[Held] = set()
        for end, state in self.ends:
            for held in state - seen:
                seen.add(held)
                yield held, end, (held.kind, held.value) in self.released


@lru_cache(maxsize=4096)
def classify_call(name: str) -> tuple[str, str, str]:
    """
    Tell what a called function does to a lock.

    Returns
    -------
    tuple
        ``take``, ``release`` or nothing; the kind; on which result it is taken (:attr:`Held.if_result`).

    >>> classify_call("mutex_lock_killable"), classify_call("up"), classify_call("kfree")
    (('take', 'mutex', 'zero'), ('release', 'semaphore', ''), ('', '', ''))
    """
    name = name.partition(".")[0]
    if name.startswith("__percpu_down_read"):
        # The rest of percpu_down_read() is inlined: who calls this has the lock, or gets it.
        return "take", "percpu-rwsem", ""
    if name in {"up", "down"}:
        return ("release" if name == "up" else "take"), "semaphore", ""
    if name in {"down_interruptible", "down_killable", "down_timeout", "down_trylock"}:
        return "take", "semaphore", "zero"
    for beginning, kind in _RELEASES:
        if name.startswith(beginning):
            return "release", kind, ""
    if name.startswith(_TRIES):
        kind = "mutex" if name.startswith("mutex") else "spinlock" if "spin" in name else "rwlock"
        return "take", kind, "other"
    for beginning, kind in _TAKES:
        if name.startswith(beginning):
            result = "other" if "trylock" in name else "zero" if "interruptible" in name or "killable" in name else ""
            return "take", kind, result
    return "", "", ""


class LockReader:
    """
    Follows the locks of functions, each of them once.

    Parameters
    ----------
    flows : CodeFlow
        What registers hold where.
    code : CodeIndex
    """

    def __init__(self, flows: CodeFlow, code: CodeIndex) -> None:
        self._flows = flows
        self._code = code
        self._known: dict[int, LockFlow | None] = {}
        self._depth = 0

    def find(self, place: Place) -> LockFlow | None:
        """Follow the locks of a function; None: its code cannot be had."""
        if place.start not in self._known:
            self._known[place.start] = None
            flow = self._flows.find(place)
            if flow is not None:
                self._known[place.start] = self._follow(flow, place)
        return self._known[place.start]

    def takes(self, place: Place, kind: str) -> frozenset[Held]:
        """Give the locks of a kind that a function takes anywhere."""
        locks = self.find(place)
        if locks is None:
            return frozenset()
        return frozenset(
            Held(held.kind, held.value, held.take)
            for states in locks.before.values()
            for state in states
            for held in state
            if held.kind == kind
        )

    def held_at(self, place: Place, pc: int, *, is_return: bool) -> frozenset[Held]:
        """Give what a function may hold at a place of it; behind a call, what it held when it called."""
        locks = self.find(place)
        flow = self._flows.find(place)
        if locks is None or flow is None:
            return frozenset()
        at = pc
        if is_return:
            call = self._flows.call_before(flow, pc)
            at = int(call.address) if call is not None else pc
        return frozenset(held for state in locks.before.get(at, ()) for held in state if not held.if_result)

    def _follow(self, flow: FunctionFlow, place: Place) -> LockFlow:
        locks = LockFlow(place)
        pending: list[tuple[int, State]] = [(flow.start, frozenset())]
        ends: set[tuple[int, State]] = set()
        steps = 0
        while pending and steps < _MOST_STEPS:
            steps += 1
            vaddr, state = pending.pop()
            known = locks.before.setdefault(vaddr, set())
            instruction = flow.by_address.get(vaddr)
            if instruction is None or state in known or len(known) >= _MOST_STATES:
                continue
            known.add(state)
            for following, after in self._step(flow, locks, instruction, state):
                if following is None:
                    ends.add((vaddr, after))
                else:
                    pending.append((following, after))
        locks.ends = sorted(ends, key=lambda end: end[0])
        return locks

    def _step(
        self, flow: FunctionFlow, locks: LockFlow, instruction: Instruction, state: State
    ) -> Iterator[tuple[int | None, State]]:
        """Yield where control goes, None for the end of the function, and what is held there."""
        machine = self._flows.machine
        control = machine.control(instruction)
        following = int(instruction.address + instruction.size)
        if control is Control.RETURN:
            yield None, _settled(state)
        elif control is Control.CALL:
            yield following, self._call(flow, locks, instruction, _settled(state))
        elif control is Control.JUMP:
            yield from self._jump(flow, locks, instruction, state)
        elif control is Control.BRANCH:
            target = self._flows.target(instruction)
            taken, passed = _decide(machine.branches_on_zero(instruction), state)
            if target is not None and target in flow.by_address:
                yield target, taken
            yield following, passed
        elif control is Control.NEXT:
            yield following, self._inlined(flow, locks, instruction, state)

    def _inlined(self, flow: FunctionFlow, locks: LockFlow, instruction: Instruction, state: State) -> State:
        """Do to the spinlocks what inlined code does that takes one, or releases one by a store of its own."""
        machine, known = self._flows.machine, flow.before(int(instruction.address)) or {}
        if machine.name == "x86_64":
            return _store(instruction, state)
        if _takes_spinlock(self._flows, instruction, known):
            value = machine.address(instruction, known)
            return state | {Held("spinlock", value, int(instruction.address), "zero")} if value is not None else state
        # smp_store_release() of the byte that says it is taken.
        if instruction.mnemonic != "stlrb" or machine.value_of(instruction, 0, known) != Number(0):
            return state
        released = machine.address(instruction, known)
        if released is not None:
            locks.released.add(("spinlock", released))
        same = {held for held in state if held.kind == "spinlock" and held.value == released}
        return state - (same or {held for held in state if held.kind == "spinlock"})

    def _jump(
        self, flow: FunctionFlow, locks: LockFlow, instruction: Instruction, state: State
    ) -> Iterator[tuple[int | None, State]]:
        target = self._flows.target(instruction)
        if target is None:
            return
        if target in flow.by_address:
            yield target, state
            return
        name = self._name(target)
        if name == _RETURN_THUNK or classify_call(name)[0]:
            # A call at the very end is a jump.
            yield (
                None,
                _settled(state) if name == _RETURN_THUNK else self._call(flow, locks, instruction, _settled(state)),
            )

    def _call(self, flow: FunctionFlow, locks: LockFlow, instruction: Instruction, state: State) -> State:
        target = self._flows.target(instruction)
        what, kind, result = classify_call(self._name(target)) if target is not None else ("", "", "")
        known = flow.before(int(instruction.address))
        if not what:
            return (
                self._inner(target, known or {}, state, locks, int(instruction.address))
                if target is not None
                else state
            )
        value = known.get(self._flows.machine.arguments[0]) if known is not None else None
        if value is None:
            # Somebody's lock is released: nothing more can be said of those of this kind.
            return frozenset(held for held in state if held.kind != kind) if what == "release" else state
        if what == "take":
            return state | {Held(kind, value, int(instruction.address), result)}
        locks.released.add((kind, value))
        same = {held for held in state if held.kind == kind and held.value == value}
        return state - (same or {held for held in state if held.kind == kind})

    def _inner(self, target: int, known: Mapping[Location, Value], state: State, locks: LockFlow, at: int) -> State:
        """Do to the locks what a function of the same module does that takes or releases them for its caller."""
        place = self._code.find(target)
        # The kernel's own functions are too many to follow for each call.
        if place is None or place.offset or not place.module or place.module != locks.place.module:
            return state
        if self._depth >= _DEEPEST_CALL:
            return state
        self._depth += 1
        try:
            inner = self.find(place)
        finally:
            self._depth -= 1
        if inner is None or not inner.ends:
            return state
        kept = frozenset.intersection(*(held for _, held in inner.ends))
        for kind, value in inner.released - {(held.kind, held.value) for held in kept}:
            own = _as_caller(value, known)
            state = frozenset(held for held in state if held.kind != kind or held.value != own)
            if own is not None:
                locks.released.add((kind, own))
        taken = {Held(held.kind, own, at) for held in kept if (own := _as_caller(held.value, known)) is not None}
        return state | taken

    def _name(self, target: int) -> str:
        place = self._code.find(target)
        return place.function if place is not None and not place.offset else ""


def _settled(state: State) -> State:
    """Forget what depends on a result that was not looked at."""
    return frozenset(held for held in state if not held.if_result) if any(held.if_result for held in state) else state


def _takes_spinlock(flows: CodeFlow, instruction: Instruction, known: Registers) -> bool:
    """
    Tell whether an instruction is the fast path of a queued spinlock: 0 becomes 1 (``_Q_LOCKED_VAL``).

    ``casa`` where the CPU has atomic instructions, else ``stxr`` behind a load and a comparison.
    """
    name, operands = instruction.mnemonic, instruction.operands
    if len(operands) != 3 or not name.startswith(("casa", "stxr", "stlxr")):
        return False
    expected = flows.machine.value_of(instruction, 0, known) if name.startswith("cas") else Number(0)
    return (expected, flows.machine.value_of(instruction, 1, known)) == (Number(0), Number(1))


def _decide(is_on_zero: bool | None, state: State) -> tuple[State, State]:
    """Give what is held where a branch is taken, and where it is not: it may have asked for the lock's result."""
    if is_on_zero is None or not any(held.if_result for held in state):
        return state, state
    zero = frozenset(
        Held(held.kind, held.value, held.take) if held.if_result == "zero" else held
        for held in state
        if held.if_result != "other"
    )
    other = frozenset(
        Held(held.kind, held.value, held.take) if held.if_result == "other" else held
        for held in state
        if held.if_result != "zero"
    )
    return (zero, other) if is_on_zero else (other, zero)


def _as_caller(value: Value, known: Mapping[Location, Value]) -> Value | None:
    """Say in a caller's terms what an expression of the called function is; None: it cannot be said."""
    if isinstance(value, Number):
        return value
    if isinstance(value, Entry):
        return known.get(value.register)
    if isinstance(value, Added):
        base = _as_caller(value.base, known)
        return add(base, value.number) if base is not None else None
    return None


def _store(instruction: Instruction, state: State) -> State:
    """Take away the spinlocks where one is released by a store of its own: ``movb $0, (lock)``."""
    text = instruction.op_str
    if not state or instruction.mnemonic != "mov" or not (text.startswith("byte ptr") and text.endswith(", 0")):
        return state
    return frozenset(held for held in state if held.kind != "spinlock")
