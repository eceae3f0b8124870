"""What memory is used for, as makedumpfile counts it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.dumps.open import open_dump
from postpanic.kernel.memory import open_kernel_memory
from postpanic.pages.usage import count_usage
from postpanic.process import run
from tests.vm.lab import Crash, Lab

LINES = {
    "Pages filled with zero": "ZERO",
    "Non-private cache pages": "NON_PRI_CACHE",
    "Private cache pages": "PRI_CACHE",
    "User process data pages": "USER",
    "Free pages": "FREE",
}


# makedumpfile 1.7.8 takes tail pages of slabs for user memory on 7.1 and newer.
@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.12"])
def test_every_kind_of_page_has_makedumpfiles_number(
    kernel: str, crashed: Callable[..., Crash], crash_lab: Lab, tmp_path: Path
) -> None:
    crash = crashed(kernel)
    words = [*crash_lab.makedumpfile.command, "--message-level", "31", "--dry-run", "--show-stats", "-d", "31"]
    finished = run([*words, crash.raw, tmp_path / "out"])
    text = ((finished.stdout or b"") + finished.stderr).decode()
    expected = {}
    for line, name in LINES.items():
        found = re.search(rf"^ +{line} *: (0x[0-9a-f]+)$", text, re.MULTILINE)
        assert found is not None, text
        expected[name] = int(found[1], 16)
    with open_dump(crash.raw) as dump:
        usage = count_usage(dump, open_kernel_memory(dump), threads=2)
    pages = {row.type: row.pages for row in usage.rows}
    assert {name: pages[name] for name in expected} == expected
    assert expected["FREE"] > 10_000
    assert usage.notes == ()
