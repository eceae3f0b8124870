"""A machine whose state is kept, and taken up again as often as there are ways to crash it."""

from __future__ import annotations

import time
from pathlib import Path

from postpanic.rehearse.machine import Machine, scale_timeout

__all__ = ["KeptMachine"]

_POLL_S = 0.05
_MOVE_TIMEOUT_S = 60.0


class KeptMachine(Machine):
    """A :class:`Machine` that can be written to a file as it runs, and that one with ``-incoming`` goes on from."""

    def keep_state(self, path: Path) -> None:
        """Stop the machine and write its state; the other end is a machine of the same configuration."""
        self.pause()
        self._execute("migrate-set-parameters", {"max-bandwidth": 1 << 34})
        self._execute("migrate", {"uri": f"exec:cat >{path}"})
        self._wait_status("query-migrate", "completed")

    def take_up(self) -> None:
        """Let a machine that was started with ``-incoming`` go on, once its state is there."""
        self._wait_status("query-status", "paused")
        self.resume()

    def copy_memory(self, path: Path) -> None:
        """Write physical memory from address 0, as it is."""
        size_bytes = self.config.memory_mib << 20
        arguments: dict[str, object] = {"val": 0, "size": size_bytes, "filename": str(path)}
        self._execute("pmemsave", arguments, timeout_s=scale_timeout(_MOVE_TIMEOUT_S))

    def _wait_status(self, command: str, wanted: str) -> None:
        assert self._monitor is not None
        deadline = time.monotonic() + scale_timeout(_MOVE_TIMEOUT_S)
        while True:
            answer = self._monitor.execute(command)
            status = answer.get("status") if isinstance(answer, dict) else None
            if status == wanted:
                return
            if status == "failed" or time.monotonic() > deadline or not self.is_running:
                raise self._error(f"{command} says {answer}")
            time.sleep(_POLL_S)
