"""What a verb imports: starting must be fast, and some verbs must work where drgn does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from postpanic.cli.app import VERBS
from tests.builders.elfcore import Segment, build_elf_core

HEAVY = {"drgn", "numpy", "rich", "prompt_toolkit", "hypothesis", "zstandard", "isal"}
REPORT = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def _imported_by(*arguments: str) -> set[str]:
    run = f"import sys; from postpanic.cli.app import main; main({list(arguments)!r}); {REPORT}"
    finished = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    return set(json.loads(finished.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    assert not _imported_by("--help") & HEAVY


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    assert not _imported_by(verb, "--help") & HEAVY


@pytest.mark.parametrize("verb", ["info", "dmesg", "verify"])
def test_verbs_that_need_no_debugger_do_not_import_it(verb: str, tmp_path: Path) -> None:
    dump = tmp_path / "vmcore"
    dump.write_bytes(build_elf_core([Segment(0x1000, bytes(4096))]).raw)
    imported = _imported_by(verb, str(dump))
    assert "numpy" in imported, "the dump was read"
    assert not imported & {"drgn", "rich", "prompt_toolkit"}


def test_a_session_of_commands_needs_no_line_editor_and_no_progress_bar() -> None:
    modules = ["postpanic.cli.open", "postpanic.cli.session", "postpanic.analysis.banner"]
    finished = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(modules)}; {REPORT}"], capture_output=True, text=True, check=True
    )
    assert not set(json.loads(finished.stdout)) & {"rich", "prompt_toolkit", "hypothesis"}
