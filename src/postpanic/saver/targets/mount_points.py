"""Where targets are mounted: each in a directory of its own, that nobody else has."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from postpanic.dumps.write_calls import as_output_error
from postpanic.errors import OutputError
from postpanic.saver.mounting import unmount

__all__ = ["MOUNTS_DIR", "leave_mount_point", "make_mount_point"]

MOUNTS_DIR = Path("/run/postpanic/mounts")


def make_mount_point(directory: Path, where: str) -> Path:
    """
    Make an empty directory to mount something at.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(1000):
            point = directory / str(number)
            try:
                point.mkdir()
            except FileExistsError:
                continue
            return point
    except OSError as exc:
        raise as_output_error(exc, where, "make a directory to mount at") from exc
    raise OutputError(f"no room for mounts in {directory}", where=where)


def leave_mount_point(point: Path, *, timeout_s: float) -> None:
    """Unmount what is there, and remove the directory; what does not work is left."""
    with suppress(OutputError):
        unmount(point, timeout_s=timeout_s)
    with suppress(OSError):
        point.rmdir()
