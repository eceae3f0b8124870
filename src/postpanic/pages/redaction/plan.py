"""From what the user asked for to the ranges of physical memory that are erased."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from postpanic.errors import AbsentError, FactAbsentError, FileFaultError, UsageError
from postpanic.kernel.btf import Btf, StructLayout
from postpanic.kernel.btf.find import read_kernel_btf
from postpanic.kernel.kallsyms import Symbol, SymbolTable, read_kallsyms
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.slab import PageBlock, SlabCache, SlabPages, Slabs, find_slabs, read_slab_caches
from postpanic.pages.redaction.erasure import ByteRanges, Erasure, RequestRecord, merge_ranges
from postpanic.pages.redaction.members import find_member, find_structs, place_of
from postpanic.pages.redaction.objects import ErasePlan, MemberTarget, choose_cache, plan_member, refuse_unknown
from postpanic.pages.redaction.requests import (
    SymbolRequest,
    name_nearest,
    parse_member_request,
    parse_symbol_request,
)
from postpanic.pages.redaction.variables import KernelVariables, TypedVariable
from postpanic.units import GIB, format_size

__all__ = ["plan_erasure"]

_LARGEST_VARIABLE_BYTES = GIB
_FARTHEST_SYMBOL_BYTES = 4096
"""Behind data there may be much that no symbol names, such as string literals."""


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
        ``symbol[.member][:SIZE]``: variables of the kernel, every CPU's copy.
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
    table = read_kallsyms(kernel)
    btf = _read_types(kernel, table)
    variables = KernelVariables(kernel, table, btf)
    caches = read_slab_caches(kernel, table, btf) if wanted else ()
    targets = []
    for request in wanted:
        structs = find_structs(btf, request.struct)
        places = find_member(btf, structs, request.member)
        targets.append(MemberTarget(request, structs, places, choose_cache(request, caches, kernel, table)))
    slabs, gaps = _find_slabs(kernel, btf, [target.cache for target in targets if target.cache], blocks)
    plans: list[tuple[str, str, ErasePlan]] = []
    for target in targets:
        plan = plan_member(
            target, slabs.get(target.cache.vaddr) if target.cache else None, variables, kernel.page_size_bytes
        )
        if target.cache is None:
            if not plan.objects:
                raise refuse_unknown(target, caches)
            plan.notes.append("no slab cache is known to hold such objects: only the kernel's variables are erased")
        else:
            plan.gaps += gaps
        plans.append((target.request.text, target.request.expression, plan))
    plans += [(request.text, request.expression, _plan_symbol(request, variables)) for request in named]
    return _join(plans, page_size)


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


def _plan_symbol(request: SymbolRequest, variables: KernelVariables) -> ErasePlan:
    found = variables.symbols.find_all(request.symbol)
    if not found:
        names = (name.decode("utf-8", "replace") for name in _names(variables.symbols))
        raise FactAbsentError(
            f"no symbol {request.symbol} in the kernel (symbols of modules are not searched)",
            hint=name_nearest(request.symbol, names),
        )
    plan = ErasePlan()
    for symbol in found:
        if variables.is_function(symbol):
            raise UsageError(f"{symbol.name} is a function, only variables can be erased")
        if variables.is_freed(symbol.vaddr):
            # Its pages went to the page allocator, and to whoever asked for some; nothing was wiped.
            plan.gaps.append(f"{symbol.name} at {symbol.vaddr:#x} was freed when the kernel had started: not erased")
            continue
        pieces = _pieces(plan, request, symbol, variables)
        placed = variables.place(symbol.vaddr, pieces)
        plan.ranges += placed.ranges
        plan.objects += placed.copies * len(pieces)
        if placed.missing:
            plan.gaps.append(f"{placed.missing} bytes at {symbol.vaddr:#x} are not mapped")
    if len(found) > 1:
        plan.notes.append(f"{len(found)} variables have this name: all of them are erased")
    return plan


def _names(table: SymbolTable) -> Iterable[bytes]:
    return (table.names[start : table.names.index(0, start)] for start in table.name_offsets.tolist())


def _pieces(
    plan: ErasePlan, request: SymbolRequest, symbol: Symbol, variables: KernelVariables
) -> list[tuple[int, int]]:
    """Offset and size of what is erased of one variable."""
    typed = variables.detect_typed(symbol.name)
    if typed is not None and typed.symbol.vaddr != symbol.vaddr:
        typed = None
    pieces: list[tuple[int, int]]
    if request.member:
        struct = variables.detect_struct(typed.element_id) if typed is not None else None
        if typed is None or struct is None:
            raise FactAbsentError(
                f"the type of {symbol.name} is not known to have members", hint=f"erase bytes: {symbol.name}:SIZE"
            )
        place = place_of(variables.btf, StructLayout(variables.btf, struct), request.member)
        size = request.size_bytes or place.size_bytes or typed.element_bytes - place.offset
        pieces = [(number * typed.element_bytes + place.offset, size) for number in range(typed.count)]
        if place.is_pointer:
            plan.notes.append(f"it is {place.type_name}: what it leads to is not erased")
    else:
        size = request.size_bytes or _size_of(plan, symbol, typed)
        pieces = [(0, size)]
    if sum(size for _, size in pieces) > _LARGEST_VARIABLE_BYTES:
        raise UsageError(
            f"{request.text}: more than {format_size(_LARGEST_VARIABLE_BYTES)} of one variable cannot be erased"
        )
    if symbol.size_bytes and max(offset + size for offset, size in pieces) > symbol.size_bytes:
        plan.notes.append(f"{symbol.name} has room for {symbol.size_bytes} bytes: what follows it is erased, too")
    return pieces


def _size_of(plan: ErasePlan, symbol: Symbol, typed: TypedVariable | None) -> int:
    """Size of a variable by its type, else up to the next symbol, if that is not far."""
    if typed is not None and typed.size_bytes:
        return typed.size_bytes
    if not 0 < symbol.size_bytes <= _FARTHEST_SYMBOL_BYTES:
        raise UsageError(
            f"the size of {symbol.name} is not known, and no symbol follows it within {_FARTHEST_SYMBOL_BYTES} bytes",
            hint=f"name the size: {symbol.name}:SIZE",
        )
    plan.notes.append(f"its size is not known: erased up to the next symbol, {symbol.size_bytes} bytes")
    return symbol.size_bytes


def _join(plans: Sequence[tuple[str, str, ErasePlan]], page_size: int) -> Erasure:
    records: list[RequestRecord] = []
    ranges: list[ByteRanges] = []
    for text, expression, plan in plans:
        starts, ends = merge_ranges(plan.ranges)
        ranges.append((starts, ends))
        records.append(plan.finish(text, expression, int((ends - starts).sum())))
    return Erasure.from_ranges(ranges, page_size, records)
