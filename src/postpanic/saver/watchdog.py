"""
Hardware watchdogs that were running when the machine crashed: fed, so that they do not cut the dump short.

Only those that run are touched (``/sys/class/watchdog/*/state``,
Documentation/ABI/testing/sysfs-class-watchdog): opening one that sleeps would
start it. None is ever stopped: should the final reboot hang, they end it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["Watchdogs"]

_MOST = 16


class Watchdogs:
    """
    The watchdogs that run.

    Parameters
    ----------
    sysfs, devfs : Path
        ``/sys/class/watchdog`` and ``/dev``.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        sysfs: Path = Path("/sys/class/watchdog"),
        devfs: Path = Path("/dev"),
    ) -> None:
        self._say = say
        self._sysfs = sysfs
        self._devfs = devfs
        self._open: dict[str, int] = {}

    def feed(self) -> None:
        """Feed all, those that have appeared since the last time included; never raises."""
        with contextlib.suppress(OSError):
            for entry in sorted(self._sysfs.iterdir())[:_MOST]:
                if entry.name not in self._open and self._is_active(entry):
                    self._take(entry.name)
        for name, fd in list(self._open.items()):
            try:
                os.write(fd, b"\0")
            except OSError as exc:
                self._say(f"watchdog {name} takes no food: {(exc.strerror or str(exc)).lower()}")
                os.close(self._open.pop(name))

    def _take(self, name: str) -> None:
        try:
            self._open[name] = os.open(self._devfs / name, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as exc:
            self._say(f"watchdog {name} runs and cannot be fed: {(exc.strerror or str(exc)).lower()}")
            self._open[name] = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        else:
            self._say(f"feeding watchdog {name}")

    @staticmethod
    def _is_active(entry: Path) -> bool:
        try:
            return (entry / "state").read_text().strip() == "active"
        except OSError:
            return False
