"""Packets of DHCP: what is sent, and what of an answer is believed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.saver.network.dhcp_packets import Kind, encode_request, parse_reply, read_lease

MAC = bytes.fromhex("525400aabb01")
TRANSACTION = 0x12345678


def make_reply(
    options: bytes,
    *,
    yours: bytes = bytes([192, 0, 2, 55]),
    mac: bytes = MAC,
    transaction: int = TRANSACTION,
    ports: tuple[int, int] = (67, 68),
    file: bytes = b"",
    cookie: bytes = bytes([99, 130, 83, 99]),
) -> bytes:
    bootp = bytes([2, 1, 6, 0]) + struct.pack(">IHH", transaction, 0, 0) + bytes(4) + yours + bytes(8)
    bootp += mac.ljust(16, b"\0") + bytes(64) + file.ljust(128, b"\0") + cookie + options
    udp = struct.pack(">HHHH", *ports, 8 + len(bootp), 0)
    head = (
        struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(bootp), 0, 0x4000, 64, 17, 0) + bytes([192, 0, 2, 1]) + b"\xff" * 4
    )
    return head + udp + bootp


def option(code: int, *value: int) -> bytes:
    return bytes([code, len(value), *value])


ACK = option(53, 5) + option(54, 192, 0, 2, 1)


def read(packet: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN201 - the lease or None
    reply = parse_reply(packet, MAC, TRANSACTION)
    return None if reply is None else read_lease(reply)


def test_request_is_a_packet_of_ip_and_udp() -> None:
    packet = encode_request(
        Kind.REQUEST, MAC, TRANSACTION, 3, address=bytes([192, 0, 2, 55]), server=bytes([192, 0, 2, 1])
    )
    assert packet[0] == 0x45
    assert int.from_bytes(packet[2:4], "big") == len(packet) == 328
    # RFC 1071: the sum over a header with its checksum is all ones.
    total = sum(struct.unpack(">10H", packet[:20]))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert struct.unpack(">HH", packet[20:24]) == (68, 67)
    bootp = packet[28:]
    assert bootp[:4] == bytes([1, 1, 6, 0])
    assert bootp[4:8] == bytes.fromhex("12345678")
    assert bootp[28:34] == MAC
    assert bootp[236:243] == bytes([99, 130, 83, 99, 53, 1, 3])
    assert bytes([50, 4, 192, 0, 2, 55]) in bootp
    assert bytes([54, 4, 192, 0, 2, 1]) in bootp


def test_lease() -> None:
    lease = read(
        make_reply(
            ACK
            + option(0)[:1]
            + option(1, 255, 255, 254, 0)
            + option(3, 192, 0, 2, 1, 192, 0, 2, 2)
            + option(6, 192, 0, 2, 53, 0, 0, 0, 0)
            + option(26, 5, 20)
            + option(51, 0, 0, 14, 16)
            + option(121, 0, 192, 0, 2, 1, 25, 198, 51, 100, 128, 0, 0, 0, 0)
            + b"\xff"
        )
    )
    assert (lease.address, lease.prefix_length, lease.mtu, lease.seconds) == ("192.0.2.55", 23, 1300, 3600)
    assert lease.routers == ("192.0.2.1", "192.0.2.2")
    assert lease.nameservers == ("192.0.2.53",)
    assert lease.routes == (("default", "192.0.2.1"), ("198.51.100.128/25", "0.0.0.0"))  # noqa: S104
    assert lease.server == "192.0.2.1"


@pytest.mark.parametrize(
    ("mask", "length"),
    [((255, 255, 255, 0), 24), ((255, 0, 255, 0), 24), ((0, 0, 0, 0), 24), ((255, 255), 24), ((255,) * 4, 32)],
)
def test_masks_that_are_none(mask: tuple[int, ...], length: int) -> None:
    assert read(make_reply(ACK + option(1, *mask))).prefix_length == length


def test_long_options_are_put_together() -> None:
    assert read(make_reply(ACK + option(6, 192, 0, 2) + option(6, 53))).nameservers == ("192.0.2.53",)


def test_options_in_the_fields_of_names() -> None:
    lease = read(make_reply(ACK + option(52, 1) + b"\xff", file=option(3, 192, 0, 2, 9) + b"\xff"))
    assert lease.routers == ("192.0.2.9",)


@pytest.mark.parametrize(
    "packet",
    [
        make_reply(ACK, mac=bytes(6)),
        make_reply(ACK, transaction=1),
        make_reply(ACK, ports=(68, 67)),
        make_reply(ACK, cookie=bytes(4)),
        make_reply(option(53, 5)),
        make_reply(option(54, 192, 0, 2, 1)),
        make_reply(ACK, yours=bytes(4)),
        make_reply(ACK, yours=bytes([255] * 4)),
        make_reply(ACK, yours=bytes([127, 0, 0, 1])),
        make_reply(ACK, yours=bytes([224, 0, 0, 1])),
        make_reply(ACK)[:100],
        b"",
    ],
)
def test_what_is_not_believed(packet: bytes) -> None:
    assert read(packet) is None


def test_every_cut_and_every_byte_changed_ends_well() -> None:
    whole = make_reply(ACK + option(1, 255, 255, 255, 0) + option(121, 25, 198, 51, 100, 128, 0, 0, 0, 0) + b"\xff")
    for end in range(len(whole)):
        assert read(whole[:end]) is None
    for at in range(len(whole)):
        for value in (0, 1, 0x7F, 0xFF):
            read(whole[:at] + bytes([value]) + whole[at + 1 :])


@given(st.binary(max_size=400))
def test_any_options_end_well(options: bytes) -> None:
    lease = read(make_reply(options))
    assert lease is None or 0 < lease.prefix_length <= 32
