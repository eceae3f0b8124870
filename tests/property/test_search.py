"""What must hold for every search: it finds what a look at every address finds, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.analysis.memory.mappings import Mappings
from postpanic.analysis.memory.search import (
    Needle,
    number_needle,
    range_needle,
    search_mapped,
    search_physical,
    text_needle,
)
from tests.unit.kernel.memories import DictDump

PAGE = 4096
BASE = 0xFFFF888000000000
OTHER = 0xFFFFC90000000000

# Few different bytes, so that texts and numbers are found often; most pages are alike.
contents = st.lists(
    st.tuples(
        st.integers(0, PAGE - 16), st.binary(min_size=1, max_size=12).map(lambda data: bytes(b & 3 for b in data))
    ),
    max_size=6,
)
memories = st.dictionaries(st.integers(0, 12), contents, min_size=1, max_size=8)
needles_strategy = st.lists(
    st.one_of(
        st.builds(
            number_needle, st.integers(0, 0x03030303), st.sampled_from([2, 4, 8]), st.sampled_from([0, 0xFF, 0xFF00])
        ),
        st.builds(
            text_needle, st.binary(min_size=1, max_size=5).map(lambda data: bytes(b & 3 for b in data) + b"\x01")
        ),
        st.builds(lambda start, size: range_needle(start, start + size), st.integers(0, 0x300), st.integers(1, 0x300)),
    ),
    min_size=1,
    max_size=3,
)


def load(memory: dict[int, list[tuple[int, bytes]]]) -> DictDump:
    dump = DictDump()
    for pfn, pieces in memory.items():
        # A byte that no needle has keeps most of the page from matching.
        page = bytearray(b"\x09" * PAGE)
        for offset, data in pieces:
            page[offset : offset + len(data)] = data
        page[-3:] = b"\x01\x02\x01"
        page[:3] = b"\x01\x01\x02"
        dump.write(pfn * PAGE, bytes(page))
    return dump


def naive(spans: Sequence[tuple[int, bytes]], needles: Sequence[Needle]) -> set[tuple[int, int]]:
    """Look at every address of spans that are contiguous in their address space."""
    found = set()
    for base, data in spans:
        for number, needle in enumerate(needles):
            size = needle.size_bytes
            step = 1 if needle.text else size
            for offset in range(0, len(data) - size + 1, step):
                piece = data[offset : offset + size]
                if needle.text:
                    hit = piece == needle.text
                else:
                    value = int.from_bytes(piece, "little")
                    hit = (
                        needle.value <= value < needle.end
                        if needle.end
                        else (value ^ needle.value) & ~needle.mask & (1 << 8 * size) - 1 == 0
                    )
                if hit:
                    found.add((base + offset, number))
    return found


def spans_of(pages: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Join pages whose addresses follow each other."""
    joined: list[tuple[int, bytes]] = []
    for address, page in sorted(pages):
        if joined and joined[-1][0] + len(joined[-1][1]) == address:
            joined[-1] = (joined[-1][0], joined[-1][1] + page)
        else:
            joined.append((address, page))
    return joined


@settings(derandomize=True, deadline=None, max_examples=40)
@given(memory=memories, needles=needles_strategy)
def test_physical_memory(memory: dict[int, list[tuple[int, bytes]]], needles: list[Needle]) -> None:
    dump = load(memory)
    expected = naive(spans_of([(pfn * PAGE, bytes(page)) for pfn, page in dump.pages.items()]), needles)
    found = search_physical(dump, np.arange(20, dtype=np.uint64), needles, [])
    assert {(match.address, match.needle) for match in found} == expected
    assert len(found) == len(expected)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(memory=memories, needles=needles_strategy, order=st.permutations(range(13)), linear_frames=st.integers(0, 13))
def test_mapped_memory(
    memory: dict[int, list[tuple[int, bytes]]], needles: list[Needle], order: list[int], linear_frames: int
) -> None:
    """A direct mapping of the lower frames, and all frames once more in another order, some side by side."""
    dump = load(memory)
    rows = [(BASE, 0, linear_frames * PAGE)] if linear_frames else []
    rows += [(OTHER + place * PAGE, pfn * PAGE, PAGE) for place, pfn in enumerate(order)]
    columns = [np.array(column, dtype=np.uint64) for column in zip(*rows, strict=True)]
    mappings = Mappings(*columns)
    linear = mappings.vaddrs - mappings.paddrs == np.uint64(BASE)
    pages = [(BASE + pfn * PAGE, bytes(page)) for pfn, page in dump.pages.items() if pfn < linear_frames]
    pages += [(OTHER + place * PAGE, bytes(dump.pages[pfn])) for place, pfn in enumerate(order) if pfn in dump.pages]
    found = search_mapped(dump, mappings, needles, [], linear)
    assert {(match.address, match.needle) for match in found} == naive(spans_of(pages), needles)
    assert [match.address for match in found] == sorted(match.address for match in found)
