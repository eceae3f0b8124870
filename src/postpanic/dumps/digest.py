"""
Digests of large files: SHA-256 of each chunk of 64 MiB, and one of them all.

``sha256`` of a whole file is the SHA-256 of the chunks' binary digests one
after the other, not of the file's bytes: a dump's beginning is written last,
and one long hash could not be computed on several threads.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from postpanic.errors import FileFaultError
from postpanic.units import MIB

__all__ = ["CHUNK_BYTES", "ChunkHashes", "FileDigest", "RangeReader", "digest_file"]

CHUNK_BYTES = 64 * MIB
_READ_BYTES = MIB
_MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size and SHA-256 of a file; ``sha256_chunks`` and ``sha256`` are empty where nobody hashed it."""

    size_bytes: int
    chunk_size_bytes: int = CHUNK_BYTES
    sha256_chunks: tuple[str, ...] = ()
    """Of each chunk, hexadecimal."""
    sha256: str = ""
    """SHA-256 of the chunks' digests (32 bytes each) one after the other, hexadecimal."""


RangeReader = Callable[[int, int], Iterable[bytes]]
"""Gives the bytes ``[start, end)`` of a file, in parts."""


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class ChunkHashes:
    """
    Hash a file while it is written.

    A chunk that is written once, from front to back, is hashed on the way; all
    others are read again by :meth:`finish`.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._done: dict[int, bytes] = {}
        self._running: dict[int, tuple[_Hash, int]] = {}
        self._spoiled: set[int] = set()

    def update(self, offset: int, view: memoryview) -> None:
        """Take note of bytes that were written."""
        while len(view):
            chunk, within = divmod(offset, self._chunk_bytes)
            part = view[: self._chunk_bytes - within]
            self._add(chunk, within, part)
            offset += len(part)
            view = view[len(part) :]

    def spoil(self, start: int, end: int) -> None:
        """Forget the chunks of a range of bytes, which now hold nobody knows what."""
        for chunk in range(start // self._chunk_bytes, -(-end // self._chunk_bytes)):
            self._done.pop(chunk, None)
            self._running.pop(chunk, None)
            self._spoiled.add(chunk)

    def finish(self, size_bytes: int, source: int | RangeReader | None) -> FileDigest:
        """
        Hash what is not hashed yet.

        Parameters
        ----------
        source : int, callable or None
            The file, open for reading, or what reads a range ``[start, end)`` of it; None where nothing can be amiss.

        Raises
        ------
        OSError
            If a chunk cannot be read back.
        """
        count = -(-size_bytes // self._chunk_bytes)
        digests: dict[int, bytes] = {}
        missing: list[int] = []
        for chunk in range(count):
            length = min(size_bytes - chunk * self._chunk_bytes, self._chunk_bytes)
            running = self._running.get(chunk)
            if running is not None and running[1] == length:
                digests[chunk] = running[0].digest()
            elif chunk in self._done and length == self._chunk_bytes:
                digests[chunk] = self._done[chunk]
            else:
                missing.append(chunk)
        if missing:
            if source is None:
                raise ValueError(f"{len(missing)} chunks were not written from front to back")
            if isinstance(source, int):
                digests |= _hash_chunks(source, missing, self._chunk_bytes, size_bytes)
            else:
                digests |= {chunk: self._hash_chunk(source, chunk, size_bytes) for chunk in missing}
        return _put_together([digests[chunk] for chunk in range(count)], size_bytes, self._chunk_bytes)

    def _hash_chunk(self, read: RangeReader, chunk: int, size_bytes: int) -> bytes:
        """Hash one chunk through a function that reads."""
        start = chunk * self._chunk_bytes
        end = min(start + self._chunk_bytes, size_bytes)
        digest = hashlib.sha256()
        for part in read(start, end):
            digest.update(part)
            start += len(part)
        if start != end:
            raise OSError(0, "the file ended while it was read")
        return digest.digest()

    def _add(self, chunk: int, within: int, part: memoryview) -> None:
        if chunk in self._spoiled:
            return
        state = self._running.get(chunk)
        if state is None and within == 0 and chunk not in self._done:
            state = hashlib.sha256(), 0
        if state is None or state[1] != within:
            self.spoil(chunk * self._chunk_bytes, (chunk + 1) * self._chunk_bytes)
            return
        state[0].update(part)
        reached = within + len(part)
        if reached == self._chunk_bytes:
            self._running.pop(chunk, None)
            self._done[chunk] = state[0].digest()
        else:
            self._running[chunk] = state[0], reached


def digest_file(
    path: Path, *, chunk_size_bytes: int = CHUNK_BYTES, progress: Callable[[int], None] | None = None
) -> FileDigest:
    """
    Compute the digest of a finished file, on several threads.

    Parameters
    ----------
    progress : callable, optional
        Is told, from any thread, how many bytes have been hashed since the last time.

    Raises
    ------
    FileFaultError
        If it cannot be read, or shrinks meanwhile.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            count = -(-size // chunk_size_bytes)
            digests = _hash_chunks(fd, list(range(count)), chunk_size_bytes, size, progress)
        finally:
            os.close(fd)
    except OSError as exc:
        raise FileFaultError(f"cannot read: {(exc.strerror or str(exc)).lower()}", where=str(path)) from exc
    return _put_together([digests[chunk] for chunk in range(count)], size, chunk_size_bytes)


def _put_together(digests: list[bytes], size_bytes: int, chunk_bytes: int) -> FileDigest:
    whole = hashlib.sha256(b"".join(digests)).hexdigest()
    return FileDigest(size_bytes, chunk_bytes, tuple(digest.hex() for digest in digests), whole)


def _hash_chunks(
    fd: int, chunks: list[int], chunk_bytes: int, size_bytes: int, progress: Callable[[int], None] | None = None
) -> dict[int, bytes]:
    """Read and hash chunks of a file, each thread taking the next one that is left."""
    digests: dict[int, bytes] = {}
    errors: list[OSError] = []
    upcoming = iter(chunks)
    lock = threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(min(_READ_BYTES, max(size_bytes, 1))))
        while not errors:
            with lock:
                chunk = next(upcoming, None)
            if chunk is None:
                return
            start = chunk * chunk_bytes
            try:
                digest = hashlib.sha256()
                for part in _read_parts(fd, start, min(start + chunk_bytes, size_bytes), buffer):
                    digest.update(part)
                    if progress is not None:
                        progress(len(part))
                digests[chunk] = digest.digest()
            except OSError as exc:
                errors.append(exc)

    count = min(len(chunks), len(os.sched_getaffinity(0)), _MAX_THREADS)
    workers = [threading.Thread(target=work, name=f"digest-{number}", daemon=True) for number in range(1, count)]
    for worker in workers:
        worker.start()
    work()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return digests


def _read_parts(fd: int, start: int, end: int, buffer: memoryview) -> Iterator[memoryview]:
    """Read a range of a file through one buffer."""
    while start < end:
        got = os.preadv(fd, [buffer[: end - start]], start)
        if got == 0:
            raise OSError(0, "the file ended while it was read")
        yield buffer[:got]
        start += got
