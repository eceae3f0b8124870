"""
How a client of version 3 finds its way: rpcbind tells the ports, the mount service the first handle.

Sources: RFC 1833 (§2.2 rpcbind's procedures of versions 3 and 4, §3.2 those of the port mapper, version 2),
RFC 5665 §5.2.3.2 (universal addresses), RFC 1813 appendix I (the mount protocol, version 3).
"""

from __future__ import annotations

import os

from postpanic.rehearse.servers.nfs.rpc import Answer, Call
from postpanic.rehearse.servers.nfs.status import Status, find_status
from postpanic.rehearse.servers.nfs.tree import Tree
from postpanic.rehearse.servers.nfs.xdr import NO, YES, Fields, encode_opaque, encode_u32

__all__ = ["MOUNT_PROGRAM", "NFS_PROGRAM", "MountProgram", "PortProgram"]

NFS_PROGRAM = 100003
"""RFC 1813 §2.1, RFC 8881 §1 (IANA's table of RPC programs)."""
MOUNT_PROGRAM = 100005
"""RFC 1813 §5.1 (appendix I)."""
_RPCBIND_PROGRAM = 100000
"""RFC 1833 §2.2.1, §3.2."""
_GETPORT = 3
"""``PMAPPROC_GETPORT``, ``RPCBPROC_GETADDR``, RFC 1833."""
_GETVERSADDR = 9
"""``RPCBPROC_GETVERSADDR``, of version 4 alone."""
_TCP = 6
"""``IPPROTO_TCP``, RFC 1833 §3.1."""
_MOST_TEXT_BYTES = 256
_MNT, _DUMP, _UMNT, _UMNTALL, _EXPORT = range(1, 6)
"""``MOUNTPROC3_…``, RFC 1813 §5.2."""
_MOST_PATH_BYTES = 1024
"""``MNTPATHLEN``, RFC 1813 §5.1.1."""
_AUTH_SYS = 1


class PortProgram:
    """
    Rpcbind.

    Parameters
    ----------
    ports : dict
        Port of each program, by number and version.
    """

    number = _RPCBIND_PROGRAM
    versions = (2, 3, 4)

    def __init__(self, ports: dict[tuple[int, int], int]) -> None:
        self._ports = ports

    def answer(self, call: Call) -> Answer | None:
        """Tell a port, or an address; nothing else is asked for."""
        if call.procedure != _GETPORT and (call.version, call.procedure) != (4, _GETVERSADDR):
            return None
        fields = call.arguments
        key = fields.take_u32(), fields.take_u32()
        if call.version == 2:
            return Answer(encode_u32(self._ports.get(key, 0) if fields.take_u32() == _TCP else 0))
        network, address = fields.take_opaque(_MOST_TEXT_BYTES), fields.take_opaque(_MOST_TEXT_BYTES)
        port = self._ports.get(key, 0) if network == b"tcp" else 0
        host = b".".join(address.split(b".")[:4]) or b"0.0.0.0"
        return Answer(encode_opaque(b"%s.%d.%d" % (host, port >> 8, port & 255) if port else b""))


class MountProgram:
    """The mount service of version 3."""

    number = MOUNT_PROGRAM
    versions = (3,)

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def answer(self, call: Call) -> Answer | None:
        """Give the handle of an export; what is mounted nobody keeps account of."""
        if call.procedure == _MNT:
            return Answer(self._mount(call.arguments))
        if call.procedure == _EXPORT:
            path = b"/" + b"/".join(self._tree.export)
            return Answer(YES + encode_opaque(path) + NO * 2)
        if call.procedure == _DUMP:
            return Answer(NO)
        return Answer(b"") if call.procedure in {_UMNT, _UMNTALL} else None

    def _mount(self, fields: Fields) -> bytes:
        names = tuple(name for name in fields.take_opaque(_MOST_PATH_BYTES).split(b"/") if name)
        if names[: len(self._tree.export)] != self._tree.export:
            return encode_u32(Status.NOENT)
        try:
            node = self._tree.root()
            for name in names:
                node = self._tree.lookup(node, name)
        except OSError as exc:
            return encode_u32(find_status(exc))
        if not node.is_directory:
            return encode_u32(Status.NOTDIR)
        flavors = encode_u32(1) + encode_u32(_AUTH_SYS)
        return encode_u32(Status.OK) + encode_opaque(self._tree.encode_handle(node)) + flavors


def split_path(path: str) -> tuple[bytes, ...]:
    """
    Take a path apart.

    >>> split_path("/srv//export/")
    (b'srv', b'export')
    """
    return tuple(os.fsencode(name) for name in path.split("/") if name)
