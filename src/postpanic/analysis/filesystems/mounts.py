"""The mounts of a namespace."""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object, Program, cast
from drgn.helpers.linux.fs import super_block_for_each_mount
from drgn.helpers.linux.list import list_for_each_entry

from postpanic.analysis.cells import decode, guarded
from postpanic.analysis.containers import red_black_entries
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
    try:
        entries = list_for_each_entry("struct mount", namespace.list.address_of_(), "mnt_list")
    except AttributeError:
        # Since 6.8 (2eea9ce4310d) they are in a tree.
        yield from red_black_entries(namespace.mounts, "struct mount", "mnt_node", "tree of mounts", problems)
        return
    for mount in guarded(entries, "list of mounts", problems):
        # From 5.8 on who reads /proc/mounts has a place of its own in the list.
        if mount.mnt.mnt_sb:
            yield mount


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
    internal = 0x4000  # MNT_INTERNAL of include/linux/mount.h, the same since 2.6.34
    problems: list[Problem] = []
    found = None
    for mount in guarded(super_block_for_each_mount(superblock), "mounts of the super block", problems):
        if not mount.mnt.mnt_flags.value_() & internal:
            return cast(prog.type("struct mount *"), mount)
        found = found or mount
    return found
