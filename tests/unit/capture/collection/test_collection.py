"""Dumps of ours and of other tools are found, examined once, and deleted by rules."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from postpanic.capture.collection import DumpRecord, PruneRules, SavedDump, collect, find_dumps, prune, select
from postpanic.capture.collection.record import read_record, write_record
from postpanic.cli.app import main
from tests.builders.elfcore import Segment, build_elf_core

LOG = """[    1.000000] EXT4-fs (sda1): mounted
[   12.500000] BUG: kernel NULL pointer dereference, address: 0000000000000018
[   12.500001] #PF: supervisor write access in kernel mode
[   12.500002] Oops: 0002 [#1] PREEMPT SMP NOPTI
[   12.500003] CPU: 3 PID: 812 Comm: modprobe Not tainted 6.12.1 #7
[   12.500004] RIP: 0010:widget_attach+0x2b/0x90 [widget]
[   12.500005] Call Trace:
[   12.500006]  <TASK>
[   12.500007]  widget_probe+0x14/0x290 [widget]
[   12.500008]  </TASK>
[   12.500009] Kernel panic - not syncing: Fatal exception
"""


@pytest.fixture
def crashes(tmp_path: Path) -> Path:
    root = tmp_path / "crash"
    files = {
        "web-7-20260131-235959/vmcore": b"x" * 5000,
        "web-7-20260131-235959/vmcore-dmesg.txt": LOG.encode(),
        "web-7-20260201-000001-2/vmcore.incomplete": b"x" * 100,
        "web-7-20260201-000001-2/vmcore-dmesg.txt": b"nothing\n",
        "web-7-20260202-000000/vmcore-dmesg.txt": LOG.encode(),
        "127.0.0.1-2026-03-01-10:20:30/vmcore": b"x",
        "202603021130/dump.202603021130": b"x",
        "202603021130/dmesg.202603021130": LOG.encode(),
        "2026-03-03-11:45/vmcore": b"x",
        "host/2026-03-04-11:45/vmcore": b"x",
        "lost+found/other": b"x",
        "notes.txt": b"x",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "link").symlink_to("web-7-20260131-235959")
    return root


def test_names_are_understood(crashes: Path) -> None:
    found = find_dumps([crashes, crashes, crashes / "absent"])
    assert [(dump.directory.name, dump.node, dump.state, dump.is_ours) for dump in found] == [
        ("web-7-20260131-235959", "web-7", "complete", True),
        ("web-7-20260201-000001-2", "web-7", "incomplete", True),
        ("web-7-20260202-000000", "web-7", "log only", True),
        ("127.0.0.1-2026-03-01-10:20:30", "127.0.0.1", "complete", False),
        ("202603021130", "", "complete", False),
        ("2026-03-03-11:45", "", "complete", False),
        ("2026-03-04-11:45", "", "complete", False),
    ]
    assert found[0].when == datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
    assert found[0].size_bytes >= 5000
    assert found[3].when == datetime(2026, 3, 1, 10, 20, 30).astimezone(UTC)
    assert found[4].log == crashes / "202603021130/dmesg.202603021130"


def test_collected_once(tmp_path: Path) -> None:
    place = tmp_path / "web-7-20260131-235959"
    place.mkdir()
    (place / "vmcore").write_bytes(build_elf_core([Segment(0x1000, b"\1" * 4096)]).raw)
    (place / "vmcore-dmesg.txt").write_text(LOG)
    outcome = collect([tmp_path])
    (dump,) = outcome.collected
    record = dump.record
    assert record is not None
    assert (record.verdict, record.faults) == ("unverified", ("there is no manifest",))
    assert "widget_attach" in record.title
    assert record.release == "6.12.1"
    assert record.signature
    assert read_record(place) == record
    assert collect([tmp_path]).collected == ()
    assert find_dumps([tmp_path])[0].record == record


def test_triage_is_left_beside_a_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "web-7-20260131-235959"
    place.mkdir()
    # A dump of no kernel: its log tells what there is to tell.
    (place / "vmcore").write_bytes(build_elf_core([Segment(0x1000, b"\1" * 4096)]).raw)
    (place / "vmcore-dmesg.txt").write_text(LOG)
    assert main(["collect", "--no-devices", str(tmp_path)]) == 0, capsys.readouterr().err
    value = json.loads((place / "triage.json").read_text())
    (verdict,) = value["tables"][0]["rows"]
    assert (verdict["function"], verdict["source"]) == ("widget_attach", "log")
    page = (place / "report.html").read_text()
    assert "widget_attach" in page
    assert (place / "report.html").stat().st_mode & 0o777 == 0o600


def test_triage_can_be_left_for_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "web-7-20260131-235959"
    place.mkdir()
    (place / "vmcore-dmesg.txt").write_text(LOG)
    words = ["collect", "--no-devices", str(tmp_path)]
    assert main([*words, "--triage-later"]) == 0
    record = read_record(place)
    assert record is not None
    assert record.untriaged
    assert not (place / "triage.json").exists()
    assert main([*words, "--no-triage"]) == 0
    assert not (place / "triage.json").exists()
    assert main(words) == 0
    assert (place / "triage.json").exists()
    assert read_record(place) == replace(record, untriaged=False)
    (place / "triage.json").unlink()
    assert main(words) == 0
    assert not (place / "triage.json").exists(), "once only"
    capsys.readouterr()
    assert main([*words, "--no-triage", "--triage-later"]) == 64


def test_triage_can_be_left_out(tmp_path: Path) -> None:
    place = tmp_path / "web-7-20260131-235959"
    place.mkdir()
    (place / "vmcore-dmesg.txt").write_text(LOG)
    assert main(["collect", "--no-devices", "--no-triage", str(tmp_path)]) == 0
    assert sorted(path.name for path in place.iterdir()) == ["collected.json", "vmcore-dmesg.txt"]


def test_damage_is_found(tmp_path: Path) -> None:
    place = tmp_path / "web-7-20260131-235959"
    place.mkdir()
    (place / "vmcore").write_bytes(b"no dump at all")
    (dump,) = collect([tmp_path]).collected
    assert dump.record is not None
    assert dump.record.verdict == "bad"
    assert main(["collect", "--no-devices", str(tmp_path)]) == 0, "nothing is new any more"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"schema_version": 1}', '{"schema_version": 1, "when": 3, "verdict": "good"}', "{" * 10_000],
)
def test_record_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "collected.json").write_text(text)
    assert read_record(tmp_path) is None


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = DumpRecord(when="2026-11-21T19:41:07Z", verdict="bad", faults=("a", "b"), title="t", signature="s")
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


def make(number: int, *, state: str = "complete", size: int = 100) -> SavedDump:
    when = datetime(2026, 1, number, tzinfo=UTC)
    return SavedDump(Path(f"/x/{number}"), "n", when, state, None, None, size, None, is_ours=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rules", "gone"),
    [
        (PruneRules(keep_count=2), [1, 2]),
        (PruneRules(keep_bytes=350), [1]),
        (PruneRules(max_age_s=86400 * 7.5), [1, 2]),
        (PruneRules(keep_bytes=1), [1, 2, 3]),
        (PruneRules(keep_count=9), []),
    ],
)
def test_the_oldest_go_first(rules: PruneRules, gone: list[int]) -> None:
    dumps = [make(number) for number in (1, 2, 3, 4)]
    now = datetime(2026, 1, 10, tzinfo=UTC)
    assert [dump.when.day for dump in select(dumps, rules, now)] == gone


def test_the_newest_complete_one_stays() -> None:
    dumps = [make(1), make(2, state="log only"), make(3, state="incomplete")]
    chosen = select(dumps, PruneRules(max_age_s=1), datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=99))
    assert [dump.when.day for dump in chosen] == [2, 3]


def test_deleted_with_everything(crashes: Path) -> None:
    prune(find_dumps([crashes])[:2])
    assert len(find_dumps([crashes])) == 5
    assert not [path for path in crashes.iterdir() if "deleted" in path.name]
    assert (crashes / "notes.txt").exists()


def test_verbs(crashes: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = tmp_path / "tell"
    script.write_text(f"#!/bin/sh\ncat >>{told}; echo >>{told}\n")
    script.chmod(0o755)
    assert main(["collect", "--no-devices", "--command", str(script), "--json", str(crashes)]) == 2
    rows = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert len(rows) == 7
    documents = [json.loads(line) for line in told.read_text().splitlines()]
    assert [one["directory"] for one in documents] == [row["directory"] for row in rows]
    assert main(["list", str(crashes)]) == 0
    assert "widget_attach" in capsys.readouterr().out
    assert main(["prune", str(crashes)]) == 64
    assert "nothing says what may stay" in capsys.readouterr().err
    assert main(["prune", str(crashes), "--older-than", "3x"]) == 64
    capsys.readouterr()
    before = sorted(crashes.iterdir())
    assert main(["prune", str(crashes), "--keep", "3", "-n"]) == 0
    assert "4 dumps" in capsys.readouterr().out
    assert sorted(crashes.iterdir()) == before
    assert main(["prune", str(crashes), "--keep", "3"]) == 0
    capsys.readouterr()
    assert main(["list", str(crashes), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tables"][0]["rows"]) == 3


def test_what_could_not_be_told_is_told_the_next_time(crashes: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = tmp_path / "tell"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    words = ["collect", "--no-devices", str(crashes)]
    assert main([*words, "--tell-later", "--command", str(script)]) == 64
    assert main([*words, "--tell-later"]) == 2, "some of them are damaged"
    assert main(words) == 0
    assert not told.exists()
    assert main([*words, "--command", str(script)]) == 1
    script.write_text(f"#!/bin/sh\ncat >>{told}; echo >>{told}\n")
    assert main([*words, "--command", str(script)]) == 0
    assert len(told.read_text().splitlines()) == 7
    assert main([*words, "--command", str(script)]) == 0
    assert len(told.read_text().splitlines()) == 7, "once is enough"
