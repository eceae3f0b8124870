"""
Mount file systems without mount(8): system calls, and options as fstab has them.

Sources: mount(2), umount2(2), mount(8), fstab(5); ``include/uapi/linux/mount.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from postpanic.errors import OutputError
from postpanic.saver.deadlines import call_with_deadline

__all__ = [
    "MountFlag",
    "mount",
    "mount_basics",
    "mount_writable",
    "parse_mount_options",
    "sync_file_system",
    "unmount",
]

MOUNT_TIMEOUT_S = 60.0
"""A journal that is replayed on a slow disk takes its time."""


class MountFlag:
    """Numbers of ``include/uapi/linux/mount.h``."""

    RDONLY = 1
    NOSUID = 1 << 1
    NODEV = 1 << 2
    NOEXEC = 1 << 3
    SYNCHRONOUS = 1 << 4
    DIRSYNC = 1 << 7
    NOSYMFOLLOW = 1 << 8
    NOATIME = 1 << 10
    NODIRATIME = 1 << 11
    SILENT = 1 << 15
    RELATIME = 1 << 21
    STRICTATIME = 1 << 24
    LAZYTIME = 1 << 25


_MNT_DETACH = 2

# Each option with the bit that it sets, or clears.
_FLAGS: dict[str, tuple[int, bool]] = {
    "ro": (MountFlag.RDONLY, True),
    "rw": (MountFlag.RDONLY, False),
    "nosuid": (MountFlag.NOSUID, True),
    "suid": (MountFlag.NOSUID, False),
    "nodev": (MountFlag.NODEV, True),
    "dev": (MountFlag.NODEV, False),
    "noexec": (MountFlag.NOEXEC, True),
    "exec": (MountFlag.NOEXEC, False),
    "sync": (MountFlag.SYNCHRONOUS, True),
    "async": (MountFlag.SYNCHRONOUS, False),
    "dirsync": (MountFlag.DIRSYNC, True),
    "nosymfollow": (MountFlag.NOSYMFOLLOW, True),
    "symfollow": (MountFlag.NOSYMFOLLOW, False),
    "noatime": (MountFlag.NOATIME, True),
    "atime": (MountFlag.NOATIME, False),
    "nodiratime": (MountFlag.NODIRATIME, True),
    "diratime": (MountFlag.NODIRATIME, False),
    "relatime": (MountFlag.RELATIME, True),
    "norelatime": (MountFlag.RELATIME, False),
    "strictatime": (MountFlag.STRICTATIME, True),
    "nostrictatime": (MountFlag.STRICTATIME, False),
    "lazytime": (MountFlag.LAZYTIME, True),
    "nolazytime": (MountFlag.LAZYTIME, False),
    "silent": (MountFlag.SILENT, True),
    "loud": (MountFlag.SILENT, False),
}

# For mount(8), systemd and others, never for the kernel.
_OF_USER_SPACE = frozenset(
    [
        *("defaults", "auto", "noauto", "nofail", "fail", "_netdev", "loop", "bootwait", "nobootwait"),
        *("user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup"),
        *("mand", "nomand", "iversion", "noiversion"),
    ]
)
_OF_USER_SPACE_KEYS = ("x-", "X-", "comment=", "loop=", "offset=", "sizelimit=", "encryption=", "helper=", "uhelper=")
# Labels of SELinux, which has no policy in the capture kernel.
_OF_SECURITY = ("context=", "fscontext=", "defcontext=", "rootcontext=", "seclabel", "smackfs")

_REASONS = {
    errno.EINVAL: "no such file system on it, or an option that the file system does not know",
    errno.ENODEV: "the kernel does not know this file system: its module is missing",
    errno.EUCLEAN: "the file system is damaged: fsck is needed",
    errno.EROFS: "the device is read-only",
    errno.EACCES: "the device is read-only",
    errno.ENXIO: "there is no such device",
    errno.ENOENT: "there is no such device",
    errno.ENOTBLK: "no block device",
    errno.EBUSY: "the device is in use",
    errno.EIO: "the device cannot be read",
    errno.ENOMEM: "not enough memory",
    errno.EPERM: "not permitted",
    errno.ENOTDIR: "the directory to mount it at is none",
}

# What is mounted first: file system, directory, options.
_BASICS = (
    ("proc", "proc", "nosuid,nodev,noexec"),
    ("sysfs", "sys", "nosuid,nodev,noexec"),
    ("devtmpfs", "dev", "nosuid,mode=0755"),
    ("tmpfs", "run", "nosuid,nodev,mode=0755"),
    ("tmpfs", "tmp", "nosuid,nodev,mode=1777"),
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syncfs.argtypes = (ctypes.c_int,)


def parse_mount_options(options: str) -> tuple[int, str]:
    """
    Divide options as fstab has them into what mount(2) takes.

    Those of user space and of security modules are left out. A value may be
    quoted, and then has commas in it.

    Returns
    -------
    flags : int
        Of :class:`MountFlag`; of options that contradict each other the last one counts.
    data : str
        What the file system itself is told.
    """
    flags = 0
    data: list[str] = []
    for option in _split_options(options):
        known = _FLAGS.get(option)
        if known is not None:
            flags = flags | known[0] if known[1] else flags & ~known[0]
        elif option not in _OF_USER_SPACE and not option.startswith((*_OF_USER_SPACE_KEYS, *_OF_SECURITY)):
            data.append(option)
    return flags, ",".join(data)


def mount(
    source: str,
    directory: Path,
    filesystem: str,
    options: str = "",
    *,
    timeout_s: float = MOUNT_TIMEOUT_S,
    where: str = "",
    reasons: Mapping[int, str] | None = None,
) -> None:
    """
    Mount a file system at a directory that is there.

    Parameters
    ----------
    source : str
        The block device, or what else the file system takes (``server:/export``).
    options : str
        As in fstab.
    where : str
        The target, for messages; without it *source*.
    reasons : mapping, optional
        What numbers of errno mean of this file system, where that is not what they mean of disks.

    Raises
    ------
    OutputError
        If it cannot be mounted, with the reason in plain words.
    """
    flags, data = parse_mount_options(options)

    def call() -> int:
        failed = _libc.mount(source.encode(), os.fsencode(directory), filesystem.encode(), flags, data.encode() or None)
        # Of this thread: errno is not shared.
        return ctypes.get_errno() if failed else 0

    number = call_with_deadline(call, timeout_s, doing=f"mounting {source}", where=where)
    if number:
        reason = (reasons or _REASONS).get(number, os.strerror(number).lower())
        raise OutputError(
            f"cannot mount {source} as {filesystem}: {reason} ({errno.errorcode.get(number, number)})"
            + (f", with the options {data}" if number == errno.EINVAL and data else ""),
            where=where,
        )


def mount_writable(
    source: str,
    directory: Path,
    filesystem: str,
    options: str = "",
    *,
    timeout_s: float = MOUNT_TIMEOUT_S,
    where: str = "",
) -> None:
    """
    Mount a file system to write to it, whatever fstab says of ``ro``.

    Raises
    ------
    OutputError
        If it cannot be mounted, or can be read only: then it is unmounted again, and the error says why.
    """
    mount(source, directory, filesystem, f"{options},rw" if options else "rw", timeout_s=timeout_s, where=where)
    try:
        # Of a file system with errors in its journal the kernel makes a read-only one by itself.
        is_read_only = bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except OSError as exc:
        unmount(directory)
        raise OutputError(f"cannot look at {source}: {(exc.strerror or str(exc)).lower()}", where=where) from exc
    if is_read_only:
        unmount(directory)
        raise OutputError(
            f"{source} was mounted read-only by the kernel: the file system has errors, or the device is read-only",
            where=where,
            hint="fsck is needed",
        )


def unmount(directory: Path, *, timeout_s: float = MOUNT_TIMEOUT_S) -> None:
    """
    Unmount a file system; one that is still in use is taken out of the tree, and goes when its last user does.

    Raises
    ------
    OutputError
        If nothing is mounted there, or it takes too long.
    """

    def call() -> int:
        if not _libc.umount2(os.fsencode(directory), 0):
            return 0
        number = ctypes.get_errno()
        if number == errno.EBUSY:
            return ctypes.get_errno() if _libc.umount2(os.fsencode(directory), _MNT_DETACH) else 0
        return number

    number = call_with_deadline(call, timeout_s, doing="unmounting", where=str(directory))
    if number:
        raise OutputError(f"cannot unmount: {os.strerror(number).lower()}", where=str(directory))


def sync_file_system(fd: int) -> None:
    """
    Wait until all that was written to one file system is on its disk: syncfs(2).

    Never sync(2): a disk that hangs, of which we want nothing, would hang us.

    Parameters
    ----------
    fd : int
        Of any file of the file system.

    Raises
    ------
    OSError
        If something could not be written.
    """
    if _libc.syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount_basics(root: Path = Path("/")) -> list[str]:
    """
    Mount what every program expects: /proc, /sys, /dev, /run and /tmp.

    Returns
    -------
    list of str
        What could not be mounted, a line each; what is mounted already is left as it is.
    """
    failures: list[str] = []
    for filesystem, name, options in _BASICS:
        directory = root / name
        try:
            directory.mkdir(exist_ok=True)
            if directory.is_mount():
                continue
            mount(filesystem, directory, filesystem, options, where=str(directory))
        except OSError as exc:
            failures.append(f"{directory}: {(exc.strerror or str(exc)).lower()}")
        except OutputError as exc:
            # EBUSY: the kernel has mounted devtmpfs itself.
            failures.append(str(exc))
    return failures


def _split_options(options: str) -> Sequence[str]:
    """Split at commas, not at those within double quotes; quotes are taken off."""
    found: list[str] = []
    word, quoted = "", False
    for letter in options:
        if letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            found.append(word)
            word = ""
        else:
            word += letter
    found.append(word)
    return [option.strip() for option in found if option.strip()]
