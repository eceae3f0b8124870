"""
Version 4: clients, their sessions, and what they have open.

There is one client, and nothing that two could quarrel about: who asks gets it.
What has to be right is what a client checks, and that a request which comes
again on a new connection is not done again.

Sources: RFC 7530 §9.1 (client IDs, stateids), RFC 8881 §2.10.6 (slots and replies), §18.35 to §18.51.
"""

from __future__ import annotations

import os
from typing import Any

from postpanic.rehearse.servers.nfs.operations import MOST_OPERATIONS, Handler, Operation, Request
from postpanic.rehearse.servers.nfs.rpc import MOST_RECORD_BYTES
from postpanic.rehearse.servers.nfs.status import NfsError, Status
from postpanic.rehearse.servers.nfs.store import Store
from postpanic.rehearse.servers.nfs.xdr import NO, Fields, encode_opaque, encode_u32, encode_u64

__all__ = ["Clients"]

_VERIFIER_BYTES = 8
"""``NFS4_VERIFIER_SIZE``, RFC 7530 §1.4.2."""
_SESSION_BYTES = 16
"""``NFS4_SESSIONID_SIZE``, RFC 8881 §3.1."""
_MOST_OWNER_BYTES = 1024
"""``NFS4_OPAQUE_LIMIT``, RFC 8881 §3.1."""
_MOST_AUTH_BYTES = 400
_MOST_GROUPS = 16
_MOST_CLIENTS = _MOST_SESSIONS = 64
_MOST_OPENS = 10_000
_MOST_SLOTS = 64
_MOST_CACHED_BYTES = 1 << 13
_MOST_LISTED = 1024
_USE_NON_PNFS, _CONFIRMED = 0x00010000, 0x80000000
"""``EXCHGID4_FLAG_…``, RFC 8881 §18.35."""
_SP4_NONE = 0
"""``state_protect_how4``, RFC 8881 §18.35."""
_FORE = 1
"""``CDFS4_FORE``, RFC 8881 §18.34."""
_CLOSED = encode_u32(0xFFFFFFFF) + bytes(12)
"""A stateid that is none any more, RFC 8881 §18.2.4."""


