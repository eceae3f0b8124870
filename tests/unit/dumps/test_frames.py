from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from postpanic.dumps.frames import FrameSet


@given(st.sets(st.integers(0, 2999)), st.integers(3000, 3100))
def test_a_set_agrees_with_a_python_set(members: set[int], limit: int) -> None:
    flags = np.zeros(limit, dtype=bool)
    flags[sorted(members)] = True
    frames = FrameSet(np.packbits(flags, bitorder="little"), limit)
    every = np.arange(limit, dtype=np.uint64)
    assert frames.count == len(members)
    assert frames.contains(every).tolist() == flags.tolist()
    assert frames.ranks(every).tolist() == (np.cumsum(flags) - flags).tolist()
    assert frames.members(0, limit).tolist() == sorted(members)
    assert frames.members(17, 900).tolist() == sorted(pfn for pfn in members if 17 <= pfn < 900)
    assert [frames.find_nth(number) for number in range(len(members))] == sorted(members)
    assert frames.find_nth(len(members)) == limit
    again = FrameSet.from_runs(frames.runs(), limit)
    assert again.bits.tolist() == frames.bits.tolist()


def test_runs_go_on_from_chunk_to_chunk() -> None:
    limit = 3 << 23
    runs = np.array([[5, 6], [(1 << 23) - 3, (1 << 23) + 9], [(2 << 23) - 1, limit]])
    frames = FrameSet.from_runs(runs, limit)
    assert frames.runs().tolist() == runs.tolist()
    assert frames.count == int(np.diff(runs).sum())
    assert frames.ranks(np.array([limit - 1], dtype=np.uint64)).tolist() == [frames.count - 1]
