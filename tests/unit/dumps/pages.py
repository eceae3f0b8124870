"""Contents of pages for tests, and what to ask of a reader."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import Dump, PageState

PAGE = 4096


def make_page(seed: int, size: int = PAGE) -> bytes:
    """Make a page that compresses, and is like no other."""
    source = random.Random(seed)
    words = [source.randbytes(16) for _ in range(8)]
    return b"".join(source.choice(words) for _ in range(size // 16))


def make_noise(seed: int, size: int = PAGE) -> bytes:
    """Make a page that does not compress."""
    return random.Random(seed).randbytes(size)


def frames(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64)


def states_of(dump: Dump, numbers: Iterable[int]) -> list[PageState]:
    """States of frames; both ways to ask must agree."""
    wanted = frames(*numbers)
    states = dump.page_states(wanted)
    pages, read = dump.read_pages(wanted)
    assert states.tolist() == read.tolist()
    assert not pages[read != PageState.PRESENT].any()
    return [PageState(state) for state in states.tolist()]


def contents_of(dump: Dump, number: int) -> bytes:
    """Read a frame in all three ways, which must agree."""
    pages, states = dump.read_pages(frames(number))
    assert states.tolist() == [PageState.PRESENT]
    size = dump.page_size_bytes
    contents: bytes = pages[0].tobytes()
    assert dump.read(number * size, size) == contents  # type: ignore[arg-type]
    assert b"".join(dump.read(number * size + at, 8) for at in range(0, size, 8)) == contents  # type: ignore[arg-type]
    return contents
