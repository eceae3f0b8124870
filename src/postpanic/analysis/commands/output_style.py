"""The options that say how values are shown, which several commands have."""

from __future__ import annotations

from typing import Any

from postpanic.analysis.commands.arguments import Arguments, Option
from postpanic.analysis.objects.style import Style
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError

__all__ = ["DECIMAL", "HEXADECIMAL", "choose_style", "is_hex"]

HEXADECIMAL = Option("-x", "hexadecimal", "show numbers in hexadecimal, whatever the radix that is set")
DECIMAL = Option("-d", "decimal", "show numbers in decimal, whatever the radix that is set")

_PRINT_MAX = 256
_MOST_ELEMENTS = 1_000_000


def is_hex(workspace: Workspace, arguments: Arguments) -> bool:
    """
    Tell whether numbers are to be shown in hexadecimal.

    Raises
    ------
    UsageError
        If -x and -d were both given.
    """
    if arguments.has("hexadecimal") and arguments.has("decimal"):
        raise UsageError("-x and -d exclude each other")
    return arguments.has("hexadecimal") or (workspace.radix == 16 and not arguments.has("decimal"))


def choose_style(workspace: Workspace, arguments: Arguments, *, letter: str = "") -> Style:
    """
    Choose the style of values by the options -x and -d and by what ``set`` said.

    Raises
    ------
    UsageError
        If -x and -d were both given.
    """
    settings = workspace.settings
    return Style(
        radix=16 if is_hex(workspace, arguments) else 10,
        letter=letter,
        print_max=_limit(settings.get("print_max")),
        null_stop=_is_on(settings.get("null-stop")),
        print_array=_is_on(settings.get("print_array")),
    )


def _limit(value: Any) -> int:  # noqa: ANN401 - settings are of any type
    if value is None or value == "":
        return _PRINT_MAX
    number = int(value)
    # 0 is gdb's way to say "all".
    return min(number, _MOST_ELEMENTS) if number > 0 else _MOST_ELEMENTS


def _is_on(value: Any) -> bool:  # noqa: ANN401 - settings are of any type
    return value in {True, "on", "yes", "1"}
