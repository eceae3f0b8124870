"""Verdicts of sections put together: what is kept, what it counts, in which order it is written."""

from __future__ import annotations

import numpy as np
import pytest

from postpanic.dumps.frames import FrameSet
from postpanic.pages.selection import SECTION_FRAMES, Selection, SelectionBuilder
from postpanic.pages.verdict import FIRST_DROPPED, Verdict

LIMIT = 2 * SECTION_FRAMES + 1001


def make(seed: int, *, runs: list[tuple[int, int]] | None = None) -> tuple[np.ndarray, Selection]:
    """Make a selection of random verdicts; the second section is all of one kind."""
    ram = FrameSet.from_runs(np.array(runs or [(0, LIMIT)], dtype=np.int64), LIMIT)
    verdicts = np.random.default_rng(seed).choice(np.array(list(Verdict), dtype=np.uint8), 3 * SECTION_FRAMES)
    verdicts[SECTION_FRAMES : 2 * SECTION_FRAMES] = Verdict.SLAB
    builder = SelectionBuilder(31, ram)
    for section in range(3):
        builder.add(section, verdicts[section * SECTION_FRAMES : (section + 1) * SECTION_FRAMES])
    return verdicts, builder.finish(("a note",))


@pytest.mark.parametrize("runs", [None, [(5, 9), (100, SECTION_FRAMES + 3), (LIMIT - 1, LIMIT)]])
def test_frames_are_kept_and_counted_by_their_verdicts(runs: list[tuple[int, int]] | None) -> None:
    verdicts, selection = make(1, runs=runs)
    pfns = selection.ram.members(0, LIMIT)
    assert (selection.kept.contains(pfns) == (verdicts[pfns] < FIRST_DROPPED)).all()
    assert selection.counts == {
        verdict: count for verdict in Verdict if (count := int(np.count_nonzero(verdicts[pfns] == verdict)))
    }
    assert sum(selection.counts.values()) == selection.ram.count
    assert selection.notes == ("a note",)


@pytest.mark.parametrize("size", [1000, 4096, LIMIT])
def test_batches_come_by_worth_and_then_by_frame(size: int) -> None:
    verdicts, selection = make(2)
    batches = list(selection.batches(size))
    frames = np.concatenate(batches)
    assert sorted(frames.tolist()) == selection.kept.members(0, LIMIT).tolist()
    keys = [(int(verdicts[pfn]), pfn) for pfn in frames.tolist()]
    assert keys == sorted(keys)
    assert all(len(batch) <= size and (np.diff(batch.astype(np.int64)) > 0).all() for batch in batches)


def test_batches_can_come_by_frame_alone() -> None:
    _, selection = make(3)
    frames = np.concatenate(list(selection.batches(777, by_worth=False)))
    assert frames.tolist() == selection.kept.members(0, LIMIT).tolist()


def test_without_worth_nothing_is_kept_of_it() -> None:
    verdicts, selection = make(4)
    builder = SelectionBuilder(31, selection.ram, by_worth=False)
    for section in range(3):
        builder.add(section, verdicts[section * SECTION_FRAMES : (section + 1) * SECTION_FRAMES])
    plain = builder.finish()
    assert plain.worth is None
    assert plain.counts == selection.counts
    assert np.concatenate(list(plain.batches(777))).tolist() == selection.kept.members(0, LIMIT).tolist()


def test_section_without_ram_is_nothing() -> None:
    builder = SelectionBuilder(0, FrameSet.from_runs(np.array([(SECTION_FRAMES, LIMIT)]), LIMIT))
    builder.add(0, np.zeros(SECTION_FRAMES, dtype=np.uint8))
    selection = builder.finish()
    assert selection.kept.count == 0
    assert selection.counts == {}
    assert list(selection.batches(10)) == []
