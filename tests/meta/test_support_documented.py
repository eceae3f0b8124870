"""The table of support is what the tests are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_table_is_what_the_generator_makes(tmp_path: Path) -> None:
    made = tmp_path / "support.md"
    subprocess.run(
        [sys.executable, ROOT / "scripts/generate_support_table.py", "-o", made], check=True, cwd=ROOT, timeout=300
    )
    assert made.read_text() == (ROOT / "docs/concepts/support.md").read_text()
