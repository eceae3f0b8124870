"""Who leaked a lock, or holds it without being recorded: told by the code that takes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from postpanic.analysis.cells import problem
from postpanic.analysis.code.veneers import resolve_veneer
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.locks import Holder
from postpanic.analysis.stacks.arguments.machine import Control
from postpanic.analysis.stacks.arguments.recover import Recovery
from postpanic.analysis.stacks.arguments.state import Added, Doubtful, Entry, Loaded, Number, Value
from postpanic.analysis.stacks.code_index import Place
from postpanic.analysis.stacks.frames import Frame, Trace
from postpanic.analysis.triage.hangs.locksets import Held, LockReader, classify_call
from postpanic.analysis.triage.hangs.naming import function_of
from postpanic.analysis.triage.hangs.picture import Picture, Thing
from postpanic.analysis.triage.hangs.sleeping import LOCKS, Sleep
from postpanic.analysis.triage.hangs.wakers import add_wakers
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import Part, part_of

__all__ = [
    "HeldLock",
    "Leak",
    "find_leak",
    "find_leak_in",
    "find_takers",
    "held_locks",
    "holds",
    "list_leaks",
    "open_picture",
]

_MOST_FUNCTIONS = 400
_MOST_CODE_BYTES = 8 << 20
_MOST_TASKS = 3000
_MOST_LOCKS = 300
"""Locks whose holders are looked at by their code: what comes after is taken as the kernel records it."""
_DEEPEST_VALUE = 8
_NEVER_HOLD = frozenset({Part.ENTRY, Part.WAITING, Part.LOCKING, Part.INTERRUPT, Part.EXCEPTION})
"""Parts of functions that take no locks but for others."""
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Leak:
    """
    A function that can end with a lock that it took.

    Attributes
    ----------
    take : str
        The function that it takes it with; of one that is inlined, the instruction.
    returns : int
        The instruction at which it ends with the lock.
    is_sure : bool
        Whether the lock is the very one, by its address.
    is_partial : bool
        Whether it gives the lock back on other ways.
    take_vaddr : int
        The instruction that takes it.
    """

    function: str
    module: str
    take: str
    returns: int
    is_sure: bool
    is_partial: bool
    take_vaddr: int


@dataclass(frozen=True, slots=True)
class HeldLock:
    """A lock that a function of a stack holds; address 0: it is not known which."""

    frame: Frame
    kind: str
    vaddr: int


def lock_reader(picture: Picture) -> LockReader | None:
    """Give what follows locks through code; None on machines whose code nobody follows here."""
    flows = picture.sleeps.flows
    if flows is None:
        return None
    return picture.workspace.once("hangs: locks", lambda: LockReader(flows, picture.scene.stacks.code))


def find_leak(picture: Picture, thing: Thing, waiter: Sleep) -> Leak | None:
    """Find the function that takes a lock and can end without giving it back, among those of the lock's module."""
    module = _module_of(picture, thing, waiter.own)
    leak = find_leak_in(picture, thing.kind, thing.vaddr, module)
    waiting = {function_of(picture.sleeping[task].own) for task in thing.waiters if task in picture.sleeping}
    # What always keeps the lock may be meant to; who waits there has not got it.
    return None if leak is not None and not leak.is_partial and leak.function in waiting else leak


def find_leak_in(picture: Picture, kind: str, vaddr: int, module: str) -> Leak | None:
    """Find the function of a module that leaks a lock; None: none is seen, or several that nothing tells apart."""
    reader = lock_reader(picture)
    if reader is None or not module:
        return None
    is_static = bool(picture.names.symbol(vaddr))
    found: list[Leak] = []
    for place in find_takers(picture, kind, module):
        locks = reader.find(place)
        for held, end, is_partial in locks.leaks() if locks is not None else ():
            if held.kind != kind:
                continue
            is_same = isinstance(held.value, Number) and held.value.number == vaddr
            if is_same or (not is_static and not isinstance(held.value, Number)):
                name = place.function.partition(".")[0]
                found.append(Leak(name, module, _taker(picture, held), end, is_same, is_partial, held.take))
    # Of several ways the one that is seen in a listing up to the end.
    found.sort(key=lambda leak: (not leak.is_sure, not leak.is_partial, leak.take_vaddr > leak.returns))
    best = [leak for leak in found if (leak.is_sure, leak.is_partial) == (found[0].is_sure, found[0].is_partial)]
    if len({leak.function for leak in best}) > 1:
        return None
    return found[0] if found else None


def list_leaks(picture: Picture, kind: str, module: str) -> Iterator[tuple[Leak, int]]:
    """Give the functions of a module that can end with a lock whose address is fixed, and that address."""
    reader = lock_reader(picture)
    if reader is None:
        return
    for place in find_takers(picture, kind, module):
        locks = reader.find(place)
        for held, end, is_partial in locks.leaks() if locks is not None else ():
            if held.kind == kind and isinstance(held.value, Number):
                name = place.function.partition(".")[0]
                taker = _taker(picture, held)
                leak = Leak(name, module, taker, end, is_sure=True, is_partial=is_partial, take_vaddr=held.take)
                yield leak, held.value.number & _WORD


