"""Read pieces of a large buffer in any order, without holding all of it."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.memory import KernelMemory
from postpanic.units import MIB

__all__ = ["BufferWindow"]

_CHUNK_BYTES = MIB
_CACHED_CHUNKS = 8


class BufferWindow:
    """
    A buffer in kernel memory, read in chunks when they are first needed.

    Parameters
    ----------
    memory : KernelMemory
        Where the buffer lies.
    vaddr : int
        Of its first byte.
    size_bytes : int
        Of the whole buffer; nothing outside is read.
    """

    def __init__(self, memory: KernelMemory, vaddr: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._memory = memory
        self._vaddr = vaddr
        self._chunks: OrderedDict[int, tuple[bytes, NDArray[np.bool_]]] = OrderedDict()

    def read(self, start: int, end: int) -> bytes | None:
        """
        Give the bytes from *start* to *end*, None where any of them is not in the dump.

        Both must be within the buffer.
        """
        first, last = start // _CHUNK_BYTES, max(start, end - 1) // _CHUNK_BYTES
        if first != last:
            parts = [
                self.read(max(start, number * _CHUNK_BYTES), min(end, (number + 1) * _CHUNK_BYTES))
                for number in range(first, last + 1)
            ]
            return None if None in parts else b"".join(part for part in parts if part is not None)
        data, present = self._chunk(first)
        low, high = start - first * _CHUNK_BYTES, end - first * _CHUNK_BYTES
        return data[low:high] if bool(present[low:high].all()) else None

    def _chunk(self, number: int) -> tuple[bytes, NDArray[np.bool_]]:
        chunk = self._chunks.get(number)
        if chunk is None:
            start = number * _CHUNK_BYTES
            size = min(_CHUNK_BYTES, self.size_bytes - start)
            data, present = self._memory.read_available(self._vaddr + start, size)
            chunk = (data.tobytes(), present)
            self._chunks[number] = chunk
            if len(self._chunks) > _CACHED_CHUNKS:
                self._chunks.popitem(last=False)
        return chunk
