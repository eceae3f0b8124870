"""The kernel's own reading of crashkernel=, oddities included (kernel/crash_reserve.c)."""

from __future__ import annotations

import pytest

from postpanic.capture.crashkernel.parse import ParserFeatures, parse_command_line, read_number

M, G = 1 << 20, 1 << 30
RHEL9 = "1G-4G:192M,4G-64G:256M,64G-:512M"


@pytest.mark.parametrize(
    ("text", "value", "end"),
    [
        *(("64M", 64 * M, 3), ("64m", 64 * M, 3), ("0x40M", 64 * M, 5), ("0100K", 64 << 10, 5), ("1G@", G, 2)),
        *(
            ("0x1000", 4096, 6),
            ("17", 17, 2),
            ("", 0, 0),
            ("auto", 0, 0),
            ("M", 0, 1),
            ("09", 0, 1),
            ("2E", 2 << 60, 2),
        ),
    ],
)
def test_sizes(text: str, value: int, end: int) -> None:
    assert read_number(text) == (value, end)


@pytest.mark.parametrize(
    ("value", "total", "size", "base"),
    [
        ("256M", 8 * G, 256 * M, None),
        ("64M@16M", 8 * G, 64 * M, 16 * M),
        ("64M@0", 8 * G, 64 * M, None),
        ("512M-2G:64M,2G-:128M", G, 64 * M, None),
        ("512M-2G:64M,2G-:128M", 2 * G, 128 * M, None),
        ("512M-2G:64M,2G-:128M@0x1000000", 2 * G, 128 * M, 16 * M),
        ("384M-:128M", 8 * G, 128 * M, None),
        # What firmware keeps for itself does not count: rounded up to 128 MiB.
        ("2G-:128M", 2 * G - 50 * M, 128 * M, None),
        (RHEL9, 4 * G - 1, 256 * M, None),
        (RHEL9, 4 * G - 200 * M, 192 * M, None),
        (RHEL9, 1 << 40, 512 * M, None),
    ],
)
def test_what_is_reserved(value: str, total: int, size: int, base: int | None) -> None:
    found = parse_command_line(f"ro crashkernel={value} quiet", total)
    assert (found.size_bytes, found.base, found.problem) == (size, base, "")
    assert found.used == value


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ro quiet", "has no crashkernel="),
        ("crashkernel=auto", "auto is no size"),
        ("crashkernel=", "a size is expected"),
        ("crashkernel=256MB", "'B' after the size"),
        ("crashkernel=0", "a size of 0"),
        ("crashkernel=8G", "8.0 GiB of 8.0 GiB"),
        ("crashkernel=16G-:256M", "none of its ranges"),
        ("crashkernel=1G-2G", "'-' after the size"),
        ("crashkernel=1G:256M", "'-' is expected"),
        ("crashkernel=2G-1G:256M", "ends where it begins"),
        ("crashkernel=1G-:", "a size is expected at ''"),
        ("crashkernel=1G-:256M@x", "an address is expected"),
        ("crashkernel=1G-:16G", "more than there is memory"),
        ("crashkernel=128M,low", "no size without"),
        ("crashkernel=256M,cma", "',' after the size"),
        ("crashkernel=256M,hihg", "',' after the size"),
    ],
)
def test_what_reserves_nothing(line: str, problem: str) -> None:
    found = parse_command_line(line, 8 * G)
    assert found.size_bytes == 0
    assert problem in found.problem


def test_high_and_low() -> None:
    found = parse_command_line("crashkernel=1G,high crashkernel=72M,low", 16 * G)
    assert (found.size_bytes, found.is_high, found.low_bytes) == (G, True, 72 * M)
    assert parse_command_line("crashkernel=1G,high", 16 * G).low_bytes is None
    old = parse_command_line("crashkernel=1G,high", 16 * G, ParserFeatures(high=False))
    assert "does not know ,high" in old.problem


def test_a_plain_size_comes_before_high() -> None:
    found = parse_command_line("crashkernel=256M crashkernel=1G,high", 16 * G)
    assert (found.size_bytes, found.is_high) == (256 * M, False)
    assert "1G,high: not looked at" in found.remarks[0]


def test_the_last_one_counts() -> None:
    found = parse_command_line("crashkernel=512M ro crashkernel=384M-:128M", 8 * G)
    assert found.size_bytes == 128 * M
    assert found.words == ("512M", "384M-:128M")


def test_the_words_are_found_where_strstr_finds_them() -> None:
    assert parse_command_line("nocrashkernel=64M", 8 * G).size_bytes == 64 * M


def test_cma_is_known_or_makes_all_void() -> None:
    line = "crashkernel=256M crashkernel=512M,cma"
    new = parse_command_line(line, 8 * G, ParserFeatures(cma=True))
    assert (new.size_bytes, new.cma_bytes, new.problem) == (256 * M, 512 * M, "")
    old = parse_command_line(line, 8 * G)
    assert old.size_bytes == 0
    assert any("does not know ,cma" in remark for remark in old.remarks)


def test_auto_of_a_distribution() -> None:
    features = ParserFeatures(auto=RHEL9)
    assert parse_command_line("crashkernel=auto", 8 * G, features).size_bytes == 256 * M
    assert parse_command_line("crashkernel=128M", 8 * G, features).size_bytes == 128 * M


def test_ranges_are_told_even_where_none_fits() -> None:
    found = parse_command_line("crashkernel=16G-32G:256M,32G-:512M", 8 * G)
    assert [(entry.start_bytes, entry.end_bytes) for entry in found.ranges] == [(16 * G, 32 * G), (32 * G, None)]
