"""
What the server knows beyond a connection, in a file that all its processes share.

One request is done at a time, whichever process has it: so a request that a
client sends again on a new connection finds the first one done, and its answer
kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

__all__ = ["STORE_NAME", "Store"]

STORE_NAME = "store"
"""Of the file, in the server's own directory."""

_WAIT_S = 60.0
_KEPT_REPLIES = 256
_KEPT_BYTES = 1 << 13
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER, name BLOB, mode INTEGER, uid INTEGER DEFAULT 0,
    gid INTEGER DEFAULT 0, change INTEGER DEFAULT 1, verifier BLOB, UNIQUE (parent, name));
CREATE TABLE IF NOT EXISTS replies (id INTEGER PRIMARY KEY AUTOINCREMENT, request BLOB UNIQUE, reply BLOB);
CREATE TABLE IF NOT EXISTS clients (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner BLOB, verifier BLOB, confirmed INTEGER DEFAULT 0,
    sequence INTEGER DEFAULT 0, reply BLOB);
CREATE TABLE IF NOT EXISTS sessions (id BLOB PRIMARY KEY, client INTEGER, slots INTEGER);
CREATE TABLE IF NOT EXISTS slots (
    session BLOB, slot INTEGER, sequence INTEGER, reply BLOB, PRIMARY KEY (session, slot));
CREATE TABLE IF NOT EXISTS opens (
    id INTEGER PRIMARY KEY AUTOINCREMENT, client INTEGER, owner BLOB, file INTEGER, sequence INTEGER,
    UNIQUE (client, owner, file));
"""


class Store:
    """
    The file.

    Parameters
    ----------
    path : Path
        Is made if it is not there.

    Raises
    ------
    sqlite3.Error
        If it cannot be used; so do all methods.
    """

    def __init__(self, path: Path) -> None:
        self.rows = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        # It is for as long as the machine runs: it need not outlive this host.
        self.rows.execute("PRAGMA journal_mode=WAL")
        self.rows.execute("PRAGMA synchronous=OFF")
        with self.hold():
            for statement in _SCHEMA.split(";"):
                self.rows.execute(statement)
            self.rows.execute("INSERT OR IGNORE INTO facts VALUES ('instance', ?)", [os.urandom(8)])
        row = self.rows.execute("SELECT value FROM facts WHERE name = 'instance'").fetchone()
        self.instance: bytes = row[0]
        """Eight bytes that no other server has: of handles, and what tells that it was not started anew."""

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep all other processes out, and keep what is done in here, or nothing of it."""
        self.rows.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.rows.execute("ROLLBACK")
            raise
        self.rows.execute("COMMIT")

    def find_reply(self, request: bytes) -> bytes | None:
        """Find what was answered to the very same request."""
        row = self.rows.execute("SELECT reply FROM replies WHERE request = ?", [_digest(request)]).fetchone()
        return row[0] if row else None

    def keep_reply(self, request: bytes, reply: bytes) -> None:
        """Keep an answer; the oldest are forgotten."""
        if len(reply) > _KEPT_BYTES:
            return
        values = [_digest(request), reply]
        done = self.rows.execute("INSERT OR REPLACE INTO replies (request, reply) VALUES (?, ?)", values)
        self.rows.execute("DELETE FROM replies WHERE id <= ?", [(done.lastrowid or 0) - _KEPT_REPLIES])

    def close(self) -> None:
        """Close the file."""
        self.rows.close()


def _digest(request: bytes) -> bytes:
    return hashlib.sha256(request).digest()
