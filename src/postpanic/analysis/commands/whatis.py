"""``whatis``: what a name stands for, and a search over all types."""

from __future__ import annotations

import re
from collections.abc import Iterator

from drgn import Program, Type, TypeKind

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, is_hex
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_number
from postpanic.analysis.expressions import evaluate
from postpanic.analysis.names import compound_names
from postpanic.analysis.objects.contents import size_of
from postpanic.analysis.objects.declarations import (
    COMPOUND,
    DEFINITION,
    ENUMERATION,
    base_name,
    declare,
    definition_rows,
    enumeration_rows,
    member_rows,
)
from postpanic.analysis.objects.paths import parse_type_path
from postpanic.analysis.objects.style import strip
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, PostpanicError, UsageError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Answer, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["whatis"]

_DEPTH_LIMIT = 16
_TAGS = ("struct ", "union ", "enum ")

_FOUND = Shape(
    "types",
    (
        Column("size", Kind.NUMBER, title="SIZE", help="Bytes."),
        Column("type", title="TYPE", help="Tag of the structure or union."),
    ),
)
_DECLARATION = Shape(
    "declaration",
    (
        Column("name", help="The symbol or type; empty: an expression."),
        Column("type", help="Its type in C."),
        Column("size", Kind.NUMBER, help="Bytes."),
        Column("address", Kind.ADDRESS, help="Where a symbol lies."),
        Column("text", help="As it is shown."),
    ),
    Layout.LINES,
    "{text}",
)


