"""The archive: what systemd-pstore would find, and when a record may be erased."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from postpanic.errors import NotReadyError, OutputError
from postpanic.evidence.oops import find_reports
from postpanic.evidence.pstore import Crash, join_records, read_directory, read_ramoops
from postpanic.evidence.pstore.archive import MANIFEST, Archived, archive_crash, erase_records, hold_archive
from tests.builders import pstore as build
from tests.unit.evidence.pstore.logs import LOG, parts, tail

NOW = 1_800_000_000.0
TIME = 1_700_000_000


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is synced and renamed; syncing itself takes its time."""
    noted: list[str] = []
    rename = Path.rename
    monkeypatch.setattr("os.fsync", lambda number: noted.append(f"sync {Path(f'/proc/self/fd/{number}').readlink()}"))

    def note(path: Path, target: Path) -> Path:
        noted.append(f"rename {target}")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", note)
    return noted


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Make a directory like a mounted pstore with a panic in EFI variables."""
    path = tmp_path / "store"
    path.mkdir()
    for part, text in enumerate(parts(LOG, 900, 4), 1):
        name = f"dmesg-efi_pstore-{build.efi_id(part, 2, TIME)}"
        (path / name).write_bytes(build.dump_text("Panic", 2, part, text))
    return path


def crash_of(store: Path) -> Crash:
    (crash,) = join_records(read_directory(store))
    return crash


def archive(crash: Crash, directory: Path) -> Archived:
    with hold_archive(directory):
        return archive_crash(crash, directory, reports=find_reports(crash.text), now_s=NOW, node="host")


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_layout_is_systemds_with_a_manifest(store: Path, tmp_path: Path) -> None:
    crash = crash_of(store)
    archived = archive(crash, tmp_path / "archive")
    assert archived.path == tmp_path / "archive" / str(TIME) / "002"
    assert names(archived.path) == sorted([*names(store), "dmesg.txt", MANIFEST])
    assert (archived.path / "dmesg.txt").read_bytes() == crash.text
    for name in names(store):
        assert (archived.path / name).read_bytes() == (store / name).read_bytes()
    manifest = json.loads((archived.path / MANIFEST).read_text())
    assert manifest["node"] == "host"
    assert manifest["reasons"] == ["Panic"]
    assert manifest["reports"][0]["panic"]
    assert len(manifest["files"]) == 5
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"])
    assert not list((tmp_path / "archive").rglob(".postpanic-*"))


def test_all_of_it_is_on_the_disk_before_it_has_its_name(store: Path, tmp_path: Path, calls: list[str]) -> None:
    archived = archive(crash_of(store), tmp_path / "archive")
    renamed = calls.index(f"rename {archived.path}")
    synced = [Path(call.removeprefix("sync ")) for call in calls[:renamed]]
    assert {path.name for path in synced} > set(names(archived.path))
    (made,) = {path.parent for path in synced if path.name in names(archived.path)}
    assert synced[-1] == made
    assert f"sync {archived.path.parent}" in calls[renamed:]


def test_what_was_archived_is_read_again_as_the_same_crash(store: Path, tmp_path: Path) -> None:
    archived = archive(crash_of(store), tmp_path / "archive")
    assert crash_of(archived.path.parent.parent).text == crash_of(store).text


def test_archiving_again_changes_nothing(store: Path, tmp_path: Path) -> None:
    first = archive(crash_of(store), tmp_path / "archive")
    again = archive(crash_of(store), tmp_path / "archive")
    assert (again.path, again.is_new) == (first.path, False)
    assert names(first.path.parent) == ["002"]


def test_another_crash_of_the_same_name_gets_another_directory(store: Path, tmp_path: Path) -> None:
    first = archive(crash_of(store), tmp_path / "archive")
    for path in store.iterdir():
        path.write_bytes(path.read_bytes().replace(b"device", b"gadget"))
    second = archive(crash_of(store), tmp_path / "archive")
    assert second.path == first.path.with_name("002-2")
    assert second.is_new


def test_records_are_erased_only_when_their_copies_are_there(store: Path, tmp_path: Path) -> None:
    crash = crash_of(store)
    archived = archive(crash, tmp_path / "archive")
    changed, copy_gone, *rest = sorted(store.iterdir())
    changed.write_bytes(b"a new crash came meanwhile")
    (archived.path / copy_gone.name).write_bytes(b"damaged")
    erased, kept = erase_records(crash.records, archived)
    assert sorted(erased) == sorted(str(path) for path in rest)
    assert names(store) == sorted([changed.name, copy_gone.name])
    assert any("has changed" in reason for reason in kept)
    assert any("is another" in reason for reason in kept)


def test_records_that_somebody_else_has_erased_are_no_error(store: Path, tmp_path: Path) -> None:
    crash = crash_of(store)
    archived = archive(crash, tmp_path / "archive")
    for path in store.iterdir():
        path.unlink()
    assert erase_records(crash.records, archived) == ([], [])


def test_an_archive_that_cannot_be_written_leaves_nothing_behind(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    directory = tmp_path / "archive"
    with hold_archive(directory):
        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OutputError, match="no space"):
            archive_crash(crash_of(store), directory, now_s=NOW)
    assert not [path for path in directory.rglob("*") if path.is_file() and path.name != ".postpanic.lock"]


def test_two_do_not_archive_at_once(tmp_path: Path) -> None:
    with hold_archive(tmp_path), pytest.raises(NotReadyError, match="somebody"), hold_archive(tmp_path):
        pass


def test_erst_has_systemds_name(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    first = TIME << 32
    for part, text in enumerate(parts(LOG, 2000, 3), 1):
        (store / f"dmesg-erst-{first + part - 1}").write_bytes(build.dump_text("Panic", 1, part, text))
    archived = archive(crash_of(store), tmp_path / "archive")
    assert archived.path == tmp_path / "archive" / str(first + 2)


def test_zones_of_an_image_are_kept_as_they_were(tmp_path: Path) -> None:
    area = build.RamoopsArea(ecc=16)
    area.write_dump(0, build.compress("deflate", build.dump_text("Panic", 1, 1, tail(LOG, 4000))), TIME, "C")
    assert area.console is not None
    area.console.write(tail(LOG, 3000))
    (crash,) = join_records(read_ramoops(area.raw))
    archived = archive(crash, tmp_path)
    assert names(archived.path) == sorted(
        ["dmesg-ramoops-0.raw", "console-ramoops-0.raw", "console-ramoops-0", "dmesg.txt", MANIFEST]
    )
    assert (archived.path / "dmesg-ramoops-0.raw").read_bytes() == area.dumps[0].raw


@pytest.mark.parametrize("name", ["../../etc/passwd", "dmesg.txt", MANIFEST, "..", ""])
def test_no_name_leads_out_of_the_archive(name: str, tmp_path: Path, store: Path) -> None:
    crash = crash_of(store)
    records = [msgspec.structs.replace(record, name=name) for record in crash.records]
    archived = archive(msgspec.structs.replace(crash, records=tuple(records)), tmp_path / "archive")
    assert {path.parent for path in (tmp_path / "archive").rglob("*") if path.is_file()} == {
        archived.path,
        tmp_path / "archive",
    }
    assert (archived.path / "dmesg.txt").read_bytes() == crash.text
