"""The options -s and -S of ``list`` and ``tree``: members of each element."""

from __future__ import annotations

import dataclasses

from postpanic.analysis.commands.arguments import Arguments, Option
from postpanic.analysis.commands.output_style import choose_style
from postpanic.analysis.objects.braces import MEMBERS, ValueWriter
from postpanic.analysis.objects.contents import read_contents, size_of
from postpanic.analysis.objects.declarations import base_name
from postpanic.analysis.objects.paths import MemberPath, TypePath, parse_type_path
from postpanic.analysis.objects.style import Style
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Cell, Column, Kind, Problem

__all__ = ["MEMBERS_COLUMN", "STRUCT", "STRUCT_SHORT", "ElementWriter"]

STRUCT = Option("-s", "struct", "show each element as this structure, or these members of it", "STRUCT[.MEMBER,...]")
STRUCT_SHORT = Option(
    "-S", "short", "as -s, with bare values: texts end at their NUL, no commas", "STRUCT[.MEMBER,...]"
)
MEMBERS_COLUMN = Column("members", Kind.ROWS, shape=MEMBERS, help="Members of the element (-s, -S).")


class ElementWriter:
    """
    Shows elements as structures.

    Parameters
    ----------
    workspace : Workspace
    arguments : Arguments
        Of a command with :data:`STRUCT`, :data:`STRUCT_SHORT`, -x and -d.
    problems : list of Problem
        Gets one more for each element that cannot be read at all.
    """

    def __init__(self, workspace: Workspace, arguments: Arguments, problems: list[Problem]) -> None:
        style = choose_style(workspace, arguments)
        self._prog = workspace.prog
        self._problems = problems
        self._parts = [self._part(text, style, short=False) for text in arguments.all("struct")]
        short = dataclasses.replace(style, null_stop=True)
        self._parts += [self._part(text, short, short=True) for text in arguments.all("short")]

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be shown of an element but its address."""
        return not self._parts

    def _part(self, text: str, style: Style, *, short: bool) -> tuple[TypePath, ValueWriter, str]:
        path = parse_type_path(self._prog, text)
        if not size_of(path.type):
            raise UsageError(f"{path.name} has no size")
        return path, ValueWriter(self._prog, style), "" if short else ","

    def members(self, vaddr: int) -> Cell:
        """Make the rows of the element at an address; None: there is nothing to show."""
        rows: list[tuple[Cell, ...]] = []
        for path, writer, tail in self._parts:
            if path.members:
                self._write_members(path.members, writer, tail, vaddr)
            else:
                self._write_all(path, writer, vaddr)
            rows += writer.table_rows()
        return MEMBERS.table(rows) if rows else None

    def _write_members(self, members: tuple[MemberPath, ...], writer: ValueWriter, tail: str, vaddr: int) -> None:
        start = min(member.offset for member in members)
        end = max(member.offset + max(size_of(member.type), 1) for member in members)
        contents = read_contents(self._prog.read, vaddr + start, end - start)
        for member in members:
            writer.write(
                member.type,
                contents,
                vaddr=vaddr + start,
                origin=start,
                bit_offset=member.bit_offset - start * 8,
                bit_size=member.bit_size,
                name=member.path,
                lead=f"  {member.path} = ",
                tail=tail,
                indent=2,
                depth=1,
            )

    def _write_all(self, path: TypePath, writer: ValueWriter, vaddr: int) -> None:
        contents = read_contents(self._prog.read, vaddr, size_of(path.type))
        head = base_name(path.type)
        if contents.is_lost:
            why = contents.gaps[0][2]
            self._problems.append(Problem(f"{head} {vaddr:x}: {why.detail}", why.reason))
            return
        writer.write(path.type, contents, vaddr=vaddr, name=head, lead=f"{head} ")
