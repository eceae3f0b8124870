"""``postpanic pstore`` on stores and images as kernels leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import validate

from postpanic.capture.host import Host
from postpanic.cli import pstore as verb
from postpanic.evidence.hardware.answer import SHAPES as HARDWARE_SHAPES
from postpanic.evidence.pstore.answer import SHAPES
from postpanic.findings.schema import answer_schema
from tests.builders import pstore as build
from tests.unit.cli.conftest import Outcome
from tests.unit.evidence.pstore.logs import LOG, parts, tail

TIME = 1_700_000_000
Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Take the place of the host's store and archive; syncing takes its time."""
    store, archive = tmp_path / "sys-fs-pstore", tmp_path / "archive"
    monkeypatch.setattr(verb, "STORE", store)
    monkeypatch.setattr("postpanic.evidence.pstore.archive.ARCHIVE", archive)
    monkeypatch.setattr("os.fsync", lambda _: None)
    return store, archive


def fill(store: Path) -> None:
    store.mkdir()
    for part, text in enumerate(parts(LOG, 900, 6), 1):
        name = f"dmesg-efi_pstore-{build.efi_id(part, 2, TIME)}"
        (store / name).write_bytes(build.dump_text("Panic", 2, part, text))


def image(path: Path) -> Path:
    area = build.RamoopsArea(ecc=16)
    area.write_dump(0, build.dump_text("Panic", 1, 1, tail(LOG, 3000)))
    raw = bytearray(area.raw)
    raw[500] ^= 0xFF
    path.write_bytes(bytes(raw))
    return path


def test_store_of_the_host(places: tuple[Path, Path], run_cli: Run) -> None:
    fill(places[0])
    outcome = run_cli("pstore")
    assert outcome.status == 0
    assert "NULL pointer dereference in driver_probe" in outcome.out
    assert "Panic#2 parts 1-6" in outcome.out
    assert len(list(places[0].iterdir())) == 6


def test_joined_text_alone(places: tuple[Path, Path], run_cli: Run) -> None:
    fill(places[0])
    outcome = run_cli("pstore", "--text")
    assert outcome.out.encode() == b"".join(reversed(parts(LOG, 900, 6)))


def test_json_has_everything(tmp_path: Path, run_cli: Run) -> None:
    outcome = run_cli("pstore", "--json", str(image(tmp_path / "memory.img")))
    assert outcome.status == 0
    answer = json.loads(outcome.out)
    sources, crashes = answer["tables"][:2]
    assert sources["rows"][0]["format"] == "ramoops"
    (crash,) = crashes["rows"]
    assert crash["text"].encode() == tail(LOG, 3000)
    assert crash["records"][0]["corrected_bytes"] == 1
    assert crash["reports"][0]["is_panic"] is True
    assert crash["summaries"][0]["signature"] == crash["reports"][0]["signature"]


def test_json_is_of_its_schema(tmp_path: Path, run_cli: Run) -> None:
    record = build.erst_record(build.dump_text("Panic", 1, 1, tail(LOG, 3000)), TIME << 32, time_s=TIME)
    check = build.erst_record(bytes(88), (TIME << 32) + 1, section="mce", time_s=TIME)
    (tmp_path / "erst").write_bytes(build.erst_store([record, check]))
    schema = answer_schema("pstore", [*SHAPES, *HARDWARE_SHAPES])
    for path in (image(tmp_path / "memory.img"), tmp_path / "erst"):
        validate(json.loads(run_cli("pstore", "--json", "--full", str(path)).out), schema)


def test_full_shows_the_trace(tmp_path: Path, run_cli: Run) -> None:
    path = str(image(tmp_path / "memory.img"))
    assert "really_probe+0xde/0x380" not in run_cli("pstore", path).out
    assert "really_probe+0xde/0x380" in run_cli("pstore", "--full", path).out


def test_geometry_by_the_parameters_of_the_module(tmp_path: Path, run_cli: Run) -> None:
    path = str(image(tmp_path / "memory.img"))
    outcome = run_cli("pstore", "--ecc", "1", "--record-size", "4K", path)
    assert outcome.status == 0
    assert "found by its signatures" not in outcome.out
    assert "1 byte corrected by parity" in outcome.out
    outcome = run_cli("pstore", "--mem-size", "8K", path)
    assert outcome.status == 64
    assert "mem_size is 8192" in outcome.err


def test_archive_and_erase(places: tuple[Path, Path], run_cli: Run) -> None:
    store, archive = places
    fill(store)
    assert run_cli("pstore", "--archive").status == 0
    assert len(list(store.iterdir())) == 6
    outcome = run_cli("pstore", "--archive", "--erase")
    assert outcome.status == 0
    assert "6 of 6 records erased" in outcome.out
    assert not list(store.iterdir())
    assert (archive / str(TIME) / "002" / "dmesg.txt").read_bytes() == b"".join(reversed(parts(LOG, 900, 6)))
    again = run_cli("pstore")
    assert again.status == 0
    assert "NULL pointer dereference in driver_probe" in again.out


