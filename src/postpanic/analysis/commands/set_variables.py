"""The variables of crash: those that mean something here, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from postpanic.analysis.commands.values import parse_number
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Cell, Column, Layout, Shape

__all__ = ["NAMES", "REFUSALS", "VARIABLES", "is_variable", "set_variable", "show_variable"]

VARIABLES = Shape(
    "variables",
    (
        Column("name", help="The variable."),
        Column("value", help="What it is set to."),
        Column("refused", hidden=True, help="Why it cannot be set; empty if it can."),
    ),
    Layout.LINES,
    "{name:>14}: {value}",
)


@dataclass(frozen=True, slots=True)
class _Variable:
    """One variable: its values, or why it cannot be set."""

    default: str
    choices: tuple[str, ...] = ()
    """Empty: a number."""
    refused: str = ""
    show: Callable[[Workspace], str] | None = None
    """What it always is."""


_SWITCH = ("on", "off")


def _namelist(workspace: Workspace) -> str:
    sources = workspace.opened.sources
    return str(sources[0].file) if sources else "(none)"


def _dumpfile(workspace: Workspace) -> str:
    return " ".join(str(path) for path in workspace.opened.dump.description.paths)


_VARIABLES = {
    "scroll": _Variable("off", ("on", "off", "less", "more", "CRASHPAGER")),
    "radix": _Variable("10", ("10", "16", "dec", "hex")),
    "refresh": _Variable("on", refused="the tasks of a running kernel are read anew for every command"),
    "print_max": _Variable("256"),
    "print_array": _Variable("off", _SWITCH),
    "console": _Variable("(none)", refused="crash's debugging of itself; --debug of postpanic writes to stderr"),
    "debug": _Variable("0", refused="crash's debugging of itself"),
    "core": _Variable("off", refused="crash's debugging of itself"),
    "hash": _Variable("on", refused="lists are always checked for loops"),
    "silent": _Variable("off", refused="open -s opens a dump silently"),
    "edit": _Variable("emacs", refused="the keys of the prompt are those of emacs"),
    "namelist": _Variable("", refused="the kernel's file is given when the dump is opened", show=_namelist),
    "dumpfile": _Variable("", refused="the dump is given to open", show=_dumpfile),
    "unwind": _Variable("on", refused="stacks are always unwound by the kernel's tables where there are any"),
    "zero_excluded": _Variable("off", refused="it is chosen when a dump is opened: open --zero-excluded"),
    "null-stop": _Variable("off", _SWITCH),
    "gdb": _Variable("off", refused="the command gdb hands one line to gdb"),
    "scope": _Variable("0 (not set)", refused="types are looked for in all files; struct TYPE names the first"),
    "offline": _Variable("show", ("show", "hide")),
    "redzone": _Variable("on", _SWITCH),
    "error": _Variable("default", refused="errors go to stderr; the shell can send them elsewhere"),
}
NAMES = tuple(_VARIABLES)
"""In crash's order."""
REFUSALS = {name: variable.refused for name, variable in _VARIABLES.items()}
"""Why each cannot be set; empty: it can."""


def is_variable(word: str) -> bool:
    """Tell whether a word of ``set`` is a variable."""
    return word in _VARIABLES or word in {"hex", "dec"}


def set_variable(workspace: Workspace, name: str, text: str) -> None:
    """
    Set a variable.

    Raises
    ------
    UsageError
        If it cannot be set, or not to that.
    """
    variable = _VARIABLES[name]
    if variable.refused:
        raise UsageError(f"set {name}: {variable.refused}")
    if not variable.choices:
        if parse_number(text, f"set {name}") <= 0:
            raise UsageError(f"set {name}: {text} is not above 0")
        workspace.settings[name] = parse_number(text, f"set {name}")
        return
    if text not in variable.choices:
        raise UsageError(f"set {name}: {text!r} is not possible", hint=" | ".join(variable.choices))
    if name == "radix":
        workspace.radix = 16 if text in {"16", "hex"} else 10
    elif name == "scroll":
        _set_scroll(workspace, text)
    else:
        workspace.settings[name] = text == "on" if variable.choices == _SWITCH else text


def _set_scroll(workspace: Workspace, text: str) -> None:
    config = workspace.prog.config
    config["crash_scroll"] = text != "off"
    if text in {"less", "more"}:
        config["crash_pager"] = "less -E -X" if text == "less" else "more"
    elif text != "off" and not config.get("crash_pager"):
        raise UsageError("set scroll: no pager is known", hint="set scroll less, or PAGER in the environment")


def show_variable(workspace: Workspace, name: str) -> tuple[Cell, ...]:
    """Make the row of a variable."""
    variable = _VARIABLES[name]
    if name == "radix":
        value = f"{workspace.radix} ({'hex' if workspace.radix == 16 else 'decimal'})"
    elif name == "scroll":
        config = workspace.prog.config
        value = f"{'on' if config.get('crash_scroll') else 'off'} ({config.get('crash_pager') or 'none'})"
    elif variable.show is not None:
        value = variable.show(workspace)
    else:
        setting = workspace.settings.get(name, variable.default)
        value = ("on" if setting else "off") if isinstance(setting, bool) else str(setting)
    return (name, value, variable.refused)
