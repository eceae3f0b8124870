"""
Version 4: operations on files and directories.

Sources: RFC 7530 §16, RFC 8881 §18, RFC 7862 §15.11 (SEEK).
"""

from __future__ import annotations

from postpanic.rehearse.servers.nfs.attributes import (
    Wanted,
    encode_attributes,
    list_supported,
    take_attributes,
    take_encoded,
)
from postpanic.rehearse.servers.nfs.clients import Clients
from postpanic.rehearse.servers.nfs.operations import (
    MOST_HANDLE_BYTES,
    Handler,
    Operation,
    Request,
    encode_change,
    take_name,
)
from postpanic.rehearse.servers.nfs.status import NfsError, Status
from postpanic.rehearse.servers.nfs.store import Store
from postpanic.rehearse.servers.nfs.tree import Node, Tree
from postpanic.rehearse.servers.nfs.v3 import MOST_IO_BYTES
from postpanic.rehearse.servers.nfs.xdr import (
    NO,
    YES,
    Fields,
    encode_bitmap,
    encode_bool,
    encode_opaque,
    encode_u32,
    encode_u64,
)

__all__ = ["FileOperations"]

_ALL_ACCESS = 0x3F
"""``ACCESS4_READ`` to ``ACCESS4_EXECUTE``, RFC 7530 §16.1."""
_DIRECTORY = 2
"""``NF4DIR``, RFC 7531."""
_NOT_MADE = frozenset({3, 4, 5, 6, 7})
"""Devices, links, sockets, pipes: ``nfs_ftype4``, RFC 7531."""
_UNCHECKED, _GUARDED, _EXCLUSIVE, _EXCLUSIVE_AND_ATTRIBUTES = range(4)
"""``createmode4``, RFC 8881 §18.16.1."""
_BY_NAME, _AGAIN, _BY_HANDLE = 0, 1, 4
"""``CLAIM_NULL``, ``CLAIM_PREVIOUS``, ``CLAIM_FH``, RFC 8881 §18.16.1."""
_LOCKS_AS_POSIX = 4
"""``OPEN4_RESULT_LOCKTYPE_POSIX``, RFC 7530 §16.16.2."""
_NO_DELEGATION = 0
"""``OPEN_DELEGATE_NONE``, RFC 7530 §16.16.2."""
_MOST_OWNER_BYTES = 1024
_STATEID_BYTES = 16
_VERIFIER_BYTES = 8
_COOKIE_OFFSET = 2
"""0, 1 and 2 are none of a file (RFC 7530 §16.24.4)."""
_AUTH_SYS = 1
_FOR_DATA, _FOR_HOLE = 0, 1
"""``data_content4``, RFC 7862 §15.11.1."""


