"""
Byte ranges out of whole pages: what the readers of paged formats share.

A debugger reads a few bytes at a time, many times from the same pages. A hit
in the cache costs one dictionary look-up and one slice; the cache drops its
oldest page first, so that a hit moves nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import PageState, page_absent_error
from postpanic.units import MIB, PhysAddr

__all__ = ["CACHE_BYTES", "PagedMemory"]

CACHE_BYTES = 32 * MIB
"""Contents that one open dump keeps in memory."""

_BULK_PAGES = 1024
_ADDRESS_LIMIT = 1 << 64


class PagedMemory(ABC):
    """
    Physical memory of which single pages can be had.

    Parameters
    ----------
    page_size_bytes : int
        A power of two.
    name : str
        The file, for errors.
    cache_bytes : int
        Upper bound of the contents that are kept.
    """

    def __init__(self, page_size_bytes: int, name: str, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._page_size = page_size_bytes
        self._shift = page_size_bytes.bit_length() - 1
        self._mask = page_size_bytes - 1
        self._name = name
        self._cache: dict[int, bytes] = {}
        self._cache_pages = max(cache_bytes // page_size_bytes, 1)

    @property
    def page_size_bytes(self) -> int:
        """Bytes in a page frame, a power of two."""
        return self._page_size

    @abstractmethod
    def read_pages_into(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Read whole pages in bulk into a buffer, from any thread; the state of each."""

    def read_pages(self, pfns: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """
        Read whole pages in bulk.

        Returns
        -------
        pages : ndarray of uint8, shape (len(pfns), page_size_bytes)
            Contents; zeroes where the state is not ``PRESENT``.
        states : ndarray of uint8, shape (len(pfns),)
        """
        pages = np.empty((len(pfns), self._page_size), dtype=np.uint8)
        return pages, self.read_pages_into(pfns, pages)

    def forget(self) -> None:
        """Forget the contents that are kept."""
        self._cache.clear()

    @abstractmethod
    def _load_page(self, pfn: int) -> bytes | PageState:
        """Get the contents of one page, or the reason why not."""

    def read(self, paddr: PhysAddr, size_bytes: int) -> bytes:
        """
        Read a range of bytes, across pages.

        Raises
        ------
        PageAbsentError
            If any byte of the range is not in the file; says which and why.
        """
        page = self._cache.get(paddr >> self._shift)
        if page is not None:
            start = paddr & self._mask
            if 0 <= size_bytes <= self._page_size - start:
                return page[start : start + size_bytes]
        return self._read_uncached(int(paddr), int(size_bytes))

    def _read_uncached(self, paddr: int, size_bytes: int) -> bytes:
        """Read what is not within one cached page."""
        self._check_range(paddr, size_bytes)
        start = paddr & self._mask
        if start + size_bytes <= self._page_size:
            return self._page(paddr)[start : start + size_bytes] if size_bytes else b""
        if size_bytes > 8 * self._page_size:
            return self._read_bulk(paddr, size_bytes)
        parts: list[bytes] = []
        end = paddr + size_bytes
        while paddr < end:
            start = paddr & self._mask
            part = self._page(paddr)[start : start + end - paddr]
            parts.append(part)
            paddr += len(part)
        return b"".join(parts)

    def _read_bulk(self, paddr: int, size_bytes: int) -> bytes:
        """Read a long range without driving everything else out of the cache."""
        parts: list[bytes] = []
        end = paddr + size_bytes
        while paddr < end:
            first = paddr >> self._shift
            last = min(end - 1 >> self._shift, first + _BULK_PAGES - 1)
            pages, states = self.read_pages(np.arange(first, last + 1, dtype=np.uint64))
            missing = np.flatnonzero(states)
            if len(missing):
                bad = int(missing[0])
                raise self._absent(max(first + bad << self._shift, paddr), int(states[bad]))
            stop = min(end, last + 1 << self._shift)
            base = first << self._shift
            parts.append(pages.reshape(-1)[paddr - base : stop - base].tobytes())
            paddr = stop
        return b"".join(parts)

    def _check_range(self, paddr: int, size_bytes: int) -> None:
        if size_bytes < 0:
            raise ValueError(f"a read of {size_bytes} bytes")
        if paddr < 0 or paddr + size_bytes > _ADDRESS_LIMIT:
            raise self._absent(paddr, PageState.ABSENT)

    def _page(self, paddr: int) -> bytes:
        pfn = paddr >> self._shift
        page = self._cache.get(pfn)
        if page is None:
            loaded = self._load_page(pfn)
            if isinstance(loaded, PageState):
                raise self._absent(paddr, loaded)
            page = loaded
            self._keep(pfn, page)
        return page

    def _keep(self, pfn: int, page: bytes) -> None:
        cache = self._cache
        if len(cache) >= self._cache_pages:
            del cache[next(iter(cache))]
        cache[pfn] = page

    def _absent(self, paddr: int, state: int) -> Exception:
        return page_absent_error(paddr, state, where=self._name)
