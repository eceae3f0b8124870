"""Whatever a machine sends to the server that stands in, it gets an answer, and reaches nothing outside."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from postpanic.rehearse.servers.sftp import SftpServer
from postpanic.saver.targets.sftp_wire import encode_string

PATHS = st.lists(st.sampled_from(["..", ".", "a", "b", "", "secret", "\0", "/"]), max_size=6).map("/".join)
FIELDS = st.one_of(
    PATHS.map(lambda path: encode_string(path.encode())),
    st.sampled_from([b"1", b"2", b"posix-rename@openssh.com", b"statvfs@openssh.com", b"fsync@openssh.com"]).map(
        encode_string
    ),
    st.integers(0, 2**32 - 1).map(lambda number: struct.pack(">I", number)),
    st.integers(0, 2**64 - 1)
    .filter(lambda number: number < 1 << 20 or number > 1 << 63)
    .map(lambda number: struct.pack(">Q", number)),
    st.binary(max_size=40).map(encode_string),
    st.binary(max_size=9),
)
PACKETS = st.builds(
    lambda kind, number, fields: struct.pack(">BI", kind, number) + b"".join(fields),
    st.sampled_from([*range(21), 200]),
    st.integers(0, 2**32 - 1),
    st.lists(FIELDS, max_size=5),
)


@given(st.lists(PACKETS, max_size=12), st.one_of(st.none(), st.integers(0, 1 << 20)))
def test_every_packet_is_answered_and_nothing_leads_out(packets: list[bytes], room_bytes: int | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "root"
        root.mkdir()
        (Path(name) / "secret").write_text("kept")
        server = SftpServer(root, room_bytes)
        try:
            for packet in packets:
                answer = server.answer(packet)
                assert answer[0] in {2, 101, 102, 103, 104, 105, 201}
                if answer[0] != 2:
                    assert answer[1:5] == packet[1:5]
        finally:
            server.close()
        assert (Path(name) / "secret").read_text() == "kept"
        assert sorted(path.name for path in Path(name).iterdir()) == ["root", "secret"]
