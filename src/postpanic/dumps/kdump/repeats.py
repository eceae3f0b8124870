"""
Pages whose contents are in the file already: stored once, described as often as they occur.

Page descriptors say where a page's data is, and nothing forbids two of them to
say the same; makedumpfile itself lets all pages of zeroes share one. Which
pages may be alike is told by a fingerprint; whether they are, by comparing
the pages themselves.

A page is looked for among those that were written at least an epoch before
it, a number of pages that is never on its way at one time. So what is found
depends on the pages and their order alone, not on the speed of threads.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["EPOCH_PAGES", "FoundRepeats", "Repeats"]

EPOCH_PAGES = 8192
_SLOT_BITS = 17
"""Of the latest 131,072 different pages at most; the table takes 4 MiB, and there are two."""
_SAMPLED_WORDS = 64
_ENTRY = np.dtype([("fingerprint", "u8"), ("pfn", "u8"), ("offset", "u8"), ("size", "u4"), ("flags", "u4")])


class FoundRepeats(NamedTuple):
    """Rows of a batch whose fingerprint an earlier page has, and what is known of that page."""

    rows: NDArray[np.int64]
    entries: NDArray[np.void]
    """Fields ``fingerprint pfn offset size flags``."""


class Repeats:
    """
    What was written, by fingerprint.

    :meth:`find` may be called from several threads; :meth:`add` from one at a
    time, with all pages in the order of their numbers.

    Parameters
    ----------
    page_size_bytes : int
    seed : int
        Of the fingerprint's factors; another one gives the same file, as pages are compared.
    """

    def __init__(self, page_size_bytes: int, *, seed: int = 1) -> None:
        words = page_size_bytes // 8
        self._step = max(words // _SAMPLED_WORDS, 1)
        factors = np.random.default_rng(seed).integers(1, 1 << 63, words // self._step + 1, dtype=np.uint64)
        self._factors = factors * np.uint64(2) + np.uint64(1)
        self._lock = threading.Lock()
        self._pending: dict[int, list[NDArray[np.void]]] = {}
        # Two tables take turns, so that one is never changed while pages are looked for in it.
        self._tables = [np.zeros(1 << _SLOT_BITS, dtype=_ENTRY) for _ in range(2)]
        self._filled = [0, 0]
        """For each table, the first epoch whose pages are not in it."""
        self._written = 0

    def fingerprint(self, pages: NDArray[np.uint8]) -> NDArray[np.uint64]:
        """Compute a number for each page that is the same for equal pages."""
        words = pages.view(np.uint64)
        prints: NDArray[np.uint64] = (words[:, :: self._step] * self._factors[1:]).sum(axis=1, dtype=np.uint64)
        prints += np.bitwise_xor.reduce(words, axis=1) * self._factors[0]
        return prints

    def find(self, index: int, fingerprints: NDArray[np.uint64], wanted: NDArray[np.bool_]) -> FoundRepeats:
        """
        Look for earlier pages with the fingerprints of a batch.

        Parameters
        ----------
        index : int
            How many pages come before the batch.
        wanted : ndarray of bool
            Rows to look for.
        """
        rows = np.flatnonzero(wanted)
        epochs = (index + rows) // EPOCH_PAGES
        parts = [self._find_in(int(epoch), rows[epochs == epoch], fingerprints) for epoch in np.unique(epochs)]
        if not parts:
            return FoundRepeats(np.empty(0, dtype=np.int64), np.empty(0, dtype=_ENTRY))
        return FoundRepeats(np.concatenate([p.rows for p in parts]), np.concatenate([p.entries for p in parts]))

    def add(
        self,
        index: int,
        pfns: NDArray[np.uint64],
        fingerprints: NDArray[np.uint64],
        descriptors: NDArray[np.void],
        chosen: NDArray[np.bool_],
    ) -> None:
        """
        Take note of pages that have been written.

        Parameters
        ----------
        descriptors : ndarray
            Fields ``offset size flags`` of each.
        chosen : ndarray of bool
            Rows that may be referred to.
        """
        entries = np.zeros(len(pfns), dtype=_ENTRY)
        entries["fingerprint"], entries["pfn"] = fingerprints, pfns
        for name in ("offset", "size", "flags"):
            entries[name] = descriptors[name]
        epochs = (index + np.arange(len(pfns))) // EPOCH_PAGES
        with self._lock:
            for epoch in np.unique(epochs).tolist():
                self._pending.setdefault(epoch, []).append(entries[chosen & (epochs == epoch)])
            self._written = index + len(pfns)

    def _find_in(self, epoch: int, rows: NDArray[np.int64], fingerprints: NDArray[np.uint64]) -> FoundRepeats:
        table = self._table_for(epoch)
        if table is None:
            return FoundRepeats(rows[:0], np.empty(0, dtype=_ENTRY))
        prints = fingerprints[rows]
        entries = table[prints >> np.uint64(64 - _SLOT_BITS)]
        matches = (entries["fingerprint"] == prints) & (entries["size"] > 0)
        return FoundRepeats(rows[matches], entries[matches])

    def _table_for(self, epoch: int) -> NDArray[np.void] | None:
        """Give the table with the pages of all epochs but the last; None where these are not written yet."""
        with self._lock:
            if epoch < 2 or self._written < (epoch - 1) * EPOCH_PAGES:
                return None
            turn = epoch & 1
            table = self._tables[turn]
            for earlier in range(self._filled[turn], epoch - 1):
                for entries in self._pending.get(earlier, ()):
                    table[entries["fingerprint"] >> np.uint64(64 - _SLOT_BITS)] = entries
            self._filled[turn] = max(self._filled[turn], epoch - 1)
            for earlier in [number for number in self._pending if number < min(self._filled)]:
                del self._pending[earlier]
            return table
