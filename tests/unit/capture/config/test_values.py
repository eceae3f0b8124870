"""Sizes and times are read as people write them."""

from __future__ import annotations

import pytest

from postpanic.capture.config import values


@pytest.mark.parametrize(
    ("written", "size"),
    [(0, 0), (4096, 4096), ("20 GiB", 20 << 30), ("256M", 256 << 20), ("1.5 KiB", 1536), ("2 GB", 2 * 10**9), ("7", 7)],
)
def test_sizes(written: object, size: int) -> None:
    assert values.SIZE.read(written) == size


@pytest.mark.parametrize("written", [-1, True, 1.5, "", "G", "1 GiBi", "1e3", "0x10", "-1", "9" * 30, None, []])
def test_what_is_no_size(written: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        values.SIZE.read(written)


@pytest.mark.parametrize(
    ("written", "seconds"), [(3, 3.0), (1.5, 1.5), ("90 s", 90.0), ("2min", 120.0), ("1 h", 3600.0), ("10", 10.0)]
)
def test_times(written: object, seconds: float) -> None:
    assert values.duration(1, 86400).read(written) == seconds


@pytest.mark.parametrize("written", [0, True, "1 y", "", "-1 s", float("nan"), float("inf"), "2 d", None])
def test_what_is_no_time(written: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        values.duration(1, 86400).read(written)


@pytest.mark.parametrize(
    ("written", "spelled"),
    [("UUID=ab-1", "UUID=ab-1"), ('LABEL="a b"', "LABEL=a b"), ("/dev/disk/by-id/x", "/dev/disk/by-id/x")],
)
def test_names_of_devices(written: str, spelled: str) -> None:
    assert str(values.DEVICE.read(written)) == spelled


@pytest.mark.parametrize("written", ["", "UUID=", "ID=3", "/dev/", "sda", "/srv/x", "/dev/../x", 3])
def test_what_is_no_name_of_a_device(written: object) -> None:
    with pytest.raises((ValueError, TypeError, values.RefusedError)):
        values.DEVICE.read(written)


def test_a_command_line_keeps_its_quotes_as_the_kernel_needs_them() -> None:
    assert values.COMMAND_LINE.read('a=1 b="x y" c') == ("a=1", 'b="x y"', "c")
    assert values.COMMAND_LINE.read(["a", "b"]) == ("a", "b")


@pytest.mark.parametrize("written", [3, "x" * 3000, "a\x01b", 'a="b'])
def test_what_is_no_command_line(written: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        values.COMMAND_LINE.read(written)
