"""Where a member lies in the types of a name, by the kernel's own BTF."""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.errors import FactAbsentError, UsageError
from postpanic.kernel.btf import Btf, Kind, Member, StructLayout, format_c_type
from postpanic.pages.redaction.requests import name_nearest

__all__ = ["MemberPlace", "find_member", "find_structs", "place_of"]


@dataclass(frozen=True, slots=True)
class MemberPlace:
    """A member within its object, in bytes."""

    offset: int
    size_bytes: int
    """0: an array without a length, which takes the rest of the object."""
    type_name: str
    is_pointer: bool


def find_structs(btf: Btf, name: str) -> list[StructLayout]:
    """
    Find all structures and unions of a name: unrelated ones may share it.

    Raises
    ------
    FactAbsentError
        If there is none.
    """
    found: list[StructLayout] = []
    known: list[str] = []
    for owner in btf.chain:
        positions = owner.positions(Kind.STRUCT, Kind.UNION)
        names = owner.names_at(positions)
        wanted = name.encode()
        for position, spelling in zip(positions.tolist(), names, strict=True):
            if spelling == wanted:
                found.append(StructLayout(btf, position + owner.start_id))
        if not found:
            known += [spelling.decode("utf-8", "replace") for spelling in names if spelling]
    if not found:
        raise FactAbsentError(
            f"no struct {name} in the kernel's BTF (types of modules are not searched)",
            where=btf.where,
            hint=name_nearest(name, known),
        )
    return found


def find_member(btf: Btf, structs: list[StructLayout], path: str) -> list[MemberPlace]:
    """
    Find a member in all structures of a name; more than one place only where they differ.

    Raises
    ------
    FactAbsentError
        If none has it.
    UsageError
        If it is a bit-field.
    """
    places = [place_of(btf, layout, path) for layout in structs if layout.has(path)]
    if not places:
        raise _no_member(btf, structs[0], path)
    return list(dict.fromkeys(places))


def place_of(btf: Btf, layout: StructLayout, path: str) -> MemberPlace:
    """
    Find a member of one structure.

    Raises
    ------
    FactAbsentError
        If it has none, or one of a type without a size.
    UsageError
        If it is a bit-field.
    """
    member = layout.detect(path)
    if member is None:
        raise _no_member(btf, layout, path)
    if member.size_bits:
        raise UsageError(
            f"{layout.name}.{path} is a bit-field of {member.size_bits} bits, only whole bytes can be erased"
        )
    return _place(btf, layout.name, path, member)


def _place(btf: Btf, struct: str, path: str, member: Member) -> MemberPlace:
    type_id = btf.skip_modifiers(member.type_id)
    kind = btf.kind_of(type_id)
    size = btf.size_of(member.type_id)
    if not size and kind != Kind.ARRAY:
        raise FactAbsentError(f"{struct}.{path} has no size in this kernel", where=btf.where)
    return MemberPlace(member.offset_bits // 8, size, format_c_type(btf, member.type_id), _leads_away(btf, type_id))


def _leads_away(btf: Btf, type_id: int) -> bool:
    """Tell a pointer, or an array of pointers."""
    while btf.kind_of(type_id) == Kind.ARRAY:
        owner, position = btf.owner_of(type_id)
        type_id = btf.skip_modifiers(int(owner.words[int(owner.start[position]) + 3]))
    return btf.kind_of(type_id) == Kind.PTR


def _no_member(btf: Btf, layout: StructLayout, path: str) -> FactAbsentError:
    """Say which word of the path is not there, and what is."""
    words = path.split(".")
    good = 0
    while good < len(words) and layout.has(".".join(words[: good + 1])):
        good += 1
    at = layout
    if good:
        inner = layout.find(".".join(words[:good]))
        type_id = btf.skip_modifiers(inner.type_id)
        if btf.kind_of(type_id) not in (Kind.STRUCT, Kind.UNION):
            kind = format_c_type(btf, inner.type_id)
            return FactAbsentError(
                f"{layout.name}.{'.'.join(words[:good])} is {kind}, it has no member {words[good]}",
                hint="pointers are not followed: name the type that it leads to" if kind.endswith("*") else "",
            )
        at = StructLayout(btf, type_id)
    where = f"struct {at.name}" if at.name else f"{layout.name}.{'.'.join(words[:good])}"
    return FactAbsentError(
        f"{where} has no member {words[good]} in this kernel", hint=name_nearest(words[good], at.members)
    )
