"""Where the members of a structure are, by the kernel's own BTF."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from postpanic.errors import FactAbsentError
from postpanic.kernel.btf.layout import Kind

__all__ = ["Member", "StructLayout"]

MAX_NESTING = 32


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its type, and where it lies."""

    name: str
    type_id: int
    offset_bits: int
    size_bits: int
    """Of a bit-field; 0 for an ordinary member."""


class Types(Protocol):
    """What a layout asks of the types it is made from."""

    where: str

    def members_of(self, type_id: int) -> list[Member]:
        """Members of one structure or union."""

    def name_of(self, type_id: int) -> str:
        """Name of one type."""

    def size_of(self, type_id: int) -> int:
        """``sizeof`` in bytes."""

    def skip_modifiers(self, type_id: int) -> int:
        """Find the identifier below typedefs, qualifiers and type tags."""

    def kind_of(self, type_id: int) -> Kind:
        """Kind of one type."""


class StructLayout:
    """
    The layout of one structure or union.

    Members of anonymous structures and unions count as its own, as in C.
    """

    def __init__(self, btf: Types, type_id: int) -> None:
        self.btf = btf
        self.type_id = type_id
        self.name = btf.name_of(type_id)
        self.size_bytes = btf.size_of(type_id)

    @cached_property
    def members(self) -> dict[str, Member]:
        """Every named member, those of anonymous members included; the first of a name wins."""
        found: dict[str, Member] = {}
        self._collect(self.type_id, 0, 0, found)
        return found

    def _collect(self, type_id: int, offset_bits: int, depth: int, found: dict[str, Member]) -> None:
        for member in self.btf.members_of(type_id):
            at = offset_bits + member.offset_bits
            if member.name:
                found.setdefault(member.name, Member(member.name, member.type_id, at, member.size_bits))
                continue
            inner = self.btf.skip_modifiers(member.type_id)
            if depth < MAX_NESTING and self.btf.kind_of(inner) in (Kind.STRUCT, Kind.UNION):
                self._collect(inner, at, depth + 1, found)

    def has(self, path: str) -> bool:
        """Whether there is such a member (``a.b`` for a member of a member)."""
        return self.detect(path) is not None

    def detect(self, path: str) -> Member | None:
        """Member at a dotted path, its offset counted from the start of this structure, else None."""
        layout = self
        offset_bits = 0
        member: Member | None = None
        for word in path.split("."):
            if member is not None:
                inner = self.btf.skip_modifiers(member.type_id)
                if self.btf.kind_of(inner) not in (Kind.STRUCT, Kind.UNION):
                    return None
                layout = StructLayout(self.btf, inner)
            member = layout.members.get(word)
            if member is None:
                return None
            offset_bits += member.offset_bits
        return None if member is None else Member(member.name, member.type_id, offset_bits, member.size_bits)

    def find(self, path: str) -> Member:
        """
        Find the member at a dotted path.

        Raises
        ------
        FactAbsentError
            If the structure has no such member.
        """
        member = self.detect(path)
        if member is None:
            raise FactAbsentError(f"struct {self.name} has no member {path} in this kernel", where=self.btf.where)
        return member

    def offset_of(self, path: str) -> int:
        """
        Offset of a member in bytes.

        Raises
        ------
        FactAbsentError
            If the structure has no such member.
        """
        return self.find(path).offset_bits // 8

    def size_of(self, path: str) -> int:
        """
        Size of a member in bytes.

        Raises
        ------
        FactAbsentError
            If the structure has no such member.
        """
        return self.btf.size_of(self.find(path).type_id)
