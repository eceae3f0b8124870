"""What bad values look like, and runs of bytes that belong together."""

from __future__ import annotations

import pytest

from postpanic.analysis.triage.faults.runs import find_run
from postpanic.analysis.triage.faults.values import BadKind, classify


@pytest.mark.parametrize(
    ("value", "kind", "word"),
    [
        (0, BadKind.NULL, "NULL"),
        (0x28, BadKind.SMALL, "0x28"),
        (-13 & (1 << 64) - 1, BadKind.ERROR, "-EACCES"),
        (0xDEAD000000000100, BadKind.LIST_POISON, "LIST_POISON1"),
        (0xDEAD000000000122, BadKind.LIST_POISON, "LIST_POISON2"),
        (0x6B6B6B6B6B6B6B6B, BadKind.FREED, "0x6b"),
        (0xA56B6B6B6B6B6B6B, BadKind.FREED, "0x6b"),
        (0x5A5A5A5A5A5A5A5A, BadKind.UNSET, "never written"),
        (0xCCCCCCCCCCCCCCCC, BadKind.RED_ZONE, "red zone"),
        (int.from_bytes(b"etc/pass", "little"), BadKind.TEXT, "etc/pass"),
        (0x4141414141414141, BadKind.REPEATED, '"A"'),
        (0xA11CA11CA11CA11C, BadKind.NON_CANONICAL, "non-canonical"),
        (0x7FFCAEDEBFA8, BadKind.USER, "user space"),
        (0xFFFF888000000000, BadKind.KERNEL, "0xffff888000000000"),
        (0xFF11000012345678, BadKind.KERNEL, "0xff11000012345678"),
    ],
)
def test_a_value_says_what_it_is(value: int, kind: BadKind, word: str) -> None:
    found = classify(value)
    assert found.kind is kind
    assert word in found.text
    assert found.is_bad is (kind is not BadKind.KERNEL)


def test_a_text_is_found_to_both_sides() -> None:
    run = find_run(b"\0\0\0\0Bartholomew Featherstone\0\0", 8)
    assert run is not None
    assert (run.start, run.size_bytes, run.unit) == (4, 24, b"")


def test_a_unit_of_two_bytes_is_found_over_the_border_of_words() -> None:
    data = bytes(6) + bytes.fromhex("1ca1") * 9 + bytes(8)
    run = find_run(data, 8)
    assert run is not None
    assert (run.start, run.end, run.unit) == (6, 24, bytes.fromhex("1ca1"))


@pytest.mark.parametrize(
    ("value", "machine", "kind"),
    [
        (0x0000FFFFF31EAFA8, "aarch64", BadKind.USER),
        (0x0000FFFFF31EAFA8, "x86_64", BadKind.NON_CANONICAL),
        (0x00007FFCAEDEBFA8, "x86_64", BadKind.USER),
        (0x000F800012345678, "aarch64", BadKind.NON_CANONICAL),
        (0xFFFF00000626DA80, "aarch64", BadKind.KERNEL),
        (0xFFF000001F6B2080, "aarch64", BadKind.KERNEL),
    ],
)
def test_addresses_are_told_by_the_machine(value: int, machine: str, kind: BadKind) -> None:
    assert classify(value, machine).kind is kind


@pytest.mark.parametrize("data", [bytes(32), bytes(8) + bytes.fromhex("80b43a1f80881234") + bytes(16), b"short"])
def test_zeroes_and_single_words_are_no_run(data: bytes) -> None:
    assert find_run(data, 8) is None
