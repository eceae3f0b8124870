"""One read to several targets: equal files, each at its own speed, none costs another its dump."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink
from postpanic.pages.classify import select_pages
from postpanic.pages.filtering import WritePlan, write_dump
from postpanic.pages.selection import Selection
from postpanic.saver.console import Console
from postpanic.saver.plan import FilePlan, SavePlan
from postpanic.saver.session import Outcome, SaveOptions, TargetOutcome, save
from postpanic.saver.target_run import TargetState
from tests.builders.elfcore import EM_X86_64, Segment, build_elf_core
from tests.unit.dumps.pages import make_noise, make_page
from tests.unit.saver.folders import Folder, Trouble, pick

FRAMES = 6000


@pytest.fixture(scope="module")
def source_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "vmcore"
    pages = [make_noise(pfn) if pfn % 3 == 0 else make_page(pfn) for pfn in range(FRAMES)]
    path.write_bytes(build_elf_core([Segment(0, b"".join(pages))], machine=EM_X86_64).raw)
    return path


@pytest.fixture
def source(source_path: Path) -> Iterator[Dump]:
    with open_dump(source_path) as dump:
        yield dump


@pytest.fixture(scope="module")
def expected(source_path: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give what filtering the same memory gives."""
    path = tmp_path_factory.mktemp("expected") / "vmcore"
    with open_dump(source_path) as dump:
        sink = FileSink(path, overwrite=True, synced=False)
        write_dump(dump, None, select_pages(dump, None, 31), [sink], WritePlan(compression=Compression.ZSTD))
    return path.read_bytes()


def run(
    dump: Dump,
    targets: list[Folder],
    *,
    fallbacks: list[Folder] | None = None,
    options: SaveOptions | None = None,
    attempts: int = 1,
    timeout_s: float = 30.0,
    levels: tuple[int, ...] = (31,),
) -> tuple[Outcome, list[TargetOutcome]]:
    backups = fallbacks or []
    plans = [
        FilePlan(name=f"t{number}", attempts=attempts, timeout_s=timeout_s, dump_levels=levels)
        for number, _ in enumerate([*targets, *backups])
    ]
    plan = SavePlan(node="n", targets=tuple(plans[: len(targets)]), fallbacks=tuple(plans[len(targets) :]))
    told: list[TargetOutcome] = []
    make = pick([*targets, *backups], plans)
    outcome = save(plan, dump, Console(), make, options=options or SaveOptions(), report=told.append)
    return outcome, told


def test_one_target_gets_what_filtering_gives(source: Dump, tmp_path: Path, expected: bytes) -> None:
    folder = Folder(tmp_path)
    outcome, told = run(source, [folder])
    assert outcome.is_complete
    assert folder.read("vmcore") == expected
    manifest = json.loads(folder.read("vmcore.manifest.json"))
    assert manifest["complete"] is True
    assert manifest["output"]["files"][0]["size_bytes"] == len(expected)
    assert b"t0: saved, level 31" in folder.read("saver.log")
    assert folder.rotated
    assert [each.state for each in told][-1] is TargetState.COMPLETE


def test_three_targets_get_equal_files_from_one_read(source: Dump, tmp_path: Path, expected: bytes) -> None:
    counted = _CountingDump(source)
    folders = [Folder(tmp_path / name) for name in "abc"]
    outcome, _ = run(cast("Dump", counted), folders)
    assert [target.state for target in outcome.targets] == [TargetState.COMPLETE] * 3
    assert [folder.read("vmcore") for folder in folders] == [expected] * 3
    # The self-test reads a little more.
    assert counted.pages < FRAMES * 1.5


def test_a_slow_target_holds_up_none_and_ends_whole(source: Dump, tmp_path: Path, expected: bytes) -> None:
    slow = Folder(tmp_path / "slow", Trouble(seconds_per_call=0.15))
    quick = Folder(tmp_path / "quick")
    ended: dict[str, float] = {}
    started = time.monotonic()

    plans = (FilePlan(name="slow"), FilePlan(name="quick"))

    def note(told: TargetOutcome) -> None:
        if told.state is TargetState.COMPLETE:
            ended[told.name] = time.monotonic() - started

    save(SavePlan(targets=plans), source, Console(), pick([slow, quick], plans), report=note)
    assert slow.read("vmcore") == quick.read("vmcore") == expected
    assert ended["quick"] < ended["slow"] / 2
    assert b"goes on alone" in slow.read("saver.log")


