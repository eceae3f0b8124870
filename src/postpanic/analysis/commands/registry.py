"""
Declare a command of the prompt.

A command is a function that gets a :class:`Workspace` and the parsed
:class:`Arguments` and returns an :class:`Answer`. Everything that is known about
it is declared with it: completion, ``help``, the documents and the JSON Schema
are made from the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Answer, Shape

__all__ = [
    "Command",
    "Example",
    "Run",
    "command",
    "complete_with",
    "declared_commands",
    "imported_command",
    "withdraw_commands",
]

Run = Callable[[Workspace, Arguments], Answer]


@dataclass(frozen=True, slots=True)
class Example:
    """A command line, and what it is for."""

    line: str
    purpose: str


@dataclass(frozen=True, slots=True)
class Command:
    """
    A declared command; called, it runs.

    Parameters
    ----------
    name : str
    run : callable
    summary : str
        One line, lower case, without a full stop.
    description : str
        Paragraphs: what is shown, and where crash's command differs.
    options, operands
        What it takes. ``--json`` is every command's, and not declared.
    shapes : tuple of Shape
        Of all tables that it may return.
    examples : tuple of Example
    per_task : bool
        It works on the task of the context: ``foreach`` may run it for each task.
    verbatim : bool
        Its words are not parsed: all of them are operands (``foreach``).
    """

    name: str
    run: Run
    summary: str
    description: str
    options: tuple[Option, ...]
    operands: tuple[Operand, ...]
    shapes: tuple[Shape, ...]
    examples: tuple[Example, ...]
    per_task: bool
    verbatim: bool

    def __call__(self, workspace: Workspace, arguments: Arguments) -> Answer:
        """Run it."""
        return self.run(workspace, arguments)


def command(
    name: str,
    *,
    summary: str,
    description: str = "",
    options: Sequence[Option] = (),
    operands: Sequence[Operand] = (),
    shapes: Sequence[Shape],
    examples: Sequence[Example] = (),
    per_task: bool = False,
    verbatim: bool = False,
) -> Callable[[Run], Command]:
    """
    Make a command of a function; the function's name becomes the command.

    The parameters are those of :class:`Command`. ``analysis/commands/catalog.py``
    imports its module.
    """

    def declare(run: Run) -> Command:
        if name in _DECLARED:
            raise ValueError(f"two commands are called {name}")
        declared = Command(
            name,
            run,
            summary,
            description,
            tuple(options),
            tuple(operands),
            tuple(shapes),
            tuple(examples),
            per_task,
            verbatim,
        )
        _DECLARED[name] = declared
        return declared

    return declare


_DECLARED: dict[str, Command] = {}
_COMPLETE: list[Callable[[], None]] = []


def complete_with(import_all: Callable[[], None]) -> None:
    """Say what imports the modules of all commands, once; the catalog does, which knows them."""
    _COMPLETE[:] = [import_all]


def imported_command(name: str) -> Command | None:
    """Return a command if its module was imported already; None: it was not, or there is none."""
    return _DECLARED.get(name)


def declared_commands() -> dict[str, Command]:
    """Return all commands by name, sorted; those of plug-ins that are loaded among them."""
    for import_all in _COMPLETE:
        import_all()
    return {name: _DECLARED[name] for name in sorted(_DECLARED)}


def withdraw_commands(names: Iterable[str]) -> None:
    """Forget commands: those of a plug-in that is unloaded."""
    for name in names:
        _DECLARED.pop(name, None)
