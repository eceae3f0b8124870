"""
Version 4: requests, each a row of operations on a current file.

Sources: RFC 7530 §15.2 and RFC 8881 §16.2 (COMPOUND), §2.10.2 (what comes first in a session).
"""

from __future__ import annotations

from postpanic.rehearse.servers.nfs.bootstrap import NFS_PROGRAM
from postpanic.rehearse.servers.nfs.clients import Clients
from postpanic.rehearse.servers.nfs.files import FileOperations
from postpanic.rehearse.servers.nfs.operations import MOST_OPERATIONS, Handler, Operation, Request
from postpanic.rehearse.servers.nfs.rpc import MOST_RECORD_BYTES, Answer, Call
from postpanic.rehearse.servers.nfs.status import NfsError, Status, find_status
from postpanic.rehearse.servers.nfs.store import Store
from postpanic.rehearse.servers.nfs.tree import Tree
from postpanic.rehearse.servers.nfs.xdr import Fields, XdrError, encode_opaque, encode_u32

__all__ = ["Version4"]

_COMPOUND = 1
"""``NFSPROC4_COMPOUND``, RFC 7530 §15.2."""
_MOST_TAG_BYTES = 1024
_FIRST = 3
_LAST_OF_MINOR = {0: 39, 1: 58, 2: 71}
"""Numbers of the last operations: RFC 7531, 5662, 7863."""
# Only of 4.0: what replaces them is in 4.1 (RFC 8881 §17).
_OF_MINOR_0 = frozenset(
    {
        Operation.SETCLIENTID,
        Operation.SETCLIENTID_CONFIRM,
        Operation.RENEW,
        Operation.RELEASE_LOCKOWNER,
    }
)
_WITHOUT_SESSION = frozenset(
    {
        Operation.SEQUENCE,
        Operation.EXCHANGE_ID,
        Operation.CREATE_SESSION,
        Operation.BIND_CONN_TO_SESSION,
        Operation.DESTROY_SESSION,
        Operation.DESTROY_CLIENTID,
    }
)


class Version4:
    """Answers requests of versions 4.0, 4.1 and 4.2."""

    number = NFS_PROGRAM
    versions = (4,)

    def __init__(self, tree: Tree, store: Store) -> None:
        self._tree = tree
        self._clients = Clients(store)
        self._handlers: dict[int, Handler] = {
            **self._clients.handlers,
            **FileOperations(tree, store, self._clients).handlers,
        }

    def answer(self, call: Call) -> Answer | None:
        """Do one request."""
        if call.procedure != _COMPOUND:
            return None
        fields = call.arguments
        tag = encode_opaque(fields.take_opaque(_MOST_TAG_BYTES))
        minor, count = fields.take_u32(), fields.take_u32()
        if minor not in _LAST_OF_MINOR:
            return Answer(encode_u32(Status.MINOR_VERS_MISMATCH) + tag + encode_u32(0))
        if count > MOST_OPERATIONS:
            return Answer(encode_u32(Status.TOO_MANY_OPS if minor else Status.RESOURCE) + tag + encode_u32(0))
        request = Request(self._tree, minor)
        results: list[bytes] = []
        status, size = Status.OK, 0
        for request.place in range(count):
            number = fields.take_u32()
            if not _FIRST <= number <= _LAST_OF_MINOR[minor]:
                number = Operation.ILLEGAL
            status, body = self._do(request, number, fields)
            if request.replay is not None:
                return Answer(request.replay)
            size += len(body)
            if size > MOST_RECORD_BYTES:
                status, body = (Status.REP_TOO_BIG if minor else Status.RESOURCE), b""
            results.append(encode_u32(number) + encode_u32(status) + body)
            if status != Status.OK:
                break
        reply = encode_u32(status) + tag + encode_u32(len(results)) + b"".join(results)
        self._clients.keep(request, reply)
        return Answer(reply, is_kept=minor == 0)

    def _do(self, request: Request, number: int, fields: Fields) -> tuple[int, bytes]:
        try:
            return Status.OK, self._find_handler(request, number)(request, fields)
        except OSError as exc:
            status = find_status(exc)
        except NfsError as exc:
            status = exc.status
        except XdrError:
            status = Status.BADXDR
        # SETATTR tells what it has set even then (RFC 7530 §16.32).
        return status, encode_u32(0) if number == Operation.SETATTR else b""

    def _find_handler(self, request: Request, number: int) -> Handler:
        if number == Operation.ILLEGAL:
            raise NfsError(Status.OP_ILLEGAL)
        if request.minor and request.place == 0 and number not in _WITHOUT_SESSION:
            raise NfsError(Status.OP_NOT_IN_SESSION)
        if number not in self._handlers or (request.minor and number in _OF_MINOR_0):
            raise NfsError(Status.NOTSUPP)
        return self._handlers[number]