def _taker(picture: Picture, held: Held) -> str:
    flows = picture.sleeps.flows
    place = picture.scene.stacks.code.find(held.take)
    flow = flows.find(place) if flows is not None and place is not None else None
    call = flow.by_address.get(held.take) if flow is not None else None
    if flows is None or call is None or flows.machine.control(call) not in {Control.CALL, Control.JUMP}:
        return str(call.mnemonic) if call is not None else ""
    target = flows.target(call)
    return picture.names.symbol(target) if target is not None else ""


def _module_of(picture: Picture, thing: Thing, own: Frame | None) -> str:
    """Name the module that a lock belongs to: of its symbol, else of who waits for it."""
    if thing.vaddr and (module := picture.names.module_at(thing.vaddr)):
        return module
    return own.place.module if own is not None and own.place is not None else ""


def find_takers(picture: Picture, kind: str, module: str) -> list[Place]:
    """Find the functions of a module that call something which takes a kind of lock."""
    key = f"hangs: takers of {kind} in {module}"
    return picture.workspace.once(key, lambda: list(_find_takers(picture, kind, module)))


def _find_takers(picture: Picture, kind: str, module: str) -> Iterator[Place]:
    code = picture.scene.stacks.code
    seen: set[int] = set()
    try:
        for start, end in _code_of(picture, module):
            memory = picture.workspace.memory
            find_calls = _calls_of_arm64 if memory.machine == "aarch64" else _calls
            for call, target in find_calls(memory.read(start, end - start), start):
                place = code.find(resolve_veneer(memory, target))
                if place is None or place.offset or classify_call(place.function)[:2] != ("take", kind):
                    continue
                taker = code.find(call)
                if taker is not None and taker.start and taker.start not in seen:
                    seen.add(taker.start)
                    yield taker
                    if len(seen) >= _MOST_FUNCTIONS:
                        return
    except UNREADABLE as exc:
        picture.scene.problems.append(problem(f"the code of module {module}", exc))


def _code_of(picture: Picture, module: str) -> Iterator[tuple[int, int]]:
    """Give where the code of a module lies: around what is known to be code of it."""
    for each in picture.scene.prog.modules():
        if each.name != module:
            continue
        for start, end in each.address_ranges or ():
            step = start
            while step < min(end, start + _MOST_CODE_BYTES):
                place = picture.scene.stacks.code.find(step)
                if place is None or not place.size_bytes:
                    step += 16
                    continue
                yield place.start, place.start + place.size_bytes
                step = place.start + place.size_bytes


