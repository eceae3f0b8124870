"""The NFS server that stands in, spoken to over a socket with requests made by hand."""

from __future__ import annotations

import itertools
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postpanic.errors import NotReadyError
from postpanic.rehearse.servers.nfs.serving import LOG_NAME, NfsServer, serve
from postpanic.rehearse.servers.nfs.store import STORE_NAME
from postpanic.rehearse.servers.stand_ins import make_nfs_server
from postpanic.saver.plan import NfsPlan
from tests.builders.nfs_calls import (
    ANY_STATEID,
    MOUNT,
    NFS,
    PORTMAP,
    Answered,
    Compound,
    call,
    create_session,
    decode_reply,
    exchange_id,
    frame,
    opaque,
    setclientid,
    u32,
    u64,
)

OK, NOENT, EXIST, ISDIR, NOSPC, ROFS, NAMETOOLONG, NOTEMPTY, STALE = 0, 2, 17, 21, 28, 30, 63, 66, 70
BADHANDLE, NOTSUPP, TOOSMALL, BADXDR, BADNAME, ILLEGAL = 10001, 10004, 10005, 10036, 10041, 10044
NO_ATTRIBUTES = u32(0) * 6
SIZE = 4
NUMBERS = itertools.count(100)
"""Of calls: the same one again with the same number is the same call."""


