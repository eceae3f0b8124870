"""Places below a directory that is taken as a root: symbolic links are followed inside of it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

__all__ = ["follow_below"]

# As many as the kernel follows: MAXSYMLINKS in include/linux/namei.h.
_LINKS_LIMIT = 40


def follow_below(root: Path, name: str) -> Path:
    """
    Return the place of a file of another root, its symbolic links followed as that root would.

    An absolute link begins at *root*, ``..`` does not lead out of it. What is not
    there stays as it is written.

    Parameters
    ----------
    root : Path
        ``/`` is left to the system.
    name : str
        As from the root.
    """
    if root == Path("/"):
        return root / name.lstrip("/")
    place = root
    pending = list(PurePosixPath("/", name).parts[1:])
    links = _LINKS_LIMIT
    while pending:
        part = pending.pop(0)
        if part == "..":
            place = place.parent if place != root else root
            continue
        step = place / part
        try:
            target = PurePosixPath(step.readlink())
        except OSError:
            place = step
            continue
        links -= 1
        if links < 0:
            return root / name.lstrip("/")
        if target.is_absolute():
            place = root
        pending[:0] = [one for one in target.parts if one != "/"]
    return place
