from __future__ import annotations

import numpy as np
import pytest

from postpanic.dumps.frames import FrameSet
from postpanic.dumps.memory import PageState
from postpanic.kernel.memory import open_kernel_memory
from postpanic.pages import usage
from postpanic.pages.selection import SECTION_FRAMES, SelectionBuilder
from postpanic.pages.usage import MemoryUsage, UsageRow, count_usage, format_usage
from postpanic.pages.verdict import Verdict
from tests.unit.kernel.memories import DictDump, make_x86_kernel

FRAMES = 40


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[DictDump, MemoryUsage, list[tuple[int, int]]]:
    dump = DictDump()
    for pfn in range(FRAMES):
        dump.write(pfn * 4096, bytes(4096) if pfn % 4 == 0 else b"\0" * 100 + b"x")
    dump.states[1] = PageState.LOST
    builder = SelectionBuilder(30, FrameSet.from_runs(np.array([[0, FRAMES]]), FRAMES))
    verdicts = np.full(SECTION_FRAMES, Verdict.KERNEL, dtype=np.uint8)
    verdicts[10:20] = Verdict.USER
    verdicts[20:23] = Verdict.CACHE
    verdicts[23] = Verdict.CACHE_PRIVATE
    verdicts[24:30] = Verdict.FREE
    verdicts[30] = Verdict.OFFLINE
    verdicts[31:33] = Verdict.IMAGE
    builder.add(0, verdicts)
    selection = builder.finish(("a note",))
    monkeypatch.setattr(usage, "select_pages", lambda *_, **__: selection)
    kernel = open_kernel_memory(make_x86_kernel()[0])
    seen: list[tuple[int, int]] = []
    return dump, count_usage(dump, kernel, progress=lambda done, total: seen.append((done, total))), seen


def test_rows_add_up_to_all_of_memory(counted: tuple[DictDump, MemoryUsage, list[tuple[int, int]]]) -> None:
    _, found, seen = counted
    pages = {row.type: row.pages for row in found.rows}
    # Of the frames that are kept 0, 4, 8, 32 and 36 are zero; frame 1 cannot be read.
    assert pages == {
        "ZERO": 5,
        "NON_PRI_CACHE": 3,
        "PRI_CACHE": 1,
        "USER": 10,
        "FREE": 6,
        "OFFLINE": 1,
        "KERN_DATA": 14,
    }
    assert sum(pages.values()) == found.total_pages == FRAMES
    assert found.total_bytes == FRAMES * 4096
    assert found.notes == ("a note", "1 pages could not be read, so whether they are zero is not known")
    assert seen[-1] == (19, 19)


def test_table_has_makedumpfiles_columns() -> None:
    rows = (
        UsageRow("ZERO", 5, excludable=True, description="Pages filled with zero"),
        UsageRow("KERN_DATA", 7, excludable=False, description="Dumpable"),
    )
    lines = format_usage(MemoryUsage(rows, 4096, 12)).splitlines()
    assert lines[0].split() == ["TYPE", "PAGES", "EXCLUDABLE", "DESCRIPTION"]
    assert lines[2].split() == ["ZERO", "5", "yes", "Pages", "filled", "with", "zero"]
    assert lines[3].split() == ["KERN_DATA", "7", "no", "Dumpable"]
    assert lines[-1].split() == ["Total", "size", "on", "system:", "49152", "Byte"]
