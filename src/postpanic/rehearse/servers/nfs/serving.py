"""
One connection of an NFS server: records in, replies out.

Every process has all programs; what it knows beyond the connection is in the
store, so that any other one can go on.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
from pathlib import Path

from postpanic.rehearse.servers.nfs.bootstrap import (
    MOUNT_PROGRAM,
    NFS_PROGRAM,
    MountProgram,
    PortProgram,
    split_path,
)
from postpanic.rehearse.servers.nfs.compound import Version4
from postpanic.rehearse.servers.nfs.rpc import (
    Answer,
    Call,
    Program,
    answer_record,
    read_record,
    spell_system_error,
    write_record,
)
from postpanic.rehearse.servers.nfs.store import STORE_NAME, Store
from postpanic.rehearse.servers.nfs.tree import Tree
from postpanic.rehearse.servers.nfs.v3 import Version3

__all__ = ["LOG_NAME", "NfsServer", "main"]

LOG_NAME = "server.log"


class NfsServer:
    """
    Answers records, one after the other.

    Parameters
    ----------
    directory : Path
        Of the server's own, where the store is.
    root : Path
        What clients of version 4 see as ``/``; the export is below it.
    ports : tuple of int
        Of NFS and of the mount service, as rpcbind tells them.
    room_bytes : int or None
        The most that it takes.
    """

    def __init__(
        self, directory: Path, root: Path, export: str, ports: tuple[int, int], room_bytes: int | None = None
    ) -> None:
        self._store = Store(directory / STORE_NAME)
        self._tree = Tree(root, split_path(export), self._store, room_bytes)
        nfs, mount = ports
        known = {(NFS_PROGRAM, 3): nfs, (NFS_PROGRAM, 4): nfs, (MOUNT_PROGRAM, 3): mount}
        nfs_program = _BothVersions(Version3(self._tree, self._store), Version4(self._tree, self._store))
        self._programs: list[Program] = [nfs_program, MountProgram(self._tree), PortProgram(known)]

    def answer(self, record: bytes) -> bytes | None:
        """Answer a record; None: it gets none."""
        try:
            with self._store.hold():
                kept = self._store.find_reply(record)
                if kept is not None:
                    return kept
                answer = answer_record(record, self._programs)
                if answer is None:
                    return None
                reply, is_kept = answer
                if is_kept:
                    self._store.keep_reply(record, reply)
                return reply
        except sqlite3.Error as exc:
            sys.stderr.write(f"the store cannot be used: {exc}\n")
            return spell_system_error(record)

    def close(self) -> None:
        """Let go."""
        self._tree.close()
        self._store.close()


class _BothVersions:
    """The one program that has two versions."""

    number = NFS_PROGRAM
    versions = (3, 4)

    def __init__(self, version3: Version3, version4: Version4) -> None:
        self._of: dict[int, Program] = {3: version3, 4: version4}

    def answer(self, call: Call) -> Answer | None:
        """Do one procedure of the version that is asked for."""
        return self._of[call.version].answer(call)


def serve(connection: socket.socket, server: NfsServer) -> None:
    """Serve a connection until it ends."""
    try:
        while (record := read_record(connection)) is not None:
            reply = server.answer(record)
            if reply is not None:
                write_record(connection, reply)
    except OSError as exc:
        sys.stderr.write(f"the connection broke: {exc.strerror}\n")


def main() -> None:
    """Serve standard input: ``… DIRECTORY ROOT EXPORT NFS_PORT MOUNT_PORT ROOM_BYTES|-``."""
    directory, root, export, nfs, mount, room = sys.argv[1:7]
    # Standard output and error are the connection too.
    connection = socket.socket(fileno=os.dup(0))
    log = os.open(Path(directory) / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd in (1, 2):
        os.dup2(log, fd)
    server = NfsServer(Path(directory), Path(root), export, (int(nfs), int(mount)), None if room == "-" else int(room))
    try:
        serve(connection, server)
    finally:
        server.close()
