"""
A server that keeps what is PUT, on the connection that it is started with.

Every object is a file named by a digest of its address, with the address beside
it: an address may be longer than a name can be, and its query belongs to it.

Sources: RFC 9110 (PUT, Content-Range), RFC 9112 (chunked transfer coding), RFC 9530 (Content-Digest).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import socket
import ssl
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

__all__ = ["ADDRESS_SUFFIX", "list_objects", "main"]

ADDRESS_SUFFIX = ".address"
_MOST_BYTES = 64 << 30
_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 300.0
_SPAN = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


def list_objects(directory: Path) -> dict[str, Path]:
    """List what was put: the path and query of each address, and where its content is."""
    return {
        path.read_text(): path.with_suffix("")
        for path in sorted(directory.glob(f"*{ADDRESS_SUFFIX}"))
        if path.is_file()
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    directory: Path
    room_bytes: int | None = None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's own name
        """Say nothing: standard output is the connection."""

    def do_HEAD(self) -> None:
        """Tell how long an object is."""
        place = self._find_place()
        self._answer(200 if place.exists() else 404, length=place.stat().st_size if place.exists() else 0)

    def do_PUT(self) -> None:
        """Keep an object, or a part of one."""
        place, span = self._find_place(), _SPAN.fullmatch(self.headers.get("Content-Range", ""))
        start = int(span[1]) if span and span[1] else 0
        have = place.stat().st_size if place.exists() else 0
        if start > have:
            self.close_connection = True
            self._answer(416)
            return
        part = place.with_suffix(".part")
        digest = hashlib.sha256()
        with part.open("wb") as stream:
            for data in _Body(self):
                if self.room_bytes is not None and self._used_bytes() + len(data) > self.room_bytes:
                    self.close_connection = True
                    part.unlink()
                    self._answer(507)
                    return
                digest.update(data)
                stream.write(data)
                stream.flush()
        wanted = self.headers.get("Content-Digest")
        if wanted is not None and wanted != f"sha-256=:{base64.b64encode(digest.digest()).decode()}:":
            part.unlink()
            self._answer(400)
            return
        place.with_suffix(ADDRESS_SUFFIX).write_text(self.path)
        if span is None:
            part.replace(place)
        else:
            with place.open("r+b" if place.exists() else "wb") as stream:
                stream.truncate(start)
                stream.seek(start)
                with part.open("rb") as source:
                    shutil.copyfileobj(source, stream)
            part.unlink()
        self._answer(201)

    def _find_place(self) -> Path:
        return self.directory / hashlib.sha256(self.path.encode(errors="surrogateescape")).hexdigest()

    def _used_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.iterdir() if path.suffix != ADDRESS_SUFFIX)

    def _answer(self, status: int, *, length: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()


class _Body:
    """The body of a request, in pieces."""

    def __init__(self, handler: _Handler) -> None:
        self._stream = handler.rfile
        self._is_chunked = handler.headers.get("Transfer-Encoding", "").lower() == "chunked"
        self._left = min(int(handler.headers.get("Content-Length", "0") or 0), _MOST_BYTES)

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        if self._is_chunked and not self._left:
            self._left = min(int(self._stream.readline(64).split(b";")[0] or b"0", 16), _MOST_BYTES)
            if not self._left:
                self._stream.readline(64)
                raise StopIteration
        data = self._stream.read(min(self._left, _CHUNK_BYTES)) if self._left else b""
        if not data:
            raise StopIteration
        self._left -= len(data)
        if self._is_chunked and not self._left:
            self._stream.readline(64)
        return data


def main() -> None:
    """Serve the connection that is standard input: ``… DIRECTORY ROOM_BYTES|- [CERTIFICATE_AND_KEY]``."""
    directory, room, certificate = Path(sys.argv[1]), sys.argv[2], sys.argv[3:4]
    connection = socket.socket(fileno=os.dup(0))
    connection.settimeout(_TIMEOUT_S)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate[0])
        connection = context.wrap_socket(connection, server_side=True)

    class Handler(_Handler):
        pass

    Handler.directory = directory
    Handler.room_bytes = None if room == "-" else int(room)
    try:
        Handler(connection, ("", 0), None)  # type: ignore[arg-type]
    except (OSError, ValueError):
        # Standard error is the connection too.
        return


if __name__ == "__main__":
    main()
