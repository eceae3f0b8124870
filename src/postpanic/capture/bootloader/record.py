"""
Carry out a plan, remember what was there before, and put it back.

Each change is a directory of its own below ``/var/lib/postpanic/bootloader``:
the files as they were, and ``record.json`` with the digests of what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from postpanic.capture.bootloader.model import FileEdit, Plan
from postpanic.capture.bootloader.tree import FILE_LIMIT_BYTES, BootTree
from postpanic.errors import FactAbsentError, NotReadyError, OutputError, PostpanicError

__all__ = ["ChangeRecord", "KeptFile", "UndoOutcome", "apply_plans", "leave", "read_last_record", "undo"]

DIRECTORY = "var/lib/postpanic/bootloader"
SCHEMA_VERSION = 1
_LIMIT_BYTES = 4 << 20

Run = Callable[[Sequence[str]], object]


def leave(words: Sequence[str]) -> None:
    """Run nothing: the programs of another tree are to be run in it, by hand."""


@dataclass(frozen=True)
class KeptFile:
    """
    A file that a change has written.

    Attributes
    ----------
    path : str
        As from the machine's root.
    backup : str
        Name of the copy in the record's directory; empty: there was no such file.
    after : str
        SHA-256 of what was written.
    is_output : bool
        Whether a program made it, and can make it again.
    """

    path: str
    backup: str
    after: str
    is_output: bool = False


@dataclass(frozen=True)
class ChangeRecord:
    """
    A change that can be undone.

    Attributes
    ----------
    directory : Path
        Where it is kept.
    loaders : tuple of str
    files : tuple of KeptFile
    commands, undo_commands : tuple of tuple of str
        What was run after writing, and what is to be run after putting back.
    when : str
        Of the boot: its boot ID, to tell whether the change has been booted.
    """

    directory: Path
    loaders: tuple[str, ...]
    values: tuple[str, ...]
    files: tuple[KeptFile, ...]
    commands: tuple[tuple[str, ...], ...] = ()
    undo_commands: tuple[tuple[str, ...], ...] = ()
    boot_id: str = ""


@dataclass(frozen=True)
class UndoOutcome:
    """
    What was put back.

    Attributes
    ----------
    restored : tuple of str
        Files that are what they were, byte for byte.
    removed : tuple of str
        Files that were not there before.
    commands : tuple of tuple of str
        Programs that were run, or for another tree are to be run.
    """

    restored: tuple[str, ...]
    removed: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]


@dataclass
class _Change:
    """A change in the making: everything that was written can be taken back."""

    tree: BootTree
    directory: Path
    files: list[KeptFile] = field(default_factory=list)

    def keep(self, path: str, *, is_output: bool = False) -> None:
        before = self.tree.read(path)
        name = ""
        if before is not None:
            name = f"{len(self.files):02}-{path.rsplit('/', 1)[1]}"
            _write_new(self.directory / name, before)
        self.files.append(KeptFile(path, name, "", is_output))

    def settle(self) -> None:
        """Take the digests of what is there now."""
        self.files = [
            KeptFile(one.path, one.backup, _digest(self.tree.read(one.path)), one.is_output) for one in self.files
        ]

    def take_back(self) -> None:
        for one in self.files:
            with suppress(OSError, PostpanicError):
                _put_back(self.tree, self.directory, one)


def apply_plans(tree: BootTree, plans: Sequence[Plan], values: Sequence[str], run: Run) -> ChangeRecord:
    """
    Write what plans say, run their programs, and remember what was there.

    Parameters
    ----------
    run : callable
        Runs a program; :func:`leave` for a tree that is not the running system.

    Raises
    ------
    OutputError
        If a file cannot be written; all that was written is put back.
    PostpanicError
        If a program fails; the same.
    """
    change = _Change(tree, _make_directory(tree))
    edits = [edit for plan in plans for edit in plan.edits]
    commands = [command for plan in plans for command in plan.commands]
    try:
        for edit in edits:
            change.keep(edit.path)
        for path in dict.fromkeys(path for command in commands for path in command.outputs):
            change.keep(path, is_output=True)
        for edit in edits:
            _check_unchanged(tree, edit)
            _write(tree, edit.path, edit.after)
        for command in commands:
            run(command.words)
        change.settle()
        undo_commands = [
            command.words
            for plan in plans
            for command in (plan.undo_commands if plan.undo_commands is not None else plan.commands)
        ]
        record = ChangeRecord(
            change.directory,
            tuple(plan.loader for plan in plans),
            tuple(values),
            tuple(change.files),
            tuple(command.words for command in commands),
            tuple(undo_commands),
            tree.host.read_text("proc/sys/kernel/random/boot_id") or "",
        )
        _write_record(record)
    except BaseException:
        change.take_back()
        shutil.rmtree(change.directory, ignore_errors=True)
        raise
    return record


def read_last_record(tree: BootTree) -> ChangeRecord | None:
    """
    Read what was changed last and not yet undone; None: nothing.

    Raises
    ------
    OutputError
        If what is kept of it cannot be read.
    """
    base = tree.place(DIRECTORY)
    try:
        names = sorted(path.name for path in base.iterdir() if path.name.isdigit())
    except OSError:
        return None
    if not names:
        return None
    path = base / names[-1] / "record.json"
    try:
        with path.open("rb") as stream:
            value = json.loads(stream.read(_LIMIT_BYTES))
        return _decode(base / names[-1], value)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise OutputError(
            "what is kept of the last change cannot be read", where=str(path), hint="the files as they were lie there"
        ) from exc


def undo(tree: BootTree, run: Run) -> UndoOutcome:
    """
    Put back what the last change has changed.

    Raises
    ------
    FactAbsentError
        If there is nothing to be undone.
    NotReadyError
        If a file was changed since by somebody else: then nothing is put back.
    """
    record = read_last_record(tree)
    if record is None:
        raise FactAbsentError("nothing to undo: postpanic has changed no boot loader here")
    changed = [one.path for one in record.files if _is_changed(tree, record, one)]
    if changed:
        raise NotReadyError(
            f"changed since, so that nothing is put back: {', '.join(changed)}",
            hint=f"the files as they were are in {record.directory}",
        )
    # What a program has made for other kernels since is made by it again.
    kept = [one for one in record.files if not one.is_output or _digest(tree.read(one.path)) == one.after]
    for one in kept:
        _put_back(tree, record.directory, one)
    outputs = [one for one in record.files if one.is_output]
    commands: tuple[tuple[str, ...], ...] = ()
    if not outputs or any(one not in kept for one in outputs) or len(record.commands) != len(outputs):
        commands = record.undo_commands
    for words in commands:
        run(words)
    shutil.rmtree(record.directory)
    return UndoOutcome(
        tuple(one.path for one in kept if one.backup), tuple(one.path for one in kept if not one.backup), commands
    )


def _is_changed(tree: BootTree, record: ChangeRecord, one: KeptFile) -> bool:
    """Tell whether somebody else has changed a file; what a program makes of others is nobody's."""
    if one.is_output and one.backup:
        return False
    found = _digest(tree.read(one.path))
    # An undoing that was broken off has put it back already.
    return found not in (one.after, _digest(_read_backup(record, one)))