def test_archiving_an_empty_store_is_done_at_once(places: tuple[Path, Path], run_cli: Run) -> None:
    places[0].mkdir()
    assert run_cli("pstore", "--archive", "--erase").status == 0
    assert not places[1].exists()


def test_no_records_is_said(run_cli: Run, tmp_path: Path) -> None:
    outcome = run_cli("pstore")
    assert outcome.status == 3
    assert "no records" in outcome.err
    (tmp_path / "noise").write_bytes(bytes(5000))
    outcome = run_cli("pstore", str(tmp_path / "noise"))
    assert outcome.status == 2
    assert "neither a ramoops area" in outcome.err


def test_records_that_are_in_the_journal_are_pointed_to(
    tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "root" / "etc/systemd/pstore.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("[PStore]\nStorage=journal\n")
    monkeypatch.setattr(Host, "running", classmethod(lambda _: Host(tmp_path / "root")))
    assert "journalctl -t systemd-pstore" in run_cli("pstore").err


def test_messages_of_programs_are_shown(places: tuple[Path, Path], run_cli: Run) -> None:
    places[0].mkdir()
    (places[0] / "dmesg-ramoops-0").write_bytes(build.dump_text("Panic", 1, 1, tail(LOG, 3000)))
    (places[0] / "pmsg-ramoops-0").write_bytes(b"the database is going down\n")
    assert "the database is going down" in run_cli("pstore").out
    crash = json.loads(run_cli("pstore", "--json").out)["tables"][1]["rows"][0]
    assert [record["text"] for record in crash["records"]] == [None, "the database is going down\n"]


@pytest.mark.parametrize(
    "words",
    [
        ("--erase",),
        ("--to", "x"),
        ("--ecc", "16"),
        ("--format", "ramoops"),
        ("--enable", "--archive"),
        ("--disable", "--erase"),
        ("--record-size", "many", "x"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(words: tuple[str, ...], run_cli: Run) -> None:
    assert run_cli("pstore", *words).status == 64


def test_an_image_is_archived_and_not_erased(places: tuple[Path, Path], tmp_path: Path, run_cli: Run) -> None:
    path = str(image(tmp_path / "memory.img"))
    assert run_cli("pstore", "--archive", "--erase", path).status == 64
    assert run_cli("pstore", "--archive", path).status == 0
    assert (places[1] / str(TIME) / "001" / "dmesg-ramoops-0.raw").is_file()


def test_the_archive_is_not_archived(places: tuple[Path, Path], run_cli: Run) -> None:
    fill(places[0])
    run_cli("pstore", "--archive")
    outcome = run_cli("pstore", "--archive", str(places[1]))
    assert outcome.status == 64
    assert "archive itself" in outcome.err


def test_single_files_and_devices(tmp_path: Path, run_cli: Run) -> None:
    (tmp_path / "dmesg-ramoops-0").write_bytes(build.dump_text("Oops", 1, 1, tail(LOG, 3000)))
    assert run_cli("pstore", str(tmp_path / "dmesg-ramoops-0")).status == 0
    name, raw = build.efi_variable(build.dump_text("Oops", 1, 1, tail(LOG, 900)), part=1, count=1, time_s=TIME)
    (tmp_path / name).write_bytes(raw)
    assert run_cli("pstore", str(tmp_path / name)).status == 0
    assert run_cli("pstore", "/dev/null").status == 2
    assert run_cli("pstore", str(tmp_path / "none")).status == 2


def test_each_image_is_told_by_its_contents(tmp_path: Path, run_cli: Run) -> None:
    zone = build.PszZone(0, 8192)
    zone.write_dump(
        build.dump_text("Panic", 1, 1, tail(LOG, 3000)),
        seconds=TIME, nanos=0, compressed=False, counter=1, reason=1,
    )  # fmt: skip
    images = {
        "mtdoops": b"\xff" * 4096 + build.mtdoops_page(tail(LOG, 3000), 4),
        "pstore_blk": zone.raw,
        "erst": build.erst_store([build.erst_record(build.dump_text("Panic", 1, 1, tail(LOG, 3000)), TIME << 32)]),
    }
    for name, raw in images.items():
        (tmp_path / "image").write_bytes(raw)
        outcome = run_cli("pstore", str(tmp_path / "image"))
        assert outcome.status == 0, outcome.err
        assert f": {name}, 1 records" in outcome.out
        assert "driver_probe" in outcome.out


def test_service(tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "usr/lib/systemd").mkdir(parents=True)
    (root / "usr/lib/systemd/systemd").touch()
    monkeypatch.setattr(Host, "running", classmethod(lambda _: Host(root)))
    outcome = run_cli("pstore", "--enable", "--erase")
    assert outcome.status == 0
    assert outcome.out.count("written: ") == 2
    outcome = run_cli("pstore", "--disable")
    assert outcome.out.count("removed: ") == 2
    assert run_cli("pstore", "--disable").out == "it was not enabled\n"
