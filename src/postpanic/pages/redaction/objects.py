"""Objects of a type: those in slab caches, and those that are variables of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from postpanic.errors import AbsentError, FactAbsentError, UsageError
from postpanic.kernel.btf import StructLayout
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.slab import SlabCache, Slabs
from postpanic.pages.redaction.erasure import ByteRanges, RequestRecord
from postpanic.pages.redaction.members import MemberPlace
from postpanic.pages.redaction.requests import MemberRequest, name_nearest
from postpanic.pages.redaction.variables import KernelVariables

__all__ = ["ErasePlan", "MemberTarget", "choose_cache", "plan_member"]

_KNOWN_CACHES: dict[str, tuple[str, str]] = {
    # Structure: the cache's name, and the variable that points to the cache.
    "cred": ("cred_jar", "cred_jar"),  # kernel/cred.c; the cache is named cred since 6.11
    "dentry": ("dentry", "dentry_cache"),  # fs/dcache.c
    "file": ("filp", "filp_cachep"),  # fs/file_table.c
    "filename": ("names_cache", "names_cachep"),  # fs/dcache.c
    "files_struct": ("files_cache", "files_cachep"),  # kernel/fork.c
    "fs_struct": ("fs_cache", "fs_cachep"),  # kernel/fork.c
    "inode": ("inode_cache", "inode_cachep"),  # fs/inode.c; file systems have caches of their own
    "k_itimer": ("posix_timers_cache", "posix_timers_cache"),  # kernel/time/posix-timers.c
    "key": ("key_jar", "key_jar"),  # security/keys/key.c
    "mm_struct": ("mm_struct", "mm_cachep"),  # kernel/fork.c
    "mount": ("mnt_cache", "mnt_cache"),  # fs/namespace.c
    "net": ("net_namespace", "net_cachep"),  # net/core/net_namespace.c
    "nsproxy": ("nsproxy", "nsproxy_cachep"),  # kernel/nsproxy.c
    "sighand_struct": ("sighand_cache", "sighand_cachep"),  # kernel/fork.c
    "signal_struct": ("signal_cache", "signal_cachep"),  # kernel/fork.c
    "sigqueue": ("sigqueue", "sigqueue_cachep"),  # kernel/signal.c
    "sk_buff": ("skbuff_head_cache", "skbuff_head_cache"),  # net/core/skbuff.c
    "task_struct": ("task_struct", "task_struct_cachep"),  # kernel/fork.c
    "user_namespace": ("user_namespace", "user_ns_cachep"),  # kernel/user_namespace.c
    "user_struct": ("uid_cache", "uid_cachep"),  # kernel/user.c
    "vm_area_struct": ("vm_area_struct", "vm_area_cachep"),  # kernel/fork.c, mm/vma_init.c
}
"""The caches of types that are often asked for; the variable leads to it even where it was merged into another."""

_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class MemberTarget:
    """A member, and the cache whose objects have it."""

    request: MemberRequest
    structs: Sequence[StructLayout]
    places: Sequence[MemberPlace]
    cache: SlabCache | None


@dataclass
class ErasePlan:
    """What one request comes to."""

    ranges: list[ByteRanges] = field(default_factory=list)
    objects: int = 0
    notes: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    def finish(self, request: str, expression: str, size_bytes: int) -> RequestRecord:
        """Make the record."""
        return RequestRecord(request, expression, self.objects, size_bytes, tuple(self.notes), tuple(self.gaps))


def choose_cache(
    request: MemberRequest, caches: Sequence[SlabCache], kernel: KernelMemory, symbols: SymbolTable
) -> SlabCache | None:
    """
    Choose the slab cache of a type: named by the user, known to hold it, or of the same name.

    None where none is known.

    Raises
    ------
    FactAbsentError
        If the user named a cache that there is not.
    """
    wanted = [request.cache]
    if not request.cache:
        name, variable = _KNOWN_CACHES.get(request.struct, (request.struct, ""))
        vaddr = symbols.get(variable) if variable else None
        if vaddr is not None:
            try:
                pointed = kernel.read_u64(vaddr)
            except AbsentError:
                pointed = 0
            for cache in caches:
                if cache.vaddr == pointed:
                    return cache
        wanted = [name, request.struct]
    for name in wanted:
        for cache in caches:
            if name in cache.names:
                return cache
    if request.cache:
        known = [name for cache in caches for name in cache.names]
        raise FactAbsentError(f"no slab cache {request.cache} in this kernel", hint=name_nearest(request.cache, known))
    return None


def refuse_unknown(target: MemberTarget, caches: Sequence[SlabCache]) -> FactAbsentError:
    """Make the error for a type of which no object is known; names the caches of its size."""
    sizes = {layout.size_bytes for layout in target.structs}
    alike = sorted({name for cache in caches if cache.object_bytes in sizes for name in cache.names if name})
    hint = f"name the cache: {target.request.expression}@CACHE"
    if alike:
        hint += f"; caches with objects of this size: {_list(alike)}"
    return FactAbsentError(f"no slab cache and no variable is known to hold struct {target.request.struct}", hint=hint)


def plan_member(target: MemberTarget, slabs: Slabs | None, variables: KernelVariables, page_size: int) -> ErasePlan:
    """
    Plan the erasing of a member in all objects of its type.

    Raises
    ------
    UsageError
        If the cache's objects are too small to have the member.
    """
    plan = ErasePlan()
    if slabs is not None:
        _plan_slabs(plan, target, slabs, page_size)
    _plan_variables(plan, target, variables)
    if target.places[0].is_pointer:
        plan.notes.append(f"it is {target.places[0].type_name}: what it leads to is not erased")
    if len(target.places) > 1:
        plan.notes.append(
            f"{len(target.places)} unlike types are called {target.request.struct}: "
            "the member is erased where each of them has it"
        )
    return plan


def _plan_slabs(plan: ErasePlan, target: MemberTarget, slabs: Slabs, page_size: int) -> None:
    cache = slabs.cache
    slots = slabs.slots(page_size)
    for place in target.places:
        end = place.offset + place.size_bytes if place.size_bytes else cache.object_bytes
        if end > cache.object_bytes or place.offset >= end:
            raise UsageError(
                f"{target.request.expression} ends at byte {max(end, place.offset + 1)} of its object, "
                f"objects of slab cache {cache.name} have {cache.object_bytes}"
            )
        plan.ranges.append((slots + np.uint64(place.offset), slots + np.uint64(end)))
    guarded = slabs.guarded_pages(page_size)
    if len(guarded):
        plan.ranges.append((guarded, guarded + np.uint64(page_size)))
        plan.notes.append(f"{len(guarded)} objects have a page of their own (KFENCE), which is erased as a whole")
    plan.objects += slabs.slot_count
    if cache.is_shared:
        others = [name for name in cache.names if name]
        plan.notes.append(
            f"slab cache {cache.name} is {cache.user_count} caches merged into one ({_list(others)}): "
            "the same bytes of their objects are erased, too"
        )
    if slabs.odd:
        plan.notes.append(f"{slabs.odd} slabs do not tell how many objects they have: they count as full")


def _plan_variables(plan: ErasePlan, target: MemberTarget, variables: KernelVariables) -> None:
    for layout in target.structs:
        for variable in variables.of_types({layout.type_id}):
            symbol = variable.symbol
            if not layout.has(target.request.member) or variables.is_freed(symbol.vaddr):
                continue
            if not variable.element_bytes:
                continue
            room = variable.element_bytes
            pieces = [
                (number * variable.element_bytes + place.offset, place.size_bytes or room - place.offset)
                for number in range(variable.count)
                for place in target.places
                if place.offset + place.size_bytes <= room
            ]
            try:
                placed = variables.place(symbol.vaddr, pieces)
            except AbsentError as error:
                plan.gaps.append(f"the variable {symbol.name}: {error}")
                continue
            plan.ranges += placed.ranges
            plan.objects += variable.count * placed.copies
            if placed.missing:
                plan.gaps.append(f"the variable {symbol.name}: {placed.missing} bytes are not mapped")


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
