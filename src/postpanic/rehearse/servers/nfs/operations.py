"""
Version 4: the numbers of its operations, and what they have in common while a request is done.

Sources: RFC 7530 §16 (version 4.0), RFC 8881 §18 (4.1), RFC 7862 §15 (4.2), whose XDR is in RFC 7531, 5662, 7863.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from postpanic.rehearse.servers.nfs.status import NfsError, Status
from postpanic.rehearse.servers.nfs.tree import Node, Tree
from postpanic.rehearse.servers.nfs.xdr import YES, Fields, encode_u64

__all__ = ["MOST_HANDLE_BYTES", "MOST_OPERATIONS", "Handler", "Operation", "Request", "encode_change", "take_name"]

MOST_OPERATIONS = 64
"""In one request."""
MOST_HANDLE_BYTES = 128
"""``NFS4_FHSIZE``, RFC 7530 §1.4.2, RFC 8881 §3.1."""
_MOST_NAME_FIELD_BYTES = 4096


class Operation(IntEnum):
    """``nfs_opnum4``: RFC 7531, RFC 5662, RFC 7863."""

    ACCESS = 3
    CLOSE = 4
    COMMIT = 5
    CREATE = 6
    GETATTR = 9
    GETFH = 10
    LOOKUP = 15
    LOOKUPP = 16
    NVERIFY = 17
    OPEN = 18
    OPEN_DOWNGRADE = 21
    PUTFH = 22
    PUTPUBFH = 23
    PUTROOTFH = 24
    READ = 25
    READDIR = 26
    REMOVE = 28
    RENAME = 29
    RENEW = 30
    RESTOREFH = 31
    SAVEFH = 32
    SECINFO = 33
    SETATTR = 34
    SETCLIENTID = 35
    SETCLIENTID_CONFIRM = 36
    VERIFY = 37
    WRITE = 38
    RELEASE_LOCKOWNER = 39
    BIND_CONN_TO_SESSION = 41
    EXCHANGE_ID = 42
    CREATE_SESSION = 43
    DESTROY_SESSION = 44
    FREE_STATEID = 45
    SECINFO_NO_NAME = 52
    SEQUENCE = 53
    TEST_STATEID = 55
    DESTROY_CLIENTID = 57
    RECLAIM_COMPLETE = 58
    SEEK = 69
    ILLEGAL = 10044


@dataclass
class Request:
    """
    A request while it is done (``COMPOUND``, RFC 8881 §16.2).

    Attributes
    ----------
    minor : int
        Minor version: 0, 1 or 2.
    place : int
        Of the operation that is done, from 0 on.
    current, saved : bytes or None
        Handles.
    client : int
        Of the session; 0: there is none.
    slot : tuple or None
        Session, number and sequence of the slot that the request takes.
    replay : bytes or None
        What was answered to it before.
    """

    tree: Tree
    minor: int
    place: int = 0
    current: bytes | None = None
    saved: bytes | None = None
    client: int = 0
    slot: tuple[bytes, int, int] | None = None
    replay: bytes | None = None

    def node(self) -> Node:
        """Find the current file, as it is now."""
        if self.current is None:
            raise NfsError(Status.NOFILEHANDLE)
        return self.tree.resolve(self.current)

    def enter(self, node: Node) -> None:
        """Make a file the current one."""
        self.current = self.tree.encode_handle(node)


Handler = Callable[[Request, Fields], bytes]


def take_name(fields: Fields) -> bytes:
    """
    Take ``component4``.

    Raises
    ------
    NfsError
        If it is empty, or one that has a meaning of its own (RFC 7530 §12.7).
    """
    name = fields.take_opaque(_MOST_NAME_FIELD_BYTES)
    if not name:
        raise NfsError(Status.INVAL)
    if name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise NfsError(Status.BADNAME)
    return name


def encode_change(before: Node, after: Node) -> bytes:
    """Encode ``change_info4`` of a directory: nobody else changes it in between."""
    return YES + encode_u64(before.change) + encode_u64(after.change)
