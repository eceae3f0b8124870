"""Turn a flattened stream into the file that it carries, as it comes in: nothing is kept in memory."""

from __future__ import annotations

import os

from postpanic.dumps.flattened.layout import FLAT_HEADER_BYTES, FLAT_SIGNATURE, RECORD, check_flat_header
from postpanic.dumps.writing import ByteSink
from postpanic.errors import CorruptError, FileFaultError, NotADumpError, TruncatedError
from postpanic.units import MIB

__all__ = ["rearrange_stream"]

_BLOCK_BYTES = MIB
_OFFSET_LIMIT = 1 << 62
_END_MARK = -1


def rearrange_stream(fd: int, sink: ByteSink, *, name: str = "standard input") -> int:
    """
    Read a flattened stream to its end record and write the file.

    What came before a fault is written: a dump that was cut is worth having.

    Parameters
    ----------
    fd : int
        A pipe, or anything else that can be read from front to back.

    Returns
    -------
    int
        Bytes of data that the records had.

    Raises
    ------
    NotADumpError
        If it is no flattened stream.
    TruncatedError
        If it ends before its end record.
    CorruptError
        If a record makes no sense.
    OutputError
        As the sink raises it.
    """
    stream = _Stream(fd, name)
    head = stream.read_up_to(FLAT_HEADER_BYTES)
    if not head.startswith(FLAT_SIGNATURE):
        raise NotADumpError("not a flattened stream", where=name, hint="-F of filter and makedumpfile writes one")
    check_flat_header(head, where=name)
    if len(head) < FLAT_HEADER_BYTES:
        raise TruncatedError(f"{len(head)} bytes of flattened header, {FLAT_HEADER_BYTES} are needed", where=name)
    total = 0
    while True:
        place = stream.position
        raw = stream.read_up_to(RECORD.size)
        if len(raw) < RECORD.size:
            raise TruncatedError("the stream has no end record", where=f"{name}+{place:#x}")
        offset, size = RECORD.unpack(raw)
        if offset == size == _END_MARK:
            return total
        if not 0 <= offset < _OFFSET_LIMIT or not 0 <= size < _OFFSET_LIMIT:
            raise CorruptError(f"a record of {size} bytes for offset {offset:#x}", where=f"{name}+{place:#x}")
        while size:
            block = stream.read_up_to(min(size, _BLOCK_BYTES))
            if not block:
                raise TruncatedError(f"the stream ends {size} bytes before its record does", where=f"{name}+{place:#x}")
            sink.write_at(offset, [block])
            offset += len(block)
            size -= len(block)
            total += len(block)


class _Stream:
    """A descriptor that is read from front to back."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self.position = 0

    def read_up_to(self, size_bytes: int) -> bytes:
        """Read so many bytes, fewer at the end only."""
        parts: list[bytes] = []
        while size_bytes:
            try:
                part = os.read(self._fd, size_bytes)
            except OSError as exc:
                raise FileFaultError(f"cannot read: {(exc.strerror or str(exc)).lower()}", where=self._name) from exc
            if not part:
                break
            parts.append(part)
            size_bytes -= len(part)
            self.position += len(part)
        return b"".join(parts)