class Client:
    """Sends requests on a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.connection.settimeout(20)

    def send(self, record: bytes, fragment_bytes: int = 0) -> bytes:
        self.connection.sendall(frame(record, fragment_bytes))
        return self.receive()

    def receive(self) -> bytes:
        size = int.from_bytes(self._read(4), "big")
        assert size >> 31 == 1
        return self._read(size & 0x7FFFFFFF)

    def v3(self, procedure: int, body: bytes, xid: int = 0) -> tuple[int, Answered]:
        xid = xid or next(NUMBERS)
        status, found = decode_reply(self.send(call(NFS, 3, procedure, body, xid=xid)), xid)
        assert status == OK
        return found.u32(), found

    def mount(self, path: bytes = b"/srv/export") -> bytes:
        status, found = decode_reply(self.send(call(MOUNT, 3, 1, opaque(path))))
        assert (status, found.u32()) == (OK, OK)
        return found.opaque()

    def v4(self, request: Compound) -> tuple[int, Answered]:
        """Give the status of all, and what the last operation that was done has to say."""
        xid = next(NUMBERS)
        status, found = decode_reply(self.send(request.call(xid)), xid)
        assert status == OK
        result = found.u32()
        assert found.opaque() == b""
        found.u32()
        return result, found

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            more = self.connection.recv(size - len(found))
            if not more:
                raise EOFError
            found += more
        return found


Connect = Callable[[], Client]


@pytest.fixture
def room() -> int | None:
    return None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/srv/export").mkdir(parents=True)
    (tmp_path / "state").mkdir()
    (tmp_path / "secret").write_text("kept")
    return tmp_path / "root"


@pytest.fixture
def connect(root: Path, room: int | None) -> Iterator[Connect]:
    threads: list[threading.Thread] = []
    clients: list[Client] = []

    def run(connection: socket.socket) -> None:
        with connection:
            server = NfsServer(root.parent / "state", root, "/srv/export", (2049, 20048), room)
            serve(connection, server)
            server.close()

    def start() -> Client:
        ours, theirs = socket.socketpair()
        threads.append(threading.Thread(target=run, args=(theirs,)))
        threads[-1].start()
        clients.append(Client(ours))
        return clients[-1]

    yield start
    for client in clients:
        client.connection.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def client(connect: Connect) -> Client:
    return connect()


def make_file(client: Client, directory: bytes, name: bytes, how: bytes = u32(0) + NO_ATTRIBUTES) -> bytes:
    status, found = client.v3(8, opaque(directory) + opaque(name) + how)
    assert (status, found.u32()) == (OK, 1)
    return found.opaque()


def find(client: Client, directory: bytes, name: bytes) -> int:
    return client.v3(3, opaque(directory) + opaque(name))[0]


def write(client: Client, file: bytes, offset: int, content: bytes) -> int:
    return client.v3(7, opaque(file) + u64(offset) + u32(len(content), 2) + opaque(content))[0]


def size_of(client: Client, file: bytes) -> int:
    status, found = client.v3(1, opaque(file))
    assert status == OK
    found.fixed(20)
    return found.u64()


@pytest.mark.parametrize("fragment_bytes", [0, 1, 4, 39])
def test_a_record_may_come_in_fragments(client: Client, fragment_bytes: int) -> None:
    assert decode_reply(client.send(call(NFS, 3, 0), fragment_bytes))[0] == OK


def test_ports_are_told(client: Client) -> None:
    for version, body, expected in (
        (2, u32(NFS, 3, 6, 0), u32(2049)),
        (2, u32(MOUNT, 3, 6, 0), u32(20048)),
        (2, u32(MOUNT, 3, 17, 0), u32(0)),
        (2, u32(7, 3, 6, 0), u32(0)),
        (3, u32(NFS, 3) + opaque(b"tcp") + opaque(b"10.0.0.9.0.111") + opaque(b""), opaque(b"10.0.0.9.8.1")),
        (4, u32(NFS, 4) + opaque(b"tcp") + opaque(b"") + opaque(b""), opaque(b"0.0.0.0.8.1")),
        (4, u32(7, 4) + opaque(b"tcp") + opaque(b"") + opaque(b""), opaque(b"")),
    ):
        status, found = decode_reply(client.send(call(PORTMAP, version, 3, body)))
        assert (status, found.body) == (OK, expected)


def test_what_is_not_there_is_said_in_the_words_of_rpc(client: Client) -> None:
    assert decode_reply(client.send(call(5, 1, 0)))[0] == 1
    status, bounds = decode_reply(client.send(call(NFS, 2, 0)))
    assert (status, bounds.u32(), bounds.u32()) == (2, 3, 4)
    assert decode_reply(client.send(call(NFS, 3, 99)))[0] == 3
    assert decode_reply(client.send(call(NFS, 3, 1, b"\xff" * 4)))[0] == 4
    assert decode_reply(client.send(call(NFS, 3, 1, auth=u32(6, 0))))[0] == 101
    assert decode_reply(client.send(u32(7, 0, 3, NFS, 3, 0) + bytes(16)))[0] == 100


@pytest.mark.parametrize(
    "sent", [u32(0xFFFFFFFF), u32(0) * 1000, u32(0x7FFFFFFF) + b"x" * 100, frame(b""), frame(u32(7, 1) + bytes(40))]
)
def test_what_is_no_call_gets_no_answer_and_no_harm_is_done(connect: Connect, sent: bytes) -> None:
    first = connect()
    first.connection.sendall(sent)
    first.connection.shutdown(socket.SHUT_WR)
    with pytest.raises((EOFError, ConnectionResetError)):
        first.receive()
    connect().mount()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (b"/srv/export", OK),
        (b"srv//export/", OK),
        (b"/srv", NOENT),
        (b"/", NOENT),
        (b"/srv/export/../..", 22),
        (b"/srv/export/nothing", NOENT),
    ],
)
def test_what_is_exported_can_be_mounted(client: Client, path: bytes, status: int) -> None:
    assert decode_reply(client.send(call(MOUNT, 3, 1, opaque(path))))[1].u32() == status


def test_version_3_keeps_files(client: Client, root: Path) -> None:
    top = client.mount()
    file = make_file(client, top, b"part")
    assert write(client, file, 0, b"a" * 70_000) == OK
    assert write(client, file, 69_999, b"bc") == OK
    status, found = client.v3(6, opaque(file) + u64(69_998) + u32(100))
    assert status == OK
    found.fixed(88)
    assert (found.u32(), found.u32(), found.opaque()) == (3, 1, b"abc")
    assert client.v3(9, opaque(top) + opaque(b"dir") + NO_ATTRIBUTES)[0] == OK
    status, found = client.v3(3, opaque(top) + opaque(b"dir"))
    directory = found.opaque()
    # A handle outlives names, its own and those above.
    assert client.v3(14, opaque(top) + opaque(b"part") + opaque(directory) + opaque(b"vmcore"))[0] == OK
    assert client.v3(14, opaque(top) + opaque(b"dir") + opaque(top) + opaque(b"moved"))[0] == OK
    assert write(client, file, 70_001, b"d") == OK
    assert (root / "srv/export/moved/vmcore").read_bytes() == b"a" * 69_999 + b"bcd"
    assert client.v3(13, opaque(top) + opaque(b"moved"))[0] == NOTEMPTY
    assert client.v3(12, opaque(top) + opaque(b"moved"))[0] == ISDIR
    assert client.v3(12, opaque(directory) + opaque(b"vmcore"))[0] == OK
    assert client.v3(13, opaque(top) + opaque(b"moved"))[0] == OK
    assert client.v3(1, opaque(file))[0] == STALE
    assert client.v3(1, opaque(b"x" * 16))[0] == BADHANDLE
    assert list((root / "srv/export").iterdir()) == []


def test_a_file_that_has_taken_the_name_of_another_has_a_handle_of_its_own(client: Client) -> None:
    top = client.mount()
    first = make_file(client, top, b"one")
    second = make_file(client, top, b"two")
    assert client.v3(14, opaque(top) + opaque(b"two") + opaque(top) + opaque(b"one"))[0] == OK
    assert client.v3(1, opaque(first))[0] == STALE
    assert size_of(client, second) == 0
    assert make_file(client, top, b"two") not in {first, second}


def test_attributes_are_set_if_nobody_else_has_changed_them(client: Client) -> None:
    file = make_file(client, client.mount(), b"file")
    _, found = client.v3(1, opaque(file))
    changed = found.body[-8:]
    wanted = u32(1, 0o640, 0, 1, 7, 1) + u64(5) + u32(0, 2, 2000, 5)
    assert client.v3(2, opaque(file) + wanted + u32(1) + bytes(8))[0] == 10002
    assert client.v3(2, opaque(file) + wanted + u32(1) + changed)[0] == OK
    _, found = client.v3(1, opaque(file))
    assert (found.u32(), found.u32(), found.u32(), found.u32(), found.u32(), found.u64()) == (1, 0o640, 1, 0, 7, 5)
    assert found.body[-16:-8] == u32(2000, 5)


def test_names_that_are_none_are_refused(client: Client, root: Path) -> None:
    top = client.mount()
    for name in (b"", b"a/b", b"\0", b"..", b"."):
        assert client.v3(8, opaque(top) + opaque(name) + u32(0) + NO_ATTRIBUTES)[0] == 22
    assert client.v3(8, opaque(top) + opaque(b"x" * 256) + u32(0) + NO_ATTRIBUTES)[0] == NAMETOOLONG
    assert client.v3(10, opaque(top) + opaque(b"link") + NO_ATTRIBUTES + opaque(b"/etc"))[0] == NOTSUPP
    assert list((root / "srv/export").iterdir()) == []


def test_nothing_is_reached_by_links(client: Client, root: Path) -> None:
    top = client.mount()
    (root / "srv/export/out").symlink_to(root.parent)
    (root / "srv/export/file").symlink_to(root.parent / "secret")
    for name in (b"out", b"file"):
        assert find(client, top, name) == NOENT
        assert client.v3(8, opaque(top) + opaque(name) + u32(0) + NO_ATTRIBUTES)[0] in {EXIST, NOENT}
    # A directory that is replaced by a link while its handle is known.
    assert client.v3(9, opaque(top) + opaque(b"dir") + NO_ATTRIBUTES)[0] == OK
    directory = client.v3(3, opaque(top) + opaque(b"dir"))[1].opaque()
    file = make_file(client, directory, b"secret")
    (root / "srv/export/dir").rename(root / "srv/export/was")
    (root / "srv/export/dir").symlink_to(root.parent)
    assert client.v3(1, opaque(file))[0] == STALE
    assert write(client, file, 0, b"lost") == STALE
    assert (root.parent / "secret").read_text() == "kept"


def test_the_parents_of_the_export_are_read_only_and_no_part_of_version_3(client: Client) -> None:
    top = client.mount()
    status, found = client.v3(3, opaque(top) + opaque(b".."))
    assert (status, found.opaque()) == (OK, top)
    session = start_session(client)
    assert client.v4(Compound(1).sequence(session, 1).op(24).op(28, opaque(b"srv")))[0] == ROFS
    status, _ = client.v4(Compound(1).sequence(session, 2).op(24).op(6, u32(2) + opaque(b"x") + u32(0, 0)))
    assert status == ROFS


def test_a_request_that_comes_again_is_not_done_again(connect: Connect) -> None:
    first = connect()
    top = first.mount()
    made = call(NFS, 3, 9, opaque(top) + opaque(b"dir") + NO_ATTRIBUTES, xid=9)
    answer = first.send(made)
    first.connection.close()
    second = connect()
    assert second.send(made) == answer
    assert second.v3(9, opaque(top) + opaque(b"dir") + NO_ATTRIBUTES, xid=10)[0] == EXIST
    removed = call(NFS, 3, 13, opaque(top) + opaque(b"dir"), xid=11)
    assert second.send(removed) == connect().send(removed)
    exclusive = u32(2) + b"verifier"
    file = make_file(second, top, b"file", exclusive)
    assert make_file(connect(), top, b"file", exclusive) == file
    assert second.v3(8, opaque(top) + opaque(b"file") + u32(2) + b"another!")[0] == EXIST
    assert second.v3(8, opaque(top) + opaque(b"file") + u32(1) + NO_ATTRIBUTES)[0] == EXIST


@pytest.mark.parametrize("plus", [False, True])
def test_a_directory_is_listed_piece_by_piece(client: Client, plus: bool) -> None:
    top = client.mount()
    names = {b"name %03d" % number for number in range(50)}
    for name in names:
        make_file(client, top, name)
    cookie, found, is_end = 0, [], False
    while not is_end:
        body = opaque(top) + u64(cookie) + bytes(8) + u32(1000) + (u32(1500) if plus else b"")
        status, answer = client.v3(17 if plus else 16, body)
        assert status == OK
        assert len(answer.body) <= 1500
        answer.fixed(4 + 84 + 8)
        while answer.u32():
            answer.u64()
            found.append(answer.opaque())
            cookie = answer.u64()
            if plus:
                answer.fixed(4 + 84 + 4)
                answer.opaque()
        is_end = bool(answer.u32())
    assert sorted(found) == sorted({b".", b"..", *names})
    assert client.v3(16, opaque(top) + u64(0) + bytes(8) + u32(100))[0] == TOOSMALL


@pytest.mark.parametrize("room", [100_000])
def test_a_server_that_is_full_says_so(client: Client, root: Path) -> None:
    top = client.mount()
    file = make_file(client, top, b"vmcore")
    assert write(client, file, 0, bytes(60_000)) == OK
    assert write(client, file, 60_000, bytes(60_000)) == NOSPC
    assert write(client, file, 0, bytes(60_000)) == OK
    assert write(client, file, 1 << 50, b"x") == 27
    status, found = client.v3(18, opaque(top))
    assert status == OK
    found.fixed(88)
    assert (found.u64(), found.u64()) == (100_000, 40_000)
    size = u32(0, 0, 0, 1) + u64(1 << 40) + u32(0, 0, 0)
    assert client.v3(2, opaque(file) + size)[0] == NOSPC
    session = start_session(client)
    request = Compound(1).sequence(session, 1).op(22, opaque(file)).op(38, ANY_STATEID + u64(60_000) + u32(0))
    request.operations[-1] += opaque(bytes(60_000))
    assert client.v4(request)[0] == NOSPC
    assert (root / "srv/export/vmcore").stat().st_size == 60_000


def start_session(client: Client) -> bytes:
    status, found = client.v4(exchange_id())
    assert status == OK
    found.fixed(8)
    number, sequence = found.u64(), found.u32()
    status, found = client.v4(create_session(number, sequence))
    assert status == OK
    found.fixed(8)
    return found.fixed(16)


def enter_export(request: Compound) -> Compound:
    return request.op(24).op(15, opaque(b"srv")).op(15, opaque(b"export"))


def test_a_slot_answers_twice_and_does_once(connect: Connect) -> None:
    client = connect()
    session = start_session(client)
    make = enter_export(Compound(1).sequence(session, 1)).op(6, u32(2) + opaque(b"dir") + u32(0, 0))
    answer = client.send(make.call())
    assert decode_reply(answer)[1].u32() == OK
    client.connection.close()
    # What comes again has another number of its call, and another connection.
    again = connect()
    assert again.send(make.call(xid=99))[4:] == answer[4:]
    make.operations[0] = make.operations[0][:20] + u32(2) + make.operations[0][24:]
    assert again.v4(make)[0] == EXIST
    for sequence, slot, status in ((5, 0, 10063), (1, 64, 10053), (1, 3, OK), (2, 4, 10063)):
        assert again.v4(Compound(1).sequence(session, sequence, slot))[0] == status
    assert again.v4(Compound(1).sequence(b"x" * 16, 1))[0] == 10052
    assert again.v4(Compound(1).sequence(session, 4).sequence(session, 5))[0] == 10063
    assert again.v4(Compound(1).sequence(session, 3).sequence(session, 4))[0] == 10064
    assert again.v4(Compound(1).op(24))[0] == 10071


def test_a_session_is_made_once_and_ends(client: Client) -> None:
    _, found = client.v4(exchange_id())
    found.fixed(8)
    number, sequence = found.u64(), found.u32()
    first, again = (client.v4(create_session(number, sequence))[1].body for _ in range(2))
    assert first == again
    assert client.v4(create_session(number, sequence + 5))[0] == 10063
    assert client.v4(create_session(number + 77, 1))[0] == 10022
    assert client.v4(create_session(1 << 63, 1))[0] == 10022
    assert client.v4(Compound(1).op(57, u64(number)))[0] == 10074
    session = first[8:24]
    assert client.v4(Compound(1).op(44, session))[0] == OK
    assert client.v4(Compound(1).sequence(session, 1))[0] == 10052
    assert client.v4(Compound(1).op(57, u64(number)))[0] == OK


def test_version_4_0_opens_and_closes(connect: Connect) -> None:
    client = connect()
    _, found = client.v4(setclientid())
    found.fixed(8)
    number, verifier = found.u64(), found.fixed(8)
    assert client.v4(Compound(0).op(36, u64(number) + b"verifier"))[0] == 10022
    assert client.v4(Compound(0).op(36, u64(number) + verifier))[0] == OK
    assert client.v4(Compound(0).op(30, u64(number)))[0] == OK
    assert client.v4(Compound(0).op(30, u64(number + 1)))[0] == 10022
    unchecked = u32(0, 0, 0)
    status, found = client.v4(enter_export(Compound(0)).open(b"file", client=number, how=unchecked))
    assert status == OK
    found.fixed(3 * 8 + 8)
    stateid = found.fixed(16)
    assert stateid[:4] == u32(1)
    status, found = client.v4(enter_export(Compound(0)).open(b"file", client=number))
    found.fixed(3 * 8 + 8)
    assert found.fixed(16) == u32(2) + stateid[4:]
    close = enter_export(Compound(0)).op(15, opaque(b"file")).op(4, u32(1) + stateid).call(xid=5)
    assert client.send(close) == connect().send(close)
    assert client.v4(enter_export(Compound(0)).op(15, opaque(b"file")).op(4, u32(1) + stateid))[0] == 10025
    assert client.v4(enter_export(Compound(0)).open(b"file", client=number + 5))[0] == 10022
    guarded = u32(1, 0, 0)
    assert client.v4(enter_export(Compound(0)).open(b"file", client=number, how=guarded))[0] == EXIST
    exclusive = u32(2) + b"verifier"
    for _ in range(2):
        assert client.v4(enter_export(Compound(0)).open(b"new", client=number, how=exclusive))[0] == OK
    assert client.v4(enter_export(Compound(0)).open(b"new", client=number, how=u32(2) + b"another!"))[0] == EXIST


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        ((15, opaque(b"..")), BADNAME),
        ((15, opaque(b"a/b")), BADNAME),
        ((15, opaque(b"")), 22),
        ((15, opaque(b"nothing")), NOENT),
        ((15, u32(0xFFFFFFFF)), BADXDR),
        ((22, opaque(b"x" * 128)), BADHANDLE),
        ((22, opaque(b"x" * 132)), BADXDR),
        ((9, u32(0xFFFF)), BADXDR),
        ((34, ANY_STATEID + u32(1, 2) + opaque(bytes(4))), 10032),
        ((34, ANY_STATEID + u32(1, 1 << SIZE) + opaque(bytes(12))), BADXDR),
        ((6, u32(5) + opaque(b"link")), NOTSUPP),
        ((6, u32(1) + opaque(b"file")), 10007),
        ((12, b""), NOTSUPP),
        ((2, b""), ILLEGAL),
        ((9999, b""), ILLEGAL),
        ((35, b""), NOTSUPP),
        ((29, opaque(b"a") + opaque(b"b")), 10020),
        ((31, b""), 10030),
        ((25, ANY_STATEID + u64(0) + u32(1)), ISDIR),
        ((38, ANY_STATEID + u64(0) + u32(0) + opaque(b"x")), ISDIR),
        ((26, u64(0) + bytes(8) + u32(0, 0, 0)), OK),
    ],
)
def test_operations_that_fail_say_how(client: Client, operation: tuple[int, bytes], status: int) -> None:
    session = start_session(client)
    request = enter_export(Compound(1).sequence(session, 1)).op(*operation)
    assert client.v4(request)[0] == status


def test_requests_that_are_none_are_refused(client: Client) -> None:
    assert client.v4(Compound(3).op(24))[0] == 10021
    request = Compound(1)
    request.operations = [u32(24)] * 100
    assert client.v4(request)[0] == 10070
    assert decode_reply(client.send(call(NFS, 4, 1, opaque(b"") + u32(0, 5) + u32(24))))[0] == 4
    assert decode_reply(client.send(call(NFS, 4, 2)))[0] == 3


def test_answers_are_bounded_in_all(client: Client) -> None:
    file = make_file(client, client.mount(), b"vmcore")
    assert write(client, file, 0, bytes(1 << 20)) == OK
    request = Compound(1).sequence(start_session(client), 1).op(22, opaque(file))
    for _ in range(60):
        request.op(25, ANY_STATEID + u64(0) + u32(1 << 20))
    assert client.v4(request)[0] == 10066
    request.minor = 0
    request.operations = request.operations[1:]
    assert client.v4(request)[0] == 10018


def test_attributes_are_those_of_the_version(client: Client) -> None:
    session = start_session(client)
    found: dict[int, Answered] = {}
    for minor, sequence in ((1, 1), (2, 2)):
        request = enter_export(Compound(minor).sequence(session, sequence)).op(9, u32(3, 1, 0, 1 << 79 - 64))
        status, answer = client.v4(request)
        assert status == OK
        found[minor] = answer
        answer.fixed(8 + 16 + 20 + 3 * 8 + 8)
        count = answer.u32()
        given = [answer.u32() for _ in range(count)]
        assert (given[2:] == [1 << 79 - 64]) is (minor == 2)


def test_a_process_of_its_own_serves_standard_input_and_leaves_no_word_on_it(tmp_path: Path) -> None:
    plan = NfsPlan(name="nfs", server="192.0.2.1", export="/srv/export", version="3")
    server = make_nfs_server(plan, tmp_path / "server", tmp_path / "saved/0", 1 << 20)
    assert set(server.ports) == {2049, 20048, 111}
    ours, theirs = socket.socketpair()
    with theirs:
        words = shlex.split(server.command)
        process = subprocess.Popen(words, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=theirs.fileno())
    client = Client(ours)
    file = make_file(client, client.mount(), b"vmcore")
    assert write(client, file, 0, b"dump") == OK
    assert write(client, file, 0, bytes(1 << 20)) == OK
    assert write(client, file, 1 << 20, b"x") == NOSPC
    ours.close()
    assert process.wait(20) == 0
    assert (tmp_path / "saved/0/srv/export/vmcore").stat().st_size == 1 << 20
    assert (tmp_path / "server" / LOG_NAME).read_text() == ""


@pytest.mark.parametrize(
    ("options", "version", "ports"),
    [
        ("", "4.2", (2049,)),
        ("port=2050", "4.0", (2050,)),
        ("nconnect=4,port=2050,mountport=2051", "3", (2050, 2051, 111)),
        ("mountport=2049", "3", (2049, 111)),
        ("port=no", "4.1", (2049,)),
    ],
)
def test_ports_are_those_of_the_plan(tmp_path: Path, options: str, version: str, ports: tuple[int, ...]) -> None:
    plan = NfsPlan(name="nfs", server="192.0.2.1", export="/", version=version, options=options)  # type: ignore[arg-type]
    assert make_nfs_server(plan, tmp_path / "server", tmp_path / "saved").ports == ports


@pytest.mark.parametrize(
    ("export", "options", "words"),
    [
        ("/srv/../..", "", "no path"),
        ("/srv", "proto=rdma", "TCP"),
        ("/srv", "rdma,port=20049", "TCP"),
        ("/srv", "mountproto=udp", "TCP"),
    ],
)
def test_what_cannot_stand_in_is_said(tmp_path: Path, export: str, options: str, words: str) -> None:
    plan = NfsPlan(name="nfs", server="192.0.2.1", export=export, options=options, version="3")
    with pytest.raises(NotReadyError, match=words):
        make_nfs_server(plan, tmp_path / "server", tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    plan = NfsPlan(name="nfs", server="192.0.2.1", export="/" + "x" * 300)
    with pytest.raises(NotReadyError, match="its export cannot be made here: file name too long"):
        make_nfs_server(plan, tmp_path / "server", tmp_path / "saved")


def test_the_store_is_there_before_the_first_connection(tmp_path: Path) -> None:
    """Two processes that are the first to open a file of SQLite do not wait for each other."""
    plan = NfsPlan(name="nfs", server="192.0.2.1", export="/srv", version="4.2")
    server = make_nfs_server(plan, tmp_path / "server", tmp_path / "saved")
    assert (tmp_path / "server" / STORE_NAME).read_bytes()[18:20] == b"\2\2", "it is in WAL mode"
    assert str(tmp_path / "server") in shlex.split(server.command)


def test_a_server_takes_no_module_from_where_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = NfsPlan(name="nfs", server="192.0.2.1", export="/srv", version="3")
    server = make_nfs_server(plan, tmp_path / "server", tmp_path / "saved")
    (tmp_path / "sqlite3.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    finished = subprocess.run(
        shlex.split(server.command), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert "shadowed" not in finished.stderr


def test_security_that_is_not_rehearsed_is_said(tmp_path: Path) -> None:
    plan = NfsPlan(name="nfs", server="192.0.2.1", export="/srv", options="sec=krb5p")
    server = make_nfs_server(plan, tmp_path / "server", tmp_path / "saved")
    assert "its security krb5p" in " ".join(server.unproven)