class Clients:
    """Keeps account of them in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows = store.rows
        self.handlers: dict[int, Handler] = {
            Operation.SETCLIENTID: self._setclientid,
            Operation.SETCLIENTID_CONFIRM: self._confirm,
            Operation.RENEW: self._renew,
            Operation.RELEASE_LOCKOWNER: lambda *_: b"",
            Operation.EXCHANGE_ID: self._exchange_id,
            Operation.CREATE_SESSION: self._create_session,
            Operation.BIND_CONN_TO_SESSION: self._bind,
            Operation.DESTROY_SESSION: self._destroy_session,
            Operation.DESTROY_CLIENTID: self._destroy_client,
            Operation.RECLAIM_COMPLETE: lambda *_: b"",
            Operation.SEQUENCE: self._sequence,
            Operation.FREE_STATEID: lambda *_: b"",
            Operation.TEST_STATEID: self._test_stateids,
        }

    def open(self, request: Request, client: int, owner: bytes, file: int) -> bytes:
        """Give the stateid of an open file; the same owner has one of each file, whose number grows."""
        if request.minor == 0:
            self._find_client(client)
        else:
            client = request.client
        key = [client, owner, file]
        (count,) = self._rows.execute("SELECT COUNT(*) FROM opens").fetchone()
        if count >= _MOST_OPENS:
            raise NfsError(Status.RESOURCE)
        self._rows.execute(
            "INSERT INTO opens (client, owner, file, sequence) VALUES (?, ?, ?, 1)"
            " ON CONFLICT DO UPDATE SET sequence = sequence + 1",
            key,
        )
        row = self._rows.execute("SELECT sequence, id FROM opens WHERE client = ? AND owner = ? AND file = ?", key)
        return self._spell_stateid(*row.fetchone())

    def downgrade(self, stateid: bytes) -> bytes:
        """Give the next stateid of what stays open."""
        sequence, number = self._find_open(stateid)
        self._rows.execute("UPDATE opens SET sequence = ? WHERE id = ?", [sequence + 1, number])
        return self._spell_stateid(sequence + 1, number)

    def close(self, request: Request, stateid: bytes) -> bytes:
        """Forget an open file."""
        sequence, number = self._find_open(stateid)
        self._rows.execute("DELETE FROM opens WHERE id = ?", [number])
        return _CLOSED if request.minor else self._spell_stateid(sequence + 1, number)

    def keep(self, request: Request, reply: bytes) -> None:
        """Keep the answer of a slot, which is all that there is to be kept of it."""
        if request.slot is None:
            return
        kept = reply if len(reply) <= _MOST_CACHED_BYTES else None
        session, slot, _ = request.slot
        self._rows.execute("UPDATE slots SET reply = ? WHERE session = ? AND slot = ?", [kept, session, slot])

    def _spell_stateid(self, sequence: int, number: int) -> bytes:
        return encode_u32(sequence & 0xFFFFFFFF) + self._store.instance[:4] + encode_u64(number)

    def _find_open(self, stateid: bytes) -> tuple[int, int]:
        number = int.from_bytes(stateid[8:], "big")
        if stateid[4:8] != self._store.instance[:4] or number >> 63:
            raise NfsError(Status.BAD_STATEID)
        row: tuple[int, int] | None
        row = self._rows.execute("SELECT sequence, id FROM opens WHERE id = ?", [number]).fetchone()
        if row is None:
            raise NfsError(Status.BAD_STATEID)
        return row

    def _find_client(self, number: int) -> Any:  # noqa: ANN401 - a row of the table
        row = None
        if not number >> 63:
            query = "SELECT id, verifier, confirmed, sequence, reply FROM clients WHERE id = ?"
            row = self._rows.execute(query, [number]).fetchone()
        if row is None:
            raise NfsError(Status.STALE_CLIENTID)
        return row

    def _admit(self, owner: bytes, verifier: bytes) -> int:
        """Make a client known; the oldest of too many are forgotten."""
        done = self._rows.execute("INSERT INTO clients (owner, verifier) VALUES (?, ?)", [owner, verifier])
        number = done.lastrowid or 0
        for (old,) in self._rows.execute("SELECT id FROM clients WHERE id <= ?", [number - _MOST_CLIENTS]).fetchall():
            self._forget(old)
        return number

    def _forget(self, client: int) -> None:
        self._rows.execute("DELETE FROM slots WHERE session IN (SELECT id FROM sessions WHERE client = ?)", [client])
        self._rows.execute("DELETE FROM sessions WHERE client = ?", [client])
        self._rows.execute("DELETE FROM opens WHERE client = ?", [client])
        self._rows.execute("DELETE FROM clients WHERE id = ?", [client])

    def _setclientid(self, _: Request, fields: Fields) -> bytes:
        verifier, owner = fields.take_fixed(_VERIFIER_BYTES), fields.take_opaque(_MOST_OWNER_BYTES)
        fields.take_u32()
        for _name in ("netid", "address"):
            fields.take_opaque(_MOST_OWNER_BYTES)
        fields.take_u32()
        query = "SELECT id FROM clients WHERE owner = ? AND verifier = ? AND confirmed"
        row = self._rows.execute(query, [owner, verifier]).fetchone()
        number = row[0] if row else self._admit(owner, verifier)
        return encode_u64(number) + self._spell_verifier(number)

    def _spell_verifier(self, client: int) -> bytes:
        return encode_u64(client ^ int.from_bytes(self._store.instance, "big"))

    def _confirm(self, _: Request, fields: Fields) -> bytes:
        number, verifier = fields.take_u64(), fields.take_fixed(_VERIFIER_BYTES)
        self._find_client(number)
        if verifier != self._spell_verifier(number):
            raise NfsError(Status.STALE_CLIENTID)
        self._confirm_client(number)
        return b""

    def _confirm_client(self, number: int) -> None:
        """Forget what the client was before it was started anew."""
        query = "SELECT id FROM clients WHERE id != ? AND owner = (SELECT owner FROM clients WHERE id = ?)"
        for (old,) in self._rows.execute(query, [number, number]).fetchall():
            self._forget(old)
        self._rows.execute("UPDATE clients SET confirmed = 1 WHERE id = ?", [number])

    def _renew(self, _: Request, fields: Fields) -> bytes:
        self._find_client(fields.take_u64())
        return b""

    def _exchange_id(self, _: Request, fields: Fields) -> bytes:
        verifier, owner = fields.take_fixed(_VERIFIER_BYTES), fields.take_opaque(_MOST_OWNER_BYTES)
        fields.take_u32()
        if fields.take_u32() != _SP4_NONE:
            raise NfsError(Status.INVAL)
        query = "SELECT id, confirmed, sequence FROM clients WHERE owner = ? AND verifier = ? ORDER BY id DESC"
        row = self._rows.execute(query, [owner, verifier]).fetchone()
        number, is_confirmed, sequence = row or (self._admit(owner, verifier), 0, 0)
        body = encode_u64(number) + encode_u32(sequence + 1 & 0xFFFFFFFF)
        body += encode_u32(_USE_NON_PNFS | (_CONFIRMED if is_confirmed else 0)) + encode_u32(_SP4_NONE)
        return body + encode_u64(0) + encode_opaque(self._store.instance) * 2 + encode_u32(0)

    def _create_session(self, _: Request, fields: Fields) -> bytes:
        number, sequence = fields.take_u64(), fields.take_u32()
        fields.take_u32()
        fore, back = _take_channel(fields), _take_channel(fields)
        _skip_callback_security(fields)
        _, _, _, last, reply = self._find_client(number)
        if sequence == last and reply is not None:
            return bytes(reply)
        if sequence != last + 1 & 0xFFFFFFFF:
            raise NfsError(Status.SEQ_MISORDERED)
        session = os.urandom(_SESSION_BYTES)
        slots = max(min(fore[5], _MOST_SLOTS), 1)
        granted = (
            0,
            min(fore[1], MOST_RECORD_BYTES),
            min(fore[2], MOST_RECORD_BYTES),
            min(fore[3], _MOST_CACHED_BYTES),
            min(fore[4], MOST_OPERATIONS),
            slots,
        )
        self._rows.execute("INSERT INTO sessions VALUES (?, ?, ?)", [session, number, slots])
        (count,) = self._rows.execute("SELECT COUNT(*) FROM sessions").fetchone()
        for (old,) in self._rows.execute(
            "SELECT id FROM sessions ORDER BY rowid LIMIT ?", [max(count - _MOST_SESSIONS, 0)]
        ).fetchall():
            self._drop_session(old)
        body = session + encode_u32(sequence) + encode_u32(0)
        body += _encode_channel(granted) + _encode_channel(back)
        self._rows.execute("UPDATE clients SET sequence = ?, reply = ? WHERE id = ?", [sequence, body, number])
        self._confirm_client(number)
        return body

    def _find_session(self, session: bytes) -> tuple[int, int]:
        row: tuple[int, int] | None
        row = self._rows.execute("SELECT client, slots FROM sessions WHERE id = ?", [session]).fetchone()
        if row is None:
            raise NfsError(Status.BADSESSION)
        return row

    def _drop_session(self, session: bytes) -> None:
        self._rows.execute("DELETE FROM slots WHERE session = ?", [session])
        self._rows.execute("DELETE FROM sessions WHERE id = ?", [session])

    def _bind(self, _: Request, fields: Fields) -> bytes:
        session = fields.take_fixed(_SESSION_BYTES)
        fields.take_u32()
        fields.take_bool()
        self._find_session(session)
        return session + encode_u32(_FORE) + NO

    def _destroy_session(self, _: Request, fields: Fields) -> bytes:
        session = fields.take_fixed(_SESSION_BYTES)
        self._find_session(session)
        self._drop_session(session)
        return b""

    def _destroy_client(self, _: Request, fields: Fields) -> bytes:
        number = fields.take_u64()
        self._find_client(number)
        if self._rows.execute("SELECT 1 FROM sessions WHERE client = ?", [number]).fetchone():
            raise NfsError(Status.CLIENTID_BUSY)
        self._forget(number)
        return b""

    def _sequence(self, request: Request, fields: Fields) -> bytes:
        """Take a slot, or find that the request has been answered (RFC 8881 §2.10.6.1)."""
        if request.place:
            raise NfsError(Status.SEQUENCE_POS)
        session, sequence = fields.take_fixed(_SESSION_BYTES), fields.take_u32()
        slot, _highest = fields.take_u32(), fields.take_u32()
        fields.take_bool()
        client, slots = self._find_session(session)
        if slot >= slots:
            raise NfsError(Status.BADSLOT)
        row = self._rows.execute(
            "SELECT sequence, reply FROM slots WHERE session = ? AND slot = ?", [session, slot]
        ).fetchone()
        last, reply = row or (0, None)
        if row is not None and sequence == last:
            if reply is None:
                raise NfsError(Status.RETRY_UNCACHED_REP)
            request.replay = reply
            return b""
        if sequence != last + 1 & 0xFFFFFFFF:
            raise NfsError(Status.SEQ_MISORDERED)
        self._rows.execute("INSERT OR REPLACE INTO slots VALUES (?, ?, ?, NULL)", [session, slot, sequence])
        request.client, request.slot = client, (session, slot, sequence)
        numbers = (sequence, slot, slots - 1, slots - 1, 0)
        return session + b"".join(map(encode_u32, numbers))

    def _test_stateids(self, _: Request, fields: Fields) -> bytes:
        count = fields.take_u32()
        if count > _MOST_LISTED:
            raise NfsError(Status.RESOURCE)
        found: list[int] = []
        for _number in range(count):
            try:
                self._find_open(fields.take_fixed(16))
                found.append(Status.OK)
            except NfsError as exc:
                found.append(exc.status)
        return encode_u32(count) + b"".join(map(encode_u32, found))


def _take_channel(fields: Fields) -> tuple[int, ...]:
    """Take ``channel_attrs4`` (RFC 8881 §18.36)."""
    numbers = tuple(fields.take_u32() for _ in range(6))
    if fields.take_u32():
        fields.take_u32()
    return numbers


def _encode_channel(numbers: tuple[int, ...]) -> bytes:
    return b"".join(map(encode_u32, numbers)) + encode_u32(0)


def _skip_callback_security(fields: Fields) -> None:
    """Skip ``cb_program`` and ``callback_sec_parms4`` (RFC 8881 §18.33): nobody is called back."""
    fields.take_u32()
    count = fields.take_u32()
    if count > _MOST_GROUPS:
        raise NfsError(Status.BADXDR)
    for _ in range(count):
        flavor = fields.take_u32()
        if flavor == 1:
            fields.take_u32()
            fields.take_opaque(_MOST_AUTH_BYTES)
            fields.take_u64()
            for _group in range(min(fields.take_u32(), _MOST_GROUPS)):
                fields.take_u32()
        elif flavor:
            raise NfsError(Status.INVAL)