def _read_backup(record: ChangeRecord, one: KeptFile) -> bytes | None:
    if not one.backup:
        return None
    try:
        with (record.directory / one.backup).open("rb") as stream:
            return stream.read(FILE_LIMIT_BYTES + 1)
    except OSError as exc:
        raise OutputError(
            f"the copy of {one.path} cannot be read: {(exc.strerror or str(exc)).lower()}",
            where=str(record.directory / one.backup),
        ) from exc


def _make_directory(tree: BootTree) -> Path:
    base = tree.place(DIRECTORY)
    try:
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        numbers = [int(path.name) for path in base.iterdir() if path.name.isdigit()]
        directory = base / f"{max(numbers, default=0) + 1:04}"
        directory.mkdir(mode=0o700)
    except OSError as exc:
        raise OutputError(
            f"no place for what is changed: {(exc.strerror or str(exc)).lower()}", where=str(base)
        ) from exc
    return directory


def _check_unchanged(tree: BootTree, edit: FileEdit) -> None:
    if tree.read(edit.path) != edit.before:
        raise NotReadyError("changed while it was being worked on", where=edit.path, hint="try again")


def _write(tree: BootTree, path: str, content: bytes) -> None:
    """Put a file in the place of another with all that belongs to it; links to it stay."""
    place = tree.place(path)
    temporary = place.with_name(f".{place.name}.postpanic")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _write_new(temporary, content, 0o644)
        if place.exists():
            _copy_attributes(place, temporary)
        temporary.replace(place)
        _sync(place.parent)
    except OSError as exc:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError(f"cannot write: {(exc.strerror or str(exc)).lower()}", where=str(place)) from exc


def _copy_attributes(old: Path, new: Path) -> None:
    found = old.stat()
    new.chmod(stat.S_IMODE(found.st_mode))
    # The firmware's partition knows no owners, other file systems no labels.
    with suppress(OSError):
        os.chown(new, found.st_uid, found.st_gid)
    with suppress(OSError):
        for name in os.listxattr(old):
            os.setxattr(new, name, os.getxattr(old, name))


def _write_new(path: Path, content: bytes, mode: int = 0o600) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _put_back(tree: BootTree, directory: Path, one: KeptFile) -> None:
    if one.backup:
        with (directory / one.backup).open("rb") as stream:
            _write(tree, one.path, stream.read(FILE_LIMIT_BYTES + 1))
    elif (found := tree.find(one.path)) is not None:
        found.unlink()
        _sync(found.parent)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _digest(content: bytes | None) -> str:
    return "" if content is None else hashlib.sha256(content).hexdigest()


def _write_record(record: ChangeRecord) -> None:
    value = asdict(record) | {"schema_version": SCHEMA_VERSION}
    del value["directory"]
    _write_new(record.directory / "record.json", (json.dumps(value, indent=1) + "\n").encode())
    _sync(record.directory)


def _decode(directory: Path, value: dict[str, object]) -> ChangeRecord:
    if value["schema_version"] != SCHEMA_VERSION:
        raise ValueError(value["schema_version"])
    files = tuple(KeptFile(**one) for one in value["files"])  # type: ignore[attr-defined]
    if any("/" in one.backup or not one.path.startswith("/") or ".." in one.path.split("/") for one in files):
        raise ValueError(files)
    return ChangeRecord(
        directory,
        tuple(value["loaders"]),  # type: ignore[arg-type]
        tuple(value["values"]),  # type: ignore[arg-type]
        files,
        tuple(tuple(words) for words in value["commands"]),  # type: ignore[attr-defined]
        tuple(tuple(words) for words in value["undo_commands"]),  # type: ignore[attr-defined]
        str(value["boot_id"]),
    )
