"""``alias``: other names for command lines."""

from __future__ import annotations

import re

from postpanic.analysis.aliases import Alias
from postpanic.analysis.commands.arguments import Arguments, Operand
from postpanic.analysis.commands.registry import Example, command, declared_commands
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Cell, Column, Layout, Shape

__all__ = ["alias"]

_ALIASES = Shape(
    "aliases",
    (
        Column("origin", title="ORIGIN", help="builtin, or runtime: made in this session.", width=7),
        Column("alias", title="ALIAS", help="What is typed.", width=7),
        Column("command", title="COMMAND", help="What it stands for."),
    ),
)
_DELETED = Shape(
    "deleted", (Column("alias", help="Name of the alias that is gone."),), Layout.LINES, "alias deleted: {alias}"
)
_MOST_CHARACTERS = 1000


@command(
    "alias",
    summary="command aliases",
    description=(
        "Show the aliases, one of them, or make one: the first word of a line that is an alias is replaced by what it "
        'stands for. A command line with | or > must be in quotes; an empty one ("") removes the alias.'
    ),
    operands=(
        Operand("name", "what will be typed"),
        Operand("line", "the command line that it stands for", many=True),
    ),
    shapes=(_ALIASES, _DELETED),
    examples=(
        Example("alias", "all aliases"),
        Example("alias kp kmem -p", "a new one"),
        Example('alias ksd "kmem -p | grep slab"', "one with a pipe"),
        Example('alias kp ""', "remove it"),
    ),
    verbatim=True,
)
def alias(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show or make aliases."""
    name, *words = arguments.operands or ("",)
    if not name:
        return Answer("alias", (_ALIASES.table([_row(entry) for entry in workspace.aliases]),))
    if not words:
        found = workspace.aliases.find(name)
        if found is None:
            raise UsageError(f"no alias {name}", hint="alias shows them all")
        return Answer("alias", (_ALIASES.table([_row(found)]),))
    text = " ".join(words).strip()
    if not text:
        if not workspace.aliases.remove(name):
            raise UsageError(f"no alias {name}", hint="alias shows them all")
        return Answer("alias", (_DELETED.table([(name,)]),))
    _check_name(name, text)
    return Answer("alias", (_ALIASES.table([_row(workspace.aliases.define(name, text))]),))


def _check_name(name: str, text: str) -> None:
    if not re.fullmatch(r"[\w?.-]+", name):
        raise UsageError(f"{name!r} cannot be an alias: letters, digits and _ ? . - only")
    if name in declared_commands() or name in {"q", "exit"}:
        raise UsageError(f"{name} is a command, and no alias can have its name")
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(f"an alias of {len(text)} characters, at most {_MOST_CHARACTERS} are possible")


def _row(entry: Alias) -> tuple[Cell, ...]:
    return entry.origin, entry.name, entry.text
