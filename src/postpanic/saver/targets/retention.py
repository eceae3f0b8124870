"""
Which old dumps go when a new one is safe: by number, by bytes, and by the room that must be left.

Only what is certainly a dump of ours of the same machine is deleted: a
directory with a dump's name, with nothing in it but files, one of them a dump
or its manifest. Nothing is followed: no link, no mount, no directory within.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from postpanic.saver.plan import RetentionPlan

__all__ = ["DUMP_MARKS", "OldDump", "delete_old_dumps", "find_dumps", "parse_dump_name", "select_for_deletion"]

_NAME = re.compile(r"(.+)-(\d{8}-\d{6})(?:-(\d{1,3}))?", re.ASCII)
DUMP_MARKS = ("vmcore.manifest.json", "vmcore", "vmcore.flat", "vmcore-incomplete")
"""A directory with none of these is no dump."""
_MAX_ENTRIES = 100_000
_MAX_FILES = 10_000


@dataclass(frozen=True, order=True)
class OldDump:
    """A dump's directory; the order is that of their times."""

    time: str
    """``20260131-235959``."""
    number: int
    name: str
    size_bytes: int = 0
    """That it takes on the disk."""


def parse_dump_name(name: str) -> tuple[str, str, int] | None:
    """
    Take the name of a dump's directory apart.

    Returns
    -------
    tuple or None
        Node, time, and the number that was added because the name was taken; None for any other name.

    >>> parse_dump_name("web-7-20260131-235959-2")
    ('web-7', '20260131-235959', 2)
    """
    found = _NAME.fullmatch(name)
    return (found[1], found[2], int(found[3] or 0)) if found else None


def find_dumps(root_fd: int, node: str) -> list[OldDump]:
    """
    Find a machine's dumps in a directory, oldest first.

    Raises
    ------
    OSError
        If the directory cannot be read.
    """
    found: list[OldDump] = []
    device = os.fstat(root_fd).st_dev
    with os.scandir(root_fd) as entries:
        for count, entry in enumerate(entries):
            if count >= _MAX_ENTRIES:
                break
            parts = parse_dump_name(entry.name)
            if parts is None or parts[0] != node:
                continue
            size = _measure(root_fd, entry.name, device)
            if size is not None:
                found.append(OldDump(parts[1], parts[2], entry.name, size))
    return sorted(found)


def select_for_deletion(dumps: list[OldDump], new_name: str, plan: RetentionPlan, free_bytes: int) -> list[OldDump]:
    """
    Choose the oldest dumps beyond the bounds.

    Parameters
    ----------
    dumps : list of OldDump
        All of them, oldest first.
    new_name : str
        Of the one that stays in any case.
    free_bytes : int
        What is free now.
    """
    count, size = len(dumps), sum(dump.size_bytes for dump in dumps)
    chosen: list[OldDump] = []
    for dump in dumps:
        too_many = plan.keep_count and count > plan.keep_count
        too_large = plan.keep_bytes and size > plan.keep_bytes
        too_full = plan.min_free_bytes and free_bytes < plan.min_free_bytes
        if not (too_many or too_large or too_full):
            break
        if dump.name == new_name:
            continue
        chosen.append(dump)
        count -= 1
        size -= dump.size_bytes
        free_bytes += dump.size_bytes
    return chosen


def delete_old_dumps(root: Path, new_name: str, plan: RetentionPlan) -> list[str]:
    """
    Delete the oldest dumps beyond the bounds; only to be called when the new one is safe.

    Parameters
    ----------
    root : Path
        Where the dumps' directories are.
    new_name : str
        Of the new dump's directory; it tells the machine whose dumps are looked at.

    Returns
    -------
    list of str
        Names of those deleted.

    Raises
    ------
    OSError
        If the directory cannot be read. One that cannot be deleted is left, and the next one tried.
    """
    node = parse_dump_name(new_name)
    if plan == RetentionPlan() or node is None:
        return []
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstatvfs(root_fd)
        dumps = find_dumps(root_fd, node[0])
        chosen = select_for_deletion(dumps, new_name, plan, status.f_bavail * status.f_frsize)
        deleted = [dump.name for dump in chosen if _delete(root_fd, dump.name)]
        os.fsync(root_fd)
        return deleted
    finally:
        os.close(root_fd)


def _open_directory(root_fd: int, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)


def _measure(root_fd: int, name: str, device: int) -> int | None:
    """Tell how much a directory takes; None if it is none of ours."""
    try:
        fd = _open_directory(root_fd, name)
    except OSError:
        return None
    try:
        if os.fstat(fd).st_dev != device:
            return None
        files = _list_files(fd)
        if files is None or not any(mark in files for mark in DUMP_MARKS):
            return None
        return sum(files.values())
    except OSError:
        return None
    finally:
        os.close(fd)


def _list_files(fd: int) -> dict[str, int] | None:
    """List the files of a directory with the room that each takes; None if there is anything else in it."""
    files: dict[str, int] = {}
    with os.scandir(fd) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or len(files) >= _MAX_FILES:
                return None
            files[entry.name] = status.st_blocks * 512
    return files


def _delete(root_fd: int, name: str) -> bool:
    """Delete a directory of files; what tells that it is a dump goes last, so that what is left can go next time."""
    try:
        fd = _open_directory(root_fd, name)
    except OSError:
        return False
    try:
        files = _list_files(fd)
        if files is None:
            return False
        for file in sorted(
            files, key=lambda file: (file in DUMP_MARKS, -DUMP_MARKS.index(file) if file in DUMP_MARKS else 0)
        ):
            os.unlink(file, dir_fd=fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    try:
        os.rmdir(name, dir_fd=root_fd)
    except OSError:
        return False
    return True
