"""Variables that the user named, and what pointers among them lead to."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.errors import AbsentError, FactAbsentError, PostpanicError, UsageError
from postpanic.kernel.btf import StructLayout, format_c_type
from postpanic.kernel.kallsyms import Symbol, SymbolTable
from postpanic.pages.redaction.members import place_of
from postpanic.pages.redaction.objects import ErasePlan
from postpanic.pages.redaction.requests import SymbolRequest, name_nearest
from postpanic.pages.redaction.variables import KernelVariables, TypedVariable
from postpanic.units import GIB, MIB, format_size

__all__ = ["plan_symbol"]

_LARGEST_VARIABLE_BYTES = GIB
_FARTHEST_SYMBOL_BYTES = 4096
"""Behind data there may be much that no symbol names, such as string literals."""
_LONGEST_TEXT_BYTES = MIB


def plan_symbol(request: SymbolRequest, variables: KernelVariables) -> ErasePlan:
    """
    Plan the erasing of a variable, in every copy of it.

    Raises
    ------
    FactAbsentError
        If there is no such symbol or member.
    UsageError
        If it is a function, its size is not known, or it is no pointer to be followed.
    AbsentError
        If the dump does not tell where the CPUs' areas are.
    """
    found = variables.symbols.find_all(request.symbol)
    if not found:
        raise FactAbsentError(
            f"no symbol {request.symbol} in the kernel (symbols of modules are not searched)",
            hint=name_nearest(request.symbol, _names(variables.symbols)),
        )
    plan = ErasePlan()
    for symbol in found:
        if variables.is_function(symbol):
            raise UsageError(f"{symbol.name} is a function, only variables can be erased")
        if variables.is_freed(symbol.vaddr):
            # Its pages went to the page allocator, and to whoever asked for some; nothing was wiped.
            plan.gaps.append(f"{symbol.name} at {symbol.vaddr:#x} was freed when the kernel had started: not erased")
            continue
        if request.follows:
            _plan_targets(plan, request, symbol, variables)
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


def _names(table: SymbolTable) -> Iterator[str]:
    for start in table.name_offsets.tolist():
        yield table.names[start : table.names.index(0, start)].decode("utf-8", "replace")


def _typed(symbol: Symbol, variables: KernelVariables) -> TypedVariable | None:
    """Give the type of just this symbol, where others may have its name."""
    typed = variables.detect_typed(symbol.name)
    return typed if typed is not None and typed.symbol.vaddr == symbol.vaddr else None


def _pieces(
    plan: ErasePlan, request: SymbolRequest, symbol: Symbol, variables: KernelVariables
) -> list[tuple[int, int]]:
    """Offset and size of what is erased of one variable."""
    typed = _typed(symbol, variables)
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
            plan.notes.append(f"it is {place.type_name}: what it leads to is not erased, {request.text}-> would be")
    else:
        pieces = [(0, request.size_bytes or _size_of(plan, symbol, typed))]
        if typed is not None and variables.detect_target(typed.type_id) is not None:
            name = format_c_type(variables.btf, typed.type_id)
            plan.notes.append(f"it is {name}: what it leads to is not erased, {symbol.name}-> would be")
    if sum(size for _, size in pieces) > _LARGEST_VARIABLE_BYTES:
        raise _too_large(request)
    if symbol.size_bytes and max(offset + size for offset, size in pieces) > symbol.size_bytes:
        plan.notes.append(f"{symbol.name} has room for {symbol.size_bytes} bytes: what follows it is erased, too")
    return pieces


def _too_large(request: SymbolRequest) -> UsageError:
    return UsageError(
        f"{request.text}: more than {format_size(_LARGEST_VARIABLE_BYTES)} of one variable cannot be erased"
    )


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


def _plan_targets(plan: ErasePlan, request: SymbolRequest, symbol: Symbol, variables: KernelVariables) -> None:
    """Plan the erasing of what a variable, or a member of one, points at; the pointer itself stays."""
    typed = _typed(symbol, variables)
    offset, type_id = 0, typed.type_id if typed is not None else None
    if request.member:
        struct = variables.detect_struct(typed.type_id) if typed is not None else None
        if struct is None:
            raise FactAbsentError(f"the type of {symbol.name} is not known to have members")
        member = StructLayout(variables.btf, struct).find(request.member)
        offset, type_id = member.offset_bits // 8, member.type_id
    target = variables.detect_target(type_id) if type_id is not None else None
    if target is None and (type_id is not None or not request.size_bytes):
        what = "is no pointer" if type_id is not None else "has no known type: name how many bytes it leads to"
        raise UsageError(f"{request.expression}: {request.expression[:-2]} {what}")
    if request.size_bytes > _LARGEST_VARIABLE_BYTES:
        raise _too_large(request)
    for copy in variables.copies(symbol.vaddr):
        try:
            vaddr = variables.kernel.read_u64(copy + offset)
            size = request.size_bytes or _size_of_target(vaddr, target or (0, False), request, variables)
        except AbsentError as error:
            plan.gaps.append(f"where it leads cannot be read: {error}")
            continue
        if not vaddr:
            plan.notes.append("it leads nowhere (NULL)")
            continue
        ranges, missing = variables.to_physical(vaddr, size)
        plan.ranges.append(ranges)
        plan.objects += 1
        if missing:
            plan.gaps.append(f"{missing} bytes at {vaddr:#x} are not mapped")


def _size_of_target(vaddr: int, target: tuple[int, bool], request: SymbolRequest, variables: KernelVariables) -> int:
    """Size of what a pointer leads to: of a text its length, else of the type."""
    size, is_text = target
    if is_text and vaddr:
        try:
            return len(variables.kernel.read_c_string(vaddr, _LONGEST_TEXT_BYTES)) + 1
        except AbsentError:
            raise
        except PostpanicError:
            size = 0
    if not size:
        raise UsageError(
            f"{request.expression}: how much it leads to is not known", hint=f"name it: {request.expression}:SIZE"
        )
    return size