class FileOperations:
    """Does operations of version 4 on a tree."""

    def __init__(self, tree: Tree, store: Store, clients: Clients) -> None:
        self._tree = tree
        self._verifier = store.instance
        self._clients = clients
        self.handlers: dict[int, Handler] = {
            Operation.ACCESS: self._access,
            Operation.CLOSE: self._close,
            Operation.COMMIT: self._commit,
            Operation.CREATE: self._create,
            Operation.GETATTR: self._getattr,
            Operation.GETFH: lambda request, _: encode_opaque(self._tree.encode_handle(request.node())),
            Operation.LOOKUP: self._lookup,
            Operation.LOOKUPP: self._lookup_parent,
            Operation.NVERIFY: self._nverify,
            Operation.OPEN: self._open,
            Operation.OPEN_DOWNGRADE: self._downgrade,
            Operation.PUTFH: self._putfh,
            Operation.PUTPUBFH: self._putrootfh,
            Operation.PUTROOTFH: self._putrootfh,
            Operation.READ: self._read,
            Operation.READDIR: self._readdir,
            Operation.REMOVE: self._remove,
            Operation.RENAME: self._rename,
            Operation.RESTOREFH: self._restore,
            Operation.SAVEFH: self._save,
            Operation.SECINFO: self._secinfo,
            Operation.SECINFO_NO_NAME: self._secinfo_no_name,
            Operation.SEEK: self._seek,
            Operation.SETATTR: self._setattr,
            Operation.VERIFY: self._verify,
            Operation.WRITE: self._write,
        }

    def _putfh(self, request: Request, fields: Fields) -> bytes:
        request.enter(self._tree.resolve(fields.take_opaque(MOST_HANDLE_BYTES)))
        return b""

    def _putrootfh(self, request: Request, _: Fields) -> bytes:
        request.enter(self._tree.root())
        return b""

    def _save(self, request: Request, _: Fields) -> bytes:
        request.saved = self._tree.encode_handle(request.node())
        return b""

    def _restore(self, request: Request, _: Fields) -> bytes:
        if request.saved is None:
            raise NfsError(Status.RESTOREFH)
        request.current = request.saved
        return b""

    def _access(self, request: Request, fields: Fields) -> bytes:
        asked = fields.take_u32() & _ALL_ACCESS
        request.node()
        return encode_u32(_ALL_ACCESS) + encode_u32(asked)

    def _getattr(self, request: Request, fields: Fields) -> bytes:
        return encode_attributes(request.node(), self._tree, fields.take_bitmap(), request.minor)

    def _setattr(self, request: Request, fields: Fields) -> bytes:
        fields.take_fixed(_STATEID_BYTES)
        wanted = take_attributes(fields)
        wanted.apply(self._tree, request.node())
        return encode_bitmap(sorted(wanted.bits))

    def _is_same(self, request: Request, fields: Fields) -> bool:
        bits, values = take_encoded(fields)
        if bits - set(list_supported(request.minor)):
            raise NfsError(Status.ATTRNOTSUPP)
        found = encode_attributes(request.node(), self._tree, bits, request.minor)
        return found == encode_bitmap(sorted(bits)) + encode_opaque(values)

    def _verify(self, request: Request, fields: Fields) -> bytes:
        if not self._is_same(request, fields):
            raise NfsError(Status.NOT_SAME)
        return b""

    def _nverify(self, request: Request, fields: Fields) -> bytes:
        if self._is_same(request, fields):
            raise NfsError(Status.SAME)
        return b""

    def _lookup(self, request: Request, fields: Fields) -> bytes:
        request.enter(self._tree.lookup(request.node(), take_name(fields)))
        return b""

    def _lookup_parent(self, request: Request, _: Fields) -> bytes:
        node = request.node()
        if not node.names:
            raise NfsError(Status.NOENT)
        if not node.is_directory:
            raise NfsError(Status.NOTDIR)
        request.enter(self._tree.parent(node))
        return b""

    def _read(self, request: Request, fields: Fields) -> bytes:
        fields.take_fixed(_STATEID_BYTES)
        offset, count = fields.take_u64(), fields.take_u32()
        content, is_end = self._tree.read(request.node(), offset, min(count, MOST_IO_BYTES))
        return encode_bool(is_end) + encode_opaque(content)

    def _write(self, request: Request, fields: Fields) -> bytes:
        fields.take_fixed(_STATEID_BYTES)
        offset, stable = fields.take_u64(), fields.take_u32()
        content = fields.take_opaque(MOST_IO_BYTES)
        self._tree.write(request.node(), offset, content)
        # What this host has taken it has: only the machine is crashed.
        return encode_u32(len(content)) + encode_u32(stable) + self._verifier

    def _commit(self, request: Request, fields: Fields) -> bytes:
        fields.take_u64()
        fields.take_u32()
        request.node()
        return self._verifier

    def _seek(self, request: Request, fields: Fields) -> bytes:
        fields.take_fixed(_STATEID_BYTES)
        offset, what = fields.take_u64(), fields.take_u32()
        if what not in {_FOR_DATA, _FOR_HOLE}:
            raise NfsError(Status.INVAL)
        node = request.node()
        found = self._tree.seek(node, offset, is_for_data=what == _FOR_DATA)
        if found is None:
            return YES + encode_u64(node.status.st_size)
        return encode_bool(found >= node.status.st_size) + encode_u64(found)

    def _create(self, request: Request, fields: Fields) -> bytes:
        kind = fields.take_u32()
        if kind != _DIRECTORY:
            raise NfsError(Status.NOTSUPP if kind in _NOT_MADE else Status.BADTYPE)
        name, wanted, directory = take_name(fields), take_attributes(fields), request.node()
        node = self._tree.make_directory(directory, name, 0o755 if wanted.mode is None else wanted.mode)
        change = encode_change(directory, request.node())
        request.enter(node)
        return change + encode_bitmap(sorted(wanted.bits & {33}))

    def _remove(self, request: Request, fields: Fields) -> bytes:
        directory = request.node()
        self._tree.remove(directory, take_name(fields))
        return encode_change(directory, request.node())

    def _rename(self, request: Request, fields: Fields) -> bytes:
        if request.saved is None:
            raise NfsError(Status.NOFILEHANDLE)
        old, new = self._tree.resolve(request.saved), request.node()
        self._tree.rename(old, take_name(fields), new, take_name(fields))
        return encode_change(old, self._tree.resolve(request.saved)) + encode_change(new, request.node())

    def _readdir(self, request: Request, fields: Fields) -> bytes:
        cookie, _, _ = fields.take_u64(), fields.take_fixed(_VERIFIER_BYTES), fields.take_u32()
        most_bytes, wanted = fields.take_u32(), fields.take_bitmap()
        room = min(most_bytes, MOST_IO_BYTES) - _VERIFIER_BYTES - 8
        body: list[bytes] = []
        for name, node in self._tree.list(request.node()):
            place = node.number + _COOKIE_OFFSET
            if place <= cookie:
                continue
            entry = YES + encode_u64(place) + encode_opaque(name)
            entry += encode_attributes(node, self._tree, wanted, request.minor)
            room -= len(entry)
            if room < 0:
                if not body:
                    raise NfsError(Status.TOOSMALL)
                return self._verifier + b"".join(body) + NO + NO
            body.append(entry)
        return self._verifier + b"".join(body) + NO + YES

    def _secinfo(self, request: Request, fields: Fields) -> bytes:
        self._tree.lookup(request.node(), take_name(fields))
        return self._tell_security(request)

    def _secinfo_no_name(self, request: Request, fields: Fields) -> bytes:
        fields.take_u32()
        request.node()
        return self._tell_security(request)

    def _tell_security(self, request: Request) -> bytes:
        if request.minor:
            # The current file is consumed (RFC 8881 §2.6.3.1.1.8).
            request.current = None
        return encode_u32(1) + encode_u32(_AUTH_SYS)

    def _open(self, request: Request, fields: Fields) -> bytes:
        fields.take_u32()
        fields.take_u64()
        client, owner = fields.take_u64(), fields.take_opaque(_MOST_OWNER_BYTES)
        how = _How.take(fields)
        directory = node = request.node()
        claim = fields.take_u32()
        given: frozenset[int] = frozenset()
        if claim == _BY_NAME:
            node, given = self._open_name(directory, take_name(fields), how)
        elif claim == _AGAIN:
            fields.take_u32()
        elif claim != _BY_HANDLE:
            # There are no delegations.
            raise NfsError(Status.NOTSUPP)
        if node.is_directory:
            raise NfsError(Status.ISDIR)
        stateid = self._clients.open(request, client, owner, node.number)
        change = encode_change(directory, request.node())
        request.enter(node)
        return (
            stateid + change + encode_u32(_LOCKS_AS_POSIX) + encode_bitmap(sorted(given)) + encode_u32(_NO_DELEGATION)
        )

    def _open_name(self, directory: Node, name: bytes, how: _How | None) -> tuple[Node, frozenset[int]]:
        """Find a file, or make it."""
        if how is None:
            return self._tree.lookup(directory, name), frozenset()
        wanted = how.wanted
        try:
            node = self._tree.create(directory, name, 0o644 if wanted.mode is None else wanted.mode, how.verifier)
        except FileExistsError:
            node = self._tree.lookup(directory, name)
            if node.is_directory or how.mode == _GUARDED or (how.verifier and node.verifier != how.verifier):
                raise
            # Of a file that is there only the size is set (RFC 7530 §16.16.3).
            wanted = Wanted(wanted.bits & {4}, size_bytes=wanted.size_bytes)
        wanted.apply(self._tree, node)
        return node, wanted.bits

    def _close(self, request: Request, fields: Fields) -> bytes:
        fields.take_u32()
        request.node()
        return self._clients.close(request, fields.take_fixed(_STATEID_BYTES))

    def _downgrade(self, request: Request, fields: Fields) -> bytes:
        request.node()
        stateid = fields.take_fixed(_STATEID_BYTES)
        for _ in range(3):
            fields.take_u32()
        return self._clients.downgrade(stateid)


class _How:
    """``createhow4``, RFC 8881 §18.16.1."""

    def __init__(self, mode: int, verifier: bytes, wanted: Wanted) -> None:
        self.mode = mode
        self.verifier = verifier
        self.wanted = wanted

    @classmethod
    def take(cls, fields: Fields) -> _How | None:
        """Take ``openflag4``; None: nothing is to be made."""
        if not fields.take_bool():
            return None
        mode = fields.take_u32()
        if mode > _EXCLUSIVE_AND_ATTRIBUTES:
            raise NfsError(Status.BADXDR)
        verifier = fields.take_fixed(_VERIFIER_BYTES) if mode >= _EXCLUSIVE else b""
        return cls(mode, verifier, Wanted() if mode == _EXCLUSIVE else take_attributes(fields))
