"""The HTTP target against a real server: what arrives through dropped connections, and what is said otherwise."""

from __future__ import annotations

import io
import random
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.sink import FileSink, Sink
from postpanic.errors import NoSpaceError, OutputError
from postpanic.saver.plan import HttpPlan
from postpanic.saver.targets.http import HttpTarget
from tests.compat.http_store import HttpServer, drop_now_and_then

pytestmark = pytest.mark.compat
NAME = "node-20260131-235959"


@pytest.fixture
def server() -> Iterator[HttpServer]:
    server = HttpServer()
    server.start()
    yield server
    server.store.hangs = False
    server.stop()


@pytest.fixture
def plan(server: HttpServer) -> HttpPlan:
    return HttpPlan(name="http test", url=f"{server.url}/crash/{{name}}/{{file}}", part_bytes=1 << 18, timeout_s=5.0)


def fill(sink: Sink, seed: int) -> None:
    """Write as a dump's writer does."""
    rng = random.Random(seed)
    table_at, data_at = 4096, 4096 + 24 * 4000
    sink.reserve(data_at)
    sink.write_at(0, [rng.randbytes(700)])
    at = data_at
    for batch in range(40):
        parts = [rng.randbytes(rng.choice((1, 100, 4096, 70000))) for _ in range(4)]
        sink.write_at(at, parts)
        at += sum(len(part) for part in parts)
        rows = np.frombuffer(rng.randbytes(50 * 24), dtype=np.uint8).reshape(50, 24)
        sink.write_rows(table_at, np.arange(batch * 50, batch * 50 + 50, dtype=np.int64), rows)
    sink.flush()
    sink.write_at(0, [rng.randbytes(700)])


def make_file(path: Path, seed: int) -> bytes:
    """Make the file that the stream is to carry."""
    sink = FileSink(path, overwrite=True)
    fill(sink, seed)
    sink.finish()
    return path.read_bytes()


def rearrange(stream: bytes) -> bytes:
    """Put a flattened stream in order, as the format's description says."""
    source = io.BytesIO(stream)
    head = source.read(4096)
    assert head.startswith(b"makedumpfile\0")
    content = bytearray()
    while True:
        offset, size = (int.from_bytes(source.read(8), "big", signed=True) for _ in range(2))
        if offset == size == -1:
            break
        data = source.read(size)
        assert len(data) == size
        content.extend(bytes(max(offset + size - len(content), 0)))
        content[offset : offset + size] = data
    assert source.read() == b""
    return bytes(content)


def collect(server: HttpServer, names: tuple[str, ...]) -> bytes:
    return b"".join(server.store.objects[f"/crash/{NAME}/{name}"] for name in names)


def save(target: HttpTarget, seed: int) -> tuple[str, ...]:
    target.open(NAME)
    sink = target.open_dump("vmcore")
    fill(sink, seed)
    digest = sink.finish()
    assert digest.sha256
    sink.close()
    target.commit()
    return target.dump_files


def test_parts_that_arrive_through_dropped_connections(server: HttpServer, plan: HttpPlan, tmp_path: Path) -> None:
    server.store.drop_after = drop_now_and_then(1, 0.4, 1 << 18)
    names = save(target := HttpTarget(plan), 1)
    assert len(names) > 5
    assert names[:2] == ("vmcore.flat.00000", "vmcore.flat.00001")
    assert all(len(server.store.objects[f"/crash/{NAME}/{name}"]) == 1 << 18 for name in names[:-1])
    assert rearrange(collect(server, names)) == make_file(tmp_path / "file", 1)
    assert len(server.store.requests) > len(names) + 3
    assert target.place == f"{server.url}/crash/{NAME}/vmcore.flat.*"
    target.close()


def test_one_connection_serves_many_parts(server: HttpServer, plan: HttpPlan) -> None:
    target = HttpTarget(plan)
    target.open(NAME)
    for number in range(5):
        target.put(f"file{number}", b"x" * number)
    assert server.store.connections == 1
    assert server.store.objects[f"/crash/{NAME}/file4"] == b"xxxx"
    target.close()


def test_stream_of_the_length_of_a_part(server: HttpServer, plan: HttpPlan) -> None:
    target = HttpTarget(plan)
    target.open(NAME)
    sink = target.open_dump("vmcore")
    # Stream head, one record's head, the end record.
    sink.write_at(0, [bytes((1 << 18) - 4096 - 16 - 16)])
    sink.finish()
    assert target.dump_files == ("vmcore.flat.00000",)
    assert rearrange(collect(server, target.dump_files)) == bytes((1 << 18) - 4096 - 32)
    target.close()