def test_dead_and_failing_targets_cost_the_good_one_nothing(source: Dump, tmp_path: Path, expected: bytes) -> None:
    dead = Folder(tmp_path / "dead", Trouble(hangs_after_calls=5))
    failing = Folder(tmp_path / "failing", Trouble(fails_after_calls=4))
    good = Folder(tmp_path / "good")
    outcome, _ = run(source, [dead, failing, good], timeout_s=5.0)
    assert [target.state for target in outcome.targets] == [
        TargetState.FAILED,
        TargetState.FAILED,
        TargetState.COMPLETE,
    ]
    assert "no answer for 5 s" in outcome.targets[0].error
    assert "the device fails" in outcome.targets[1].error
    assert good.read("vmcore") == expected
    assert b"t0: given up: no answer for 5 s" in good.read("saver.log"), "what went wrong is said wherever one can"
    assert all(target.has_log is False for target in outcome.targets), "this memory has no kernel"
    dead.trouble.released.set()


def test_a_target_that_hangs_on_opening_is_given_up(source: Dump, tmp_path: Path, expected: bytes) -> None:
    stuck = Folder(tmp_path / "stuck", Trouble(hangs_on_open=True))
    good = Folder(tmp_path / "good")
    started = time.monotonic()
    outcome, _ = run(source, [stuck, good], timeout_s=5.0)
    assert outcome.targets[1].state is TargetState.COMPLETE
    assert good.read("vmcore") == expected
    assert time.monotonic() - started < 60
    stuck.trouble.released.set()


def test_what_fails_is_tried_again_and_then_is_whole(source: Dump, tmp_path: Path, expected: bytes) -> None:
    folder = Folder(tmp_path, Trouble(opens_after=1, fails_after_calls=3, fails_attempts=1))
    outcome, _ = run(source, [folder], attempts=3)
    assert outcome.is_complete
    assert folder.opened == 3
    assert folder.read("vmcore") == expected