def _calls_of_arm64(raw: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Find direct calls and jumps: ``bl`` and ``b``, 26 bits of words (Arm ARM C6.2)."""
    words = np.frombuffer(raw[: len(raw) // 4 * 4], dtype="<u4")
    for position in np.flatnonzero(words & 0x7C000000 == 0x14000000).tolist():
        distance = int(words[position]) & 0x3FFFFFF
        distance -= (distance & 1 << 25) << 1
        yield start + 4 * position, (start + 4 * (position + distance)) & _WORD


def _calls(raw: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Find what may be direct calls: ``e8`` and a displacement; what is none leads nowhere."""
    data = np.frombuffer(raw, dtype=np.uint8)
    for position in np.flatnonzero(data == 0xE8).tolist():
        if position + 5 <= len(raw):
            displacement = int.from_bytes(raw[position + 1 : position + 5], "little", signed=True)
            yield start + position, (start + position + 5 + displacement) & _WORD


def open_picture(scene: Scene) -> Picture:
    """Give the wait-for graph of a dump, with holders that only their code betrays; it is built once."""
    return scene.dump.once("hangs", lambda: _build(scene))


def _build(scene: Scene) -> Picture:
    picture = Picture(scene)
    for thing in list(picture.things.values())[:_MOST_LOCKS]:
        is_known = bool(thing.holders) and all(holder.certain for holder in thing.holders)
        if thing.kind in LOCKS and thing.vaddr and not is_known and not thing.gone and not thing.state.startswith("un"):
            holders = _find_silent(picture, thing)
            if holders:
                picture.add_holders(thing, holders)
    for thing in list(picture.things.values())[:_MOST_LOCKS]:
        if thing.kind in LOCKS and thing.vaddr and thing.holders:
            if thing.holders[0].certain:
                _check_holder(picture, thing)
            else:
                _check_last(picture, thing)
    add_wakers(picture)
    return picture


def _check_holder(picture: Picture, thing: Thing) -> None:
    """
    Look whether the recorded owner of a lock is in code that holds it.

    An owner may have returned with the lock, and a new task may have got the
    ``task_struct`` of one that has ended. It is taken for past the lock only if some
    function of the lock's module can be seen to leak it.
    """
    facts = picture.tasks.get(thing.holders[0].task)
    if facts is None or lock_reader(picture) is None:
        return
    try:
        thing.is_seen = holds(picture, picture.scene.trace(facts), thing.kind, thing.vaddr) is not None
    except UNREADABLE:
        return
    waiter = picture.sleeping.get(thing.waiters[0]) if thing.waiters else None
    if thing.is_seen or waiter is None:
        return
    leak = find_leak(picture, thing, waiter)
    if leak is not None and leak.is_partial:
        picture.set_gone(thing, facts.vaddr, "left")


def _check_last(picture: Picture, thing: Thing) -> None:
    """
    Forget the last who is known to have taken a lock if it waits for it, and its code is not seen to hold it.

    Whoever that was may be long gone, and its ``task_struct`` another's: one that came for the lock like all.
    """
    if lock_reader(picture) is None:
        return
    kept = []
    for holder in thing.holders:
        facts = picture.tasks.get(holder.task)
        try:
            is_doubtful = (
                holder.task in thing.waiters
                and facts is not None
                and holds(picture, picture.scene.trace(facts), thing.kind, thing.vaddr) is None
            )
        except UNREADABLE:
            is_doubtful = False
        kept += [] if is_doubtful else [holder]
    if len(kept) < len(thing.holders):
        picture.add_holders(thing, kept)


def _find_silent(picture: Picture, thing: Thing) -> list[Holder]:
    """Find the tasks that hold a lock which records no holder: their code took it, and has not given it back."""
    own = picture.sleeping[thing.waiters[0]].own if thing.waiters else None
    module = _module_of(picture, thing, own)
    found = []
    for facts in picture.scene.tasks[:_MOST_TASKS]:
        if facts.vaddr in thing.waiters or (facts.vaddr not in picture.sleeping and not module):
            continue
        try:
            frame = holds(picture, picture.scene.trace(facts), thing.kind, thing.vaddr, module)
        except UNREADABLE:
            continue
        if frame is not None:
            found.append(Holder(facts.vaddr, f"took it in {function_of(frame)}()", certain=False))
    return found


def holds(picture: Picture, trace: Trace, kind: str, vaddr: int, module: str = "", start: int = 0) -> Frame | None:
    """
    Find the frame of a stack whose function holds a lock, by its code.

    Parameters
    ----------
    module : str
        Only functions of it are looked at; empty: all.
    start : int
        The first frame that is looked at.
    """
    reader = lock_reader(picture)
    if reader is None:
        return None
    recovery: Recovery | None = None
    for index, frame in enumerate(trace.frames[start:], start):
        place = frame.place
        if place is None or not place.start or (module and place.module != module):
            continue
        if part_of(function_of(frame)) in _NEVER_HOLD:
            continue
        # Readers of a per-CPU rwsem take it without a call, and with one only where a writer waits.
        found = (
            reader.takes(place, kind)
            if kind == "percpu-rwsem"
            else reader.held_at(place, frame.pc, is_return=not frame.interrupted)
        )
        for held in found:
            if held.kind != kind:
                continue
            recovery = recovery or picture.sleeps.recovery(trace)
            if recovery is not None and _evaluate(picture, recovery, index, held.value) == vaddr:
                return frame
    return None


def held_locks(picture: Picture, trace: Trace, start: int = 0) -> Iterator[HeldLock]:
    """Find all locks that the functions of a stack hold, by their code; the innermost function first."""
    reader, recovery = lock_reader(picture), picture.sleeps.recovery(trace)
    if reader is None or recovery is None:
        return
    for index, frame in enumerate(trace.frames[start:], start):
        place = frame.place
        if place is None or not place.start or part_of(function_of(frame)) in _NEVER_HOLD:
            continue
        for held in sorted(reader.held_at(place, frame.pc, is_return=not frame.interrupted), key=lambda one: one.take):
            yield HeldLock(frame, held.kind, _evaluate(picture, recovery, index, held.value) or 0)


def _evaluate(picture: Picture, recovery: Recovery, index: int, value: Value, depth: int = 0) -> int | None:
    """Compute what an expression of a frame's function stands for; None: it is not known any more."""
    if depth > _DEEPEST_VALUE:
        return None
    if isinstance(value, Number):
        return value.number & _WORD
    if isinstance(value, Entry):
        found = recovery.argument(index, value.register)
        return found.value if found is not None and found.size_bytes == 8 else None
    if isinstance(value, Doubtful):
        return _evaluate(picture, recovery, index, value.base, depth + 1)
    if isinstance(value, Added):
        base = _evaluate(picture, recovery, index, value.base, depth + 1)
        return (base + value.number) & _WORD if base is not None else None
    if isinstance(value, Loaded) and value.size_bytes == 8:
        address = _evaluate(picture, recovery, index, value.address, depth + 1)
        try:
            return picture.workspace.memory.read_u64(address) if address is not None else None
        except UNREADABLE:
            return None
    return None
