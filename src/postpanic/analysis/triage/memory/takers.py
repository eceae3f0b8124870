"""Who takes memory: the function that an allocator returns to, and tasks that wait for more right now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from postpanic.analysis.code.veneers import resolve_veneer
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report, Section
from postpanic.evidence.oops.functions import Part, part_of, plain_name
from postpanic.findings.verdict import Evidence
from postpanic.kernel.memory import KernelMemory

__all__ = ["Owner", "find_asker", "find_taker", "find_taker_in_log"]

_WORD = (1 << 64) - 1
_CALL, _BL = 0xE8, 0b100101
_TRACES = 2000
"""Stacks that are looked at."""
_ALLOCATORS = (
    "kmalloc", "__kmalloc", "kmem_cache_alloc", "__get_free_pages", "get_zeroed_page", "__alloc_pages", "alloc_pages",
    "__alloc_skb", "vmalloc", "vzalloc", "__vmalloc", "kvmalloc", "__kvmalloc", "kmemdup", "__page_frag", "alloc_large",
    "kstrdup", "get_free_pages", "folio_alloc", "__folio_alloc", "krealloc", "devm_kmalloc", "kasprintf", "kvasprintf",
    "pcpu_alloc", "__alloc_percpu", "dma_alloc", "mempool_alloc", "kcalloc", "kzalloc",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Owner:
    """
    Who took the memory, as far as it can be told.

    Attributes
    ----------
    function, module : str
        Empty: not known. ``vmlinux`` is the kernel itself.
    evidence : tuple of Evidence
    """

    function: str = ""
    module: str = ""
    evidence: tuple[Evidence, ...] = ()


def find_asker(scene: Scene, vaddr: int) -> tuple[str, str]:
    """
    Name the function, and its module, that asked an allocator which returns to *vaddr*.

    The function that the address is in, unless the call right before it is of
    another one: that one ended with a jump to the allocator, and has no frame.
    """
    place = scene.stacks.code.find_caller(vaddr) if vaddr else None
    if place is None or not place.function:
        return "", ""
    called = _called_before(scene, vaddr)
    if called is not None and called[1] == place.module and not plain_name(called[0]).startswith(_ALLOCATORS):
        return plain_name(called[0]), place.module
    return plain_name(place.function), place.module


def _called_before(scene: Scene, vaddr: int) -> tuple[str, str] | None:
    """Find the function that is called right before an address, by a direct call."""
    try:
        target = _target_before(scene.dump.memory, vaddr)
    except UNREADABLE:
        return None
    if target is None:
        return None
    place = scene.stacks.code.find(target)
    return (place.function, place.module) if place is not None and not place.offset and place.function else None


def _target_before(memory: KernelMemory, vaddr: int) -> int | None:
    """Read the target of the call before an address: ``call`` with 32 bits of x86-64, ``bl`` with 26 of arm64."""
    if memory.machine == "x86_64":
        code = memory.read(vaddr - 5, 5)
        return (vaddr + int.from_bytes(code[1:], "little", signed=True)) & _WORD if code[0] == _CALL else None
    if memory.machine != "aarch64":
        return None
    word = memory.read_u32(vaddr - 4)
    if word >> 26 != _BL:
        return None
    distance = (word & 0x3FFFFFF) - ((word & 1 << 25) << 1)
    return resolve_veneer(memory, (vaddr - 4 + 4 * distance) & _WORD)


def find_taker(scene: Scene, allocators: tuple[str, ...]) -> Owner | None:
    """
    Find a task that is just now taking memory by one of some allocators, from code that is no service.

    That is the first function outside of the allocators; of a module, if there is
    one in several tasks. A task that takes a page for itself (a fault) is none.
    """
    found: list[Owner] = []
    looked_at = 0
    for task in scene.tasks:
        try:
            if task.state not in {"RU", "UN"} and task.vaddr not in scene.stacks.running:
                continue
            frames = scene.trace(task).frames
            owner = _taker(_named_frames(scene, frames), task.pid, task.comm, allocators)
        except UNREADABLE:
            continue
        if owner is not None:
            found.append(owner)
        looked_at += 1
        if len(found) > 32 or looked_at > _TRACES:
            break
    modules = [owner for owner in found if owner.module != "vmlinux"]
    if modules:
        names = Counter((owner.module, owner.function) for owner in modules)
        (module, function), count = names.most_common(1)[0]
        if len(names) == 1 or count > 1:
            return next(owner for owner in modules if (owner.module, owner.function) == (module, function))
    return None


def find_taker_in_log(report: Report, allocators: tuple[str, ...] = _ALLOCATORS) -> Owner | None:
    """Find a module's function that asked for memory in the trace of a report."""
    for trace in report.traces:
        if trace.section in {Section.MAIN, Section.PANIC}:
            frames = [(frame.function, frame.module) for frame in trace.frames if frame.is_reliable and not frame.is_pc]
            owner = _taker(frames, report.pid or 0, report.comm, allocators)
            if owner is not None:
                evidence = tuple(Evidence(one.what, "log", one.shows) for one in owner.evidence)
                return Owner(owner.function, owner.module, evidence)
    return None


def _named_frames(scene: Scene, frames: Sequence[Frame]) -> list[tuple[str, str]]:
    """Give the function and module of each frame, with those that ended with a jump to what they called last."""
    named: list[tuple[str, str]] = []
    for frame in frames:
        if frame.place is None or not frame.place.function or not frame.reliable:
            continue
        called = None if frame.interrupted else _called_before(scene, frame.pc)
        if called is not None and named and plain_name(called[0]) != plain_name(named[-1][0]) and called[1]:
            named.append(called)
        named.append((frame.place.function, frame.place.module))
    return named


def _taker(frames: list[tuple[str, str]], pid: int, comm: str, allocators: tuple[str, ...]) -> Owner | None:
    entered = next(
        (place for place, (name, _) in enumerate(frames) if name.lstrip("_").startswith("alloc_pages")), None
    )
    if entered is None:
        return None
    is_own = False
    for name, module in frames[entered:]:
        plain = plain_name(name)
        is_own = is_own or plain.startswith(allocators)
        if part_of(plain) is Part.ALLOCATOR or plain.startswith(_ALLOCATORS) or _is_slab_inside(plain):
            continue
        if not is_own or not module:
            return None
        what = f"{comm} (PID {pid}) waits for more memory in {plain} of module {module}"
        return Owner(plain, module, (Evidence(what, f"bt {pid}", name),))
    return None


def _is_slab_inside(name: str) -> bool:
    return name.lstrip("_").startswith(("slab_", "new_slab", "allocate_slab", "alloc_slab", "refill_", "get_partial"))
