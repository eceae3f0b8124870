"""
Which file system a path of this machine is on, and where in it.

Sources: proc_pid_mountinfo(5); ``Documentation/filesystems/sharedsubtree.rst`` for the field *root*;
``fs/btrfs/super.c``, ``btrfs_show_options()``; ``fs/xfs/xfs_super.c``, ``xfs_fs_show_options()``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from postpanic.errors import NotReadyError

__all__ = ["Mount", "Place", "find_place", "read_mounts"]

_LIMIT_BYTES = 8 << 20
_ESCAPE = re.compile(r"\\([0-7]{3})")

# Of the options a mounted file system shows, those without which it cannot be mounted again, or would not be the same.
_KEPT: dict[str, re.Pattern[str]] = {
    "btrfs": re.compile(r"subvol=.*|degraded|compress(-force)?(=.*)?"),
    "xfs": re.compile(r"nouuid|inode(32|64)|([ugp]|usr|grp|prj)(quota|qnoenforce)|logdev=.*|rtdev=.*|wsync"),
    "vfat": re.compile(r"codepage=.*|iocharset=.*|utf8(=.*)?|shortname=.*|[ufd]mask=.*"),
    "ext4": re.compile(r"data=.*|journal_path=.*|dax(=.*)?"),
}


@dataclass(frozen=True)
class Mount:
    """
    One line of mountinfo.

    Attributes
    ----------
    device : str
        ``major:minor``; of btrfs a number of its own.
    root : str
        The directory of the file system that is mounted.
    directory : str
        Where.
    source : str
        What was given to mount: ``/dev/vda1``.
    super_options : tuple of str
        Of the file system itself.
    """

    device: str
    root: str
    directory: str
    filesystem: str
    source: str
    super_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """
    A directory, as the file system that it is on knows it.

    Attributes
    ----------
    path : str
        In the file system as the saver will mount it.
    options : str
        To mount it with.
    """

    mount: Mount
    path: str
    options: str


def read_mounts(root: Path = Path("/")) -> list[Mount]:
    """
    Read what is mounted.

    Raises
    ------
    NotReadyError
        If /proc is not there.
    """
    path = root / "proc/self/mountinfo"
    try:
        with path.open("rb") as stream:
            text = stream.read(_LIMIT_BYTES).decode(errors="surrogateescape")
    except OSError as exc:
        raise NotReadyError(
            f"cannot tell what is mounted: {(exc.strerror or str(exc)).lower()}",
            where=str(path),
            hint='of another root tree name the device too: device = "UUID=…"',
        ) from exc
    return [mount for line in text.splitlines() if (mount := _decode_line(line)) is not None]


def find_place(path: str, mounts: list[Mount], root: Path = Path("/"), *, where: str = "") -> Place:
    """
    Find the file system that a path is on; the last parts of it need not exist.

    Parameters
    ----------
    where : str
        The target, for messages.

    Raises
    ------
    NotReadyError
        If nothing is mounted there.
    """
    resolved = _resolve_links(path, root)
    found: Mount | None = None
    for mount in mounts:
        if _is_below(resolved, mount.directory) and (
            found is None or len(_parts(mount.directory)) >= len(_parts(found.directory))
        ):
            # What was mounted later in the same place hides what was there.
            found = mount
    if found is None:
        raise NotReadyError(f"{path} is on no file system that is mounted", where=where)
    below = PurePosixPath(resolved).relative_to(found.directory)
    inside = PurePosixPath(found.root) / below
    subvolume = next((word[7:] for word in found.super_options if word.startswith("subvol=")), "")
    if found.filesystem == "btrfs" and subvolume and _is_below(str(inside), subvolume):
        inside = PurePosixPath("/") / inside.relative_to(subvolume)
    return Place(found, str(inside), _choose_options(found))


def _decode_line(line: str) -> Mount | None:
    """``36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue``."""
    fields = line.split(" ")
    try:
        dash = fields.index("-", 6)
        device, root, directory = fields[2], fields[3], fields[4]
        filesystem, source = fields[dash + 1], fields[dash + 2]
    except (ValueError, IndexError):
        return None
    options = fields[dash + 3] if len(fields) > dash + 3 else ""
    # A subvolume's name may have a comma, and then there is nothing to be done about it.
    words = tuple(_unescape(word) for word in options.split(",") if word)
    return Mount(device, _unescape(root), _unescape(directory), filesystem, _unescape(source), words)


def _choose_options(mount: Mount) -> str:
    kept = _KEPT.get(mount.filesystem)
    return ",".join(word for word in mount.super_options if kept is not None and kept.fullmatch(word))


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _resolve_links(path: str, root: Path) -> str:
    """Follow symbolic links below the root."""
    if root == Path("/"):
        return str(Path(path).resolve())
    base = root.resolve()
    resolved = (base / path.lstrip("/")).resolve()
    return f"/{resolved.relative_to(base)}".replace("/.", "/") if resolved.is_relative_to(base) else path


def _is_below(path: str, directory: str) -> bool:
    return PurePosixPath(path).is_relative_to(directory)


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).parts
