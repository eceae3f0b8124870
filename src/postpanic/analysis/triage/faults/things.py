"""What lies at an address, as far as it matters for a fault: a slab object and its state, a variable, a stack."""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.member_names import member_at
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.places import open_places
from postpanic.analysis.memory.slabs.objects import ObjectInfo, find_object
from postpanic.analysis.workspace import Workspace
from postpanic.units import VirtAddr

__all__ = ["Thing", "find_thing"]


@dataclass(frozen=True, slots=True)
class Thing:
    """
    What an address is in.

    Attributes
    ----------
    kind : str
        ``slab``, ``symbol``, ``stack``, ``per-CPU``, ``module``, ``vmalloc``, ``page``.
    name : str
        Of the cache, the variable, the task.
    start : int
    size_bytes : int
    offset : int
        Of the address in it.
    is_free : bool or None
        Of a slab object; None: it is none.
    keeper : str
        Where a free object is kept.
    member : str
        At the offset, where the type is known.
    info : ObjectInfo, optional
        Of a slab object.
    text : str
        In words.
    """

    kind: str
    name: str
    start: int
    size_bytes: int
    offset: int
    is_free: bool | None = None
    keeper: str = ""
    member: str = ""
    info: ObjectInfo | None = None
    text: str = ""

    @property
    def command(self) -> str:
        """A line for the prompt that shows what it is."""
        return f"whereis {self.start + self.offset:x}"

    @property
    def state(self) -> str:
        """``free``, ``in use``, or empty."""
        return "" if self.is_free is None else "free" if self.is_free else "in use"


def find_thing(workspace: Workspace, vaddr: int) -> Thing | None:
    """Find what an address is in; None: nothing knows it."""
    if not vaddr >> 63:
        return None
    return workspace.once(f"thing at {vaddr:#x}", lambda: _find(workspace, vaddr))


def _find(workspace: Workspace, vaddr: int) -> Thing | None:
    try:
        info = find_object(workspace, vaddr, [])
    except UNREADABLE:
        info = None
    if info is not None:
        cache = info.slab.cache
        state = "in use" if info.object.allocated else "free"
        return Thing(
            "slab",
            cache.name,
            info.object.vaddr,
            cache.object_bytes,
            info.offset,
            not info.object.allocated,
            info.object.keeper,
            member_at(workspace.prog, cache, info.offset),
            info,
            f"the {cache.name} object {info.object.vaddr:#x} ({state})",
        )
    place = open_places(workspace).short(vaddr)
    if place is None or place.start is None:
        return None
    if place.kind == "page" and (pfn := _free_frame(workspace, vaddr)) is not None:
        size = workspace.memory.page_size_bytes
        start = vaddr // size * size
        return Thing(
            "page", "page", start, size, vaddr - start, is_free=True, text=f"the page {start:#x} (free, frame {pfn:#x})"
        )
    named = {"symbol": "the variable ", "stack": "the stack of ", "module": "module "}
    text = f"{named[place.kind]}{place.name}" if place.kind in named else place.text
    return Thing(place.kind, place.name, place.start, place.size_bytes or 0, place.offset or 0, text=text)


def _free_frame(workspace: Workspace, vaddr: int) -> int | None:
    """Give the frame that an address is in, if it is in a free block; else None."""
    try:
        pfn = int(workspace.memory.translate(VirtAddr(vaddr))) // workspace.memory.page_size_bytes
        return pfn if page_structs(workspace).free_block_of(pfn) is not None else None
    except UNREADABLE:
        return None
