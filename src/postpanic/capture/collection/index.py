"""
Which dumps lie in a directory: ours, and those of the distributions' tools.

Names: ours ``NODE-YYYYMMDD-HHMMSS/vmcore``; kdump-utils ``ADDRESS-YYYY-MM-DD-hh:mm:ss/vmcore``; kdump-tools
``YYYYMMDDhhmm/dump.YYYYMMDDhhmm`` with ``dmesg.YYYYMMDDhhmm``; openSUSE ``YYYY-MM-DD-hh:mm/vmcore``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from postpanic.capture.collection.record import DumpRecord, read_record
from postpanic.saver.targets.retention import parse_dump_name

__all__ = ["SavedDump", "State", "find_dumps"]

State = Literal["complete", "incomplete", "log only"]

_ENTRIES_LIMIT = 10_000
_DEPTH = 2
_DUMP = re.compile(
    r"vmcore(?:\.flat|\.zst|\.gz|\.lz4)?|dump\.\d{12}|vmcore-incomplete|vmcore\.incomplete|dump-incomplete"
)
_INCOMPLETE = re.compile(r"incomplete")
_LOG = re.compile(r"vmcore-dmesg(?:-incomplete)?\.txt|dmesg\.txt|dmesg\.\d{12}")
_TIMES = (
    (re.compile(r"(\d{4})-(\d\d)-(\d\d)-(\d\d):(\d\d):(\d\d)$"), 6),
    (re.compile(r"(\d{4})-(\d\d)-(\d\d)-(\d\d):(\d\d)$"), 5),
    (re.compile(r"^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)$"), 5),
)


@dataclass(frozen=True)
class SavedDump:
    """
    A dump on a disk.

    Attributes
    ----------
    directory : Path
        Its own.
    node : str
        Name or address of the machine, as its directory's name has it; empty: not said.
    when : datetime
        Of the crash, as the name says, else of the file; the distributions' names are in local time.
    state : str
    dump, log : Path or None
    size_bytes : int
        That all its files take on the disk.
    record : DumpRecord or None
        None: it is not collected yet.
    is_ours : bool
        Whether its name is one of ours.
    """

    directory: Path
    node: str
    when: datetime
    state: State
    dump: Path | None
    log: Path | None
    size_bytes: int
    record: DumpRecord | None
    is_ours: bool


def find_dumps(directories: Iterable[Path]) -> list[SavedDump]:
    """
    Find the dumps below some directories, oldest first.

    A directory that is not there or cannot be read has none. Links are not followed.
    """
    found = {dump.directory: dump for directory in directories for dump in _search(directory, _DEPTH)}
    return sorted(found.values(), key=lambda dump: (dump.when, dump.directory))


def _search(directory: Path, depth: int) -> Iterator[SavedDump]:
    for path in _list(directory):
        if not path.is_dir() or path.is_symlink():
            continue
        dump = _describe(path)
        if dump is not None:
            yield dump
        elif depth > 1:
            yield from _search(path, depth - 1)


def _list(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for _, entry in zip(range(_ENTRIES_LIMIT), entries, strict=False)]
    except OSError:
        return []


def _describe(directory: Path) -> SavedDump | None:
    files: dict[Path, os.stat_result] = {}
    for path in _list(directory):
        try:
            found = path.lstat()
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode):
            files[path] = found
    dumps = [path for path in files if _DUMP.fullmatch(path.name)]
    logs = [path for path in files if _LOG.fullmatch(path.name)]
    if not dumps and not logs:
        return None
    dump = min(dumps, key=lambda path: (bool(_INCOMPLETE.search(path.name)), path.name), default=None)
    log = min(logs, default=None)
    state: State = "log only" if dump is None else "incomplete" if _INCOMPLETE.search(dump.name) else "complete"
    node, when, is_ours = _read_name(directory.name)
    if when is None:
        when = datetime.fromtimestamp(min(found.st_mtime for found in files.values()), UTC)
    size = sum(found.st_blocks * 512 for found in files.values())
    return SavedDump(directory, node, when, state, dump, log, size, read_record(directory), is_ours)


def _read_name(name: str) -> tuple[str, datetime | None, bool]:
    parts = parse_dump_name(name.removesuffix(".incomplete"))
    if parts is not None:
        try:
            return parts[0], datetime.strptime(parts[1], "%Y%m%d-%H%M%S").replace(tzinfo=UTC), True
        except ValueError:
            return "", None, False
    for pattern, count in _TIMES:
        match = pattern.search(name)
        if match is not None:
            # Local time, as its maker has it.
            numbers = [int(one) for one in match.groups()[:count]]
            try:
                return name[: match.start()].rstrip("-"), datetime(*numbers).astimezone(UTC), False  # type: ignore[arg-type]
            except ValueError:
                return "", None, False
    return "", None, False
