"""BPF instructions against the spelling of the kernel's verifier (``kernel/bpf/disasm.c``)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.analysis.bpf.instructions import INSTRUCTION_BYTES, decode_instructions


def encode(code: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, dst | src << 4, offset, immediate)


SPELLED = [
    # What bpftool prog dump xlated and crash's help show for these bytes.
    ("bf 16 00 00 00 00 00 00", "(bf) r6 = r1"),
    ("69 67 c0 00 00 00 00 00", "(69) r7 = *(u16 *)(r6 +192)"),
    ("b4 08 00 00 00 00 00 00", "(b4) w8 = 0"),
    ("55 07 0e 00 08 00 00 00", "(55) if r7 != 0x8 goto pc+14"),
    ("07 03 00 00 fc ff ff ff", "(07) r3 += -4"),
    ("62 02 00 00 20 00 00 00", "(62) *(u32 *)(r2 +0) = 32"),
    ("15 00 01 00 00 00 00 00", "(15) if r0 == 0x0 goto pc+1"),
    ("44 08 00 00 02 00 00 00", "(44) w8 |= 2"),
    ("95 00 00 00 00 00 00 00", "(95) exit"),
    ("85 00 00 00 20 20 01 00", "(85) call 73760"),
    ("30 00 00 00 17 00 00 00", "(30) r0 = *(u8 *)skb[23]"),
    ("63 0a fc ff 00 00 00 00", "(63) *(u32 *)(r10 -4) = r0"),
    ("db 10 00 00 00 00 00 00", "(db) lock *(u64 *)(r0 +0) += r1"),
    ("dc 01 00 00 20 00 00 00", "(dc) r1 = be32 r1"),
    ("d7 01 00 00 40 00 00 00", "(d7) r1 = bswap64 r1"),
    ("87 02 00 00 00 00 00 00", "(87) r2 = -r2"),
    ("84 02 00 00 00 00 00 00", "(84) w2 = -w2"),
    ("05 00 fe ff 00 00 00 00", "(05) goto pc-2"),
    ("06 00 00 00 00 01 00 00", "(06) goto pc+256"),
    ("85 10 00 00 05 00 00 00", "(85) call pc+5"),
    ("2e 21 03 00 00 00 00 00", "(2e) if w1 > w2 goto pc+3"),
]


@pytest.mark.parametrize(("encoded", "text"), SPELLED)
def test_spelling(encoded: str, text: str) -> None:
    (instruction,) = decode_instructions(bytes.fromhex(encoded))
    assert instruction.text == text


def test_a_constant_of_64_bits_counts_twice() -> None:
    code = encode(0x18, dst=1, immediate=0x61967A00) + encode(0, immediate=-25166) + encode(0xB7, dst=0, immediate=1)
    first, second = decode_instructions(code, name_constant=lambda value: f"map at {value:x}")
    assert (first.index, first.text, len(first.encoded)) == (0, "(18) r1 = map at ffff9db261967a00", 16)
    assert (second.index, second.text) == (2, "(b7) r0 = 1")


def test_calls_are_named() -> None:
    (call,) = decode_instructions(encode(0x85, immediate=6), name_call=lambda value: f"helper#{value}")
    assert call.text == "(85) call helper#6"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (0x01, "(db) r1 = atomic64_fetch_add((u64 *)(r0 +8), r1)"),
        (0xE1, "(db) r1 = atomic64_xchg((u64 *)(r0 +8), r1)"),
        (0xF1, "(db) r0 = atomic64_cmpxchg((u64 *)(r0 +8), r0, r1)"),
        (0x77, "(db) BUG_db"),
    ],
)
def test_atomic_operations(kind: int, text: str) -> None:
    (instruction,) = decode_instructions(encode(0xDB, dst=0, src=1, offset=8, immediate=kind))
    assert instruction.text == text


@given(st.binary(max_size=200))
def test_whatever_is_in_memory_is_decoded(code: bytes) -> None:
    found = list(decode_instructions(code))
    assert b"".join(instruction.encoded for instruction in found) == code[: len(code) // INSTRUCTION_BYTES * 8]
