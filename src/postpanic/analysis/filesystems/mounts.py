"""The mounts of a namespace."""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, Program, cast
from drgn.helpers.linux.fs import for_each_mount

from postpanic.analysis.cells import decode, guarded
from postpanic.findings.table import Problem

__all__ = ["mount_namespace", "mount_type", "read_mounts", "superblock_mount"]


def mount_namespace(task: Object) -> Object:
    """Return the ``struct mnt_namespace *`` of a task; the initial one for a task that has left its own."""
    proxy = task.nsproxy.read_()
    if not proxy:
        proxy = task.prog_["init_task"].nsproxy.read_()
    return proxy.mnt_ns.read_()


def read_mounts(namespace: Object, problems: list[Problem]) -> Iterator[Object]:
    """Walk the ``struct mount *`` of a ``struct mnt_namespace *``, in the order of the kernel."""
    return guarded(for_each_mount(namespace), "list of mounts", problems)


def mount_type(mount: Object) -> str:
    """Name the file system of a ``struct mount *``, as ``/proc/mounts`` does."""
    superblock = mount.mnt.mnt_sb.read_()
    name = decode(superblock.s_type.name.string_())
    subtype = superblock.s_subtype.read_()
    if subtype and (text := subtype.string_()):
        return f"{name}.{decode(text)}"
    return name


def superblock_mount(prog: Program, superblock: Object) -> Object | None:
    """Return a ``struct mount *`` of a ``struct super_block *``, one that users see if there is one; None if none."""
    from drgn.helpers.linux.fs import super_block_for_each_mount

    internal = 0x4000  # MNT_INTERNAL of include/linux/mount.h, the same since 2.6.34
    problems: list[Problem] = []
    found = None
    for mount in guarded(super_block_for_each_mount(superblock), "mounts of the super block", problems):
        if not mount.mnt.mnt_flags.value_() & internal:
            return cast(prog.type("struct mount *"), mount)
        found = found or mount
    return found
