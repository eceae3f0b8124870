"""
Write into a dump without touching its file.

An :class:`Overlay` lies over a dump and keeps the pages that were written; what
reads memory reads through it and sees the changes. While nothing was written, a
read costs one look at an empty dictionary more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.memory import Dump, DumpDescription, PageState
from postpanic.errors import PageAbsentError
from postpanic.units import PhysAddr

__all__ = ["Overlay"]


class Overlay:
    """
    A dump, and the changes that were made to it in memory.

    Parameters
    ----------
    dump : Dump
        Read where nothing was written; closed with the overlay.

    Notes
    -----
    A write replaces what is kept as a whole, so that readers in other threads see
    all of a write or nothing.
    """

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self._page_size = dump.page_size_bytes
        self._written: tuple[dict[int, bytes], NDArray[np.uint64]] = ({}, np.empty(0, dtype=np.uint64))
        self._listeners: list[Callable[[frozenset[int]], object]] = []

    @property
    def beneath(self) -> Dump:
        """The dump as its file has it."""
        return self._dump

    @property
    def description(self) -> DumpDescription:
        """What the file says about itself."""
        return self._dump.description

    @property
    def page_size_bytes(self) -> int:
        """Bytes in a page frame."""
        return self._page_size

    @property
    def ram_ranges(self) -> NDArray[np.uint64]:
        """All RAM the dump describes."""
        return self._dump.ram_ranges

    @property
    def written_pfns(self) -> NDArray[np.uint64]:
        """Frame numbers of the pages that were written, sorted."""
        return self._written[1]

    def listen(self, on_write: Callable[[frozenset[int]], object]) -> None:
        """Have *on_write* called after each write, with the frame numbers of the pages that changed: to drop caches."""
        self._listeners.append(on_write)

    def write(self, paddr: PhysAddr | int, data: bytes) -> None:
        """
        Write bytes at a physical address; all of them or, on an error, none.

        A page that the dump does not hold can only be written as a whole: what
        the rest of it contained is not known.

        Raises
        ------
        PageAbsentError
            If the dump does not hold a page of which a part would be written,
            or describes no RAM there.
        """
        if not data:
            return
        size = self._page_size
        changed: dict[int, bytes] = {}
        done = 0
        while done < len(data):
            at = int(paddr) + done
            inside = at % size
            part = data[done : done + size - inside]
            page = part if len(part) == size and self._is_ram(at // size) else self._patched(at, part)
            changed[at // size] = page
            done += len(part)
        pages = {**self._written[0], **changed}
        self._written = (pages, np.array(sorted(pages), dtype=np.uint64))
        for listener in self._listeners:
            listener(frozenset(changed))

    def forget(self) -> None:
        """Have everything that is kept of the dump forgotten, here and by whoever listens; what was written stays."""
        self._dump.forget()
        for listener in self._listeners:
            listener(frozenset())

    def read(self, paddr: PhysAddr, size_bytes: int) -> bytes:
        """
        Read a range of bytes, across pages.

        Raises
        ------
        PageAbsentError
            If any byte of the range is neither in the file nor written.
        """
        pages, pfns = self._written
        if not pages:
            return self._dump.read(paddr, size_bytes)
        size = self._page_size
        pfn, inside = divmod(paddr, size)
        if inside + size_bytes <= size:
            page = pages.get(pfn)
            return page[inside : inside + size_bytes] if page is not None else self._dump.read(paddr, size_bytes)
        return self._read_across(int(paddr), int(size_bytes), pages, pfns)

    def page_states(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """State of each frame; one that was written is ``PRESENT``."""
        states = self._dump.page_states(pfns)
        for row, _ in self._written_rows(pfns):
            states[row] = PageState.PRESENT
        return states

    def read_pages(self, pfns: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read whole pages in bulk: their contents, and the state of each."""
        pages, states = self._dump.read_pages(pfns)
        self._patch(pfns, pages, states)
        return pages, states

    def read_pages_into(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Read whole pages into a buffer, from any thread; the state of each."""
        states = self._dump.read_pages_into(pfns, pages)
        self._patch(pfns, pages, states)
        return states

    def close(self) -> None:
        """Close the dump beneath, and let go of who listens; what was written is gone."""
        self._listeners.clear()
        self._dump.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _is_ram(self, pfn: int) -> bool:
        return int(self._dump.page_states(np.array([pfn], dtype=np.uint64))[0]) != PageState.ABSENT

    def _patched(self, paddr: int, part: bytes) -> bytes:
        """Build the page that a part of it is written to; what is to be replaced must be readable."""
        pfn, inside = divmod(paddr, self._page_size)
        self.read(PhysAddr(paddr), len(part))
        # A frame of which only a part is RAM is read with zeroes around it.
        pages, states = self.read_pages(np.array([pfn], dtype=np.uint64))
        if states[0] != PageState.PRESENT:
            raise PageAbsentError(f"the page of physical address {paddr:#x} is not whole", paddr=paddr)
        page = bytearray(pages[0].tobytes())
        page[inside : inside + len(part)] = part
        return bytes(page)

    def _read_across(self, paddr: int, size_bytes: int, pages: dict[int, bytes], written: NDArray[np.uint64]) -> bytes:
        """Read the pages that were written from memory, and all that lies between two of them in one go."""
        size, end = self._page_size, paddr + size_bytes
        parts: list[bytes] = []
        first = int(np.searchsorted(written, np.uint64(paddr // size)))
        for pfn in written[first:].tolist():
            start = pfn * size
            if start >= end:
                break
            if paddr < start:
                parts.append(self._dump.read(PhysAddr(paddr), start - paddr))
                paddr = start
            part = pages[pfn][paddr - start : end - start]
            parts.append(part)
            paddr += len(part)
        if paddr < end:
            parts.append(self._dump.read(PhysAddr(paddr), end - paddr))
        return b"".join(parts)

    def _written_rows(self, pfns: NDArray[np.uint64]) -> list[tuple[int, bytes]]:
        """Find the frames among *pfns* that were written: their index and contents."""
        pages, written = self._written
        if not pages:
            return []
        rows = np.flatnonzero(np.isin(pfns, written)).tolist()
        return [(row, pages[int(pfns[row])]) for row in rows]

    def _patch(self, pfns: NDArray[np.uint64], pages: NDArray[np.uint8], states: NDArray[np.uint8]) -> None:
        for row, page in self._written_rows(pfns):
            pages[row] = np.frombuffer(page, dtype=np.uint8)
            states[row] = PageState.PRESENT
