"""systemd-pstore and postpanic on the same store: each reads what the other left, and neither loses anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from postpanic.cli.app import main
from postpanic.evidence.pstore import Crash, join_records, read_directory
from tests.builders import pstore as build
from tests.unit.evidence.pstore.logs import BOOT, LOG, OOPS, parts

pytestmark = pytest.mark.compat

PROGRAM = Path("/usr/lib/systemd/systemd-pstore")
TIME = 1_700_000_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Make a store with an oops, its panic half a minute of firmware later, ERST records, a console."""
    if not PROGRAM.exists():
        pytest.skip("no systemd-pstore")
    path = tmp_path / "store"
    path.mkdir()
    for count, (reason, log) in enumerate((("Oops", BOOT + OOPS), ("Panic", LOG)), 1):
        for part, text in enumerate(parts(log, 900, 6), 1):
            number = build.efi_id(part, count, TIME + count + part)
            (path / f"dmesg-efi_pstore-{number}").write_bytes(build.dump_text(reason, count, part, text))
    other_boot = LOG.replace(b"device", b"gadget").replace(b"[   31.", b"[   41.")
    for part, text in enumerate(parts(other_boot, 2000, 3), 1):
        (path / f"dmesg-erst-{(TIME << 32) + part}").write_bytes(build.dump_text("Panic", 1, part, text))
    (path / "console-ramoops-0").write_bytes(LOG.replace(b"device", b"widget").replace(b"[   31.", b"[   51."))
    return path


def archive_by_systemd(store: Path, archive: Path) -> None:
    archive.mkdir()
    said = subprocess.run([PROGRAM, store, archive], capture_output=True, text=True, check=False)
    if "takes no arguments" in said.stderr:
        pytest.skip("this systemd-pstore reads /sys/fs/pstore only")
    assert said.returncode == 0, said.stderr


def texts(crashes: list[Crash]) -> list[bytes]:
    return sorted(crash.text for crash in crashes)


def test_what_systemd_has_archived_is_the_same_crashes(store: Path, tmp_path: Path) -> None:
    before = join_records(read_directory(store))
    assert len(before) == 3
    archive_by_systemd(store, tmp_path / "archive")
    assert not list(store.iterdir())
    assert texts(join_records(read_directory(tmp_path / "archive"))) == texts(before)


def test_systemd_finds_nothing_where_everything_is_safe(store: Path, tmp_path: Path) -> None:
    before = join_records(read_directory(store))
    archive = tmp_path / "archive"
    assert main(["pstore", "--archive", "--erase", "--quiet", "--to", str(archive), str(store)]) == 0
    kept = {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()}
    archive_by_systemd(store, tmp_path / "theirs")
    assert not list((tmp_path / "theirs").iterdir())
    assert texts(join_records(read_directory(archive))) == texts(before)
    assert kept == {path: path.read_bytes() for path in archive.rglob("*") if path.is_file()}


def test_both_into_one_archive_are_read_once(store: Path, tmp_path: Path) -> None:
    before = join_records(read_directory(store))
    archive = tmp_path / "archive"
    shutil.copytree(store, tmp_path / "copy")
    assert main(["pstore", "--archive", "--quiet", "--to", str(archive), str(store)]) == 0
    subprocess.run([PROGRAM, tmp_path / "copy", archive], capture_output=True, check=True)
    assert texts(join_records(read_directory(archive))) == texts(before)
