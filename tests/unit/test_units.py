"""Sizes are read as the kernel reads them, and spelled in binary units."""

from __future__ import annotations

import pytest

from postpanic.units import GIB, KIB, MIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("256M", 256 * MIB), ("1g", GIB), ("0x10", 16), ("0x1e", 30), ("010K", 8 * KIB), (" 512 ", 512), ("0", 0)],
)
def test_size_is_read_as_memparse_does(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "M", "12Q", "-1M", "1.5G", "0x"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (KIB, "1.0 KiB"), (846 * MIB, "846.0 MiB")]
)
def test_size_is_spelled_in_binary_units(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
