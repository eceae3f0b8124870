"""
Who is likely to make a wait end, where nothing records it.

A kernel thread that sleeps itself and has the object on its stack whose wait queue
or completion is waited for works on that object: a journal's thread for those that
wait for a commit, a worker for the owner of its item. And the thread that serves a
device keeps waiting who waits for the device. Both are likely, never certain.
"""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.locks import Holder
from postpanic.analysis.memory.places import open_places
from postpanic.analysis.triage.hangs.devices import oldest_requests
from postpanic.analysis.triage.hangs.picture import Picture, Thing
from postpanic.analysis.triage.hangs.sleeping import Sleep

__all__ = ["add_wakers"]

_WAITED_FOR = frozenset({"waitqueue", "completion"})
_MOST_THREADS = 500
_SMALLEST_OBJECT = 64
"""An object of fewer bytes has no wait queue of its own beside its data."""


def add_wakers(picture: Picture) -> None:
    """Add the likely wakers to a wait-for graph, as uncertain holders."""
    threads = [sleep for sleep in picture.sleeping.values() if _is_blocked_thread(picture, sleep)][:_MOST_THREADS]
    if not threads:
        return
    stacks: dict[int, frozenset[int]] = {}
    for thing in list(picture.things.values()):
        if thing.holders:
            continue
        found: list[Holder] = []
        if thing.kind in _WAITED_FOR and thing.vaddr:
            found = list(_at_work_on(picture, thing, threads, stacks))
        elif thing.kind == "io":
            found = list(_serving(picture, thing, threads))
        if found:
            picture.add_holders(thing, found)


def _is_blocked_thread(picture: Picture, sleep: Sleep) -> bool:
    try:
        return sleep.facts.is_kernel_thread and picture.state(sleep.facts) == "UN"
    except UNREADABLE:
        return False


def _at_work_on(
    picture: Picture, thing: Thing, threads: list[Sleep], stacks: dict[int, frozenset[int]]
) -> Iterator[Holder]:
    """Find the threads that have the object on their stacks in which a wait queue or completion is."""
    try:
        place = open_places(picture.workspace).short(thing.vaddr)
    except UNREADABLE:
        return
    if place is None or place.kind != "slab" or not place.start or (place.size_bytes or 0) < _SMALLEST_OBJECT:
        return
    for sleep in threads:
        task = sleep.facts.vaddr
        if task in thing.waiters or sleep.target == thing.vaddr:
            continue
        if place.start <= sleep.target < place.start + (place.size_bytes or 0):
            # It waits for another part of the same object: a victim like the others.
            continue
        if task not in stacks:
            stacks[task] = _words(picture, sleep)
        if place.start in stacks[task]:
            yield Holder(task, f"is at work on the same {place.name or 'object'}", certain=False)


def _words(picture: Picture, sleep: Sleep) -> frozenset[int]:
    frames = sleep.trace.frames
    if not frames:
        return frozenset()
    low, high = frames[0].sp, frames[-1].sp
    try:
        data = picture.workspace.memory.read(low, max(0, min(high - low, picture.scene.stacks.thread_size)) // 8 * 8)
    except UNREADABLE:
        return frozenset()
    return frozenset(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))


def _serving(picture: Picture, thing: Thing, threads: list[Sleep]) -> Iterator[Holder]:
    """Find the threads in code of the driver whose device has the oldest request."""
    requests = oldest_requests(picture)
    module = requests[0].module if requests else ""
    if module in {"", "vmlinux"}:
        return
    for sleep in threads:
        if sleep.facts.vaddr in thing.waiters:
            continue
        if any(frame.place is not None and frame.place.module == module for frame in sleep.trace.frames):
            yield Holder(sleep.facts.vaddr, f"serves {requests[0].device}", certain=False)
