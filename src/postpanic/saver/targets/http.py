"""
A place that takes HTTP PUT: a server, or object storage.

HTTP cannot write in the middle of what is there, so the dump goes as a
flattened stream (``vmcore.flat``), which carries its places with it, and ends
with a mark: one without it is incomplete.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.digest import FileDigest
from postpanic.dumps.flattened.layout import RECORD
from postpanic.dumps.flattened.writer import FlattenedSink
from postpanic.dumps.sink import Sink
from postpanic.errors import OutputError
from postpanic.saver.plan import HttpPlan
from postpanic.saver.targets.http_address import HttpAddress, parse_address, quote_segment
from postpanic.saver.targets.http_outputs import Output, PartsOutput, RangeOutput, WholeOutput
from postpanic.saver.targets.http_requests import HttpRequests

__all__ = ["HttpSink", "HttpTarget"]

_STREAM_SUFFIX = ".flat"
_NAME_FIELD, _FILE_FIELD = "{name}", "{file}"
_SLACK_BYTES = 64 << 10
"""By which a stream whose length was counted may differ the second time; it is filled up."""
_FILLER_BYTES = 512


class HttpTarget:
    """A target that is written to by PUT."""

    def __init__(self, plan: HttpPlan) -> None:
        self._plan = plan
        self.name = plan.name or f"http {plan.url.partition('?')[0].rpartition('@')[2]}"
        self._requests: HttpRequests | None = None
        self._dump_name = ""
        self._dump_file = ""
        self._output: Output | None = None
        self._counted_bytes: int | None = None

    @property
    def takes_small_files(self) -> bool:
        """Whether there is a place for the log and the manifest: not where the address is of one object."""
        return _FILE_FIELD in self._plan.url

    def open(self, dump_name: str) -> None:
        """Look at the address; the server is spoken to when there is something to put."""
        self.close()
        for name, value in self._plan.headers:
            if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()) or " " in name:
                raise OutputError(f"the header {name[:40]!r} has characters that no header may have", where=self.name)
        if not self.takes_small_files and self._plan.mode == "parts":
            message = "the address must have {file} in it: parts are objects of their own"
            raise OutputError(message, where=self.name, hint="mode whole or range puts one object")
        self._dump_name = dump_name
        plan = self._plan
        self._requests = HttpRequests(
            self._address(""), headers=plan.headers, name=self.name, timeout_s=plan.timeout_s, ca_file=plan.ca_file
        )

    @property
    def place(self) -> str:
        """The address of the stream, without what is secret."""
        if not self._dump_name:
            return ""
        several = ".*" if self._plan.mode == "parts" and self._dump_file else ""
        return f"{self._address(self._dump_file)}{several}"

    def put(self, name: str, content: bytes) -> None:
        """Put a small file as an object; where the address is of one object, there is no place for it."""
        requests = self._get_requests()
        if self.takes_small_files:
            requests.put(self._address(name), memoryview(content))

    def open_dump(self, name: str) -> Sink:
        """Start the stream."""
        if self._output is not None:
            self._output.abort()
        self._learn()
        requests, plan = self._get_requests(), self._plan
        self._dump_file = f"{name}{_STREAM_SUFFIX}"
        address = self._address(self._dump_file)
        part_bytes = max(plan.part_bytes, 1 << 16)
        if plan.mode == "parts":
            self._output = PartsOutput(requests, self._address, self._dump_file, part_bytes)
        elif plan.mode == "range":
            self._output = RangeOutput(requests, address, self._dump_file, part_bytes)
        else:
            self._output = WholeOutput(requests, address, self._dump_file, self._counted_bytes)
        return HttpSink(self._output, self.name, fill_up_to=self._counted_bytes)

    @property
    def dump_files(self) -> tuple[str, ...]:
        """Names of the objects that make up the stream."""
        return self._output.names if self._output is not None else ()

    def read_back(self) -> str | None:
        """Nothing is read back."""
        return None

    def room_bytes(self) -> int | None:
        """Nobody tells."""
        return None

    def commit(self) -> None:
        """Do nothing: each object has been there whole or not at all."""

    def rotate(self) -> list[str]:
        """Delete nothing: that is the server's business, which may know how long objects live."""
        return []

    def close(self) -> None:
        """Let the connection go."""
        requests, self._requests = self._requests, None
        self._learn()
        if requests is not None:
            requests.close()

    def _learn(self) -> None:
        """Take from the last attempt how long the stream is, if the server wants to know."""
        output, self._output = self._output, None
        if isinstance(output, WholeOutput) and output.needs_length:
            self._counted_bytes = output.sent_bytes + _SLACK_BYTES

    def _get_requests(self) -> HttpRequests:
        if self._requests is None:
            raise OutputError("is not open", where=self.name)
        return self._requests

    def _address(self, file: str) -> HttpAddress:
        url = self._plan.url.replace(_NAME_FIELD, quote_segment(self._dump_name))
        return parse_address(url.replace(_FILE_FIELD, quote_segment(file)), self.name)


class HttpSink:
    """
    The flattened stream of a dump.

    Parameters
    ----------
    fill_up_to : int or None
        Length that was announced; what is missing at the end is filled up with records that say what was said before.
    """

    is_stream = True

    def __init__(self, output: Output, name: str, *, fill_up_to: int | None = None) -> None:
        self.name = name
        self._output = output
        self._fill_up_to = fill_up_to
        self._sent = 0
        self._beginning = b""
        self._stream = FlattenedSink(self._send, name)
        self._is_finished = False

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        """Send bytes as one record."""
        if offset == 0 and parts:
            self._beginning = bytes(memoryview(parts[0])[:_FILLER_BYTES])
        self._stream.write_at(offset, parts)

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """Send rows of a table."""
        self._stream.write_rows(table_offset, numbers, rows)

    def reserve(self, size_bytes: int) -> None:
        """Set the first bytes aside."""
        self._stream.reserve(size_bytes)

    def extend(self, size_bytes: int) -> None:
        """Make the file at least so long."""
        self._stream.extend(size_bytes)

    def flush(self) -> None:
        """Do nothing: an object is there when it is there as a whole."""

    def finish(self) -> FileDigest:
        """Send the end, and see that the server has everything."""
        self._stream.send_gaps()
        self._fill()
        digest = self._stream.finish()
        self._output.finish()
        self._is_finished = True
        return digest

    def close(self) -> None:
        """Leave an unfinished stream as it is."""
        if not self._is_finished:
            self._output.abort()

    def _send(self, views: list[memoryview]) -> None:
        self._output.write(views)
        self._sent += sum(len(view) for view in views)

    def _fill(self) -> None:
        """Send records that change nothing, until the length is what was announced, but for the end record."""
        if self._fill_up_to is None:
            return
        missing = self._fill_up_to - RECORD.size - self._sent
        smallest = RECORD.size + 1
        while missing >= smallest and self._beginning:
            size = min(missing, RECORD.size + len(self._beginning))
            if 0 < missing - size < smallest:
                size = missing - smallest
            self._stream.write_at(0, [self._beginning[: size - RECORD.size]])
            missing -= size
        if missing:
            raise OutputError(
                f"the stream has another length than was counted: {missing} bytes are missing", where=self.name
            )
