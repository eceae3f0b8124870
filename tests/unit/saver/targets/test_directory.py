"""A dump in a directory: what is there at which moment, and under which name."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from postpanic.errors import NoSpaceError, OutputError
from postpanic.saver.plan import RetentionPlan
from postpanic.saver.targets.directory import DirectoryTarget, resolve_inside

DUMP = "host-20260131-235959"


@contextmanager
def file_limit(size_bytes: int) -> Iterator[None]:
    """No file of ours may be larger: writing ends in EFBIG, as on a full FAT."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_dump_has_its_name_from_the_commit_on(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path / "var" / "crash")
    assert target.place == ""
    target.open(DUMP)
    place = tmp_path / "var" / "crash" / DUMP
    assert target.place == str(place)
    assert not target.dump_files
    assert target.read_back() is None
    target.put("vmcore-dmesg.txt", b"panic")
    sink = target.open_dump("vmcore")
    sink.write_at(0, [b"dump"])
    assert sorted(path.name for path in place.iterdir()) == ["vmcore-dmesg.txt", "vmcore-incomplete"]
    sink.finish()
    assert target.read_back() == str(place / "vmcore-incomplete")
    target.put("vmcore.manifest.json", b"{}")
    target.commit()
    target.commit()
    assert list(target.dump_files) == ["vmcore"]
    assert target.read_back() == str(place / "vmcore")
    target.put("vmcore.manifest.json", b"{1}")
    target.close()
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        "vmcore-dmesg.txt": b"panic",
        "vmcore": b"dump",
        "vmcore.manifest.json": b"{1}",
    }
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}
    assert place.stat().st_mode & 0o777 == 0o700


def test_a_name_that_is_taken_gets_a_number_and_a_second_attempt_does_not(tmp_path: Path) -> None:
    for expected in (DUMP, f"{DUMP}-1", f"{DUMP}-2"):
        target = DirectoryTarget(tmp_path)
        target.open(DUMP)
        target.open_dump("vmcore").close()
        target.close()
        target.open(DUMP)
        assert target.place == str(tmp_path / expected)
        assert not target.dump_files
        # What the first attempt began is dropped.
        sink = target.open_dump("vmcore")
        sink.write_at(0, [b"second"])
        sink.finish()
        target.commit()
        target.close()
        assert [path.name for path in (tmp_path / expected).iterdir()] == ["vmcore"]


def test_a_small_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path)
    target.open(DUMP)
    target.put("saver.log", b"first")
    with file_limit(4096), pytest.raises(NoSpaceError, match=r"cannot write saver\.log: file too large"):
        target.put("saver.log", b"x" * 5000)
    assert [path.name for path in (tmp_path / DUMP).iterdir()] == ["saver.log"]
    assert (tmp_path / DUMP / "saver.log").read_bytes() == b"first"


def test_a_dump_that_does_not_fit_stays_incomplete(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path)
    target.open(DUMP)
    sink = target.open_dump("vmcore")
    with file_limit(4096), pytest.raises(NoSpaceError):
        sink.write_at(0, [b"x" * 5000])
    sink.close()
    assert target.rotate() == []
    assert [path.name for path in (tmp_path / DUMP).iterdir()] == ["vmcore-incomplete"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd"])
def test_a_name_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    target = DirectoryTarget(tmp_path)
    with pytest.raises(OutputError, match="no name of a dump"):
        target.open(name)
    target.open(DUMP)
    with pytest.raises(OutputError, match="no name of a file"):
        target.put(name, b"")


def test_nothing_is_written_to_a_target_that_is_not_open(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path, name="file /var/crash")
    with pytest.raises(OutputError, match="file /var/crash: not open"):
        target.put("saver.log", b"")
    target.open(DUMP)
    target.close()
    target.close()
    with pytest.raises(OutputError, match="not open"):
        target.open_dump("vmcore")


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "crash").write_text("a file")
    with pytest.raises(OutputError, match="cannot make a directory"):
        DirectoryTarget(tmp_path / "crash").open(DUMP)
    with pytest.raises(OutputError, match="cannot make a directory"):
        DirectoryTarget(Path("/proc/crash")).open(DUMP)


def test_the_room_is_that_of_the_file_system(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    target = DirectoryTarget(tmp_path)
    room = target.room_bytes()
    assert room is not None
    assert abs(room - status.f_bavail * status.f_frsize) < 1 << 30


def test_old_dumps_go_when_the_new_one_is_safe(tmp_path: Path) -> None:
    for day in range(1, 4):
        (tmp_path / f"host-2026010{day}-000000").mkdir()
        (tmp_path / f"host-2026010{day}-000000" / "vmcore").write_bytes(b"old")
    target = DirectoryTarget(tmp_path, retention=RetentionPlan(keep_count=2))
    target.open(DUMP)
    sink = target.open_dump("vmcore")
    sink.finish()
    assert target.rotate() == []
    target.commit()
    assert target.rotate() == ["host-20260101-000000", "host-20260102-000000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host-20260103-000000", DUMP]


def test_paths_of_the_crashed_system_do_not_lead_out_of_its_disk(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    (root / "srv/data").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var/crash").symlink_to("/srv/data")
    (root / "var/up").symlink_to("../../../../srv")
    (root / "var/loop").symlink_to("loop")
    assert resolve_inside(root, "/var/crash/here") == root / "srv/data/here"
    assert resolve_inside(root, "var/up/data") == root / "srv/data"
    assert resolve_inside(root, "/../../etc") == root / "etc"
    assert resolve_inside(root, "/not/there/./yet") == root / "not/there/yet"
    assert resolve_inside(root, "/") == root
    with pytest.raises(OSError, match=r"[Tt]oo many"):
        resolve_inside(root, "/var/loop")
