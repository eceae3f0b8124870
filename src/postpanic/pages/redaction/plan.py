"""From what the user asked for to the ranges of physical memory that are erased."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from postpanic.errors import AbsentError, FactAbsentError, FileFaultError
from postpanic.kernel.btf import Btf
from postpanic.kernel.btf.find import read_kernel_btf
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.recovered import read_all_symbols
from postpanic.kernel.slab import PageBlock, SlabCache, SlabPages, Slabs, find_slabs, read_slab_caches
from postpanic.pages.redaction.erasure import ByteRanges, Erasure, RequestRecord, merge_ranges
from postpanic.pages.redaction.members import find_member, find_structs
from postpanic.pages.redaction.objects import ErasePlan, MemberTarget, choose_cache, plan_member, refuse_unknown
from postpanic.pages.redaction.requests import MemberRequest, parse_member_request, parse_symbol_request
from postpanic.pages.redaction.symbols import plan_symbol
from postpanic.pages.redaction.variables import KernelVariables

__all__ = ["plan_erasure"]

_Planned = tuple[str, str, ErasePlan]
"""What was asked for, its expression, and the plan."""


def plan_erasure(
    kernel: KernelMemory,
    requests: Sequence[str],
    symbols: Sequence[str],
    blocks: Iterable[PageBlock] | None = None,
) -> Erasure:
    """
    Find what is to be erased; nothing is changed yet.

    Parameters
    ----------
    requests : sequence of str
        ``struct.member`` or ``struct.member@cache``: the member in all objects of the
        type, in use or free, in its slab cache, and in the kernel's variables.
    symbols : sequence of str
        ``symbol[.member][->][:SIZE]``: variables of the kernel, every CPU's copy, or what
        they point at.
    blocks : iterable of PageBlock, optional
        All of ``struct page``, for tests; by default as the dump has it.

    Raises
    ------
    UsageError
        If a request is none, or cannot be carried out.
    FactAbsentError
        If the kernel has no such type, member, cache or variable, or no types at all.
    AbsentError
        If the dump lacks the kernel's symbols, types or list of slab caches.
    FileFaultError
        If one of these is damaged.
    """
    wanted = [parse_member_request(text) for text in requests]
    named = [parse_symbol_request(text) for text in symbols]
    page_size = kernel.physical.page_size_bytes
    if not wanted and not named:
        return Erasure.from_ranges([], page_size)
    table = read_all_symbols(kernel).table
    btf = _read_types(kernel, table)
    variables = KernelVariables(kernel, table, btf)
    plans = _plan_members(kernel, wanted, variables, blocks) if wanted else []
    plans += [(request.text, request.expression, plan_symbol(request, variables)) for request in named]
    return _join(plans, page_size)


def _plan_members(
    kernel: KernelMemory,
    wanted: Sequence[MemberRequest],
    variables: KernelVariables,
    blocks: Iterable[PageBlock] | None,
) -> list[_Planned]:
    """Plan members of objects: all caches are searched in one pass."""
    btf, symbols = variables.btf, variables.symbols
    caches = read_slab_caches(kernel, symbols, btf)
    targets = []
    for request in wanted:
        structs = find_structs(btf, request.struct)
        places = find_member(btf, structs, request.member)
        targets.append(MemberTarget(request, structs, places, choose_cache(request, caches, kernel, symbols)))
    slabs, gaps = _find_slabs(kernel, btf, [target.cache for target in targets if target.cache], blocks)
    plans: list[_Planned] = []
    for target in targets:
        mine = slabs.get(target.cache.vaddr) if target.cache else None
        plan = plan_member(target, mine, variables, kernel.page_size_bytes)
        if target.cache is not None:
            plan.gaps += gaps
        elif plan.objects:
            plan.notes.append("no slab cache is known to hold such objects: only the kernel's variables are erased")
        else:
            raise refuse_unknown(target, caches)
        plans.append((target.request.text, target.request.expression, plan))
    return plans


def _read_types(kernel: KernelMemory, table: SymbolTable) -> Btf:
    try:
        return read_kernel_btf(kernel, table)
    except FactAbsentError as error:
        raise FactAbsentError(
            f"nothing can be erased without the kernel's types: {error.message}", where=error.where, hint=error.hint
        ) from error
    except (AbsentError, FileFaultError) as error:
        error.hint = error.hint or "erasing needs the kernel's types (BTF) in the dump that is read"
        raise


def _find_slabs(
    kernel: KernelMemory, btf: Btf, caches: Sequence[SlabCache], blocks: Iterable[PageBlock] | None
) -> tuple[dict[int, Slabs], list[str]]:
    """Find the slabs of all caches in one pass; what struct page could not be read is a gap of each."""
    if not caches:
        return {}, []
    gaps: list[str] = []
    if blocks is None:
        from postpanic.pages.redaction.page_blocks import read_page_blocks

        blocks = read_page_blocks(kernel, gaps, btf.find_struct("page").size_bytes)
    distinct = list({cache.vaddr: cache for cache in caches}.values())
    return find_slabs(SlabPages.from_btf(kernel, btf), distinct, blocks), gaps


def _join(plans: Sequence[_Planned], page_size: int) -> Erasure:
    records: list[RequestRecord] = []
    ranges: list[ByteRanges] = []
    for text, expression, plan in plans:
        starts, ends = merge_ranges(plan.ranges)
        ranges.append((starts, ends))
        records.append(plan.finish(text, expression, int((ends - starts).sum())))
    return Erasure.from_ranges(ranges, page_size, records)