@pytest.mark.parametrize("is_resumable", [False, True])
def test_range_is_resumed_where_it_broke(
    server: HttpServer, plan: HttpPlan, tmp_path: Path, is_resumable: bool
) -> None:
    server.store.is_resumable = is_resumable
    drop = drop_now_and_then(2, 0.5, 1 << 18)
    server.store.drop_after = lambda: drop() if server.store.objects else None
    lose = drop_now_and_then(3, 0.2, 2)
    server.store.drop_answer = lambda: lose() is not None
    target = HttpTarget(replace(plan, mode="range", timeout_s=20.0))
    names = save(target, 2)
    assert names == ("vmcore.flat",)
    assert rearrange(collect(server, names)) == make_file(tmp_path / "file", 2)
    starts = [request[2].get("Content-Range", "") for request in server.store.requests]
    assert any(start and int(start[6:].partition("-")[0] or 0) % (1 << 18) for start in starts if "*/" not in start)
    target.close()


def test_server_without_ranges_is_found_out(server: HttpServer, plan: HttpPlan) -> None:
    server.store.knows_ranges = False
    target = HttpTarget(replace(plan, mode="range"))
    target.open(NAME)
    sink = target.open_dump("vmcore")
    fill(sink, 1)
    with pytest.raises(OutputError, match=r"the server has \d+ bytes of \d+") as caught:
        sink.finish()
    assert "mode parts" in caught.value.hint
    target.close()


def test_whole_in_chunks(server: HttpServer, plan: HttpPlan, tmp_path: Path) -> None:
    target = HttpTarget(replace(plan, mode="whole"))
    assert rearrange(collect(server, save(target, 3))) == make_file(tmp_path / "file", 3)
    assert [request[2].get("Transfer-Encoding") for request in server.store.requests] == ["chunked"]
    target.close()


def test_whole_with_a_length_that_was_counted(server: HttpServer, plan: HttpPlan, tmp_path: Path) -> None:
    server.store.takes_chunks = False
    # A presigned address is of one object.
    target = HttpTarget(replace(plan, mode="whole", url=f"{server.url}/crash/{NAME}/vmcore.flat?Signature=SECRET"))
    target.open(NAME)
    target.put("vmcore-dmesg.txt", b"has no place")
    sink = target.open_dump("vmcore")
    fill(sink, 4)
    with pytest.raises(OutputError, match="length beforehand"):
        sink.finish()
    sink.close()
    target.close()
    save(target, 4)
    (stream,) = server.store.objects.values()
    assert rearrange(stream) == make_file(tmp_path / "file", 4)
    assert int(server.store.requests[-1][2]["Content-Length"]) == len(stream)
    assert "SECRET" not in target.place + target.name
    target.close()


def test_whole_is_started_anew(server: HttpServer, plan: HttpPlan, tmp_path: Path) -> None:
    drops = [300_000, None]
    server.store.drop_after = lambda: drops.pop(0)
    target = HttpTarget(replace(plan, mode="whole"))
    target.open(NAME)

    def write() -> None:
        sink = target.open_dump("vmcore")
        fill(sink, 5)
        sink.finish()

    with pytest.raises(OutputError, match=r"the connection is lost|the server closed the connection"):
        write()
    assert not server.store.objects
    target.close()
    assert rearrange(collect(server, save(target, 5))) == make_file(tmp_path / "file", 5)
    target.close()


def test_busy_server_is_tried_again(server: HttpServer, plan: HttpPlan) -> None:
    server.store.answers = [(500, "oops", {}), (503, "", {"Retry-After": "1"})]
    target = HttpTarget(plan)
    target.open(NAME)
    started = time.monotonic()
    target.put("vmcore-dmesg.txt", b"log")
    assert time.monotonic() - started > 1.2
    assert server.store.objects == {f"/crash/{NAME}/vmcore-dmesg.txt": b"log"}
    target.close()


@pytest.mark.parametrize(
    ("status", "text", "wanted"),
    [
        (403, "\x1b[31m<Error>Request has expired</Error>\n at line", "403 Forbidden: [31m<Error>Request has expired"),
        (401, "", "401 Unauthorized"),
        (404, "no such bucket", "404 Not Found: no such bucket"),
        (405, "", "405"),
        (413, "too large", "413 .*: too large"),
        (302, "", r"elsewhere \(302\): http://other/x$"),
        (307, "", r"elsewhere \(307\): http://other/x$"),
    ],
)
def test_refusals_are_told_at_once(server: HttpServer, plan: HttpPlan, status: int, text: str, wanted: str) -> None:
    server.store.answers = [(status, text, {"Location": "http://other/x?token=SECRET"})] * 3
    target = HttpTarget(replace(plan, headers=(("Authorization", "Bearer SECRET"),)))
    target.open(NAME)
    with pytest.raises(OutputError, match=wanted.replace("[31m", r"\[31m")) as caught:
        target.put("vmcore-dmesg.txt", bytes(1 << 20))
    assert len(server.store.requests) == 1
    assert "\x1b" not in str(caught.value)
    assert "SECRET" not in str(caught.value) + caught.value.hint
    assert server.store.requests[0][2]["Authorization"] == "Bearer SECRET"
    target.close()


