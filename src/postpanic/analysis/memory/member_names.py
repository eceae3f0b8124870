"""Which member an offset is in: of a variable, or of the objects of a slab cache that has objects of one type."""

from __future__ import annotations

import drgn
from drgn import Program, Type, TypeKind

from postpanic.analysis.memory.slabs.values import Cache

__all__ = ["member_at", "member_of_variable"]

_COMPOUND = frozenset({TypeKind.STRUCT, TypeKind.UNION, TypeKind.CLASS})
_TYPES = {
    "filp": "file",
    "signal_cache": "signal_struct",
    "sighand_cache": "sighand_struct",
    "files_cache": "files_struct",
    "fs_cache": "fs_struct",
    "inode_cache": "inode",
    "mnt_cache": "mount",
    "names_cache": "",
}
"""Caches that are not called as their type is."""
_DEPTH_LIMIT = 12


def member_at(prog: Program, cache: Cache, offset: int) -> str:
    """
    Name the member at an offset of a cache's objects: ``comm``, ``se.run_node``; empty where the type is not known.

    Of caches that were merged, objects of other types may be there. What a
    structure has at its end may be longer or shorter than its type
    (``task_struct`` with the registers of the machine).
    """
    if cache.refcount > 1:
        return ""
    name = _TYPES.get(cache.name, cache.name)
    if not name.isidentifier():
        return ""
    try:
        type_ = prog.type(f"struct {name}")
        size = drgn.sizeof(type_)
    except (LookupError, TypeError, ValueError, SyntaxError):
        return ""
    if not size // 2 <= cache.object_bytes <= size * 2:
        return ""
    return _find(type_, offset, 0)


def member_of_variable(prog: Program, name: str, offset: int) -> str:
    """Name the member at an offset of a variable of the kernel: ``tasks.next``; empty where its type is not known."""
    try:
        type_ = prog[name].type_
    except (LookupError, ValueError, TypeError):
        return ""
    return _find(type_, offset, 0)


def _find(type_: Type, offset: int, depth: int) -> str:
    while type_.kind is TypeKind.TYPEDEF:
        type_ = type_.type
    if type_.kind is TypeKind.ARRAY:
        size = drgn.sizeof(type_.type)
        if size <= 1:
            # Of a text or a buffer, no single byte is worth naming.
            return ""
        inner = _find(type_.type, offset % size, depth + 1)
        return f"[{offset // size}]" + (f".{inner}" if inner else "")
    if type_.kind not in _COMPOUND or depth > _DEPTH_LIMIT:
        return ""
    for member in type_.members or ():
        start = member.bit_offset // 8
        try:
            size = drgn.sizeof(member.type)
        except TypeError:
            continue
        if not start <= offset < start + size:
            continue
        inner = _find(member.type, offset - start, depth + 1)
        if not member.name:
            return inner
        joint = "" if not inner or inner.startswith("[") else "."
        return f"{member.name}{joint}{inner}"
    return ""
