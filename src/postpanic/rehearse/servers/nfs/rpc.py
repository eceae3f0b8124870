"""
Remote procedure calls on a stream: records, calls, and what is answered to them.

Sources: RFC 5531 (§8 authentication, §9 messages, §11 record marking, §14 AUTH_NONE, appendix A AUTH_SYS).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Protocol

from postpanic.rehearse.servers.nfs.xdr import Fields, XdrError, encode_opaque, encode_u32

__all__ = [
    "MOST_RECORD_BYTES",
    "Answer",
    "Call",
    "GarbageError",
    "Program",
    "answer_record",
    "read_record",
    "spell_system_error",
    "write_record",
]

MOST_RECORD_BYTES = (1 << 20) + (1 << 16)
"""A WRITE of 1 MiB, the most that a client is told to send, with what leads it."""
_MOST_FRAGMENTS = 256
_LAST_FRAGMENT = 1 << 31
"""§11."""
_MOST_AUTH_BYTES = 400
"""§8.2."""
_RPC_VERSION = 2
_CALL, _REPLY = 0, 1
"""``msg_type``, §9."""
_ACCEPTED, _DENIED = 0, 1
"""``reply_stat``, §9."""
_SUCCESS, _PROG_UNAVAIL, _PROG_MISMATCH, _PROC_UNAVAIL, _GARBAGE_ARGS, _SYSTEM_ERR = range(6)
"""``accept_stat``, §9."""
_RPC_MISMATCH, _AUTH_ERROR = 0, 1
"""``reject_stat``, §9."""
_AUTH_TOOWEAK = 5
"""``auth_stat``, §9."""
_AUTH_NONE, _AUTH_SYS = 0, 1
"""``auth_flavor``, §8.2."""
_NO_VERIFIER = encode_u32(_AUTH_NONE) + encode_opaque(b"")


class GarbageError(Exception):
    """The arguments of a call cannot be decoded, and the procedure has no words of its own for that."""


@dataclass(frozen=True)
class Call:
    """A call."""

    xid: int
    program: int
    version: int
    procedure: int
    arguments: Fields


@dataclass(frozen=True)
class Answer:
    """
    What a procedure gives back.

    Attributes
    ----------
    body : bytes
    is_kept : bool
        Whether the same call, come again, gets the same answer and is not done again.
    """

    body: bytes
    is_kept: bool = False


class Program(Protocol):
    """A program, in the versions that it knows."""

    @property
    def number(self) -> int:
        """Of the program."""

    @property
    def versions(self) -> tuple[int, ...]:
        """That there are."""

    def answer(self, call: Call) -> Answer | None:
        """Do what is asked for; None: there is no such procedure."""


def read_record(connection: socket.socket) -> bytes | None:
    """
    Read a record; None: the other side has ended, or sends what is none.

    Raises
    ------
    OSError
        If the connection breaks.
    """
    parts: list[bytes] = []
    size = 0
    for _ in range(_MOST_FRAGMENTS):
        head = _read_exactly(connection, 4)
        if head is None:
            return None
        word = int.from_bytes(head, "big")
        size += word & ~_LAST_FRAGMENT
        part = _read_exactly(connection, word & ~_LAST_FRAGMENT) if size <= MOST_RECORD_BYTES else None
        if part is None:
            return None
        parts.append(part)
        if word & _LAST_FRAGMENT:
            return b"".join(parts)
    return None


def write_record(connection: socket.socket, record: bytes) -> None:
    """Send a record, as one fragment."""
    connection.sendall(encode_u32(len(record) | _LAST_FRAGMENT) + record)


def answer_record(record: bytes, programs: list[Program]) -> tuple[bytes, bool] | None:
    """
    Answer a record.

    Returns
    -------
    tuple or None
        The reply, and whether it is to be kept; None: it is no call, and nothing is to be said to it.
    """
    fields = Fields(record)
    try:
        xid, kind = fields.take_u32(), fields.take_u32()
        if kind != _CALL:
            return None
        head = encode_u32(xid) + encode_u32(_REPLY)
        if fields.take_u32() != _RPC_VERSION:
            return _deny(head, _RPC_MISMATCH, _RPC_VERSION, _RPC_VERSION), False
        program, version, procedure = fields.take_u32(), fields.take_u32(), fields.take_u32()
        flavor, _ = fields.take_u32(), fields.take_opaque(_MOST_AUTH_BYTES)
        fields.take_u32()
        fields.take_opaque(_MOST_AUTH_BYTES)
    except XdrError:
        return None
    if flavor not in {_AUTH_NONE, _AUTH_SYS}:
        return _deny(head, _AUTH_ERROR, _AUTH_TOOWEAK), False
    return _call(head, Call(xid, program, version, procedure, fields), programs)


def _call(head: bytes, call: Call, programs: list[Program]) -> tuple[bytes, bool]:
    found = next((one for one in programs if one.number == call.program), None)
    if found is None:
        return _accept(head, _PROG_UNAVAIL), False
    if call.version not in found.versions:
        bounds = encode_u32(min(found.versions)) + encode_u32(max(found.versions))
        return _accept(head, _PROG_MISMATCH, bounds), False
    if call.procedure == 0:
        # NULL does nothing, in every program (RFC 5531 §12.1).
        return _accept(head, _SUCCESS), False
    try:
        answer = found.answer(call)
    except (GarbageError, XdrError):
        return _accept(head, _GARBAGE_ARGS), False
    if answer is None:
        return _accept(head, _PROC_UNAVAIL), False
    return _accept(head, _SUCCESS, answer.body), answer.is_kept


def spell_system_error(record: bytes) -> bytes:
    """Tell that the server itself has failed."""
    return _accept(record[:4] + encode_u32(_REPLY), _SYSTEM_ERR)


def _accept(head: bytes, status: int, body: bytes = b"") -> bytes:
    return head + encode_u32(_ACCEPTED) + _NO_VERIFIER + encode_u32(status) + body


def _deny(head: bytes, status: int, *words: int) -> bytes:
    return head + encode_u32(_DENIED) + encode_u32(status) + b"".join(map(encode_u32, words))


def _read_exactly(connection: socket.socket, size_bytes: int) -> bytes | None:
    content = bytearray(size_bytes)
    view = memoryview(content)
    while view:
        got = connection.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return bytes(content)
