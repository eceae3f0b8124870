"""Disk images of a guest: ext4 file systems made and read without root and without mounting."""

from __future__ import annotations

import re
from pathlib import Path

from postpanic.errors import FactAbsentError, ProcessError
from postpanic.process import find_program, run

__all__ = ["make_empty_disk", "make_ext4_disk", "read_ext4_file"]

_HINT = "install e2fsprogs"


def make_empty_disk(path: Path, size_bytes: int) -> Path:
    """Create a disk of zeros that occupies no room until it is written."""
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
    return path


def make_ext4_disk(path: Path, size_bytes: int, *, content: Path | None = None) -> Path:
    """
    Create a sparse ext4 disk, holding a copy of the directory *content* if given.

    Raises
    ------
    ProcessError
        If mke2fs fails, above all because the content does not fit.
    """
    make_empty_disk(path, size_bytes)
    command: list[str | Path] = [find_program("mke2fs", hint=_HINT), "-q", "-F", "-t", "ext4"]
    # No journal: a guest that dies must not leave the newest data in a log nobody replays.
    command += ["-O", "^has_journal", "-E", "root_owner=0:0"]
    if content is not None:
        command += ["-d", content]
    run([*command, path])
    return path


def read_ext4_file(disk: Path, name: str, target: Path) -> Path:
    """
    Copy a file out of an ext4 disk.

    Raises
    ------
    FactAbsentError
        If the file is not on the disk.
    ProcessError
        If debugfs fails.
    """
    if re.search(r"[\s\"]", name + str(target)):
        raise ProcessError(f"debugfs cannot copy {name!r} to {target}: white space or quotes in the name")
    target.unlink(missing_ok=True)
    finished = run([find_program("debugfs", hint=_HINT), "-R", f"dump {name} {target}", disk])
    # debugfs exits 0 whatever happens; it creates the target before it looks for the file.
    complaint = finished.stderr.decode(errors="replace")
    if "File not found" in complaint or not target.exists():
        target.unlink(missing_ok=True)
        raise FactAbsentError(f"no file {name} on the guest's disk", where=str(disk))
    return target
