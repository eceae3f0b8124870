"""
Who allocated and who freed an object, where the kernel keeps it (``slub_debug=U``).

Each object is followed by two ``struct track`` (``mm/slub.c``): of its allocation and of its last freeing. They
begin at ``get_info_end()``: behind the object, and behind the pointer to the next free one, if that is not inside.
"""

from __future__ import annotations

from dataclasses import dataclass

from drgn import Object, sizeof

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.faults.code_paths import code_graphs
from postpanic.analysis.triage.faults.things import Thing
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.functions import part_of, plain_name

__all__ = ["Track", "read_tracks"]

_STORE_USER = 0x10000
"""``SLAB_STORE_USER`` (``include/linux/slab.h``) up to 6.8; then a bit of ``enum _slab_flag_bits`` (cc61eb851461)."""
_POINTER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Track:
    """
    One of the two.

    Attributes
    ----------
    function, module : str
        That asked the allocator.
    pid, cpu : int
    jiffies : int
    vaddr : int
        Of the ``struct track``.
    symbol : str
        Of the function that the address is in which the kernel kept.
    """

    function: str
    module: str
    pid: int
    cpu: int
    jiffies: int
    vaddr: int
    symbol: str

    @property
    def text(self) -> str:
        """In words: ``parcel_drop [parcel] (PID 412, CPU 0)``."""
        module = f" [{self.module}]" if self.module != "vmlinux" else ""
        return f"{self.function}{module} (PID {self.pid}, CPU {self.cpu})"


def read_tracks(scene: Scene, thing: Thing) -> tuple[Track | None, Track | None]:
    """Read who allocated and who freed a slab object; None for what the kernel did not keep."""
    if thing.info is None:
        return None, None
    try:
        return _read(scene, thing)
    except UNREADABLE as exc:
        scene.problems.append(problem(f"who allocated the object at {thing.start:#x}", exc))
        return None, None


def _read(scene: Scene, thing: Thing) -> tuple[Track | None, Track | None]:
    prog = scene.prog
    assert thing.info is not None  # noqa: S101 - the caller looked
    cache = Object(prog, "struct kmem_cache", address=thing.info.slab.cache.vaddr)
    try:
        flag = 1 << int(prog.constant("_SLAB_STORE_USER").value_())
    except LookupError:
        flag = _STORE_USER
    if not int(cache.flags.value_()) & flag:
        return None, None
    inuse, offset = int(cache.inuse.value_()), int(cache.offset.value_())
    at = thing.start + inuse + (_POINTER_BYTES if offset >= inuse else 0)
    size = sizeof(prog.type("struct track"))
    return _track(scene, at), _track(scene, at + size)


def _track(scene: Scene, vaddr: int) -> Track | None:
    track = Object(scene.prog, "struct track", address=vaddr)
    caller = int(track.addr.value_())
    place = scene.stacks.code.find_caller(caller) if caller else None
    if place is None or not place.function:
        return None
    symbol = place.function
    # Who jumps to the allocator at its end leaves the address of its own caller.
    graphs = code_graphs(scene.dump)
    graph = graphs.find(caller - 1)
    call = graph.ending_at(caller) if graph is not None else None
    called = scene.stacks.code.find(call.target) if call is not None and call.target is not None else None
    if called is not None and called.function and (called.module or part_of(plain_name(called.function)) is None):
        place = called
    return Track(
        plain_name(place.function),
        place.module or "vmlinux",
        int(track.pid.value_()),
        int(track.cpu.value_()),
        int(track.when.value_()),
        vaddr,
        symbol,
    )
