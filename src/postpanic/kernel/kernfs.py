"""
Directories of sysfs, as the kernel keeps them in memory.

Sources: the kernel's ``include/linux/kernfs.h`` and ``fs/kernfs/dir.c``. A directory's
entries are a red-black tree of ``struct kernfs_node``.
"""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.errors import PostpanicError
from postpanic.kernel.btf import Btf
from postpanic.kernel.memory import KernelMemory

__all__ = ["read_links"]

_KERNFS_LINK = 4
_TYPE_MASK = 0xF
_ENTRY_LIMIT = 1 << 16
_NAME_LIMIT_BYTES = 256


def read_links(kernel: KernelMemory, btf: Btf, directory: int) -> Iterator[tuple[str, int]]:
    """
    List the symbolic links of a directory.

    Entries that cannot be read are passed over, with all that hangs on them.

    Parameters
    ----------
    directory : int
        Address of the directory's ``struct kernfs_node``.

    Yields
    ------
    name : str
    target : int
        Address of the ``struct kernfs_node`` that the link leads to.

    Raises
    ------
    AbsentError
        If the directory cannot be read, or BTF does not know its types.
    """
    node = btf.find_struct("kernfs_node")
    tree = btf.find_struct("rb_node")
    hook, name_at, flags_at = (node.offset_of(member) for member in ("rb", "name", "flags"))
    target_at = node.offset_of("symlink.target_kn")
    branches = (tree.offset_of("rb_left"), tree.offset_of("rb_right"))
    waiting = [kernel.read_u64(directory + node.offset_of("dir.children.rb_node"))]
    seen = {0}
    while waiting and len(seen) < _ENTRY_LIMIT:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        entry = at - hook
        try:
            waiting += [kernel.read_u64(at + branch) for branch in branches]
            if kernel.read_u16(entry + flags_at) & _TYPE_MASK == _KERNFS_LINK:
                name = kernel.read_c_string(kernel.read_u64(entry + name_at), _NAME_LIMIT_BYTES)
                yield name.decode("utf-8", "backslashreplace"), kernel.read_u64(entry + target_at)
        except PostpanicError:
            continue
