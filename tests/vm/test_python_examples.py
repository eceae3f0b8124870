"""The examples of the documents, run on a real dump."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vm.lab import Crash

HOWTO = Path(__file__).parents[2] / "docs" / "howto"


@pytest.mark.vm
def test_examples_in_python_do_what_they_say(
    crashed: Callable[..., Crash], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dump.kdump").symlink_to(crashed("6.12").filtered)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    # The fences are not part of an example.
    text = (HOWTO / "python.md").read_text().replace("```python\n", "\n").replace("\n```\n", "\n\n")
    test = doctest.DocTestParser().get_doctest(text, {}, "python.md", str(HOWTO / "python.md"), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    runner.run(test, out=report.append)
    assert runner.tries > 10
    assert runner.failures == 0, "".join(report)
