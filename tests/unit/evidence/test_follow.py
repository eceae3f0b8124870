"""Reports of a text that grows, and files that do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from postpanic.errors import FileFaultError
from postpanic.evidence.follow import ReportFollower
from postpanic.evidence.growing_file import GrowingFile
from postpanic.evidence.oops import Report, find_reports
from tests.unit.evidence import texts
from tests.unit.evidence.texts import stamped

NAMES = tuple(name for name in texts.__all__ if name.isupper())
BOOT = b"[    0.000000] Linux version 6.12.1 (build@host) #7 SMP\n"


def follow(text: bytes, size: int) -> list[Report]:
    follower = ReportFollower()
    found = [report for at in range(0, len(text), size) for report in follower.feed(text[at : at + size])]
    return found + follower.finish()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_the_same_reports_as_of_the_whole(name: str, size: int) -> None:
    text = (stamped(getattr(texts, name)) + "[   99.000000] usb 1-1: new device\n" * 100).encode()
    assert follow(text, size) == find_reports(text)


def test_a_report_comes_as_soon_as_it_has_ended() -> None:
    text = stamped(texts.PAGE_FAULT).encode()
    follower = ReportFollower()
    found = follower.feed(text)
    assert follower.is_open or found
    found += follower.feed(b"[   99.000000] usb 1-1: new device\n" * 60)
    assert found
    assert not follower.is_open


def test_boots_are_told_apart() -> None:
    text = stamped(texts.PAGE_FAULT).encode()
    idle = b"[   99.000000] usb 1-1: new device\n" * 60
    both = text + idle + text + idle + BOOT + text + idle
    assert [report.consequence_of for report in follow(both, 1000)] == [
        report.consequence_of for report in find_reports(both)
    ]


def test_an_open_report_has_a_limit() -> None:
    follower = ReportFollower(limit_bytes=4096)
    found = follower.feed(b"[    1.000000] BUG: KASAN: slab-use-after-free in f+0x1/0x2\n[    1.000000] Call Trace:\n")
    for number in range(2000):
        found += follower.feed(b"[    1.000000]  function_%d+0x1/0x2\n" % number)
        assert follower.held_bytes <= 4096 + 100
    assert found


def test_a_line_without_an_end_is_cut() -> None:
    follower = ReportFollower()
    for _ in range(100):
        assert follower.feed(b"x" * 10_000) == []
    assert len(follower._partial) <= 16384


def test_file_grows_is_rotated_and_truncated(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"old\n")
    file = GrowingFile(path)
    assert file.read_new() == b""
    with path.open("ab") as log:
        log.write(b"one\ntw")
    assert file.read_new() == b"one\ntw"
    with path.open("ab") as log:
        log.write(b"o\nlast of the old\n")
    path.rename(tmp_path / "console.log.1")
    assert file.read_new() == b"o\nlast of the old\n"
    assert file.read_new() == b""
    path.write_bytes(b"first of the new\n")
    assert file.read_new() == b"first of the new\n"
    os.truncate(path, 0)
    with path.open("ab") as log:
        log.write(b"short\n")
    assert file.read_new() == b"short\n"
    assert file.rotations == 2
    file.close()


def test_file_that_is_not_there_yet_is_read_from_its_beginning(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "later.log")
    assert file.read_new() == b""
    (tmp_path / "later.log").write_bytes(b"hello\n")
    assert file.read_new() == b"hello\n"
    file.close()


def test_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"all of it\n")
    file = GrowingFile(tmp_path / "a.log", from_start=True)
    assert file.read_new() == b"all of it\n"
    file.close()


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "line"
    os.mkfifo(path)
    file = GrowingFile(path)
    assert file.read_new() == b""
    writing = os.open(path, os.O_WRONLY)
    os.write(writing, b"login: ")
    assert file.read_new() == b"login: "
    os.close(writing)
    assert file.read_new() == b""
    file.close()


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match="a directory"):
        GrowingFile(tmp_path)
