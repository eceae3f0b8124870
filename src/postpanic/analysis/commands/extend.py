"""``extend``: commands of other people."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command, declared_commands, withdraw_commands
from postpanic.analysis.crash_commands import describe_error
from postpanic.analysis.workspace import Workspace
from postpanic.errors import PostpanicError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Layout, Shape

__all__ = ["ENTRY_POINTS", "extend"]

ENTRY_POINTS = "postpanic.commands"
"""Group of the entry points whose modules declare commands."""

_PLUGINS = Shape(
    "plugins",
    (
        Column("plugin", title="PLUG-IN", help="File, or name of the entry point."),
        Column("commands", title="COMMANDS", help="Commands that it declares."),
    ),
)
_CHANGES = Shape(
    "changes",
    (
        Column("plugin", help="File, or name of the entry point."),
        Column("change", help="``loaded`` or ``unloaded``."),
        Column("commands", help="Commands that it declares."),
    ),
    Layout.LINES,
    "{plugin}: {change}: {commands}",
)

_loaded: dict[str, tuple[str, ...]] = {}
"""Plug-ins by the name that they were loaded by, with their commands: of the process, as commands are."""


@command(
    "extend",
    summary="load and unload commands of plug-ins",
    description=(
        "Load Python files that declare commands with postpanic's own registry, or installed plug-ins by the name of "
        f"their entry point (group {ENTRY_POINTS}). Their commands have help, --json and completion as all others. "
        "Without words, the plug-ins that are loaded. A plug-in runs as you: load none that you do not trust."
    ),
    options=(
        Option("-u", "unload", "unload these plug-ins; without a name, all"),
        Option("-s", "show", "show the plug-ins that are installed"),
    ),
    operands=(Operand("plugin", "a Python file, or the name of an entry point", many=True),),
    shapes=(_PLUGINS, _CHANGES),
    examples=(
        Example("extend ./uptimes.py", "load a file"),
        Example("extend -u ./uptimes.py", "unload it"),
        Example("extend -s", "what is installed"),
    ),
)
def extend(workspace: Workspace, arguments: Arguments) -> Answer:  # noqa: ARG001 - a command's signature
    """Load and unload plug-ins."""
    if arguments.has("show"):
        rows = [(entry.name, f"({entry.value})") for entry in _entry_points()]
        return Answer("extend", (_PLUGINS.table(sorted(rows)),))
    if arguments.has("unload"):
        return Answer("extend", (_CHANGES.table([_unload(name) for name in arguments.operands or tuple(_loaded)]),))
    if not arguments.operands:
        return Answer("extend", (_PLUGINS.table([(name, " ".join(names)) for name, names in _loaded.items()]),))
    return Answer("extend", (_CHANGES.table([_load(name) for name in arguments.operands]),))


def _entry_points() -> Sequence[importlib.metadata.EntryPoint]:
    return tuple(importlib.metadata.entry_points(group=ENTRY_POINTS))


def _load(name: str) -> tuple[Cell, ...]:
    if name in _loaded:
        raise UsageError(f"{name} is loaded already", hint=f"extend -u {name} unloads it")
    before = set(declared_commands())
    try:
        _find_loader(name)()
    except Exception as exc:
        # Whatever a plug-in raises: half of its commands must not stay.
        withdraw_commands(set(declared_commands()) - before)
        if isinstance(exc, PostpanicError):
            raise
        raise UsageError(f"{name} cannot be loaded: {type(exc).__name__}: {describe_error(exc)}") from exc
    found = tuple(sorted(set(declared_commands()) - before))
    if not found:
        raise UsageError(f"{name} declares no command", hint="a plug-in declares them with postpanic's registry")
    _loaded[name] = found
    return name, "loaded", " ".join(found)


def _find_loader(name: str) -> Callable[[], object]:
    path = Path(name).expanduser()
    if path.suffix == ".py" or "/" in name:
        if not path.is_file():
            raise UsageError(f"no file {name}")
        return lambda: _run_file(path)
    for entry in _entry_points():
        if entry.name == name:
            return entry.load
    known = ", ".join(sorted(entry.name for entry in _entry_points())) or "none"
    raise UsageError(f"no plug-in {name}: neither a file ending in .py nor installed", hint=f"installed: {known}")


def _run_file(path: Path) -> None:
    module_name = f"postpanic_plugin_{path.stem}"
    specification = importlib.util.spec_from_file_location(module_name, path)
    if specification is None or specification.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    # Dataclasses and the like look their module up by its name.
    sys.modules[module_name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


def _unload(name: str) -> tuple[Cell, ...]:
    names = _loaded.pop(name, None)
    if names is None:
        raise UsageError(f"{name} is not loaded", hint="extend shows what is")
    withdraw_commands(names)
    return name, "unloaded", " ".join(names)
