"""
Version 4: attributes of files and of the file system.

Sources: RFC 7530 §5 and RFC 8881 §5 (numbers and meaning), RFC 7531 and RFC 5662 (types), RFC 7862 §12.2 (4.2).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from postpanic.rehearse.servers.nfs.status import NfsError, Status
from postpanic.rehearse.servers.nfs.tree import MOST_FILE_BYTES, MOST_NAME_BYTES, Node, Tree
from postpanic.rehearse.servers.nfs.v3 import MOST_IO_BYTES
from postpanic.rehearse.servers.nfs.xdr import (
    NO,
    YES,
    Fields,
    XdrError,
    encode_bitmap,
    encode_opaque,
    encode_u32,
    encode_u64,
)

__all__ = ["LEASE_S", "Wanted", "encode_attributes", "list_supported", "take_attributes"]

LEASE_S = 90
"""Nobody but the one machine could want what is leased."""
_MOST_ATTRIBUTE_BYTES = 1 << 16
_MOST_OWNER_BYTES = 1024
_REGULAR, _DIRECTORY = 1, 2
"""``nfs_ftype4``, RFC 7531."""
_PERSISTENT = 0
"""``FH4_PERSISTENT``, RFC 8881 §5.8.1.3."""
_EXPORT_MAJOR = 0x7070
_NOBODY = 65534
_SUPPORTED, _SIZE, _MODE, _OWNER, _GROUP, _ATIME_SET, _MTIME_SET, _EXCLUSIVE = 0, 4, 33, 36, 37, 48, 54, 75
_SETTABLE = frozenset({_SIZE, _MODE, _OWNER, _GROUP, _ATIME_SET, _MTIME_SET})
_LAST_OF_MINOR = {0: 55, 1: 75, 2: 79}

_Encoder = Callable[[Node, Tree], bytes]
# Numbers: RFC 8881 §5.6 (required) and §5.7 (recommended), RFC 7862 §12.2.
_ENCODERS: dict[int, _Encoder] = {
    1: lambda node, _: encode_u32(_DIRECTORY if node.is_directory else _REGULAR),
    2: lambda *_: encode_u32(_PERSISTENT),
    3: lambda node, _: encode_u64(node.change),
    _SIZE: lambda node, _: encode_u64(node.status.st_size),
    5: lambda *_: NO,  # link_support
    6: lambda *_: NO,  # symlink_support
    7: lambda *_: NO,  # named_attr
    8: lambda node, _: encode_u64(_EXPORT_MAJOR if node.is_exported else 0) + encode_u64(0),  # fsid
    9: lambda *_: YES,  # unique_handles
    10: lambda *_: encode_u32(LEASE_S),
    11: lambda *_: encode_u32(Status.OK),  # rdattr_error
    15: lambda *_: YES,  # cansettime
    16: lambda *_: NO,  # case_insensitive
    17: lambda *_: YES,  # case_preserving
    18: lambda *_: YES,  # chown_restricted
    19: lambda node, tree: encode_opaque(tree.encode_handle(node)),
    20: lambda node, _: encode_u64(node.number),  # fileid
    21: lambda _, tree: encode_u64(tree.count_room()[1]),  # files_avail
    22: lambda _, tree: encode_u64(tree.count_room()[1]),  # files_free
    23: lambda _, tree: encode_u64(tree.count_room()[0]),  # files_total
    26: lambda *_: YES,  # homogeneous
    27: lambda *_: encode_u64(MOST_FILE_BYTES),
    28: lambda *_: encode_u32(1),  # maxlink
    29: lambda *_: encode_u32(MOST_NAME_BYTES),
    30: lambda *_: encode_u64(MOST_IO_BYTES),  # maxread
    31: lambda *_: encode_u64(MOST_IO_BYTES),  # maxwrite
    _MODE: lambda node, _: encode_u32(node.mode),
    34: lambda *_: YES,  # no_trunc
    35: lambda node, _: encode_u32(node.status.st_nlink),
    # Numbers as strings, as the kernel's client and server agree on without a mapping daemon (RFC 7530 §5.9).
    _OWNER: lambda node, _: encode_opaque(b"%d" % node.uid),
    _GROUP: lambda node, _: encode_opaque(b"%d" % node.gid),
    41: lambda *_: encode_u64(0),  # rawdev
    42: lambda _, tree: encode_u64(tree.room.measure()[1]),  # space_avail
    43: lambda _, tree: encode_u64(tree.room.measure()[1]),  # space_free
    44: lambda _, tree: encode_u64(tree.room.measure()[0]),  # space_total
    45: lambda node, _: encode_u64(node.status.st_blocks * 512),  # space_used
    47: lambda node, _: _encode_time(node.status.st_atime_ns),
    51: lambda *_: _encode_time(1),  # time_delta
    52: lambda node, _: _encode_time(node.status.st_ctime_ns),
    53: lambda node, _: _encode_time(node.status.st_mtime_ns),
    55: lambda node, _: encode_u64(node.number),  # mounted_on_fileid
    79: lambda *_: encode_u32(0),  # change_attr_type: NFS4_CHANGE_TYPE_IS_MONOTONIC_INCR
}


@dataclass
class Wanted:
    """Attributes that a client sets; None is left as it is."""

    bits: frozenset[int] = frozenset()
    size_bytes: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    def apply(self, tree: Tree, node: Node) -> None:
        """Set them."""
        if self.size_bytes is not None and self.size_bytes != node.status.st_size:
            tree.resize(node, self.size_bytes)
        if (self.mode, self.uid, self.gid) != (None, None, None):
            tree.set_permissions(node, mode=self.mode, uid=self.uid, gid=self.gid)
        if self.atime_ns is not None or self.mtime_ns is not None:
            status = node.status
            tree.set_times(
                node,
                status.st_atime_ns if self.atime_ns is None else self.atime_ns,
                status.st_mtime_ns if self.mtime_ns is None else self.mtime_ns,
            )


def list_supported(minor: int) -> list[int]:
    """List the attributes of a minor version."""
    known = {_SUPPORTED, _EXCLUSIVE, *_ENCODERS, *_SETTABLE}
    return sorted(number for number in known if number <= _LAST_OF_MINOR[minor])


def encode_attributes(node: Node, tree: Tree, wanted: frozenset[int], minor: int) -> bytes:
    """Encode ``fattr4``: those that are wanted and supported."""
    given = [number for number in list_supported(minor) if number in wanted and number not in {_ATIME_SET, _MTIME_SET}]
    values = b""
    for number in given:
        if number == _SUPPORTED:
            values += encode_bitmap(list_supported(minor))
        elif number == _EXCLUSIVE:
            values += encode_bitmap(sorted(_SETTABLE))
        else:
            values += _ENCODERS[number](node, tree)
    return encode_bitmap(given) + encode_opaque(values)


def take_attributes(fields: Fields) -> Wanted:
    """
    Take ``fattr4``.

    Raises
    ------
    NfsError
        If one of them cannot be set.
    """
    bits = fields.take_bitmap()
    values = Fields(fields.take_opaque(_MOST_ATTRIBUTE_BYTES))
    if bits - _SETTABLE:
        raise NfsError(Status.ATTRNOTSUPP)
    wanted = Wanted(bits)
    if _SIZE in bits:
        wanted.size_bytes = values.take_u64()
    if _MODE in bits:
        wanted.mode = values.take_u32() & 0o7777
    if _OWNER in bits:
        wanted.uid = _parse_owner(values.take_opaque(_MOST_OWNER_BYTES))
    if _GROUP in bits:
        wanted.gid = _parse_owner(values.take_opaque(_MOST_OWNER_BYTES))
    if _ATIME_SET in bits:
        wanted.atime_ns = _take_time(values)
    if _MTIME_SET in bits:
        wanted.mtime_ns = _take_time(values)
    if values.left_bytes:
        raise XdrError("more values than attributes")
    return wanted


def take_encoded(fields: Fields) -> tuple[frozenset[int], bytes]:
    """Take ``fattr4`` as it is, to be compared."""
    return fields.take_bitmap(), fields.take_opaque(_MOST_ATTRIBUTE_BYTES)


def _parse_owner(name: bytes) -> int:
    text = name.partition(b"@")[0]
    if text == b"root":
        return 0
    return int(text) & 0xFFFFFFFF if text.isdigit() and len(text) <= 10 else _NOBODY


def _take_time(values: Fields) -> int:
    """Take ``settime4``: the server's time, or one that is given."""
    if values.take_u32() == 0:
        return time.time_ns()
    seconds = values.take_u64()
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * 10**9 + values.take_u32()


def _encode_time(ns: int) -> bytes:
    return encode_u64(ns // 10**9 & (1 << 64) - 1) + encode_u32(ns % 10**9)
