"""What is saved: the dead kernel's memory, opened once for all targets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from postpanic.dumps.digest import FileDigest
from postpanic.dumps.memory import Dump
from postpanic.errors import PostpanicError
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.kernel.uts import read_utsname
from postpanic.pages.checks import SelfTest
from postpanic.pages.filtering import FilterResult, WritePlan
from postpanic.pages.selection import Selection
from postpanic.saver.evidence import Evidence, collect_evidence, name_dump
from postpanic.units import MIB

__all__ = ["MemoryImage", "choose_buffer_bytes", "choose_select_bytes"]

_KEPT_FREE = 10 * MIB
_TEST_BYTES = 24 * MIB
"""What a self-test takes, and some more."""
_SEARCH_BYTES = 96 * MIB
"""The same, where kallsyms has functions only (Debian's arm64 kernels up to 6.1) and data must be searched for."""
_LEAN_SELECT_BYTES, _MOST_SELECT_BYTES = 3 * MIB // 2, 64 * MIB
_LEAST, _MOST = 2 * MIB, 24 * MIB


class MemoryImage:
    """
    A dump that is open, and what all targets need to know of it.

    Parameters
    ----------
    dump : Dump
        ``/proc/vmcore``, or any other.
    node : str
        The machine's name, where the memory does not tell it.
    lean : bool
        Take as little memory as possible: do not write the most valuable pages first, which takes half a byte for
        each page of the memory; read less of the array of struct page at a time.
    """

    def __init__(
        self,
        dump: Dump,
        say: Callable[[str], None],
        *,
        node: str = "",
        threads: int = 1,
        buffer_bytes: int = _LEAST,
        self_test: bool = True,
        lean: bool = False,
    ) -> None:
        self.dump = dump
        self.threads = threads
        self.buffer_bytes = buffer_bytes
        self._say = say
        self._self_test = self_test
        self._lean = lean
        self._tested: dict[str, SelfTest | None] = {}
        self._selections: dict[int, Selection] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self.kernel: KernelMemory | None = None
        try:
            self.kernel = open_kernel_memory(dump)
        except PostpanicError as exc:
            say(f"the kernel in the memory is not found, all pages are kept: {exc.message}")
        self.evidence: Evidence = collect_evidence(dump, self.kernel)
        for fault in self.evidence.faults:
            say(fault)
        self.dump_name = name_dump(node or self._read_node(), self.evidence.crash_time_s)

    def _read_node(self) -> str:
        """Read the machine's name out of its memory; empty where that fails."""
        try:
            return read_utsname(self.kernel).nodename if self.kernel is not None else ""
        except PostpanicError:
            return ""

    def select(self, level: int) -> Selection:
        """Choose the pages of a dump level; once for all who ask."""
        with self._lock:
            if level not in self._selections:
                from postpanic.pages.classify import select_pages

                selection = select_pages(
                    self.dump,
                    self.kernel,
                    level,
                    threads=self.threads,
                    memory_limit_bytes=_LEAN_SELECT_BYTES if self._lean else choose_select_bytes(),
                    by_worth=not self._lean,
                )
                for note in selection.notes:
                    self._say(note)
                self._selections[level] = selection
            return self._selections[level]

    def manifest(
        self,
        result: FilterResult,
        plan: WritePlan,
        name: str,
        test: object = None,
        *,
        notes: Sequence[str] = (),
        flattened: bool = False,
    ) -> bytes:
        """Put the manifest of a file together, as JSON."""
        from postpanic.pages.recording import record_dump

        digest = result.digests[0] if result.digests else None
        manifest = record_dump(
            self.dump,
            self.kernel,
            result,
            plan,
            {name: digest or FileDigest(0)},
            duration_s=time.monotonic() - self._started,
            flattened=flattened,
            self_test=test if isinstance(test, SelfTest) else None,
            notes=(*result.selection.notes, *notes),
        )
        return (json.dumps(manifest.to_json(), indent=1) + "\n").encode("ascii")

    def test(self, path: str | None) -> SelfTest | None:
        """Prove that a written file can be worked with; None where it cannot be read back, or nobody asked."""
        if path is None or not self._self_test:
            return None
        available = measure_available()
        if available is not None and available < _TEST_BYTES:
            self._say(f"no self-test: {available >> 20} MiB of memory are free, {_TEST_BYTES >> 20} are needed")
            return None
        from postpanic.dumps.open import open_dump
        from postpanic.pages.selftest import check_dump

        with self._lock:
            try:
                with open_dump(Path(path)) as written:
                    is_lean = available is not None and available < _SEARCH_BYTES
                    return check_dump(written, source=self.dump, source_kernel=self.kernel, quick=True, is_lean=is_lean)
            except (PostpanicError, MemoryError) as exc:
                self._say(f"no self-test of {Path(path).name}: {exc}")
                return None


def choose_buffer_bytes(targets: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """
    Choose how much memory pages in flight may take, by what is free now.

    Each target may come to read on its own, beside the one read for all.
    """
    available = measure_available(meminfo)
    if available is None:
        available = 64 * MIB
    return min(max((available - _KEPT_FREE) // (1 + max(targets, 1)), _LEAST), _MOST)


def choose_select_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Choose how much memory the buffers may take in which pages are chosen, by what is free now."""
    available = measure_available(meminfo)
    if available is None:
        return _MOST_SELECT_BYTES
    return min(max(available // 4, _LEAN_SELECT_BYTES), _MOST_SELECT_BYTES)


def measure_available(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Ask the kernel how much memory can be had (``MemAvailable``), in bytes; None where it does not say."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None