def test_a_full_target_has_an_incomplete_dump_that_opens(source: Dump, tmp_path: Path, expected: bytes) -> None:
    folder = Folder(tmp_path / "full", Trouble(room_bytes=(2 << 20) + len(expected) // 2))
    backup = Folder(tmp_path / "backup")
    outcome, _ = run(source, [folder], fallbacks=[backup])
    assert [target.state for target in outcome.targets] == [TargetState.INCOMPLETE, TargetState.COMPLETE]
    with open_dump(Path(folder.place) / "vmcore-incomplete") as written:
        assert written.description.incomplete
    manifest = json.loads(folder.read("vmcore-incomplete.manifest.json"))
    assert manifest["complete"] is False
    assert not folder.rotated, "an incomplete dump takes the place of no other"
    assert backup.read("vmcore") == expected


def test_fallbacks_are_tried_in_turn_and_only_when_needed(source: Dump, tmp_path: Path, expected: bytes) -> None:
    broken = Folder(tmp_path / "broken", Trouble(opens_after=9))
    first = Folder(tmp_path / "first", Trouble(fails_after_calls=2))
    second, third = Folder(tmp_path / "second"), Folder(tmp_path / "third")
    outcome, _ = run(source, [broken], fallbacks=[first, second, third])
    assert outcome.is_complete
    assert second.read("vmcore") == expected
    assert third.opened == 0


def test_what_is_too_slow_is_stopped_in_time_and_opens(source: Dump, tmp_path: Path, expected: bytes) -> None:
    slow = Folder(tmp_path / "slow", Trouble(seconds_per_call=0.1))
    quick = Folder(tmp_path / "quick")
    until = time.monotonic() + 8
    outcome, _ = run(source, [slow, quick], options=SaveOptions(lean=True, until=until))
    assert [target.state for target in outcome.targets] == [TargetState.INCOMPLETE, TargetState.COMPLETE]
    assert until - 3 < time.monotonic() < until + 4
    assert quick.read("vmcore") == expected
    assert b"t0: saved, incomplete" in quick.read("saver.log")
    assert json.loads(slow.read("vmcore-incomplete.manifest.json"))["incomplete"] == ["the time is up"]
    pfns = np.arange(FRAMES, dtype=np.uint64)
    with open_dump(Path(slow.place) / "vmcore-incomplete") as written:
        present = np.count_nonzero(written.page_states(pfns) == PageState.PRESENT)
        assert 0 < present < FRAMES


def test_what_does_not_even_stop_is_left_behind(source: Dump, tmp_path: Path, expected: bytes) -> None:
    stuck = Folder(tmp_path / "stuck", Trouble(hangs_after_calls=5))
    quick = Folder(tmp_path / "quick")
    until = time.monotonic() + 8
    outcome, _ = run(source, [stuck, quick], options=SaveOptions(lean=True, until=until))
    assert time.monotonic() < until + 4
    assert [target.state for target in outcome.targets] == [TargetState.FAILED, TargetState.COMPLETE]
    assert quick.read("vmcore") == expected
    while b"t0: given up: the time is up" not in quick.read("saver.log"):
        assert time.monotonic() < until + 4
        time.sleep(0.1)
    stuck.trouble.released.set()


def test_a_target_that_would_not_be_done_in_time_leaves_time_for_the_fallback(
    source: Dump, tmp_path: Path, expected: bytes
) -> None:
    slow = Folder(tmp_path / "slow", Trouble(seconds_per_call=0.1))
    backup = Folder(tmp_path / "backup")
    outcome, _ = run(source, [slow], fallbacks=[backup], options=SaveOptions(lean=True, until=time.monotonic() + 5))
    assert [target.state for target in outcome.targets] == [TargetState.INCOMPLETE, TargetState.COMPLETE]
    assert backup.read("vmcore") == expected
    assert json.loads(slow.read("vmcore-incomplete.manifest.json"))["incomplete"] == ["it would not be done in time"]


def test_a_target_that_will_be_done_in_time_is_waited_for(source: Dump, tmp_path: Path, expected: bytes) -> None:
    slow = Folder(tmp_path / "slow", Trouble(seconds_per_call=0.2))
    backup = Folder(tmp_path / "backup")
    calls = -(-len(expected) // (1 << 18)) + 12
    outcome, _ = run(source, [slow], fallbacks=[backup], options=SaveOptions(until=time.monotonic() + calls * 0.4))
    assert outcome.is_complete
    assert backup.opened == 0


def test_only_what_is_asked_for_is_done(source: Dump, tmp_path: Path) -> None:
    folders = [Folder(tmp_path / name) for name in "ab"]
    outcome, _ = run(source, folders, options=SaveOptions(log_only=True, lean=True, skip=frozenset({0})))
    assert folders[0].opened == 0
    assert [target.state for target in outcome.targets] == [TargetState.LOG_ONLY]
    assert not (Path(folders[1].place) / "vmcore").exists()
    assert (Path(folders[1].place) / "saver.log").exists()


def test_pages_that_cannot_be_read_cost_nothing_but_themselves(source: Dump, tmp_path: Path) -> None:
    folder, backup = Folder(tmp_path / "one"), Folder(tmp_path / "backup")
    outcome, _ = run(cast("Dump", _FailingDump(source)), [folder], fallbacks=[backup])
    assert outcome.is_complete
    assert backup.opened == 0, "no other target would get them"
    assert not folder.rotated, "the last dump that has all its pages stays"
    manifest = json.loads(folder.read("vmcore.manifest.json"))
    assert manifest["complete"] is False
    assert manifest["pages"]["lost"] == 10
    assert manifest["pages"]["lost_ranges"] == [[100, 110]]
    pfns = np.arange(FRAMES, dtype=np.uint64)
    with open_dump(Path(folder.place) / "vmcore") as written:
        missing = np.flatnonzero(written.page_states(pfns) != PageState.PRESENT)
        assert missing.tolist() == list(range(100, 110))


def test_a_lean_save_holds_no_worth_and_reads_no_page_tables(
    source: Dump, tmp_path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def note(*words: object, by_worth: bool, **more: object) -> Selection:
        asked.append(by_worth)
        return select_pages(*words, by_worth=by_worth, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("postpanic.pages.classify.select_pages", note)
    folder = Folder(tmp_path)
    outcome, _ = run(source, [folder], options=SaveOptions(lean=True))
    assert outcome.is_complete
    assert folder.read("vmcore") == expected, "of this memory all is worth the same"
    assert asked == [False]


class _FailingDump:
    """A dump some of whose pages give EIO."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump

    def __getattr__(self, name: str) -> object:
        return getattr(self._dump, name)

    def read_pages_into(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        states = self._dump.read_pages_into(pfns, pages)
        fails = (pfns >= 100) & (pfns < 110)
        pages[fails] = 0
        states[fails] = PageState.LOST
        return states


class _CountingDump:
    """A dump that counts the pages that are read in bulk."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self.pages = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._dump, name)

    def read_pages_into(self, pfns: object, pages: object) -> object:
        self.pages += len(pfns)  # type: ignore[arg-type]
        return self._dump.read_pages_into(pfns, pages)  # type: ignore[arg-type]
