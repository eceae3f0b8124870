"""The client of SFTP against servers that nobody should run: all that they send ends in one error, soon."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postpanic.errors import OutputError
from postpanic.saver.targets.sftp import SftpClient
from postpanic.saver.targets.sftp_connection import SftpConnection, SftpStatusError
from postpanic.saver.targets.sftp_wire import Fields, Packet, Status

Answer = Callable[[int, int, bytes], bytes]
HELLO = struct.pack(">IBI", 5, Packet.VERSION, 3)


def packet(kind: int, number: int, body: bytes = b"") -> bytes:
    return struct.pack(">IBI", 5 + len(body), kind, number) + body


def string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def status(number: int, code: int, words: bytes = b"") -> bytes:
    return packet(Packet.STATUS, number, struct.pack(">I", code) + string(words) + string(b""))


class Server:
    """A server on two pipes, whose answers a function gives."""

    def __init__(self, hello: bytes, answer: Answer) -> None:
        self.to_client, self.client_in = os.pipe()[::-1]
        self.from_client, self.client_out = os.pipe()
        self._hello, self._answer = hello, answer
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def connect(self, timeout_s: float = 5.0) -> SftpClient:
        connection = SftpConnection(
            self.client_in,
            self.client_out,
            name="server",
            timeout_s=timeout_s,
            explain=lambda: OutputError("the connection is lost", where="server"),
        )
        connection.shake_hands()
        return SftpClient(connection)

    def close(self) -> None:
        os.close(self.client_out)
        self._thread.join(5)
        assert not self._thread.is_alive()
        os.close(self.client_in)
        os.close(self.from_client)

    def _run(self) -> None:
        with suppress(OSError), open(self.from_client, "rb", closefd=False) as stream:
            stream.read(9)
            os.write(self.to_client, self._hello)
            while len(head := stream.read(9)) == 9:
                length, kind, number = struct.unpack(">IBI", head)
                os.write(self.to_client, self._answer(kind, number, stream.read(length - 5)))
        os.close(self.to_client)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Answer = lambda _kind, number, _body: status(number, Status.OK), hello: bytes = HELLO) -> Server:
        servers.append(Server(hello, answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("hello", "wanted"),
    [
        (b"Welcome to this machine\r\n", "does not speak SFTP: 'Welcome"),
        (struct.pack(">IBI", 5, Packet.VERSION, 2), "does not speak SFTP version 3"),
        (struct.pack(">IBI", 5, Packet.STATUS, 3), "does not speak SFTP version 3"),
        (struct.pack(">IBI", 1 << 30, Packet.VERSION, 3), "does not speak SFTP"),
        (struct.pack(">IBI", 9, Packet.VERSION, 3) + b"\xff\xff\xff\xff", "ends too early"),
        (struct.pack(">IBI", 100, Packet.VERSION, 3), "nothing moved for 0.5 s"),
    ],
)
def test_greetings_that_are_none(serve: Callable[..., Server], hello: bytes, wanted: str) -> None:
    with pytest.raises(OutputError, match=wanted):
        serve(hello=hello).connect(0.5)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (lambda _k, number, _b: packet(Packet.DATA, number, string(b"x")), "an answer of type 103"),
        (lambda _k, number, _b: packet(Packet.HANDLE, number + 1000, string(b"h")), "which was never sent"),
        (lambda _k, number, _b: packet(Packet.HANDLE, number, string(bytes(257))), "a handle of 257 bytes"),
        (lambda _k, number, _b: packet(Packet.HANDLE, number, b"\0\0\1\0"), "ends too early"),
        (lambda _k, number, _b: status(number, Status.OK), "success, but no answer"),
        (lambda _k, number, _b: status(number, 99, b"words\x1b[31m"), r"cannot open /x: words \[31m"),
        (lambda _k, _n, _b: struct.pack(">IB", 1, 1), "does not speak SFTP"),
        (lambda _k, _n, _b: b"", "nothing moved"),
    ],
)
def test_answers_that_are_none(serve: Callable[..., Server], answer: Answer, wanted: str) -> None:
    client = serve(answer).connect(0.5)
    with pytest.raises(OutputError, match=wanted):
        client.open_file("/x")


def test_reads_that_come_in_pieces_and_out_of_order(serve: Callable[..., Server]) -> None:
    content = bytes(range(256)) * 1024
    held: list[bytes] = []

    def answer(_kind: int, number: int, body: bytes) -> bytes:
        fields = Fields(body, OutputError)
        fields.take_string()
        offset, size = fields.take_u64(), fields.take_u32()
        data = content[offset : offset + min(size, 10_000)]
        held.append(packet(Packet.DATA, number, string(data)) if data else status(number, Status.EOF))
        # All that is asked for ahead is answered at once, from the back.
        if len(held) < 8:
            return b""
        sent = b"".join(reversed(held[8:] if len(held) > 8 else held))
        del held[8:]
        return sent

    client = serve(answer).connect()
    assert b"".join(client.read(b"h", 0, len(content))) == content


def test_server_that_reads_nothing_does_not_hold_us(serve: Callable[..., Server]) -> None:
    gate = threading.Event()

    def answer(_kind: int, number: int, _body: bytes) -> bytes:
        gate.wait(10)
        return status(number, Status.OK)

    client = serve(answer).connect(0.5)
    started = time.monotonic()
    with pytest.raises(OutputError, match="nothing moved"):
        client.write(b"h", 0, [memoryview(bytes(8 << 20))])
    assert time.monotonic() - started < 9
    gate.set()


def test_window_is_bounded(serve: Callable[..., Server]) -> None:
    seen: list[int] = []

    def answer(_kind: int, number: int, body: bytes) -> bytes:
        seen.append(len(body))
        return status(number, Status.OK)

    client = serve(answer).connect()
    for number in range(100):
        client.write(b"h", number << 16, [memoryview(bytes(1 << 16))])
        assert client.connection._write_bytes <= 2 << 20
    client.connection.drain()
    assert sum(seen) >= 100 << 16
    assert client.connection.write_failure is None


def test_refused_write_is_remembered(serve: Callable[..., Server]) -> None:
    def answer(_kind: int, number: int, _body: bytes) -> bytes:
        return status(number, Status.FAILURE if number == 3 else Status.OK)

    client = serve(answer).connect()
    for number in range(5):
        client.write(b"h", number, [memoryview(b"x")])
    client.connection.drain()
    assert isinstance(client.connection.write_failure, SftpStatusError)
    assert client.connection.write_failure.status == Status.FAILURE


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.tuples(st.integers(0, 255), st.binary(max_size=60))), max_size=4))
def test_any_answers_end_well(answers: list[bytes | tuple[int, bytes]]) -> None:
    waiting = list(answers)

    def answer(_kind: int, number: int, _body: bytes) -> bytes:
        if not waiting:
            return status(number, Status.NO_SUCH_FILE)
        each = waiting.pop(0)
        return each if isinstance(each, bytes) else packet(each[0], number, each[1])

    server = Server(HELLO, answer)
    try:
        client = server.connect(0.2)
        client.list_directory("/")
        client.find_attributes("/x")
        list(client.read(b"h", 0, 1000))
    except OutputError:
        pass
    finally:
        server.close()
