"""Kernel memory as 64-bit words, read page by page and kept: stacks are read a word at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import TranslationError
from postpanic.kernel.memory import KernelMemory

__all__ = ["Words"]

_MAX_PAGES = 8192
_WORD = (1 << 64) - 1


class Words:
    """
    Words of kernel memory.

    Parameters
    ----------
    memory : KernelMemory
    keep : bool
        Whether pages are kept; False where the kernel runs on.
    """

    def __init__(self, memory: KernelMemory, *, keep: bool = True) -> None:
        self.memory = memory
        self._keep = keep
        self._mask = ~(memory.page_size_bytes - 1) & _WORD
        self._inside = memory.page_size_bytes - 1
        self._pages: dict[int, memoryview] = {}

    def read(self, vaddr: int) -> int:
        """
        Read one word.

        Raises
        ------
        AbsentError
            If it is not mapped, or not in the dump.
        """
        page = self._pages.get(vaddr & self._mask)
        if page is None or vaddr & 7:
            return self._read_slowly(vaddr)
        return page[(vaddr & self._inside) >> 3]

    def _read_slowly(self, vaddr: int) -> int:
        if not 0 <= vaddr <= _WORD:
            raise TranslationError(f"{vaddr:#x} is beyond 64 bits", vaddr=vaddr)
        if vaddr & 7 or not self._keep:
            return self.memory.read_u64(vaddr)
        base = vaddr & self._mask
        data = self.memory.read(base, self._inside + 1)
        if len(self._pages) >= _MAX_PAGES:
            self._pages.clear()
        page = self._pages[base] = memoryview(data).cast("Q")
        return page[(vaddr & self._inside) >> 3]

    def read_many(self, vaddr: int, count: int) -> list[int]:
        """Read consecutive words; raises as :meth:`read`."""
        page = self._pages.get(vaddr & self._mask)
        first = (vaddr & self._inside) >> 3
        if page is not None and not vaddr & 7 and first + count <= len(page):
            return page[first : first + count].tolist()
        return [self.read(vaddr + 8 * number) for number in range(count)]

    def read_range(self, start: int, end: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """
        Read what there is of a range, both ends aligned to 8.

        Returns
        -------
        words : ndarray of uint64
            Zero where there is nothing.
        present : ndarray of bool
            False for each word that is not mapped or not in the dump.
        """
        data, present = self.memory.read_available(start, end - start)
        return data.view(np.uint64), present[::8]
