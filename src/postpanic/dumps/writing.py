"""
The contract between the page pump and the dump formats that are written.

A format's writer turns batches of pages into bytes at offsets of a
:class:`ByteSink`, which knows nothing of dumps. Encoding is the costly part:
each thread of the pump has an encoder of its own, while batches are written
one after the other, in the order in which the pump gives them.

::

    pages ──encode (threads)──> EncodedBatch ──write (in order)──> ByteSink
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.frames import FrameSet
from postpanic.dumps.memory import VirtualSegment

__all__ = ["ByteSink", "DumpOutline", "DumpWriter", "EncodedBatch", "Encoder", "PageBatch"]


@dataclass(frozen=True, slots=True)
class DumpOutline:
    """All that is known of a dump before its first page is written."""

    machine: str
    """``uname -m`` spelling."""
    page_size_bytes: int
    ram: FrameSet
    """Every frame that is RAM, saved or not."""
    kept: FrameSet
    """The frames whose pages will be written, zero pages included; a subset of *ram*."""
    dump_level: int
    vmcoreinfo: bytes = b""
    notes: bytes = b""
    """All ELF notes as they stand, VMCOREINFO's among them."""
    utsname: dict[str, str] = field(default_factory=dict)
    """``sysname nodename release version machine domainname``."""
    timestamp_s: int = 0
    cpu_count: int = 1
    phys_base: int = 0
    segments: tuple[VirtualSegment, ...] = ()
    """Virtual ranges that the dump's own headers are to carry (ELF ``p_vaddr``)."""
    byte_order: str = "little"
    """Of the machine; the writers know ``little`` only."""
    pfn_range: tuple[int, int] | None = None
    """Of one part of a split set: the frames ``[start, end)`` that this file holds; *kept* still has all."""


@dataclass(frozen=True, slots=True)
class PageBatch:
    """
    Pages on their way to the writers; the arrays are valid until the batch is written.

    ``pfns`` rise, and all are in the outline's ``kept``.
    """

    pfns: NDArray[np.uint64]
    pages: NDArray[np.uint8]
    """Shape (n, page size), C-contiguous; zeroes where *is_lost*."""
    is_zero: NDArray[np.bool_]
    """Pages of zeroes, as the machine had them."""
    is_lost: NDArray[np.bool_]
    """Pages that could not be read."""
    index: int = 0
    """How many pages the batches before this one have."""
    reread: Callable[[NDArray[np.uint64]], NDArray[np.uint8]] | None = None
    """Reads pages that came earlier once more, as they came; zeroes where that fails."""


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """What an encoder made of a batch: the stored pages one after the other."""

    pfns: NDArray[np.uint64]
    is_zero: NDArray[np.bool_]
    is_lost: NDArray[np.bool_]
    sizes: NDArray[np.uint32]
    """Stored bytes of each page; 0 for zero pages and lost ones."""
    flags: NDArray[np.uint32]
    """How each page is stored, in the format's own numbers."""
    data: Sequence[memoryview]
    """The stored bytes of all pages in order; ``sizes`` add up to their length."""


Encoder = Callable[[PageBatch], EncodedBatch]


class ByteSink(Protocol):
    """
    Somewhere to put a file: a file, or a stream that carries one.

    Raises from all methods: :class:`~postpanic.errors.NoSpaceError` when there
    is no room, :class:`~postpanic.errors.OutputGoneError` when a pipe's reader
    went away, :class:`~postpanic.errors.OutputError` for all else. After
    NoSpaceError what was written before stays, and smaller writes to places
    that were written already may still work.
    """

    @property
    def name(self) -> str:
        """The path, or what else tells the user where it goes."""

    @property
    def is_stream(self) -> bool:
        """
        Whether it is a stream of records.

        Readers that do not rearrange it (crash 8) may find what was sent first
        for a place of the file, and not what was sent last.
        """

    def write_at(self, offset: int, parts: Sequence[memoryview | bytes]) -> None:
        """Write bytes, given in parts, from an offset of the file on; anything written there before is replaced."""

    def write_rows(self, table_offset: int, numbers: NDArray[np.int64], rows: NDArray[np.uint8]) -> None:
        """
        Write rows of a table.

        Parameters
        ----------
        table_offset : int
            Of row 0 in the file.
        numbers : ndarray of int64, shape (n,)
            Of the rows, rising.
        rows : ndarray of uint8, shape (n, bytes of a row), C-contiguous
        """

    def reserve(self, size_bytes: int) -> None:
        """
        Set the first bytes of the file aside, for what is written in any order and more than once.

        They read as zeroes until then. What comes after them is written once, in any order.
        """

    def extend(self, size_bytes: int) -> None:
        """Make the file at least so long; bytes that were never written read as zeroes."""

    def flush(self) -> None:
        """Wait until all that was written is where no power failure takes it away, as far as that can be had."""


class DumpWriter(Protocol):
    """
    Writes one dump file.

    From :meth:`begin` to :meth:`finish` the file is marked incomplete, so that
    one that is cut by a power failure says so; a stream tells by its missing end.
    """

    def begin(self) -> None:
        """Write everything that comes before the pages."""

    def make_encoder(self) -> Encoder:
        """Make an encoder for one thread."""

    def write(self, batch: EncodedBatch) -> None:
        """Write the pages of a batch; each frame occurs in one batch only, in any order of batches."""

    def finish(self, *, complete: bool, eraseinfo: bytes = b"") -> None:
        """Write what comes last, and take the mark of incompleteness away if *complete*."""
