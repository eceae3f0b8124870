"""``repeat``: a command again and again."""

from __future__ import annotations

import time
from collections.abc import Sequence

from postpanic.analysis.commands.arguments import Arguments, Operand, Option, parse_words
from postpanic.analysis.commands.registry import Example, command, declared_commands
from postpanic.analysis.crash_commands import capture_crash_command
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["repeat"]

_TEXT = Shape("text", (Column("line", help="One line of what drgn's command printed."),), Layout.LINES, "{line}")
_RUNS = Shape(
    "runs",
    (
        Column("run", Kind.NUMBER, help="From 1."),
        Column("rows", Kind.ROWS, help="One table of its answer, in the shape of that command."),
    ),
    Layout.LINES,
)
_MOST_RUNS = 1_000_000
_MOST_KEPT = 10_000
"""Answers that are kept where nothing shows them as they come."""
_LONGEST_DELAY_S = 86_400.0


@command(
    "repeat",
    summary="repeat a command",
    description=(
        "Run a command again and again, until Ctrl-C or as often as -c says. A dump does not change: there it runs "
        "once, unless -c asks for more. The options stand before the command."
    ),
    options=(
        Option("-SECONDS", "seconds", "wait so long between two runs: -1, -0.5"),
        Option("-c", "count", "run it so often", "COUNT"),
    ),
    operands=(Operand("command", "a command with its words", many=True, required=True),),
    shapes=(_RUNS,),
    examples=(
        Example("repeat -1 p jiffies", "once a second"),
        Example("repeat -5 -c 3 ps -S", "three times, five seconds apart"),
    ),
    verbatim=True,
)
def repeat(workspace: Workspace, arguments: Arguments) -> Answer:
    """Run a command again and again."""
    delay, count, words = _split(arguments.operands)
    runs = count if count is not None else _MOST_RUNS if workspace.is_live else 1
    line = workspace.aliases.expand(" ".join(words))
    name, *rest = line.split() if line != " ".join(words) else words
    emit = workspace.emit
    if emit is None and runs > _MOST_KEPT:
        runs = _MOST_KEPT
    rows: list[tuple[Cell, ...]] = []
    problems: list[Problem] = []
    for number in range(runs):
        if number and delay:
            time.sleep(delay)
        workspace.refresh()
        answer = _run(workspace, name, rest)
        problems += [problem for problem in answer.problems if problem not in problems]
        rows += [(number + 1, table) for table in answer.tables]
        if emit is not None and number < runs - 1:
            emit(Answer("repeat", (_RUNS.table(rows),)))
            rows = []
    return Answer("repeat", (_RUNS.table(rows),), tuple(problems))


def _split(words: Sequence[str]) -> tuple[float, int | None, list[str]]:
    """Tell the delay and the count from the command."""
    delay, count = 0.0, None
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "-c":
            text = rest.pop(0) if rest else ""
            if not text.isdecimal() or not 0 < int(text) <= _MOST_RUNS:
                raise UsageError(f"repeat -c: {text!r} is not a count, 1 to {_MOST_RUNS} are possible")
            count = int(text)
            continue
        try:
            delay = float(word[1:])
        except ValueError:
            raise UsageError(f"repeat: no option {word}", hint="repeat [-SECONDS] [-c COUNT] COMMAND") from None
        if not 0 <= delay <= _LONGEST_DELAY_S:
            raise UsageError(f"repeat: {word[1:]} seconds, 0 to {_LONGEST_DELAY_S:.0f} are possible")
    if not rest:
        raise UsageError("repeat: command is missing", hint="help repeat")
    if rest[0] == "repeat":
        raise UsageError("repeat: a command that repeats itself is not repeated")
    return delay, count, rest


def _run(workspace: Workspace, name: str, words: Sequence[str]) -> Answer:
    entry = declared_commands().get(name)
    source = " ".join(words)
    if entry is None:
        text = capture_crash_command(workspace.prog, f"{name} {source}")
        return Answer(name, (_TEXT.table([(line,) for line in text.rstrip("\n").split("\n")]),))
    if entry.verbatim:
        return entry(workspace, Arguments(entry.options, {}, words, source))
    arguments = parse_words(name, words, options=entry.options, operands=entry.operands, source=source)
    return entry(workspace, arguments)
