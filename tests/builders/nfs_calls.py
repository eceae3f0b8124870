"""
Requests of a client of NFS, and the fields of what comes back, from Python values.

Written from the specifications: RFC 4506 (XDR), RFC 5531 (calls, record marking), RFC 1813 (version 3 and the mount
protocol), RFC 1833 (rpcbind), RFC 7531, 5662 and 7863 (version 4).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["Answered", "Compound", "call", "decode_reply", "frame", "handle", "opaque", "u32", "u64"]

PORTMAP, NFS, MOUNT = 100000, 100003, 100005
NO_AUTH = struct.pack(">II", 0, 0)
ROOT_AUTH = struct.pack(">II", 1, 24) + struct.pack(">II", 0, 4) + b"test" + struct.pack(">III", 0, 0, 0)
ANY_STATEID = bytes(16)


def u32(*values: int) -> bytes:
    return b"".join(struct.pack(">I", value) for value in values)


def u64(*values: int) -> bytes:
    return b"".join(struct.pack(">Q", value) for value in values)


def opaque(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content + bytes(-len(content) % 4)


handle = opaque


def call(
    program: int, version: int, procedure: int, body: bytes = b"", *, xid: int = 7, auth: bytes = ROOT_AUTH
) -> bytes:
    """Make a call, without its record mark."""
    return u32(xid, 0, 2, program, version, procedure) + auth + NO_AUTH + body


def frame(record: bytes, size: int = 0) -> bytes:
    """Mark a record, in fragments of this size; 0: in one."""
    pieces = [record[place : place + size] for place in range(0, len(record), size)] if size else [record]
    last = len(pieces) - 1
    return b"".join(
        u32(len(piece) | (0x80000000 if place == last else 0)) + piece for place, piece in enumerate(pieces)
    )


@dataclass
class Answered:
    """What is left of a reply."""

    body: bytes

    def u32(self) -> int:
        return self._number(">I", 4)

    def u64(self) -> int:
        return self._number(">Q", 8)

    def fixed(self, size: int) -> bytes:
        found, self.body = self.body[:size], self.body[size + -size % 4 :]
        assert len(found) == size
        return found

    def opaque(self) -> bytes:
        return self.fixed(self.u32())

    def _number(self, form: str, size: int) -> int:
        number: int = struct.unpack(form, self.body[:size])[0]
        self.body = self.body[size:]
        return number


def decode_reply(record: bytes, xid: int = 7) -> tuple[int, Answered]:
    """Give ``accept_stat`` of a reply, 100 and ``reject_stat`` of one that is denied, and what is behind it."""
    found = Answered(record)
    assert (found.u32(), found.u32()) == (xid, 1)
    if found.u32():
        return 100 + found.u32(), found
    assert (found.u32(), found.opaque()) == (0, b"")
    return found.u32(), found


class Compound:
    """
    A request of version 4.

    ::

        Compound(1).sequence(session, 1, 0).op(24).op(10).call()
    """

    def __init__(self, minor: int) -> None:
        self.minor = minor
        self.operations: list[bytes] = []

    def op(self, number: int, body: bytes = b"") -> Compound:
        self.operations.append(u32(number) + body)
        return self

    def sequence(self, session: bytes, sequence: int, slot: int = 0, *, cached: bool = True) -> Compound:
        return self.op(53, session + u32(sequence, slot, slot, int(cached)))

    def open(
        self, name: bytes, *, client: int = 0, owner: bytes = b"owner", how: bytes | None = None, access: int = 3
    ) -> Compound:
        """Open a name; *how*: ``createhow4`` of a file that is made."""
        kind = u32(0) if how is None else u32(1) + how
        return self.op(18, u32(0, access, 0) + u64(client) + opaque(owner) + kind + u32(0) + opaque(name))

    def body(self, tag: bytes = b"") -> bytes:
        return opaque(tag) + u32(self.minor, len(self.operations)) + b"".join(self.operations)

    def call(self, xid: int = 7) -> bytes:
        return call(NFS, 4, 1, self.body(), xid=xid)


def exchange_id(owner: bytes = b"me", verifier: bytes = b"boot-one") -> Compound:
    return Compound(1).op(42, verifier + opaque(owner) + u32(0, 0, 0))


def create_session(client: int, sequence: int, *, slots: int = 8) -> Compound:
    channel = u32(0, 1 << 20, 1 << 20, 4096, 8, slots, 0)
    return Compound(1).op(43, u64(client) + u32(sequence, 0) + channel * 2 + u32(0x40000000, 1, 0))


def setclientid(owner: bytes = b"me", verifier: bytes = b"boot-one") -> Compound:
    return Compound(0).op(35, verifier + opaque(owner) + u32(0x40000000) + opaque(b"tcp") + opaque(b"") + u32(0))
