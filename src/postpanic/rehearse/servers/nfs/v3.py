"""
Version 3: procedures on files.

Source: RFC 1813 (§2.5 and §2.6 structures, §3.3 procedures).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

from postpanic.rehearse.servers.nfs.bootstrap import NFS_PROGRAM
from postpanic.rehearse.servers.nfs.rpc import Answer, Call
from postpanic.rehearse.servers.nfs.status import NfsError, Status, find_status
from postpanic.rehearse.servers.nfs.store import Store
from postpanic.rehearse.servers.nfs.tree import MOST_FILE_BYTES, MOST_NAME_BYTES, Node, Tree
from postpanic.rehearse.servers.nfs.xdr import NO, YES, Fields, encode_bool, encode_opaque, encode_u32, encode_u64

__all__ = ["MOST_IO_BYTES", "Version3"]

MOST_IO_BYTES = 1 << 20
"""Of one READ or WRITE."""
_MOST_HANDLE_BYTES = 64
"""``NFS3_FHSIZE``, §2.4."""
_MOST_NAME_FIELD_BYTES = 4096
_BLOCK_BYTES = 4096
_REGULAR, _DIRECTORY = 1, 2
"""``ftype3``, §2.5."""
_ALL_ACCESS = 0x3F
"""``ACCESS3_…``, §3.3.4."""
_UNCHECKED, _GUARDED, _EXCLUSIVE = range(3)
"""``createmode3``, §3.3.8."""
_TO_SERVER_TIME, _TO_CLIENT_TIME = 1, 2
"""``time_how``, §2.6."""
_PROPERTIES = 0x8 | 0x10
"""``FSF3_HOMOGENEOUS``, ``FSF3_CANSETTIME``, §3.3.19."""
_COOKIE_OFFSET = 2
"""Cookies of ``.`` and ``..`` come before the numbers of files."""


class _Procedure(IntEnum):
    """§3.3."""

    GETATTR = 1
    SETATTR = 2
    LOOKUP = 3
    ACCESS = 4
    READLINK = 5
    READ = 6
    WRITE = 7
    CREATE = 8
    MKDIR = 9
    SYMLINK = 10
    MKNOD = 11
    REMOVE = 12
    RMDIR = 13
    RENAME = 14
    LINK = 15
    READDIR = 16
    READDIRPLUS = 17
    FSSTAT = 18
    FSINFO = 19
    PATHCONF = 20
    COMMIT = 21


_NONE = NO
_NO_WCC = _NONE * 2
"""``wcc_data`` without attributes, §2.6."""
# What comes behind the status of a request that failed: attributes that are not given.
_FAILED = {
    _Procedure.GETATTR: b"",
    _Procedure.SETATTR: _NO_WCC,
    _Procedure.WRITE: _NO_WCC,
    _Procedure.CREATE: _NO_WCC,
    _Procedure.MKDIR: _NO_WCC,
    _Procedure.SYMLINK: _NO_WCC,
    _Procedure.MKNOD: _NO_WCC,
    _Procedure.REMOVE: _NO_WCC,
    _Procedure.RMDIR: _NO_WCC,
    _Procedure.RENAME: _NO_WCC * 2,
    _Procedure.LINK: _NONE + _NO_WCC,
    _Procedure.COMMIT: _NO_WCC,
}
_NOT_REPEATED = frozenset(
    {
        _Procedure.SETATTR,
        _Procedure.CREATE,
        _Procedure.MKDIR,
        _Procedure.REMOVE,
        _Procedure.RMDIR,
        _Procedure.RENAME,
    }
)


class Version3:
    """Answers requests of version 3."""

    number = NFS_PROGRAM
    versions = (3,)

    def __init__(self, tree: Tree, store: Store) -> None:
        self._tree = tree
        self._verifier = store.instance
        self._procedures: dict[int, Callable[[Fields], bytes]] = {
            _Procedure.GETATTR: self._getattr,
            _Procedure.SETATTR: self._setattr,
            _Procedure.LOOKUP: self._lookup,
            _Procedure.ACCESS: self._access,
            _Procedure.READ: self._read,
            _Procedure.WRITE: self._write,
            _Procedure.CREATE: self._create,
            _Procedure.MKDIR: self._mkdir,
            _Procedure.REMOVE: self._remove,
            _Procedure.RMDIR: self._rmdir,
            _Procedure.RENAME: self._rename,
            _Procedure.READDIR: self._readdir,
            _Procedure.READDIRPLUS: self._readdirplus,
            _Procedure.FSSTAT: self._fsstat,
            _Procedure.FSINFO: self._fsinfo,
            _Procedure.PATHCONF: self._pathconf,
            _Procedure.COMMIT: self._commit,
        }

    def answer(self, call: Call) -> Answer | None:
        """Do one procedure."""
        if call.procedure > max(_Procedure):
            return None
        is_kept = call.procedure in _NOT_REPEATED
        procedure = _Procedure(call.procedure)
        try:
            if procedure not in self._procedures:
                raise NfsError(Status.NOTSUPP)
            return Answer(encode_u32(Status.OK) + self._procedures[procedure](call.arguments), is_kept)
        except OSError as exc:
            status = find_status(exc)
        except NfsError as exc:
            status = exc.status
        return Answer(encode_u32(status) + _FAILED.get(procedure, _NONE), is_kept)

    def _take_node(self, fields: Fields) -> Node:
        node = self._tree.resolve(fields.take_opaque(_MOST_HANDLE_BYTES))
        if not node.is_exported:
            raise NfsError(Status.BADHANDLE)
        return node

    def _attributes(self, node: Node) -> bytes:
        """Encode ``fattr3``, §2.5."""
        status = node.status
        words = (_DIRECTORY if node.is_directory else _REGULAR, node.mode, status.st_nlink, node.uid, node.gid)
        body = b"".join(map(encode_u32, words)) + encode_u64(status.st_size) + encode_u64(status.st_blocks * 512)
        body += encode_u64(0) + encode_u64(1) + encode_u64(node.number)
        return body + b"".join(map(_encode_time, (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)))

    def _some(self, node: Node) -> bytes:
        """Encode ``post_op_attr``, §2.6."""
        return YES + self._attributes(node)

    def _changed(self, node: Node) -> bytes:
        """Encode ``wcc_data``, §2.6, as it is now."""
        return _NONE + self._some(self._tree.resolve(self._tree.encode_handle(node)))

    def _getattr(self, fields: Fields) -> bytes:
        return self._attributes(self._take_node(fields))

    def _setattr(self, fields: Fields) -> bytes:
        node = self._take_node(fields)
        wanted = _take_attributes(fields)
        if fields.take_bool() and fields.take_fixed(8) != _encode_time(node.status.st_ctime_ns):
            raise NfsError(Status.NOT_SYNC)
        wanted.apply(self._tree, node)
        return self._changed(node)

    def _lookup(self, fields: Fields) -> bytes:
        directory, name = self._take_node(fields), fields.take_opaque(_MOST_NAME_FIELD_BYTES)
        if name == b"." and directory.is_directory:
            found = directory
        elif name == b".." and directory.is_directory:
            found = directory if directory.names == self._tree.export else self._tree.parent(directory)
        else:
            found = self._tree.lookup(directory, name)
        return encode_opaque(self._tree.encode_handle(found)) + self._some(found) + self._some(directory)

    def _access(self, fields: Fields) -> bytes:
        return self._some(self._take_node(fields)) + encode_u32(fields.take_u32() & _ALL_ACCESS)

    def _read(self, fields: Fields) -> bytes:
        node, offset, count = self._take_node(fields), fields.take_u64(), fields.take_u32()
        content, is_end = self._tree.read(node, offset, min(count, MOST_IO_BYTES))
        return self._some(node) + encode_u32(len(content)) + encode_bool(is_end) + encode_opaque(content)

    def _write(self, fields: Fields) -> bytes:
        node, offset, count, stable = self._take_node(fields), fields.take_u64(), fields.take_u32(), fields.take_u32()
        content = fields.take_opaque(MOST_IO_BYTES)[:count]
        self._tree.write(node, offset, content)
        # What this host has taken it has: only the machine is crashed.
        return self._changed(node) + encode_u32(len(content)) + encode_u32(stable) + self._verifier

    def _create(self, fields: Fields) -> bytes:
        directory, name = self._take_node(fields), fields.take_opaque(_MOST_NAME_FIELD_BYTES)
        how = fields.take_u32()
        verifier = fields.take_fixed(8) if how == _EXCLUSIVE else b""
        wanted = _Wanted() if how == _EXCLUSIVE else _take_attributes(fields)
        try:
            node = self._tree.create(directory, name, 0o644 if wanted.mode is None else wanted.mode, verifier)
        except FileExistsError:
            node = self._tree.lookup(directory, name)
            if how == _GUARDED or node.is_directory or (how == _EXCLUSIVE and node.verifier != verifier):
                raise
        wanted.apply(self._tree, node)
        return self._made(directory, node)

    def _mkdir(self, fields: Fields) -> bytes:
        directory, name = self._take_node(fields), fields.take_opaque(_MOST_NAME_FIELD_BYTES)
        wanted = _take_attributes(fields)
        return self._made(
            directory, self._tree.make_directory(directory, name, 0o755 if wanted.mode is None else wanted.mode)
        )

    def _made(self, directory: Node, node: Node) -> bytes:
        node = self._tree.resolve(self._tree.encode_handle(node))
        handle = YES + encode_opaque(self._tree.encode_handle(node))
        return handle + self._some(node) + self._changed(directory)

    def _remove(self, fields: Fields) -> bytes:
        directory = self._take_node(fields)
        self._tree.remove(directory, fields.take_opaque(_MOST_NAME_FIELD_BYTES), wants_directory=False)
        return self._changed(directory)

    def _rmdir(self, fields: Fields) -> bytes:
        directory = self._take_node(fields)
        self._tree.remove(directory, fields.take_opaque(_MOST_NAME_FIELD_BYTES), wants_directory=True)
        return self._changed(directory)

    def _rename(self, fields: Fields) -> bytes:
        old, old_name = self._take_node(fields), fields.take_opaque(_MOST_NAME_FIELD_BYTES)
        new, new_name = self._take_node(fields), fields.take_opaque(_MOST_NAME_FIELD_BYTES)
        self._tree.rename(old, old_name, new, new_name)
        return self._changed(old) + self._changed(new)

    def _readdir(self, fields: Fields) -> bytes:
        directory, cookie, _ = self._take_node(fields), fields.take_u64(), fields.take_fixed(8)
        return self._list(directory, cookie, fields.take_u32(), is_plus=False)

    def _readdirplus(self, fields: Fields) -> bytes:
        directory, cookie, _ = self._take_node(fields), fields.take_u64(), fields.take_fixed(8)
        fields.take_u32()
        return self._list(directory, cookie, fields.take_u32(), is_plus=True)

    def _list(self, directory: Node, cookie: int, most_bytes: int, *, is_plus: bool) -> bytes:
        above = directory if directory.names == self._tree.export else self._tree.parent(directory)
        found = [(1, b".", directory), (2, b"..", above)]
        found += [(node.number + _COOKIE_OFFSET, name, node) for name, node in self._tree.list(directory)]
        head = self._some(directory) + self._verifier
        body: list[bytes] = []
        room = min(most_bytes, MOST_IO_BYTES) - len(head) - 2 * 4
        for place, name, node in found:
            if place <= cookie:
                continue
            entry = YES + encode_u64(node.number) + encode_opaque(name) + encode_u64(place)
            if is_plus:
                entry += self._some(node) + YES + encode_opaque(self._tree.encode_handle(node))
            room -= len(entry)
            if room < 0:
                if not body:
                    raise NfsError(Status.TOOSMALL)
                return head + b"".join(body) + NO + NO
            body.append(entry)
        return head + b"".join(body) + NO + YES

    def _fsstat(self, fields: Fields) -> bytes:
        node = self._take_node(fields)
        total, free = self._tree.room.measure()
        files, free_files = self._tree.count_room()
        numbers = (total, free, free, files, free_files, free_files)
        return self._some(node) + b"".join(map(encode_u64, numbers)) + encode_u32(0)

    def _fsinfo(self, fields: Fields) -> bytes:
        node = self._take_node(fields)
        sizes = (MOST_IO_BYTES, MOST_IO_BYTES, _BLOCK_BYTES) * 2 + (_BLOCK_BYTES,)
        body = self._some(node) + b"".join(map(encode_u32, sizes)) + encode_u64(MOST_FILE_BYTES)
        return body + encode_u32(0) + encode_u32(1) + encode_u32(_PROPERTIES)

    def _pathconf(self, fields: Fields) -> bytes:
        node = self._take_node(fields)
        flags = (True, True, False, True)
        return self._some(node) + encode_u32(1) + encode_u32(MOST_NAME_BYTES) + b"".join(map(encode_bool, flags))

    def _commit(self, fields: Fields) -> bytes:
        return self._changed(self._take_node(fields)) + self._verifier


class _Wanted:
    """``sattr3``, §2.6: None is left as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    def apply(self, tree: Tree, node: Node) -> None:
        """Set them."""
        if self.size_bytes is not None:
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


def _take_attributes(fields: Fields) -> _Wanted:
    wanted = _Wanted()
    wanted.mode = fields.take_u32() & 0o7777 if fields.take_bool() else None
    wanted.uid = fields.take_u32() if fields.take_bool() else None
    wanted.gid = fields.take_u32() if fields.take_bool() else None
    wanted.size_bytes = fields.take_u64() if fields.take_bool() else None
    wanted.atime_ns, wanted.mtime_ns = _take_new_time(fields), _take_new_time(fields)
    return wanted


def _take_new_time(fields: Fields) -> int | None:
    how = fields.take_u32()
    if how == _TO_CLIENT_TIME:
        return _take_time(fields)
    return time.time_ns() if how == _TO_SERVER_TIME else None


def _take_time(fields: Fields) -> int:
    return fields.take_u32() * 10**9 + fields.take_u32()


def _encode_time(ns: int) -> bytes:
    return encode_u32(ns // 10**9 & 0xFFFFFFFF) + encode_u32(ns % 10**9)
