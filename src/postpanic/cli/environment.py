"""What the environment says: directories, the pager; and how warnings are shown."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

__all__ = ["cache_directory", "find_pager", "history_file", "show_log", "show_repeated"]

_NUMBER = re.compile(r"0x[0-9a-f]+|\b[0-9]+\b")

DEFAULT_PAGER = "less"
LESS_OPTIONS = "-RFX"


def cache_directory() -> Path:
    """Name the directory for synthesized files: ``$XDG_CACHE_HOME/postpanic``, by default below ``~/.cache``."""
    return _base_directory("XDG_CACHE_HOME", ".cache") / "postpanic"


def history_file() -> Path:
    """Name the file that keeps the prompt's lines: ``$XDG_STATE_HOME/postpanic/history``."""
    return _base_directory("XDG_STATE_HOME", ".local/state") / "postpanic" / "history"


def find_pager() -> str | None:
    """
    Choose the program for long output: ``$PAGER``, else less, else none.

    Output is shown unpaged when it does not go to a terminal, or ``$PAGER`` is
    empty or ``cat``. less is told to pass colours, to end by itself when the
    text fits on one screen, and to leave the text there.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    pager = os.environ.get("PAGER")
    if pager is None:
        pager = DEFAULT_PAGER if shutil.which(DEFAULT_PAGER) else ""
    if pager.strip() in {"", "cat"}:
        return None
    # A user who has set $LESS has chosen his options.
    return f"{pager} {LESS_OPTIONS}" if pager.strip() == DEFAULT_PAGER and not os.environ.get("LESS") else pager


def show_log(*, silent: bool = False) -> None:
    """
    Print the warnings that libraries log as ``warning: …`` on stderr; nothing if *silent*.

    A damaged dump makes drgn say the same of hundreds of addresses: the first of
    those that differ in numbers only is shown, :func:`show_repeated` counts the rest.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Handler):
            root.removeHandler(handler)
    root.addHandler(_Handler(silent=silent))


def show_repeated() -> None:
    """Say how many warnings were like those that :func:`show_log` has shown."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.show_repeated()


class _Handler(logging.Handler):
    def __init__(self, *, silent: bool) -> None:
        super().__init__()
        self.setFormatter(_Formatter("%(levelname)s: %(message)s"))
        self._silent = silent
        self._counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        kind = _NUMBER.sub("…", text)
        if kind not in self._counts and not self._silent:
            print(text, file=sys.stderr)
        self._counts[kind] += 1

    def show_repeated(self) -> None:
        for kind, count in self._counts.items():
            if count > 1 and not self._silent:
                print(f"{kind} ({count - 1} more)", file=sys.stderr)
            self._counts[kind] = 1


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().format(record)


def _base_directory(variable: str, default: str) -> Path:
    # The XDG base directory specification: relative paths in these variables are to be ignored.
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else Path.home() / default
