"""``kmem -p``, ``-m``, ``-g``: page frames, any member of their structures, and the names of their flags."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import drgn
import numpy as np
from drgn import Type, TypeKind

from postpanic.analysis.commands.arguments import Arguments
from postpanic.analysis.commands.memory.kmem.places import find_pfn
from postpanic.analysis.commands.memory.page_rows import PAGES, page_row, page_rows
from postpanic.analysis.commands.values import parse_vaddr
from postpanic.analysis.memory.page_structs import PageBlock, PageStructs, page_structs
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["FLAGS", "MEMBERS", "show_flags", "show_members", "show_pages"]

_VALUES = Shape(
    "member_values",
    (
        Column("member", help="Member of struct page."),
        Column("value", Kind.HEX, help="Its value; negative numbers as such."),
    ),
)
MEMBERS = Shape(
    "page_members",
    (
        Column("page", Kind.ADDRESS, title="PAGE", help="``struct page *``."),
        Column("text", help="The members as text."),
        Column("values", Kind.ROWS, shape=_VALUES, hidden=True, help="The members one by one."),
    ),
    Layout.LINES,
    "{page}  {text}",
)
FLAGS = Shape(
    "page_flags",
    (
        Column("name", title="PAGE-FLAG", help="``enum pageflags``.", width=20),
        Column("bit", Kind.NUMBER, title="BIT", help="Its bit.", width=4),
        Column("value", Kind.HEX, title="VALUE", help="The bit as a number.", format="07x", align="<"),
    ),
)
_SIGNED = {"_count", "_refcount", "_mapcount"}


def show_pages(workspace: Workspace, arguments: Arguments) -> Answer:
    """Answer ``kmem -p``, of all page frames or of those that the words mean."""
    structs = page_structs(workspace)
    size = workspace.memory.page_size_bytes
    if arguments.operands:
        pfns = [find_pfn(workspace, word, physical=arguments.has("physical")) for word in arguments.operands]
        return Answer("kmem", (PAGES.table([page_row(structs, pfn, size) for pfn in pfns]),))
    rows: list[tuple[Cell, ...]] = []
    missing = 0
    for block in structs.blocks():
        missing += int((~block.present).sum())
        rows += page_rows(structs, block, size)
    return Answer("kmem", (PAGES.table(rows),), tuple(_missing_problem(missing)))


def _missing_problem(count: int) -> Iterator[Problem]:
    if count:
        yield Problem(f"{count} struct pages are not in the dump and not shown", Reason.EXCLUDED)


@dataclass(frozen=True)
class _Member:
    """One word of ``struct page`` that is shown."""

    name: str
    offset: int
    size_bytes: int
    signed: bool
    decimal: bool

    def column(self, block: PageBlock) -> list[int]:
        """Read the member of all structures of a block."""
        data = np.ascontiguousarray(block.rows[:, self.offset : self.offset + self.size_bytes])
        if self.size_bytes in {1, 2, 4, 8}:
            values: list[int] = data.view(f"<{'i' if self.signed else 'u'}{self.size_bytes}").reshape(-1).tolist()
            return values
        return [int.from_bytes(row.tobytes(), "little", signed=self.signed) for row in data]

    def spell(self, values: list[int]) -> list[str]:
        """Spell them."""
        specification = "d" if self.decimal else f"0{2 * self.size_bytes}x"
        return [format(value, specification) for value in values]


def show_members(workspace: Workspace, arguments: Arguments) -> Answer:
    """Answer ``kmem -m MEMBER,MEMBER``."""
    structs = page_structs(workspace)
    names = [name for value in arguments.all("members") for name in value.split(",")]
    members = [(name, _find_members(workspace, structs, name)) for name in names]
    make = _row_maker(structs, members)
    title = "      PAGE        " + "  ".join(names)
    if not arguments.operands:
        rows = list(itertools.chain.from_iterable(make(block) for block in structs.blocks()))
        return Answer("kmem", (MEMBERS.table(rows, title=title),))
    rows = []
    for word in arguments.operands:
        pfn = find_pfn(workspace, word, physical=arguments.has("physical"))
        found = [row for block in structs.blocks(pfn, pfn + 1) for row in make(block)]
        if not found:
            raise FactAbsentError(f"the struct page of frame {pfn:#x} is not in the dump")
        rows += found
    return Answer("kmem", (MEMBERS.table(rows, title=title),))


def _row_maker(
    structs: PageStructs, members: list[tuple[str, list[_Member]]]
) -> Callable[[PageBlock], Iterator[tuple[Cell, ...]]]:
    flat = [one for _, parts in members for one in parts]
    # Words of one member are joined by commas, members by spaces.
    joints = ["," if number else "  " for _, parts in members for number, _ in enumerate(parts)]

    def make(block: PageBlock) -> Iterator[tuple[Cell, ...]]:
        base = structs.vaddr_of(block.first_pfn) or 0
        columns = [one.column(block) for one in flat]
        texts = [one.spell(column) for one, column in zip(flat, columns, strict=True)]
        names = [one.name for one in flat]
        for number in np.flatnonzero(block.present).tolist():
            text = "".join(joint + column[number] for joint, column in zip(joints, texts, strict=True))
            values = tuple((name, column[number]) for name, column in zip(names, columns, strict=True))
            yield (base + number * structs.size_bytes, text[2:], Table(_VALUES, values))

    return make


def _find_members(workspace: Workspace, structs: PageStructs, name: str) -> list[_Member]:
    """
    Find a member by its path; one that is a structure becomes its words.

    What a slab says of itself was in ``struct page`` up to 5.16, and is in ``struct
    slab`` since, which lies over it (d122019bf061).
    """
    types = [structs.type]
    with contextlib.suppress(LookupError):
        types.append(workspace.prog.type("struct slab"))
    for whole in types:
        try:
            offset = drgn.offsetof(whole, name)
            type_ = whole
            for part in name.split("."):
                type_ = _plain(type_).member(part).type
        except (LookupError, TypeError, ValueError, SyntaxError):
            continue
        return list(_words(name, offset, type_, workspace.radix))
    raise UsageError(f"kmem -m: struct page has no member {name}", hint="struct page shows them")


def _plain(type_: Type) -> Type:
    while type_.kind is TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def _words(name: str, offset: int, type_: Type, radix: int) -> Iterator[_Member]:
    plain = _plain(type_)
    if plain.kind in {TypeKind.STRUCT, TypeKind.UNION, TypeKind.CLASS}:
        for member in plain.members or ():
            inner = f"{name}.{member.name}" if member.name else name
            yield from _words(inner, offset + member.bit_offset // 8, member.type, radix)
            if plain.kind is TypeKind.UNION:
                return
        return
    base = name.partition(".")[0]
    signed = base in _SIGNED or (plain.kind is TypeKind.INT and plain.is_signed and radix == 10)
    decimal = base in _SIGNED or (plain.kind is TypeKind.INT and radix == 10 and base != "flags")
    yield _Member(name, offset, min(drgn.sizeof(plain), 8), signed, decimal)


def show_flags(workspace: Workspace, arguments: Arguments) -> Answer:
    """Answer ``kmem -g``: all page flags, or those that are set in a value."""
    bits = page_structs(workspace).flag_bits
    if not bits:
        raise FactAbsentError("no type enum pageflags")
    if not arguments.operands:
        return Answer("kmem", (FLAGS.table([(name, bit, 1 << bit) for name, bit in bits]),))
    tables = []
    for word in arguments.operands:
        value = parse_vaddr(workspace, word)
        seen: set[int] = set()
        rows = []
        for name, bit in bits:
            if value >> bit & 1 and bit not in seen:
                seen.add(bit)
                rows.append((name, bit, 1 << bit))
        tables.append(FLAGS.table(rows, title=f"FLAGS: {value:x}"))
    return Answer("kmem", tuple(tables))
