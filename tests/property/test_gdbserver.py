"""Whatever a client of gdb's remote protocol sends: the server answers or hangs up, and lives on."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postpanic.analysis.gdbserver.packets import Control, PacketReader, ProtocolError, encode_packet, escape, unescape
from postpanic.analysis.gdbserver.session import PACKET_BYTES, Session
from postpanic.analysis.gdbserver.transport import Address, open_listener, serve
from tests.unit.analysis.gdbserver.machine import EXCLUDED, KERNEL, USER, Machine, frame

NUMBERS = st.one_of(
    st.sampled_from([b"", b"0", b"1", b"2a", b"-1", b"ffffffffffffffff", b"fffffffffffffffff", b"7fffffffffffffff"]),
    st.sampled_from([KERNEL, EXCLUDED, USER, 1 << 63, (1 << 64) - 1, 1 << 32]).map(lambda value: b"%x" % value),
    st.binary(max_size=4),
)
WORDS = st.sampled_from(
    [
        *(b"qSupported", b"qC", b"qXfer", b"features", b"threads", b"auxv", b"memory-map", b"libraries", b"exec-file"),
        *(
            b"read",
            b"write",
            b"target.xml",
            b"qRcmd",
            b"qfThreadInfo",
            b"qsThreadInfo",
            b"qThreadExtraInfo",
            b"qOffsets",
        ),
        *(
            b"vCont",
            b"vFile",
            b"open",
            b"pread",
            b"vRun",
            b"vAttach",
            b"vKill",
            b"QStartNoAckMode",
            b"qCRC",
            b"qSearch",
        ),
        *(
            b"?",
            b"g",
            b"G",
            b"p",
            b"P",
            b"m",
            b"M",
            b"X",
            b"x",
            b"H",
            b"Hg",
            b"Hc",
            b"T",
            b"Z0",
            b"z0",
            b"c",
            b"s",
            b"C",
        ),
        *(b"../../etc/passwd", b"2f6574632f706173737764", b"%s%n", b"}"),
    ]
)
SEPARATORS = st.sampled_from([b":", b",", b";", b"=", b"", b"::", b"."])
PACKETS = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(WORDS, NUMBERS, SEPARATORS), max_size=9).map(b"".join),
    st.builds(
        lambda letter, vaddr, length, data: letter + vaddr + b"," + length + b":" + data,
        st.sampled_from([b"m", b"M", b"X", b"x"]),
        NUMBERS,
        NUMBERS,
        st.binary(max_size=40),
    ),
    st.builds(
        lambda name, annex, offset, length: b"qXfer:%b:read:%b:%b,%b" % (name, annex, offset, length),
        st.one_of(WORDS, st.binary(max_size=10)),
        st.one_of(WORDS, NUMBERS),
        NUMBERS,
        NUMBERS,
    ),
)


_answering = False


def _refuse_files(event: str, arguments: tuple[object, ...]) -> None:
    """Fail where a file is opened or a program started: nothing that comes in a packet is the name of one."""
    if _answering and event in {"open", "subprocess.Popen", "os.system", "os.listdir", "os.remove", "socket.connect"}:
        raise AssertionError(f"{event}: {arguments}")


sys.addaudithook(_refuse_files)


@contextlib.contextmanager
def no_files() -> Iterator[None]:
    global _answering  # noqa: PLW0603 - an audit hook stays for ever
    _answering = True
    try:
        yield
    finally:
        _answering = False


@given(st.lists(PACKETS, max_size=12))
@settings(max_examples=400)
def test_every_packet_has_an_answer_that_fits(packets: list[bytes]) -> None:
    session = Session(Machine())
    for packet in packets:
        with no_files():
            replies = list(session.answer(packet))
        assert replies
        for reply in replies:
            assert len(encode_packet(reply)) <= PACKET_BYTES
            # What is answered must be a packet again.
            assert PacketReader(PACKET_BYTES).feed(encode_packet(reply)) == [reply]
        if session.ended:
            break


@given(st.lists(st.one_of(st.binary(max_size=60), PACKETS.map(frame), st.sampled_from([b"+", b"-", b"\x03", b"$"]))))
def test_a_stream_gives_the_same_packets_however_it_is_cut(parts: list[bytes]) -> None:
    def read(pieces: list[bytes]) -> list[bytes | Control]:
        reader = PacketReader(1 << 12)
        found: list[bytes | Control] = []
        for piece in pieces:
            found += reader.feed(piece)
        return found

    stream = b"".join(parts)
    try:
        whole = read([stream])
    except ProtocolError:
        return
    assert read(parts) == whole
    assert read([stream[at : at + 1] for at in range(len(stream))]) == whole


@given(st.binary(max_size=300))
def test_escapes_are_undone(data: bytes) -> None:
    assert unescape(escape(data)) == data
    assert not set(escape(data)) & set(b"#$")
    unescape(data)


EXPECTED = b"+" + frame(b"QC2a")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """Serve a machine to everybody who comes."""
    over = threading.Event()
    with open_listener(Address(path=tmp_path_factory.mktemp("server") / "socket")) as (listener, bound):
        server = threading.Thread(
            target=serve, args=(listener, Machine()), kwargs={"is_over": over.is_set, "many": True}, daemon=True
        )
        server.start()
        yield bound
        over.set()
        server.join(20)
        assert not server.is_alive()


@given(st.lists(st.one_of(st.binary(max_size=400), PACKETS.map(frame)), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_server_outlives_every_client(address: Address, parts: list[bytes], cut: int) -> None:
    """Hostile, truncated or endless input of one client, and the next one is served."""
    stream = b"".join(parts)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(address))
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(stream[: len(stream) - cut])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(address))
        connection.sendall(frame(b"qC"))
        answer = b""
        while len(answer) < len(EXPECTED) and (data := connection.recv(100)):
            answer += data
        assert answer == EXPECTED


def test_a_packet_without_end_is_hung_up_on(address: Address) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(address))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"$")
            for _ in range(64):
                connection.sendall(b"a" * (1 << 16))
            raise AssertionError("four megabytes were taken")