@command(
    "whatis",
    summary="what a name stands for; search for types",
    description=(
        "Show the definition of a structure, union, enumeration or typedef, the declaration of a variable or "
        "function, or the type of an expression. With -r or -m, the structures and unions of that size, or with such "
        "a member: the text is looked for in the types of their members, also in those of structures inside.\n\n"
        "The search goes over all types that the kernel names in its own BTF."
    ),
    options=(
        Option("-o", "offsets", "show the offsets of the members"),
        Option("-r", "size", "search for structures of this size, or of a range", "SIZE|LOW-HIGH"),
        Option("-m", "member", "search for structures with a member of this type, or with a pointer to it", "TYPE"),
        HEXADECIMAL,
        DECIMAL,
    ),
    operands=(Operand("name", "a type, symbol or expression", many=True),),
    shapes=(DEFINITION, ENUMERATION, _DECLARATION, _FOUND),
    examples=(
        Example("whatis linux_binfmt", "a definition"),
        Example("whatis jiffies", "a declaration"),
        Example("whatis -r 256-512 -m task_struct", "types of this size that lead to a task"),
    ),
)
def whatis(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show what a name stands for, or search for types."""
    if arguments.has("size") or arguments.has("member"):
        if arguments.operands:
            raise UsageError(f"whatis: {arguments.operands[0]!r} and a search exclude each other")
        return _search(workspace, arguments)
    if not arguments.operands:
        raise UsageError("whatis: name is missing", hint="help whatis")
    text = " ".join(arguments.operands)
    return Answer("whatis", (_explain(workspace, text, arguments),))


def _explain(workspace: Workspace, text: str, arguments: Arguments) -> Table:
    prog = workspace.prog
    hexadecimal = is_hex(workspace, arguments)
    found = _find_type(prog, text)
    bare = strip(found) if found is not None else None
    if found is not None and bare is not None and bare.kind in COMPOUND:
        return DEFINITION.table(definition_rows(found, offsets=arguments.has("offsets"), is_hex=hexadecimal))
    if found is not None and found.kind is TypeKind.ENUM:
        return ENUMERATION.table(enumeration_rows(found, base_name(found)))
    if found is not None:
        return _scalar_table(found, text, is_hex=hexadecimal)
    name = text.removeprefix("struct ").removeprefix("union ")
    if re.fullmatch(r"[A-Za-z_]\w*\.[\w.,\[\]]+", name) and not _is_variable(prog, name.partition(".")[0]):
        path = parse_type_path(prog, name)
        members = ((member.path, member.type, member.bit_offset, member.bit_size) for member in path.members)
        return DEFINITION.table(member_rows(path.type, members, is_hex=hexadecimal))
    return _declare_value(prog, text)


def _find_type(prog: Program, text: str) -> Type | None:
    """Find a type by its name; a tag may stand alone unless it is that of a variable too."""
    spellings = [text] if text.startswith(_TAGS) else [text, *(f"{tag}{text}" for tag in _TAGS)]
    for spelling in spellings:
        try:
            return prog.type(spelling)
        except (LookupError, SyntaxError, ValueError):
            continue
    return None


def _is_variable(prog: Program, name: str) -> bool:
    try:
        return prog[name] is not None
    except LookupError:
        return False


def _scalar_table(found: Type, text: str, *, is_hex: bool) -> Table:
    size = size_of(found)
    number = f"{size:#x}" if is_hex else str(size)
    head = f"typedef {declare(strip(found), text)};" if found.kind is TypeKind.TYPEDEF else f"{declare(found)};"
    return _DECLARATION.table([(text, declare(found), size, None, f"{head}\nSIZE: {number}")])


def _declare_value(prog: Program, text: str) -> Table:
    is_name = re.fullmatch(r"[A-Za-z_$][\w$]*", text) is not None
    try:
        value = evaluate(prog, text)
    except FactAbsentError as exc:
        symbol = _find_symbol(prog, text) if is_name else None
        if symbol is None:
            raise FactAbsentError(f"{text} is no type and no symbol", hint=exc.hint) from exc
        return _DECLARATION.table([(text, "", None, symbol, f"(no type) {text};")])
    name = text if is_name else ""
    line = declare(value.type_, name)
    return _DECLARATION.table([(name, declare(value.type_), size_of(value.type_), value.address_, f"{line};")])


def _find_symbol(prog: Program, name: str) -> int | None:
    try:
        return int(prog.symbol(name).address)
    except LookupError:
        return None


def _search(workspace: Workspace, arguments: Arguments) -> Answer:
    low, high = _parse_sizes(arguments.get("size"))
    wanted = arguments.get("member")
    names = workspace.once("structures and unions", lambda: tuple(compound_names(workspace.prog)))
    if not names:
        why = "no list of all types: the dump has no BTF"
        return Answer("whatis", (_FOUND.table(),), (Problem(why, Reason.NO_TYPE),))
    workspace.progress(f"looking at {len(names)} types")
    search = _Search(workspace.prog, wanted)
    rows = sorted(row for row in search.read(names) if low <= row[0] and (high is None or row[0] <= high))
    return Answer("whatis", (_FOUND.table(rows),))


def _parse_sizes(text: str | None) -> tuple[int, int | None]:
    if text is None:
        return 0, None
    low, dash, high = text.partition("-")
    first = parse_number(low, "size")
    last = parse_number(high, "size") if dash else first
    if first < 0 or last < first:
        raise UsageError(f"{text!r} is no range of sizes", hint="256 or 256-512")
    return first, last


class _Search:
    """Looks for types by the types of their members."""

    def __init__(self, prog: Program, wanted: str | None) -> None:
        self._prog = prog
        self._wanted = wanted
        self._known: dict[str, bool] = {}

    def read(self, names: tuple[tuple[str, str], ...]) -> Iterator[tuple[int, str]]:
        for keyword, name in names:
            try:
                found = self._prog.type(f"{keyword} {name}")
            except (LookupError, SyntaxError, ValueError, PostpanicError):
                continue
            if found.is_complete() and (self._wanted is None or self._has(found, 0)):
                yield size_of(found), name

    def _has(self, type_: Type, depth: int) -> bool:
        tag = f"{type_.kind} {type_.tag}" if type_.tag is not None else ""
        if tag in self._known:
            return self._known[tag]
        if tag:
            # What contains itself through a pointer is not looked into again.
            self._known[tag] = False
        result = depth < _DEPTH_LIMIT and any(self._fits(member.type, depth) for member in type_.members or ())
        if tag:
            self._known[tag] = result
        return result

    def _fits(self, type_: Type, depth: int) -> bool:
        inner = type_
        while inner.kind in {TypeKind.ARRAY, TypeKind.POINTER}:
            inner = inner.type
        # What a function takes is no member.
        if self._wanted is not None and inner.kind is not TypeKind.FUNCTION and self._wanted in declare(type_):
            return True
        while type_.kind is TypeKind.ARRAY:
            type_ = type_.type
        bare = strip(type_)
        return bare.kind in COMPOUND and self._has(bare, depth + 1)