def test_server_without_room(server: HttpServer, plan: HttpPlan) -> None:
    server.store.answers = [(507, "quota", {})]
    target = HttpTarget(plan)
    target.open(NAME)
    with pytest.raises(NoSpaceError, match=r"no room.*quota"):
        target.put("vmcore-dmesg.txt", b"x")
    target.close()


def test_redirect_on_the_same_server(server: HttpServer, plan: HttpPlan) -> None:
    server.store.answers = [(307, "", {"Location": "/elsewhere/x"})]
    target = HttpTarget(plan)
    target.open(NAME)
    target.put("vmcore-dmesg.txt", b"log")
    assert server.store.objects == {"/elsewhere/x": b"log"}
    target.close()


def test_user_and_password_of_the_address(server: HttpServer, plan: HttpPlan) -> None:
    target = HttpTarget(replace(plan, name="", url=plan.url.replace("://", "://me:p%40ss@")))
    target.open(NAME)
    target.put("vmcore-dmesg.txt", b"log")
    assert server.store.requests[0][2]["Authorization"] == "Basic bWU6cEBzcw=="
    assert "p%40ss" not in target.name + target.place
    target.close()


def test_server_that_does_not_answer(server: HttpServer, plan: HttpPlan) -> None:
    server.store.hangs = True
    target = HttpTarget(replace(plan, timeout_s=1.0))
    target.open(NAME)
    started = time.monotonic()
    with pytest.raises(OutputError, match=r"no answer for 1 s|nothing moved for 1 s"):
        target.put("vmcore-dmesg.txt", bytes(8 << 20))
    assert time.monotonic() - started < 15
    target.close()


def test_slow_server_is_waited_for(server: HttpServer, plan: HttpPlan) -> None:
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    server.store.delay_s = 0.1
    target = HttpTarget(replace(plan, timeout_s=1.0))
    target.open(NAME)
    started = time.monotonic()
    target.put("vmcore-dmesg.txt", bytes(2 << 20))
    assert time.monotonic() - started > 3
    assert len(server.store.objects) == 1
    target.close()


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:1/{file}", "cannot connect to 127.0.0.1:1: connection refused"),
        ("http://no-such-host.invalid/{file}", "no-such-host.invalid cannot be looked up"),
        ("ftp://x/{file}", "must begin with http"),
        ("http:///{file}", "no host"),
        ("http://h:x/{file}", "port that is none"),
        ("http://h/\r\nX: y/{file}", "characters that no address may have"),
        ("http://h/", r"must have \{file\}"),
        ("https://127.0.0.1:1/{file}", "cannot connect"),
    ],
)
def test_addresses_that_do_not_work(plan: HttpPlan, url: str, wanted: str) -> None:
    target = HttpTarget(replace(plan, url=url, timeout_s=1.0))

    def put() -> None:
        target.open(NAME)
        target.put("x", b"")

    with pytest.raises(OutputError, match=wanted):
        put()
    target.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "server.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test -days 2"
    command = [program, *words.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, "-keyout", str(path), "-out", str(tmp_path / "cert.pem")], check=True, capture_output=True
    )
    with path.open("a") as file:
        file.write((tmp_path / "cert.pem").read_text())
    return path


def test_https(server: HttpServer, plan: HttpPlan, certificate: Path, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.store.drop_after = drop_now_and_then(4, 0.3, 1 << 18)
    plan = replace(plan, url=plan.url.replace("http:", "https:"), ca_file=str(tmp_path / "cert.pem"))
    names = save(target := HttpTarget(plan), 6)
    assert rearrange(collect(server, names)) == make_file(tmp_path / "file", 6)
    target.close()
    other = tmp_path / "empty.pem"
    other.write_text("")
    for ca_file, wanted in (("", "set ca_file"), (str(other), ""), ("/no/such.pem", "")):
        target = HttpTarget(replace(plan, ca_file=ca_file))
        target.open(NAME)
        with pytest.raises(OutputError, match="certificate") as caught:
            target.put("x", b"")
        assert wanted in caught.value.hint
        target.close()
