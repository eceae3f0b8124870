"""Files of tmpfs and ramfs: memory that no process need have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Object
from drgn.helpers.linux.fs import for_each_mount
from drgn.helpers.linux.list import hlist_for_each_entry, list_for_each_entry

from postpanic.analysis.cells import guarded
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.paths import Paths
from postpanic.analysis.triage.scene import Scene
from postpanic.findings.table import Problem

__all__ = ["FileInMemory", "read_files"]

_IN_MEMORY = {0x0102_1994: "tmpfs", 0x8584_58F6: "ramfs"}
"""``TMPFS_MAGIC`` and ``RAMFS_MAGIC`` of include/uapi/linux/magic.h: file systems whose files are nowhere else."""
_INODES_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class FileInMemory:
    """A file that is nowhere but in memory; its ``struct inode``, and pages."""

    kind: str
    name: str
    vaddr: int
    pages: int


def read_files(scene: Scene, least_pages: int) -> Iterator[FileInMemory]:
    """Find the files of tmpfs and ramfs that have so many pages, shared memory among them (``mm/shmem.c``)."""
    paths = Paths(scene.prog)
    mounts = _mount_points(scene, paths)
    blocks = list_for_each_entry("struct super_block", scene.prog["super_blocks"].address_of_(), "s_list")
    for block in guarded(blocks, "the list of super blocks", scene.problems):
        kind = _IN_MEMORY.get(int(block.s_magic.value_()), "")
        if not kind:
            continue
        where = mounts.get(int(block.value_()))
        for inode, pages in _inodes(block, scene.problems):
            if pages >= least_pages:
                yield FileInMemory(kind, _name(inode, paths, where), int(inode.value_()), pages)


def _inodes(block: Object, problems: list[Problem]) -> Iterator[tuple[Object, int]]:
    inodes = list_for_each_entry("struct inode", block.s_inodes.address_of_(), "i_sb_list")
    for inode in guarded(inodes, "inodes of tmpfs", problems, limit=_INODES_LIMIT):
        try:
            yield inode, int(inode.i_data.nrpages.value_())
        except UNREADABLE:
            continue


def _mount_points(scene: Scene, paths: Paths) -> dict[int, str]:
    points: dict[int, str] = {}
    try:
        for mount in guarded(for_each_mount(scene.prog), "mounts", scene.problems, limit=1 << 16):
            points.setdefault(int(mount.mnt.mnt_sb.value_()), paths.of_mount(mount))
    except UNREADABLE:
        pass
    return points


def _name(inode: Object, paths: Paths, where: str | None) -> str:
    number = f"inode {int(inode.i_ino.value_())}"
    try:
        entries = _names_of(inode)
        for dentry in guarded(entries, "names of an inode", [], limit=4):
            name = paths.within(dentry)
            base = (where or "").rstrip("/")
            return f"{base}{name}" if where and name.startswith("/") else name
    except UNREADABLE:
        pass
    return number


def _names_of(inode: Object) -> Iterator[Object]:
    """Walk the names of an inode: ``d_u.d_alias`` since 3.18 (946e51f2bf37), moved out of the union in 7.1 or later."""
    for member in ("d_u.d_alias", "d_alias"):
        try:
            yield from hlist_for_each_entry("struct dentry", inode.i_dentry.address_of_(), member)
        except LookupError:
            continue
        return
