"""A server that keeps what is PUT, and fails in the ways that servers fail."""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Store:
    """
    Objects by path, and what goes wrong.

    Attributes
    ----------
    drop_after : callable or None
        Gives for each request the number of bytes after which the connection is cut, or None.
    answers : list of int
        Statuses of the next requests that are answered before their bodies are read.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.drop_after: Callable[[], int | None] = lambda: None
        self.drop_answer: Callable[[], bool] = lambda: False
        self.answers: list[tuple[int, str, dict[str, str]]] = []
        self.takes_chunks = True
        self.knows_ranges = True
        self.is_resumable = False
        self.delay_s = 0.0
        self.hangs = False
        self.connections = 0


class _DroppedError(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HttpServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def setup(self) -> None:
        super().setup()
        self.server.store.connections += 1

    def do_HEAD(self) -> None:
        store = self.server.store
        store.requests.append(("HEAD", self.path, dict(self.headers)))
        content = store.objects.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()

    def do_PUT(self) -> None:
        store = self.server.store
        store.requests.append(("PUT", self.path, dict(self.headers)))
        if store.answers:
            status, text, headers = store.answers.pop(0)
            self.answer_early(status, text, headers)
            return
        if self.headers.get("Transfer-Encoding") == "chunked" and not store.takes_chunks:
            self.answer_early(411, "<?xml version='1.0'?>\n<Error><Code>MissingContentLength</Code></Error>", {})
            return
        try:
            content = self.read_body()
        except _DroppedError:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.keep(content)

    def read_body(self) -> bytes:
        store = self.server.store
        limit = store.drop_after()
        content = b""
        while store.hangs:
            time.sleep(0.05)
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
                if limit is not None and len(content) >= limit:
                    raise _DroppedError
            self.rfile.readline()
            return content
        length = int(self.headers["Content-Length"])
        while len(content) < length:
            if limit is not None and len(content) >= limit:
                if self.headers.get("Content-Range"):
                    # Some servers keep what they got.
                    self.keep_range(content)
                raise _DroppedError
            time.sleep(store.delay_s)
            data = self.rfile.read(min(65536, length - len(content)))
            if not data:
                raise _DroppedError
            content += data
        return content

    def keep(self, content: bytes) -> None:
        store = self.server.store
        wanted = self.headers.get("Content-Digest")
        if wanted is not None and wanted != f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:":
            self.answer(400, "digest does not match")
            return
        headers: dict[str, str] = {}
        status = 201
        if self.headers.get("Content-Range") and store.knows_ranges:
            total = self.keep_range(content)
            if store.is_resumable and (total == "*" or int(total) > len(store.objects.get(self.path, b""))):
                status = 308
                have = len(store.objects.get(self.path, b""))
                headers = {"Range": f"bytes=0-{have - 1}"} if have else {}
        else:
            store.objects[self.path] = content
        if store.drop_answer():
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.answer(status, "", headers)

    def keep_range(self, content: bytes) -> str:
        span, _, total = self.headers["Content-Range"].removeprefix("bytes ").partition("/")
        if span != "*":
            start = int(span.partition("-")[0])
            have = self.server.store.objects.get(self.path, b"") if start else b""
            assert len(have) >= start
            self.server.store.objects[self.path] = have[:start] + content
        return total

    def answer_early(self, status: int, text: str, headers: dict[str, str]) -> None:
        """Answer before the body is read, and close: not at once, or the answer is lost with what was not read."""
        self.answer(status, text, {**headers, "Connection": "close"})
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(2)
        try:
            while self.connection.recv(65536):
                pass
        except OSError:
            return

    def answer(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = Store()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def handle_error(self, request: object, client_address: object) -> None:
        pass

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def drop_now_and_then(seed: int, share: float, up_to: int) -> Callable[[], int | None]:
    rng = random.Random(seed)
    return lambda: rng.randrange(up_to) if rng.random() < share else None
