"""
Paths of files, as ``/proc/PID/fd`` and ``/proc/PID/maps`` show them.

The walk is the kernel's ``prepend_path()`` (``fs/d_path.c``): from the dentry up
to the root of its mount, from there on at the mount's mount point, up to the
root of the namespace. Files that are in no directory (pipes, sockets, memory
files) are named by their file system.
"""

from __future__ import annotations

from collections.abc import Callable

from drgn import Object, Program, container_of

from postpanic.analysis.cells import decode
from postpanic.errors import CorruptError

__all__ = ["Paths", "file_inode", "file_path", "inode_type"]

_MAX_DEPTH = 4096
"""More components than ``PATH_MAX`` has room for."""

_TYPES = {0o14: "SOCK", 0o12: "LNK", 0o10: "REG", 0o6: "BLK", 0o4: "DIR", 0o2: "CHR", 0o1: "FIFO"}


def inode_type(mode: int) -> str:
    """Name the type of an inode (``umode_t i_mode``) as crash does; ``UNKN`` for one without, as eventfds are."""
    return _TYPES.get(mode >> 12 & 0o17, "UNKN")


def file_path(file: Object) -> Object:
    """Return the ``struct path`` of a ``struct file *``."""
    return file.f_path


def file_inode(file: Object) -> Object:
    """Return the ``struct inode *`` of a ``struct file *``."""
    try:
        return file.f_inode.read_()
    except AttributeError:
        return file.f_path.dentry.d_inode.read_()


class Paths:
    """
    Reads paths of one program, and remembers directories.

    What is damaged ends in ``CorruptError`` instead of a walk without end.
    """

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._directories: dict[tuple[int, int], str] = {}
        self._files: dict[int, str] = {}
        self._namers: dict[int, Callable[[Object, str], str]] = {}

    def of_file(self, file: Object) -> str:
        """Spell the path of a ``struct file *``; raises as :meth:`of_path` does."""
        vaddr = int(file.value_())
        known = self._files.get(vaddr)
        if known is None:
            known = self._files[vaddr] = self.of_path(file.f_path)
        return known

    def of_path(self, path: Object) -> str:
        """
        Spell a ``struct path``.

        Raises
        ------
        CorruptError
            If the dentries or mounts go round in circles.
        drgn.FaultError
            If one of them cannot be read.
        """
        return self.of(container_of(path.mnt.read_(), "struct mount", "mnt"), path.dentry.read_())

    def of_mount(self, mount: Object) -> str:
        """Spell where a ``struct mount *`` is mounted, from the root of its namespace."""
        return self._walk(mount, mount.mnt.mnt_root.read_())

    def of(self, mount: Object, dentry: Object) -> str:
        """Spell the path of a ``struct dentry *`` below a ``struct mount *``, as it is seen from outside."""
        named = self._dynamic_name(dentry)
        if named is not None:
            return named
        text = self._walk(mount, dentry)
        return f"{text} (deleted)" if _is_unlinked(dentry) else text

    def within(self, dentry: Object) -> str:
        """Spell the path of a ``struct dentry *`` from the root of its file system."""
        named = self._dynamic_name(dentry)
        return named if named is not None else self._walk(None, dentry)

    def _walk(self, mount: Object | None, dentry: Object) -> str:
        steps: list[tuple[tuple[int, int], str]] = []
        base = ""
        for _ in range(_MAX_DEPTH):
            key = (mount.value_() if mount is not None else 0, dentry.value_())
            known = self._directories.get(key)
            if known is not None:
                base = known
                break
            if mount is not None and dentry == mount.mnt.mnt_root:
                parent = mount.mnt_parent.read_()
                if parent == mount:
                    break
                # The root of a mount is named by what it is mounted on.
                dentry, mount = mount.mnt_mountpoint.read_(), parent
                steps.append((key, ""))
                continue
            above = dentry.d_parent.read_()
            if above == dentry:
                break
            steps.append((key, "/" + decode(dentry.d_name.name.string_())))
            dentry = above
        else:
            raise CorruptError(f"the path of the dentry at {dentry.value_():#x} does not end")
        for key, name in reversed(steps):
            base += name
            self._directories[key] = base
        return base or "/"

    def _dynamic_name(self, dentry: Object) -> str | None:
        """Spell a dentry whose file system makes names up (``d_op->d_dname``); None for all others."""
        operations = dentry.d_op.read_()
        if not operations:
            return None
        function = operations.d_dname.value_()
        if not function:
            return None
        if function not in self._namers:
            self._namers[function] = self._find_namer(function)
        return self._namers[function](dentry, decode(dentry.d_name.name.string_()))

    def _find_namer(self, function: int) -> Callable[[Object, str], str]:
        try:
            name = self._prog.symbol(function).name
        except LookupError:
            name = ""
        return _NAMERS.get(name, _name_by_type)


def _inode_number(dentry: Object) -> int:
    return int(dentry.d_inode.i_ino.value_())


def _name_by_type(dentry: Object, name: str) -> str:
    return f"{decode(dentry.d_sb.s_type.name.string_())}:{name}"


def _name_namespace(dentry: Object, _: str) -> str:
    namespace = Object(dentry.prog_, "struct ns_common *", dentry.d_inode.i_private.value_())
    return f"{decode(namespace.ops.name.string_())}:[{_inode_number(dentry)}]"


# fs/pipe.c, net/socket.c, fs/anon_inodes.c, fs/nsfs.c, fs/pidfs.c, drivers/dma-buf/dma-buf.c, fs/d_path.c
_NAMERS: dict[str, Callable[[Object, str], str]] = {
    "pipefs_dname": lambda dentry, _: f"pipe:[{_inode_number(dentry)}]",
    "sockfs_dname": lambda dentry, _: f"socket:[{_inode_number(dentry)}]",
    "anon_inodefs_dname": lambda _, name: f"anon_inode:{name}",
    "simple_dname": lambda _, name: f"/{name} (deleted)",
    "ns_dname": _name_namespace,
    "pidfs_dname": lambda _, __: "anon_inode:[pidfd]",
    "dmabuffs_dname": lambda _, name: f"/dmabuf:{name}",
}


def _is_unlinked(dentry: Object) -> bool:
    """``d_unlinked()``: in no hash chain, and not a root."""
    return not dentry.d_hash.pprev.value_() and dentry.d_parent != dentry
