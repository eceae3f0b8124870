"""The client of HTTP against servers that send anything; addresses taken apart."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from postpanic.errors import OutputError
from postpanic.saver.targets.http_address import parse_address, quote_segment
from postpanic.saver.targets.http_connection import HttpConnection, HttpDropError, Response


class RawServer:
    """Reads what comes, sends what it was told to, and closes."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(self.answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


def request(server: RawServer, answer: bytes) -> Response:
    server.answer = answer
    connection = HttpConnection(parse_address(f"http://127.0.0.1:{server.port}/x"), name="test", timeout_s=2.0)
    try:
        connection.begin("PUT", "/x", [("Content-Length", "3")])
        connection.send([memoryview(b"abc")])
        return connection.finish()
    finally:
        connection.close()


def test_interim_answers_are_passed_over(server: RawServer) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n"
    answer = interim + b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"
    response = request(server, answer)
    assert (response.status, response.reason, response.body) == (201, "Created", b"ok")


def test_body_in_chunks_tells_its_beginning(server: RawServer) -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nno access\r\n0\r\n\r\n"
    assert request(server, answer).first_line == "no access"


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (b"", "the server closed the connection"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP/1.1: 'SSH-2.0"),
        (b"HTTP/2 200\r\n\r\n", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 2000 x\r\n\r\n", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n", "the server closed the connection"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000, "too long a head"),
        (b"HTTP/1.1 100 x\r\n\r\n" * 100, "1xx without end"),
    ],
)
def test_what_is_no_answer(server: RawServer, answer: bytes, wanted: str) -> None:
    with pytest.raises(HttpDropError, match=wanted):
        request(server, answer)


def test_endless_body_is_not_read(server: RawServer) -> None:
    started = time.monotonic()
    response = request(server, b"HTTP/1.1 500 x\r\nContent-Length: 99999999999\r\n\r\n" + b"line\n" * 100_000)
    assert response.first_line == "line"
    assert len(response.body) < 200_000
    assert time.monotonic() - started < 15


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
@example(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")
@example(b"HTTP/1.1 200 OK\r\nContent-Length: \xc2\xb2\r\n\r\n")
@example(b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n")
def test_any_answer_ends_well(server: RawServer, answer: bytes) -> None:
    for beginning in (b"", b"HTTP/1.1 200 OK\r\n"):
        with suppress(OutputError):
            request(server, beginning + answer)


@pytest.mark.parametrize(
    ("text", "authority", "target", "shown"),
    [
        ("http://h/a?b=c#d", "h", "/a?b=c", "http://h/a"),
        ("HTTPS://Host:443", "host", "/", "https://host/"),
        ("http://[2001:db8::1]:8080/x", "[2001:db8::1]:8080", "/x", "http://[2001:db8::1]:8080/x"),
        ("http://u:p@h:81?x", "h:81", "/?x", "http://h:81/"),
    ],
)
def test_addresses(text: str, authority: str, target: str, shown: str) -> None:
    address = parse_address(text)
    assert (address.authority, address.target, str(address)) == (authority, target, shown)


def test_redirects_stay_on_the_server() -> None:
    address = parse_address("http://h/a?secret")
    followed = address.follow("http://h:80/b")
    assert followed is not None
    assert followed.target == "/b"
    for location in ("//evil/b", "http://evil/b", "https://h/b", "http://h:81/b", "", "b"):
        assert address.follow(location) is None


@given(st.text(max_size=200))
def test_any_address_ends_well(text: str) -> None:
    for beginning in ("", "http://"):
        with suppress(OutputError):
            str(parse_address(beginning + text))


def test_names_are_quoted() -> None:
    assert quote_segment("a/b c?{}\u00e4~") == "a%2Fb%20c%3F%7B%7D%C3%A4~"
