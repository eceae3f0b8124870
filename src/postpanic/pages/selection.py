"""The outcome of classification: which frames are kept, in which order they are to be written, and what was dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.frames import FrameSet
from postpanic.pages.verdict import FIRST_DROPPED, Verdict

__all__ = ["SECTION_FRAMES", "Selection", "SelectionBuilder", "WorthMap"]

SECTION_FRAMES = 1 << 16
"""Frames that the map keeps together; 256 MiB of memory in pages of 4 KiB."""
_FEW = 8
"""Where no more than a frame of so many is left to be counted, they are taken out."""


class WorthMap:
    """
    The worth of every kept frame, in half a byte, less where neighbours are alike.

    Frames that are not kept have no meaning here.
    """

    def __init__(self) -> None:
        self._sections: dict[int, NDArray[np.uint8] | int] = {}
        self._present: dict[int, int] = {}

    def set(self, section: int, verdicts: NDArray[np.uint8], found: Sequence[Verdict]) -> None:
        """
        Keep the verdicts of a section.

        Parameters
        ----------
        verdicts : ndarray of uint8, shape (SECTION_FRAMES,)
            Dropped ones as they come.
        found : sequence of Verdict
            Those among them that are kept.
        """
        if len(found) <= 1:
            self.set_alike(section, found[0] if found else None)
        else:
            self._present[section] = sum(1 << verdict for verdict in found)
            # Two frames at a time, the even one in the low half.
            pairs = verdicts.view("<u2")
            low = pairs & np.uint16(15)
            self._sections[section] = (low | pairs >> np.uint16(4) & np.uint16(0xF0)).astype(np.uint8)

    def set_alike(self, section: int, verdict: Verdict | None) -> None:
        """Keep that all kept frames of a section have one verdict; None where no frame is kept."""
        self._present[section] = 0 if verdict is None else 1 << verdict
        self._sections[section] = int(Verdict.USER_KEPT if verdict is None else verdict)

    def select(self, section: int, worth: Verdict, pfns: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Choose of kept frames, all of one section, those of a worth."""
        if not self._present.get(section, 0) >> worth & 1:
            return pfns[:0]
        stored = self._sections[section]
        if isinstance(stored, int):
            return pfns
        inside = (pfns % np.uint64(SECTION_FRAMES)).astype(np.int64)
        nibbles = stored[inside >> 1] >> ((inside & 1) << 2).astype(np.uint8) & np.uint8(15)
        return np.asarray(pfns[nibbles == worth])


