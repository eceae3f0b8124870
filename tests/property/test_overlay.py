"""What must hold for every sequence of writes: memory is what a plain byte array would be."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.dumps.open import open_dump
from postpanic.dumps.overlay import Overlay
from postpanic.errors import PageAbsentError
from postpanic.units import PhysAddr
from tests.builders.kdump import KdumpSpec, build_kdump

PAGE = 4096
FRAMES = 12
PRESENT = (1, 2, 3, 6, 7, 10)
EXCLUDED = (4, 8, 9)

writes = st.lists(
    st.tuples(st.integers(0, FRAMES * PAGE), st.integers(1, 3 * PAGE), st.integers(1, 255)), min_size=1, max_size=8
)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    writes=writes, aligned=st.booleans(), reads=st.lists(st.tuples(st.integers(0, FRAMES * PAGE), st.integers(0, 9000)))
)
def test_reads_see_what_was_written(
    writes: list[tuple[int, int, int]], *, aligned: bool, reads: list[tuple[int, int]]
) -> None:
    pages = {pfn: bytes([pfn]) * PAGE for pfn in PRESENT}
    model = dict(pages)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "dump"
        path.write_bytes(build_kdump(KdumpSpec(pages, ram={*PRESENT, *EXCLUDED})).raw)
        with Overlay(open_dump(path)) as overlay:
            for paddr, size, byte in writes:
                start, length = (paddr // PAGE * PAGE, -(-size // PAGE) * PAGE) if aligned else (paddr, size)
                changed = apply(model, start, bytes([byte]) * length)
                with contextlib.suppress(PageAbsentError):
                    overlay.write(start, bytes([byte]) * length)
                    assert changed is not None
                model = changed or model
            check(overlay, model, reads)
        assert path.read_bytes() == build_kdump(KdumpSpec(pages, ram={*PRESENT, *EXCLUDED})).raw


def apply(model: dict[int, bytes], start: int, data: bytes) -> dict[int, bytes] | None:
    """Write into a model of memory; None where it must be refused."""
    changed = dict(model)
    for pfn in range(start // PAGE, (start + len(data) - 1) // PAGE + 1):
        first, last = max(start, pfn * PAGE), min(start + len(data), (pfn + 1) * PAGE)
        part = data[first - start : last - start]
        if pfn not in (*PRESENT, *EXCLUDED) or (len(part) < PAGE and pfn not in model):
            return None
        old = model.get(pfn, bytes(PAGE))
        changed[pfn] = old[: first - pfn * PAGE] + part + old[last - pfn * PAGE :]
    return changed


def check(overlay: Overlay, model: dict[int, bytes], reads: list[tuple[int, int]]) -> None:
    numbers = np.arange(FRAMES + 2, dtype=np.uint64)
    contents, states = overlay.read_pages(numbers)
    assert np.flatnonzero(states == 0).tolist() == sorted(model)
    assert (overlay.page_states(numbers) == states).all()
    for pfn in range(FRAMES + 2):
        assert contents[pfn].tobytes() == model.get(pfn, bytes(PAGE))
    for paddr, size in reads:
        frames = range(paddr // PAGE, (paddr + size - 1) // PAGE + 1) if size else ()
        flat = b"".join(model.get(pfn, b"") for pfn in frames)
        try:
            found = overlay.read(PhysAddr(paddr), size)
        except PageAbsentError:
            assert any(pfn not in model for pfn in frames)
        else:
            assert all(pfn in model for pfn in frames)
            assert found == flat[paddr % PAGE : paddr % PAGE + size]
