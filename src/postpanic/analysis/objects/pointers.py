"""Members that are pointers, each with what it points to (``struct -p``)."""

from __future__ import annotations

from drgn import Program, TypeKind

from postpanic.analysis.objects.braces import ValueWriter
from postpanic.analysis.objects.contents import Contents, read_contents, size_of
from postpanic.analysis.objects.declarations import COMPOUND, declare
from postpanic.analysis.objects.paths import MemberPath, TypePath
from postpanic.analysis.objects.style import is_character, strip
from postpanic.findings.table import Problem

__all__ = ["write_targets"]

_INDENT = 5


def write_targets(
    prog: Program, writer: ValueWriter, path: TypePath, contents: Contents, vaddr: int, problems: list[Problem]
) -> None:
    """
    Write members; a pointer with its type, and below it what it points to.

    Parameters
    ----------
    path : TypePath
        Its members, or all of the first level.
    problems : list of Problem
        Gets one more for each target that cannot be read.
    """
    for member in path.members or tuple(_first_level(path)):
        bare = strip(member.type)
        is_pointer = bare.kind is TypeKind.POINTER and member.bit_size is None
        name = declare(member.type, member.path) if is_pointer else member.path
        writer.write(
            member.type,
            contents,
            vaddr=vaddr,
            bit_offset=member.bit_offset,
            bit_size=member.bit_size,
            name=member.path,
            lead=f"  {f'{name} = ' if name else ''}",
            tail="" if is_pointer else ",",
            indent=2,
            depth=1,
        )
        if is_pointer and contents.missing(member.offset, bare.size or 8) is None:
            target = int.from_bytes(contents.data[member.offset : member.offset + (bare.size or 8)], "little")
            _write_target(prog, writer, member, target, problems)


def _first_level(path: TypePath) -> list[MemberPath]:
    members = strip(path.type).members or ()
    return [MemberPath(member.name or "", member.type, member.bit_offset, member.bit_field_size) for member in members]


def _write_target(prog: Program, writer: ValueWriter, member: MemberPath, target: int, problems: list[Problem]) -> None:
    if not target:
        writer.append("\n  -> NULL")
        return
    type_ = strip(member.type).type
    bare = strip(type_)
    symbol = writer.speller.symbol(target)
    if bare.kind in {TypeKind.FUNCTION, TypeKind.VOID} or not size_of(type_):
        writer.append(f"\n  -> {symbol or '(no type)'}")
        return
    if is_character(type_):
        # The text stands behind the pointer already.
        return
    contents = read_contents(prog.read, target, size_of(type_))
    if contents.is_lost:
        reason = contents.gaps[0][2]
        writer.append(f"\n  -> {reason.mark}")
        problems.append(Problem(f"{member.path} {target:x}: {reason.detail}", reason.reason))
        return
    lead = f"  -> {f'{symbol} ' if symbol and bare.kind in COMPOUND else ''}"
    writer.write(type_, contents, vaddr=target, name=f"*{member.path}", lead=lead, indent=_INDENT, depth=1)
