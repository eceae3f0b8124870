"""``help``: the commands, and each of them explained from its declaration."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Command, command, declared_commands
from postpanic.analysis.crash_commands import CommandFailedError, capture_crash_command, command_names
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Column, Kind, Layout, Shape

__all__ = ["describe_command", "format_usage", "help_command"]

WIDTH = 80
_INDENT = "  "

_NAMES = Shape(
    "commands",
    (
        Column("name", title="COMMAND", help="What is typed."),
        Column("native", Kind.BOOL, title="NATIVE", help="Whether it answers with tables; the others are drgn's text."),
        Column("summary", title="WHAT IT SHOWS", help="One line."),
    ),
)
_TEXT = Shape("help", (Column("line", help="One line of the text."),), Layout.LINES, "{line}")


_INTERNALS = (
    *(
        Option(f"-{letter}", f"headers_{letter}", "headers of the dump", refused="postpanic info DUMP shows them")
        for letter in "Dn"
    ),
    *(
        Option(f"-{letter}", f"internals_{letter}", "tables of crash", refused="they are inside of crash, not here")
        for letter in "abBcdefghHkKLMmNoprstTvVz"
    ),
)


@command(
    "help",
    summary="list the commands, or explain them",
    description="Without a name, the commands of this prompt. Those that are not native are drgn's, and print text.",
    options=_INTERNALS,
    operands=(Operand("name", "a command", many=True),),
    shapes=(_NAMES, _TEXT),
)
def help_command(workspace: Workspace, arguments: Arguments) -> Answer:
    """List the commands, or explain those that are named."""
    native = declared_commands()
    if not arguments.operands:
        rows = {name: (name, True, entry.summary) for name, entry in native.items()}
        rows |= {name: (name, False, "") for name in command_names(workspace.prog) if name not in rows}
        return Answer("help", (_NAMES.table([rows[name] for name in sorted(rows)]),))
    tables = []
    for word in arguments.operands:
        name = (workspace.aliases.expand(word).split() or [word])[0]
        lines = describe_command(native[name]) if name in native else _drgn_help(workspace, name)
        tables.append(_TEXT.table([(line,) for line in lines]))
    return Answer("help", tuple(tables))


def _drgn_help(workspace: Workspace, name: str) -> Iterator[str]:
    try:
        yield from capture_crash_command(workspace.prog, f"help {name}").rstrip("\n").split("\n")
    except CommandFailedError as exc:
        raise UsageError(f"no command {name}", hint="help lists them") from exc


def format_usage(entry: Command) -> str:
    """Spell the usage of a command on one line."""
    plain = "".join(option.flag[1:] for option in _taken(entry) if not option.value and len(option.flag) == 2)
    words = [entry.name, *([f"[-{plain}]"] if plain else [])]
    words += [f"[{_spell(option)}]" for option in _taken(entry) if option.value or len(option.flag) > 2]
    for operand in entry.operands:
        word = operand.name.upper() + ("..." if operand.many else "")
        words.append(word if operand.required else f"[{word}]")
    return " ".join(words)


def _taken(entry: Command) -> list[Option]:
    return [option for option in entry.options if not option.refused]


def _spell(option: Option) -> str:
    if not option.value:
        return option.flag
    return f"{option.flag}[={option.value}]" if option.attached else f"{option.flag} {option.value}"


def describe_command(entry: Command) -> Iterator[str]:
    """Make the lines that explain a command: what it is, how it is typed, its options, columns and examples."""
    yield f"{entry.name}: {entry.summary}"
    yield ""
    yield from textwrap.wrap(format_usage(entry), WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT * 3)
    for paragraph in filter(None, entry.description.split("\n\n")):
        yield ""
        yield from textwrap.wrap(paragraph, WIDTH)
    yield from _describe_words(entry.operands, entry.options)
    if entry.examples:
        yield from ("", "Examples:")
        width = max(len(example.line) for example in entry.examples)
        yield from (f"{_INDENT}{example.line:<{width}}   {example.purpose}" for example in entry.examples)
    shown = [shape for shape in entry.shapes if any(column.help for column in shape.columns)]
    for shape in shown:
        yield from ("", f"Columns of {shape.name} (--json):")
        rows = [(column.name, column.help) for column in shape.columns if column.help]
        yield from _definitions(rows)


def _describe_words(operands: tuple[Operand, ...], options: tuple[Option, ...]) -> Iterator[str]:
    rows = [(operand.name.upper(), operand.help) for operand in operands]
    rows += [(_spell(option), option.help) for option in options if not option.refused]
    rows.append(("--json", "the answer as JSON"))
    yield ""
    yield from _definitions(rows)
    refused: dict[str, str] = {}
    for option in options:
        if option.refused:
            refused[option.refused] = f"{refused.get(option.refused, '')} {option.flag}".strip()
    if refused:
        yield from ("", "Of crash's options, these are refused:")
        yield from _definitions([(flags, reason) for reason, flags in refused.items()])


def _definitions(rows: list[tuple[str, str]]) -> Iterator[str]:
    width = min(24, max(len(term) for term, _ in rows))
    for term, text in rows:
        lead = f"{_INDENT}{term:<{width}}{_INDENT}"
        if len(term) > WIDTH // 2:
            yield from textwrap.wrap(term, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
            lead = " " * (width + 2 * len(_INDENT))
        yield from textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead)) or [lead.rstrip()]