@dataclass(frozen=True)
class Selection:
    """
    Which frames of a dump are kept.

    Attributes
    ----------
    ram : FrameSet
        All frames that the source describes as RAM.
    kept : FrameSet
        Those whose pages are to be written.
    worth : WorthMap or None
        None where nobody wants the most valuable pages first.
    counts : mapping of Verdict to int
        Frames of each verdict; they add up to ``ram.count``.
    notes : tuple of str
        What could not be decided, and what was done about it, one phrase each.
    """

    level: int
    ram: FrameSet
    kept: FrameSet
    worth: WorthMap | None
    counts: Mapping[Verdict, int]
    notes: tuple[str, ...] = ()

    def batches(
        self, frames_per_batch: int, *, by_worth: bool = True, pfn_range: tuple[int, int] | None = None
    ) -> Iterator[NDArray[np.uint64]]:
        """
        Give all kept frames, in batches of rising frame numbers.

        Parameters
        ----------
        by_worth : bool
            The most valuable first, as far as worth is known; else in the order of frame numbers alone.
        pfn_range : tuple of int, optional
            Only the frames ``[start, end)``.
        """
        start, end = pfn_range or (0, self.kept.limit)
        kept = [verdict for verdict in Verdict if verdict < FIRST_DROPPED and self.counts.get(verdict)]
        for worth in kept if by_worth and self.worth is not None else [None]:
            waiting: list[NDArray[np.uint64]] = []
            count = 0
            for section in range(start // SECTION_FRAMES, -(-end // SECTION_FRAMES)):
                pfns = self._members(section, worth, start, end)
                while len(pfns):
                    part = pfns[: frames_per_batch - count]
                    pfns = pfns[len(part) :]
                    waiting.append(part)
                    count += len(part)
                    if count == frames_per_batch:
                        yield np.concatenate(waiting)
                        waiting, count = [], 0
            if waiting:
                yield np.concatenate(waiting)

    def _members(self, section: int, worth: Verdict | None, start: int, end: int) -> NDArray[np.uint64]:
        first = section * SECTION_FRAMES
        pfns = self.kept.members(max(first, start), min(first + SECTION_FRAMES, end))
        if worth is None or self.worth is None or not len(pfns):
            return pfns
        return self.worth.select(section, worth, pfns)


@dataclass
class SelectionBuilder:
    """
    Put the verdicts of sections together; bounded by the bitmaps and half a byte per frame.

    Parameters
    ----------
    ram : FrameSet
        Only these frames count; verdicts on others are ignored.
    by_worth : bool
        Keep what is needed to write the most valuable pages first.
    """

    level: int
    ram: FrameSet
    by_worth: bool = True
    _bits: NDArray[np.uint8] = field(init=False)
    _worth: WorthMap = field(init=False, default_factory=WorthMap)
    _ranked: list[Verdict] = field(init=False, default_factory=lambda: list(Verdict))
    _counts: dict[Verdict, int] = field(init=False, default_factory=lambda: dict.fromkeys(Verdict, 0))

    def __post_init__(self) -> None:
        self._bits = np.zeros(len(self.ram.bits), dtype=np.uint8)

    def add(self, section: int, verdicts: NDArray[np.uint8]) -> None:
        """
        Take the verdicts of one section, each section once.

        Parameters
        ----------
        verdicts : ndarray of uint8, shape (SECTION_FRAMES,)
            :class:`~postpanic.pages.verdict.Verdict` values.
        """
        first = section * SECTION_FRAMES // 8
        ram_bytes = self.ram.bits[first : first + SECTION_FRAMES // 8]
        is_all = len(ram_bytes) * 8 == SECTION_FRAMES and bool((ram_bytes == 0xFF).all())
        if is_all and bool((verdicts == verdicts[0]).all()):
            self._add_alike(section, Verdict(int(verdicts[0])))
            return
        kept = np.packbits(verdicts < FIRST_DROPPED, bitorder="little")[: len(ram_bytes)] & ram_bytes
        self._bits[first : first + len(kept)] = kept
        is_ram = None if is_all else np.unpackbits(ram_bytes, bitorder="little").view(np.bool_)
        # What there was most of in the last section is likely to be what there is here.
        counts = _count_verdicts(verdicts if is_ram is None else verdicts[: len(is_ram)][is_ram], self._ranked)
        self._ranked = [
            *sorted(counts, key=counts.__getitem__, reverse=True),
            *(v for v in self._ranked if v not in counts),
        ]
        for verdict, count in counts.items():
            self._counts[verdict] += count
        if self.by_worth:
            self._worth.set(section, verdicts, [verdict for verdict in counts if verdict < FIRST_DROPPED])

    def _add_alike(self, section: int, verdict: Verdict) -> None:
        """Take a section that is all RAM, and all of one verdict."""
        is_kept = verdict < FIRST_DROPPED
        first = section * SECTION_FRAMES // 8
        self._bits[first : first + SECTION_FRAMES // 8] = 0xFF if is_kept else 0
        self._counts[verdict] += SECTION_FRAMES
        if self.by_worth:
            self._worth.set_alike(section, verdict if is_kept else None)

    def finish(self, notes: tuple[str, ...] = ()) -> Selection:
        """Make the selection; the builder is of no use afterwards."""
        counts = {verdict: count for verdict, count in self._counts.items() if count}
        worth = self._worth if self.by_worth else None
        return Selection(self.level, self.ram, FrameSet(self._bits, self.ram.limit), worth, counts, notes)


def _count_verdicts(verdicts: NDArray[np.uint8], ranked: Sequence[Verdict]) -> dict[Verdict, int]:
    """Count each verdict: a pass for each is quicker than one that sorts them out, until few frames are left."""
    counts: dict[Verdict, int] = {}
    left, others = len(verdicts), None
    for verdict in ranked:
        if left * _FEW <= len(verdicts):
            break
        is_other = verdicts != np.uint8(int(verdict))
        count = len(verdicts) - int(np.count_nonzero(is_other))
        if count:
            counts[verdict] = count
            left -= count
            others = is_other if others is None else others & is_other
    if left:
        rest = verdicts if others is None else verdicts[others.nonzero()[0]]
        counts |= {Verdict(value): count for value, count in enumerate(np.bincount(rest).tolist()) if count}
    return counts
