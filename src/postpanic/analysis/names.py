"""The names that a user may type at a prompt: symbols, types, members."""

from __future__ import annotations

from drgn import FaultError, Program, SymbolKind, Type, TypeKind

from postpanic.errors import PostpanicError
from postpanic.kernel.btf import Btf, Kind, decode_btf
from postpanic.units import MIB

__all__ = ["compound_names", "member_names", "symbol_names", "type_names"]

_COMPOUND = frozenset({TypeKind.STRUCT, TypeKind.UNION, TypeKind.CLASS})
_DEPTH_LIMIT = 16
_BTF_LIMIT_BYTES = 256 * MIB


def symbol_names(prog: Program) -> list[str]:
    """List the names of all symbols of the kernel and its modules, unsorted, with duplicates, without source files."""
    return [symbol.name for symbol in prog.symbols() if symbol.kind is not SymbolKind.FILE]


def type_names(prog: Program) -> list[str]:
    """
    List the structures, unions and typedefs of the kernel, as its own BTF in the dump names them.

    drgn looks types up by name and does not list them. Empty when the dump has no BTF.
    """
    btf = _read_btf(prog)
    if btf is None:
        return []
    names = btf.names_at(btf.positions(Kind.STRUCT, Kind.UNION, Kind.TYPEDEF))
    return [name.decode("utf-8", "replace") for name in names if name]


def compound_names(prog: Program) -> list[tuple[str, str]]:
    """List the tags of all structures and unions, each with its keyword, as the kernel's own BTF names them."""
    btf = _read_btf(prog)
    if btf is None:
        return []
    found = [
        (keyword, name.decode("utf-8", "replace"))
        for keyword, kind in (("struct", Kind.STRUCT), ("union", Kind.UNION))
        for name in btf.names_at(btf.positions(kind))
        if name
    ]
    return sorted(set(found))


def _read_btf(prog: Program) -> Btf | None:
    try:
        start, stop = prog.symbol("__start_BTF").address, prog.symbol("__stop_BTF").address
        if not 0 < stop - start <= _BTF_LIMIT_BYTES:
            return None
        return decode_btf(prog.read(start, stop - start))
    except (LookupError, FaultError, PostpanicError):
        return None


def member_names(prog: Program, path: str) -> list[str]:
    """
    List the members of a structure, or of the structure that a member leads to.

    Parameters
    ----------
    path : str
        ``task_struct`` or ``task_struct.mm``: a tag or typedef, then members.

    Returns
    -------
    list of str
        Members of nameless structures and unions inside included; empty if the
        path leads to nothing that has members.
    """
    name, *members = path.split(".")
    for spelling in (f"struct {name}", f"union {name}", name):
        try:
            found = prog.type(spelling)
            break
        except (LookupError, SyntaxError, ValueError):
            continue
    else:
        return []
    try:
        for member in members:
            found = found.member(member).type
        return _collect_members(found, 0)
    except (LookupError, TypeError, ValueError):
        return []


def _collect_members(found: Type, depth: int) -> list[str]:
    while found.kind in {TypeKind.TYPEDEF, TypeKind.POINTER, TypeKind.ARRAY}:
        found = found.type
    if found.kind not in _COMPOUND or depth > _DEPTH_LIMIT:
        return []
    names: list[str] = []
    for member in found.members or ():
        names += [member.name] if member.name else _collect_members(member.type, depth + 1)
    return names
