"""What the environment decides."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from postpanic.cli.environment import cache_directory, find_pager, history_file, show_log, show_repeated


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    before = list(logger.handlers)
    yield logger
    logger.handlers[:] = before


def test_directories_follow_the_xdg_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert cache_directory() == tmp_path / "cache" / "postpanic"
    assert history_file() == tmp_path / "state" / "postpanic" / "history"


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_relative_directory_counts_as_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_directory() == tmp_path / ".cache" / "postpanic"


@pytest.mark.parametrize(
    ("pager", "less", "expected"),
    [
        ("less", None, "less -RFX"),
        ("less", "-S", "less"),
        ("less -S", None, "less -S"),
        ("more", None, "more"),
        ("cat", None, None),
        ("", None, None),
    ],
)
def test_pager_is_that_of_the_user(
    monkeypatch: pytest.MonkeyPatch, pager: str, less: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("PAGER", pager)
    monkeypatch.delenv("LESS", raising=False)
    if less is not None:
        monkeypatch.setenv("LESS", less)
    assert find_pager() == expected


def test_output_that_is_no_terminal_is_not_paged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    monkeypatch.setenv("PAGER", "less")
    assert find_pager() is None


def test_like_warnings_are_shown_once_and_counted(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    show_log()
    for text in ("ignoring module at 0x10", "ignoring module at 0xff", "ignoring module at 0x20", "another thing"):
        root_logger.warning(text)
    show_repeated()
    show_repeated()
    assert capsys.readouterr().err.splitlines() == [
        "warning: ignoring module at 0x10",
        "warning: another thing",
        "warning: ignoring module at … (2 more)",
    ]


def test_silence_has_no_warnings(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    show_log(silent=True)
    root_logger.warning("nothing to see")
    root_logger.warning("nothing to see")
    show_repeated()
    assert capsys.readouterr().err == ""
