"""What boot loader modules have to offer: evidence, entries, and a plan of what would be changed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.words import find_values

__all__ = ["BootEntry", "Command", "Evidence", "FileEdit", "Loader", "Plan", "Strength", "drop_repeated"]

Strength = int
BOOTED: Strength = 3
"""This boot went through it."""
CONFIGURED: Strength = 2
"""Its configuration boots kernels."""
INSTALLED: Strength = 1
"""Its programs are there, and no more is known."""


@dataclass(frozen=True)
class Evidence:
    """
    Why a loader is taken to boot this machine.

    Attributes
    ----------
    strength : int
        3: this boot went through it; 2: it is configured; 1: it is installed.
    reasons : tuple of str
        The files, variables and programs that say so.
    """

    strength: Strength
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class BootEntry:
    """
    A kernel command line that a loader would boot with.

    Attributes
    ----------
    where : str
        The file it is in.
    title : str
        As the menu shows it; may be empty.
    command_line : str
    """

    where: str
    title: str
    command_line: str

    @property
    def values(self) -> tuple[str, ...]:
        """Its ``crashkernel=``."""
        return find_values(self.command_line)


@dataclass(frozen=True)
class FileEdit:
    """
    A file as it is, and as it is to be.

    Attributes
    ----------
    path : str
        As from the machine's root.
    before : bytes or None
        None: there is no such file yet.
    after : bytes
    """

    path: str
    before: bytes | None
    after: bytes

    def spell_diff(self) -> str:
        """Spell the difference as ``diff -u`` does."""
        before = (self.before or b"").decode(errors="backslashreplace").splitlines(keepends=True)
        after = self.after.decode(errors="backslashreplace").splitlines(keepends=True)
        old = self.path if self.before is not None else "/dev/null"
        lines = difflib.unified_diff(before, after, old, self.path)
        ended = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
        return "".join(ended)


@dataclass(frozen=True)
class Command:
    """
    A program that makes the changes take effect.

    Attributes
    ----------
    words : tuple of str
        As it would be typed.
    outputs : tuple of str
        Configuration files that it writes; they are kept, and put back by undoing.
    """

    words: tuple[str, ...]
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """
    What is to be done to a loader's configuration.

    Attributes
    ----------
    loader : str
    edits : tuple of FileEdit
        Those that change something.
    commands : tuple of Command
        To be run after them.
    undo_commands : tuple of Command
        To be run after the files were put back, where that is another command.
    preview : tuple of (str, str)
        For what only a command changes: the line before and after.
    manual : tuple of str
        What has to be done by hand.
    remarks : tuple of str
        What is worth knowing.
    """

    loader: str
    edits: tuple[FileEdit, ...] = ()
    commands: tuple[Command, ...] = ()
    undo_commands: tuple[Command, ...] | None = None
    preview: tuple[tuple[str, str], ...] = ()
    manual: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether everything is as it is to be."""
        return not (self.edits or self.preview or self.manual)


@dataclass(frozen=True)
class Loader:
    """
    A boot loader.

    Attributes
    ----------
    name : str
        For ``--loader``.
    title : str
        For people.
    detect : callable
        Says why it is taken to boot this machine; None: nothing says so.
    read_entries : callable
        Reads the command lines that it would boot with.
    plan : callable
        Says what to change so that the command line has these values of ``crashkernel=``.
    """

    name: str
    title: str
    detect: Callable[[BootTree], Evidence | None]
    read_entries: Callable[[BootTree], list[BootEntry]]
    plan: Callable[[BootTree, tuple[str, ...]], Plan]


@dataclass
class Edits:
    """Collects the edits of a plan, several of one file in turn; those that change nothing are left out."""

    tree: BootTree
    _files: dict[str, FileEdit] = field(default_factory=dict)

    def read_text(self, path: str) -> str:
        """Read a file as it would be by now."""
        edit = self._files.get(path)
        return edit.after.decode(errors="surrogateescape") if edit else self.tree.read_text(path)

    def write_text(self, path: str, text: str) -> None:
        """Say what a file is to hold."""
        before = self._files[path].before if path in self._files else self.tree.read(path)
        self._files[path] = FileEdit(path, before, text.encode(errors="surrogateescape"))

    def change(self, path: str, edit: Callable[[str], str]) -> None:
        """Change a file that is there."""
        if path in self._files or self.tree.has(path):
            self.write_text(path, edit(self.read_text(path)))

    @property
    def changed(self) -> tuple[FileEdit, ...]:
        """The files that are to be other than they are."""
        return tuple(edit for edit in self._files.values() if edit.before != edit.after)


def drop_repeated(plans: Sequence[Plan]) -> list[Plan]:
    """Leave out of each plan what one before it does already: loaders share ``/etc/kernel/cmdline``."""
    seen: set[FileEdit | Command] = set()
    found = []
    for plan in plans:
        edits = tuple(edit for edit in plan.edits if edit not in seen)
        commands = tuple(command for command in plan.commands if command not in seen)
        seen |= {*edits, *commands}
        found.append(replace(plan, edits=edits, commands=commands))
    return found
