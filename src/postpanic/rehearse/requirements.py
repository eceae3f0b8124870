"""What a rehearsal needs of the machine that it runs on: QEMU, the programs that make file systems, room."""

from __future__ import annotations

import shutil
from pathlib import Path

from postpanic.errors import NoSpaceError, NotReadyError, ProcessError
from postpanic.process import find_program
from postpanic.units import format_size

__all__ = ["ROOM_BYTES", "check_room", "find_needed"]

ROOM_BYTES = 2 << 30
"""Of a rehearsal's disks, which are sparse, with a machine's dump on each, and once more brought out."""


def find_needed(program: str, package: str) -> Path:
    """
    Locate a program without which there is no rehearsal.

    Parameters
    ----------
    package : str
        Debian's that has it.

    Raises
    ------
    NotReadyError
        If there is no such program.
    """
    try:
        return find_program(program, hint=f"install {package}")
    except ProcessError as exc:
        raise NotReadyError(exc.message, hint=exc.hint) from exc


def check_room(directory: Path, more_bytes: int = 0) -> None:
    """
    Make sure that a rehearsal fits.

    Parameters
    ----------
    more_bytes : int
        What is laid there besides its disks.

    Raises
    ------
    NoSpaceError
        If it does not.
    """
    room = shutil.disk_usage(directory).free
    needed = ROOM_BYTES + more_bytes
    if room < needed:
        raise NoSpaceError(
            f"{format_size(room)} are free, a rehearsal takes up to {format_size(needed)}",
            where=str(directory),
            hint="TMPDIR, or --keep DIR on a larger disk",
        )
