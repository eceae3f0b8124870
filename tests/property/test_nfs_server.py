"""Whatever comes over the wire, the NFS server that stands in answers or is silent, and reaches nothing outside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from postpanic.rehearse.servers.nfs.serving import NfsServer
from postpanic.rehearse.servers.nfs.xdr import (
    Fields,
    XdrError,
    encode_bitmap,
    encode_bool,
    encode_opaque,
    encode_u32,
    encode_u64,
)
from tests.builders.nfs_calls import (
    MOUNT,
    NFS,
    PORTMAP,
    Compound,
    call,
    create_session,
    decode_reply,
    exchange_id,
    opaque,
    setclientid,
    u32,
    u64,
)

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 16, 64, 1 << 31, (1 << 32) - 1]), st.integers(0, (1 << 32) - 1)
)
LONG_NUMBERS = st.one_of(st.sampled_from([0, 1, 2, 3, 1 << 43, 1 << 63, (1 << 64) - 1]), st.integers(0, (1 << 64) - 1))
NAMES = st.one_of(
    st.sampled_from([b"", b".", b"..", b"a", b"b", b"srv", b"export", b"secret", b"a/b", b"\0", b"x" * 300]),
    st.binary(max_size=9),
)
FIELDS = st.one_of(
    NUMBERS.map(u32), LONG_NUMBERS.map(u64), NAMES.map(opaque), st.binary(max_size=40), st.just(bytes(16))
)
BODIES = st.lists(FIELDS, max_size=8).map(b"".join)
HANDLED = st.sampled_from([b"top", b"root", b"file"])


@contextmanager
def serving() -> Iterator[tuple[NfsServer, Path]]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "root/srv/export").mkdir(parents=True)
        (place / "state").mkdir()
        (place / "secret").write_text("kept")
        server = NfsServer(place / "state", place / "root", "/srv/export", (2049, 20048), 1 << 20)
        try:
            yield server, place
        finally:
            server.close()
        assert (place / "secret").read_text() == "kept"
        assert sorted(path.name for path in place.iterdir()) == ["root", "secret", "state"]
        assert [path.name for path in (place / "root").iterdir()] == ["srv"]
        assert [path.name for path in (place / "root/srv").iterdir()] == ["export"]
        assert sum(path.stat().st_size for path in (place / "root").rglob("*") if path.is_file()) <= 1 << 20


def mount(server: NfsServer) -> bytes:
    answer = server.answer(call(MOUNT, 3, 1, opaque(b"/srv/export")))
    assert answer is not None
    _, found = decode_reply(answer)
    assert found.u32() == 0
    return found.opaque()


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_what_is_no_call_is_answered_or_not(records: list[bytes]) -> None:
    with serving() as (server, _):
        for record in records:
            server.answer(record)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([(PORTMAP, 2), (PORTMAP, 4), (MOUNT, 3), (NFS, 3), (NFS, 4)]), st.integers(0, 22), BODIES
        ),
        max_size=10,
    )
)
def test_every_call_is_answered(calls: list[tuple[tuple[int, int], int, bytes]]) -> None:
    with serving() as (server, _):
        for (program, version), procedure, body in calls:
            answer = server.answer(call(program, version, procedure, body))
            assert answer is not None
            assert decode_reply(answer)[0] in {0, 3, 4}


@given(st.lists(st.tuples(st.integers(1, 21), BODIES), max_size=12))
def test_every_procedure_of_version_3_is_answered(requests: list[tuple[int, bytes]]) -> None:
    with serving() as (server, _):
        top = mount(server)
        for xid, (procedure, body) in enumerate(requests):
            answer = server.answer(call(NFS, 3, procedure, opaque(top) + body, xid=xid))
            assert answer is not None
            assert decode_reply(answer, xid)[0] in {0, 4}


OPERATIONS = st.lists(st.tuples(st.one_of(st.integers(2, 72), st.sampled_from([18, 38, 6, 29])), BODIES), max_size=6)


@given(st.lists(st.tuples(st.integers(0, 3), OPERATIONS), max_size=6))
def test_every_request_of_version_4_is_answered(requests: list[tuple[int, list[tuple[int, bytes]]]]) -> None:
    with serving() as (server, _):
        top, session = mount(server), start_session(server)
        for number, (minor, operations) in enumerate(requests):
            request = Compound(minor)
            if minor:
                request.sequence(session, 1, number)
            request.op(22, opaque(top)).op(32)
            for operation, body in operations:
                request.op(operation, body)
            answer = server.answer(request.call(number))
            assert answer is not None
            assert decode_reply(answer, number)[0] in {0, 4}


def start_session(server: NfsServer) -> bytes:
    answers = [server.answer(setclientid().call()), server.answer(exchange_id().call())]
    assert answers[1] is not None
    _, found = decode_reply(answers[1])
    found.fixed(20)
    answer = server.answer(create_session(found.u64(), found.u32()).call())
    assert answer is not None
    _, found = decode_reply(answer)
    found.fixed(20)
    return found.fixed(16)


@given(
    NUMBERS,
    LONG_NUMBERS,
    st.booleans(),
    st.binary(max_size=70),
    st.frozensets(st.integers(0, 255), max_size=20),
)
def test_what_is_encoded_is_decoded(short: int, long: int, truth: bool, content: bytes, bits: frozenset[int]) -> None:
    encoded = encode_u32(short) + encode_u64(long) + encode_bool(truth) + encode_opaque(content)
    encoded += encode_bitmap(sorted(bits))
    assert len(encoded) % 4 == 0
    fields = Fields(encoded)
    found = (fields.take_u32(), fields.take_u64(), fields.take_bool(), fields.take_opaque(70), fields.take_bitmap())
    assert found == (short, long, truth, content, bits)
    assert fields.left_bytes == 0


@given(st.binary(max_size=60), st.lists(st.sampled_from(["u32", "u64", "bool", "opaque", "bitmap", "fixed"])))
def test_what_is_cut_short_or_too_long_is_said(content: bytes, kinds: list[str]) -> None:
    fields = Fields(content)
    try:
        for kind in kinds:
            left = fields.left_bytes
            if kind == "opaque":
                assert len(fields.take_opaque(16)) <= 16
            elif kind == "fixed":
                assert len(fields.take_fixed(5)) == 5
            else:
                getattr(fields, f"take_{kind}")()
            assert fields.left_bytes < left
    except XdrError:
        assert fields.left_bytes <= len(content)
