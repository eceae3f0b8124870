"""
The prompt's commands in Python.

::

    from postpanic import open_dump

    with open_dump("dump.201901010000") as dump:
        for row in dump.run("ps", kernel_threads=True).table.records():
            print(row["pid"], row["comm"])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self, TypeAlias

from drgn import Object, Program

from postpanic.analysis.commands.arguments import Option
from postpanic.analysis.commands.catalog import load_commands
from postpanic.analysis.commands.language import answer, find_line_command
from postpanic.analysis.commands.registry import Command
from postpanic.analysis.crash_commands import load_plugins
from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.program import OpenedProgram, open_program
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer

__all__ = ["OpenDump", "Value", "open_dump"]

Value: TypeAlias = str | int | bool | Object | Sequence["str | int | Object"]
"""What an option or operand may be given as: a task may be a PID or a ``struct task_struct *``."""


class OpenDump:
    """
    A dump that answers commands; made by :func:`open_dump`.

    Parameters
    ----------
    opened : OpenedProgram
        Is closed with it.
    """

    def __init__(self, opened: OpenedProgram) -> None:
        self.workspace = Workspace(opened)
        self._opened = opened

    @property
    def prog(self) -> Program:
        """The program of drgn, for everything that no command answers."""
        return self._opened.prog

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was odd about the dump when it was opened, one line each."""
        return tuple(self._opened.warnings)

    def run(self, line: str, /, **arguments: Value) -> Answer:
        """
        Run one native command.

        Parameters
        ----------
        line : str
            A command, with its words if it has any: ``"bt"``, ``"bt -a"``. No
            pipes and no redirections: the answer is a value.
        **arguments
            More words, by the names that ``help`` shows: True for an option
            without a value, else the value; for an operand a value, or a
            sequence of them. ``run("bt", task=1)`` is ``run("bt 1")``.

        Returns
        -------
        Answer
            Its tables, and what is missing from them.

        Raises
        ------
        UsageError
            If there is no such command, or it does not take these words.
        AbsentError
            If the dump does not hold what the whole answer depends on.
        """
        split, command = find_line_command(self.workspace, line)
        if split.redirections or split.pipeline is not None:
            raise UsageError(f"{line!r}: redirections and pipes are for the prompt", hint="run() returns a value")
        if command is None:
            raise UsageError(f"no native command {split.name}", hint=f"native: {', '.join(load_commands())}")
        more = _spell(command, arguments)
        return answer(self.workspace, command, (*split.words, *more), " ".join([split.source, *more]).strip())

    def close(self) -> None:
        """Close the dump; neither it nor its program may be used any more."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _spell(command: Command, arguments: dict[str, Value]) -> list[str]:
    """Turn named arguments into the words that would be typed."""
    options = {option.name: option for option in command.options}
    operands = {operand.name: operand for operand in command.operands}
    flags: list[str] = []
    words: list[str] = []
    for name, value in arguments.items():
        if name in operands:
            words += _spell_values(value)
        elif name in options:
            flags += _spell_option(options[name], value)
        else:
            known = ", ".join([*operands, *options]) or "nothing"
            raise UsageError(f"{command.name} takes no {name}", hint=f"it takes {known}")
    return [*flags, *(["--"] if any(word.startswith("-") for word in words) else []), *words]


def _spell_option(option: Option, value: Value) -> list[str]:
    if value is False:
        return []
    if value is True:
        return [option.flag]
    if not option.value:
        raise UsageError(f"{option.name} is True or False, not {value!r}")
    words: list[str] = []
    for text in _spell_values(value):
        words += [f"{option.flag}={text}"] if option.attached else [option.flag, text]
    return words


def _spell_values(value: Value) -> list[str]:
    values: Iterable[str | int | Object]
    values = [value] if isinstance(value, (str, int, Object)) else value
    return [_spell_value(one) for one in values]


def _spell_value(value: str | int | Object) -> str:
    if isinstance(value, str):
        return value
    number = int(value.value_()) if isinstance(value, Object) else value
    # One digit is the same in every base; anything longer says its base.
    return str(number) if -10 < number < 10 else f"{number:#x}"


def open_dump(
    *paths: str | Path,
    vmlinux: str | Path | None = None,
    modules: Sequence[str | Path] = (),
    debuginfo: str = "auto",
    cache_directory: str | Path | None = "~/.cache/postpanic",
    zero_excluded: bool = False,
) -> OpenDump:
    """
    Open a dump for commands.

    Parameters
    ----------
    *paths : str or Path
        One file, or all files of a split dump.
    vmlinux, modules : str or Path
        Real debug information, if it is at hand; nothing needs it.
    debuginfo : str
        ``auto``: real where it is found and belongs to the dump, else
        synthesized; ``synth``: only what is given or synthesized; ``real``:
        never synthesized.
    cache_directory : str or Path, optional
        Where synthesized debug information is kept for the next time; None:
        nothing is kept, and it is made anew each time, which takes seconds.
    zero_excluded : bool
        Read pages that the dump does not hold as zeroes.

    Returns
    -------
    OpenDump
        A context manager.

    Raises
    ------
    UsageError
        If *debuginfo* is none of its words, or no path is given.
    FileFaultError, FactAbsentError
        As :func:`postpanic.analysis.program.open_program` does.
    """
    policies = {"auto": DebugPolicy.AUTO, "synth": DebugPolicy.SYNTHESIZED, "real": DebugPolicy.REAL}
    if debuginfo not in policies:
        raise UsageError(f"debuginfo is {' or '.join(policies)}, not {debuginfo!r}")
    if not paths:
        raise UsageError("no dump is given")
    opened = open_program(
        [Path(path) for path in paths],
        vmlinux=Path(vmlinux) if vmlinux is not None else None,
        modules=[Path(module) for module in modules],
        policy=policies[debuginfo],
        cache_directory=Path(cache_directory).expanduser() if cache_directory is not None else None,
        zero_excluded=zero_excluded,
    )
    load_plugins()
    return OpenDump(opened)
