"""Framing and escapes of gdb's remote protocol."""

from __future__ import annotations

import pytest

from postpanic.analysis.gdbserver.packets import (
    Control,
    PacketReader,
    ProtocolError,
    decode_hex,
    decode_number,
    encode_packet,
    escape,
    unescape,
)
from tests.unit.analysis.gdbserver.machine import frame

LIMIT = 64


def test_packets_of_the_manual() -> None:
    assert encode_packet(b"OK") == b"$OK#9a"
    assert encode_packet(b"") == b"$#00"
    assert PacketReader(LIMIT).feed(b"+$qSupported#37-$g#67\x03") == [
        Control.ACK,
        b"qSupported",
        Control.NACK,
        b"g",
        Control.INTERRUPT,
    ]


def test_packets_are_found_however_the_stream_is_cut() -> None:
    stream = b"+" + frame(b"m0,40") + frame(b"") + b"noise" + frame(b"X1,1:}\x03") + b"-"
    whole = PacketReader(LIMIT).feed(stream)
    for cut in range(len(stream)):
        reader = PacketReader(LIMIT)
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == whole


@pytest.mark.parametrize("sent", [b"$g#68", b"$g#6x", b"$g#+7", b"$g# 7"])
def test_a_wrong_checksum_is_damage(sent: bytes) -> None:
    assert PacketReader(LIMIT).feed(sent) == [Control.DAMAGED]


def test_a_packet_without_end_is_refused_before_it_fills_the_memory() -> None:
    reader = PacketReader(LIMIT)
    reader.feed(b"$" + b"a" * (LIMIT - 1))
    with pytest.raises(ProtocolError):
        reader.feed(b"a")


@pytest.mark.parametrize("data", [b"", b"plain", b"}", b"#$}*", b"}}}", bytes(range(256)), b"a}]b"])
def test_escapes_are_undone(data: bytes) -> None:
    escaped = escape(data)
    assert not set(escaped) & set(b"#$*")
    assert unescape(escaped) == data


def test_an_escape_at_the_end_stands_for_nothing() -> None:
    assert unescape(b"a}") == b"a"
    assert unescape(b"}}") == b"]"


@pytest.mark.parametrize("text", [b"", b"-1", b"+1", b"0x10", b" 1", b"1_0", b"10000000000000000f", b"g", "٣".encode()])
def test_what_is_no_number(text: bytes) -> None:
    with pytest.raises(ValueError, match="no number"):
        decode_number(text)


def test_numbers() -> None:
    assert decode_number(b"ffffffff81000000") == 0xFFFFFFFF81000000
    assert decode_number(b"0") == 0


@pytest.mark.parametrize("text", [b"a", b"0g", b"a b ", b"0x"])
def test_what_are_no_bytes(text: bytes) -> None:
    with pytest.raises(ValueError, match="no hexadecimal"):
        decode_hex(text)
