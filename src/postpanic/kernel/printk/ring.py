"""
Read the lock-less printk ring buffer (since 5.10).

``kernel/printk/printk_ringbuffer.[ch]``: a ring of descriptors, a parallel ring
of ``struct printk_info``, and a ring of text. A descriptor has a state variable,
whose two highest bits are the state and the rest the record's identifier, and
the logical begin and end of its text. Logical positions only ever grow; modulo
the size of the text ring they are places in it. A block of text starts with the
identifier of its descriptor, and never wraps: one that does not fit before the
end of the ring starts over at its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.printk.records import LogRecord, RecordState
from postpanic.kernel.printk.window import BufferWindow
from postpanic.kernel.vmcoreinfo import Vmcoreinfo
from postpanic.units import VirtAddr

__all__ = ["find_ring_tables", "read_ring"]

_COUNT_BITS_LIMIT = 22
_SIZE_BITS_LIMIT = 28
"""log_buf_len= may be larger, but 256 MiB of text are more than any log on record."""
_STRUCT_LIMIT_BYTES = 4096

_STATE_SHIFT = 62
_ID_MASK = (1 << _STATE_SHIFT) - 1
_RESERVED, _COMMITTED, _FINALIZED, _REUSABLE = range(4)
_STATES = {_RESERVED: RecordState.RESERVED, _COMMITTED: RecordState.COMMITTED, _FINALIZED: RecordState.FINALIZED}

_NO_TEXT = 0x3
"""``NO_LPOS`` (``EMPTY_LINE_LPOS``): an empty line. The other odd value, ``FAILED_LPOS`` 1: no space for the text."""
_ID_BYTES = 8
_POSITIONS = 1 << 64
_MISSING = "not in the dump"

_SOUND, _GAP, _LOST = range(3)

_BATCH_RECORDS = 8192


@dataclass(frozen=True, slots=True)
class _Ring:
    """The parts of ``struct printk_ringbuffer``."""

    count: int
    descs: VirtAddr
    infos: VirtAddr
    head_id: int
    tail_id: int
    text_size_bytes: int
    text: VirtAddr


@dataclass(frozen=True, slots=True)
class _Table:
    """Some rows of an array of structures, and which bytes of them are in the dump."""

    rows: NDArray[np.uint8]
    present: NDArray[np.bool_]

    def column(self, offset: int, dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
        """Give one member of all rows."""
        size = np.dtype(dtype).itemsize
        if offset < 0 or offset + size > self.rows.shape[1]:
            raise CorruptError(f"VMCOREINFO has a printk member at offset {offset} of {self.rows.shape[1]} bytes")
        view: NDArray[Any] = np.ascontiguousarray(self.rows[:, offset : offset + size]).view(dtype).reshape(-1)
        return view


def read_ring(memory: KernelMemory) -> list[LogRecord]:
    """
    Read all records of the ring buffer, oldest first; :func:`.read_log` says more.

    Raises
    ------
    FactAbsentError, CorruptError, TranslationError, PageAbsentError
        As ``read_log`` does.
    """
    info = memory.vmcoreinfo
    ring = _read_ring_header(memory)
    desc_size, info_size = _struct_size(info, "prb_desc"), _struct_size(info, "printk_info")
    blocks = _Blocks(BufferWindow(memory, ring.text, ring.text_size_bytes))
    records: list[LogRecord] = []
    lost = _LostRun(records)
    count = _record_count(ring)
    for start in range(0, count, _BATCH_RECORDS):
        ids = np.uint64(ring.tail_id + start) + np.arange(min(_BATCH_RECORDS, count - start), dtype=np.uint64)
        ids &= np.uint64(_ID_MASK)
        fields = _Fields(
            info,
            _read_rows(memory, ring.descs, desc_size, ids, ring.count),
            _read_rows(memory, ring.infos, info_size, ids, ring.count),
            ids,
        )
        # The first record ever has identifier -count modulo 2^62 (DESC0_ID() of printk_ringbuffer.h).
        seqs = (ids + np.uint64(ring.count)) & np.uint64(_ID_MASK)
        for first, stop in fields.segments:
            if fields.fates[first] == _LOST:
                lost.add(int(seqs[first]), fields.why_lost(first), stop - first)
            elif fields.fates[first] == _SOUND:
                lost.end()
                records.extend(record for row in range(first, stop) if (record := _make_record(fields, blocks, row)))
    lost.end()
    return records


def find_ring_tables(memory: KernelMemory) -> tuple[tuple[VirtAddr, int], ...]:
    """
    Find where the ring buffer's tables lie: address and size in bytes of descriptors, infos and text.

    Raises
    ------
    FactAbsentError, CorruptError, TranslationError, PageAbsentError
        As :func:`.read_log` does.
    """
    ring = _read_ring_header(memory)
    return (
        (ring.descs, ring.count * _struct_size(memory.vmcoreinfo, "prb_desc")),
        (ring.infos, ring.count * _struct_size(memory.vmcoreinfo, "printk_info")),
        (ring.text, ring.text_size_bytes),
    )


class _LostRun:
    """Records in a row of which nothing is left, as one: a missing table must not become millions of them."""

    def __init__(self, records: list[LogRecord]) -> None:
        self._records = records
        self._seq = self._count = 0
        self._why = ""

    def add(self, seq: int, why: str, count: int) -> None:
        """Begin a run, or make it longer."""
        if not self._count:
            self._seq, self._why = seq, why
        self._count += count

    def end(self) -> None:
        """Report the run, if there is one."""
        if self._count:
            what = f"{self._count} records are lost from here on" if self._count > 1 else "the record is lost"
            self._records.append(LogRecord(self._seq, 0, 0, 0, 0, 0, b"", damage=f"{what}: {self._why}"))
        self._count = 0


class _Fields:
    """The members of some records in a row, as columns."""

    def __init__(self, info: Vmcoreinfo, descs: _Table, infos: _Table, ids: NDArray[np.uint64]) -> None:
        lpos = info.offset("prb_desc.text_blk_lpos")
        counter = info.get_offset("atomic_long_t.counter") or 0
        state_vars = descs.column(info.offset("prb_desc.state_var") + counter, np.uint64)
        self._judge(state_vars, descs, infos, ids)
        self.ids = ids.tolist()
        self.states = (state_vars >> np.uint64(_STATE_SHIFT)).tolist()
        self.begin = descs.column(lpos + info.offset("prb_data_blk_lpos.begin"), np.uint64).tolist()
        self.next = descs.column(lpos + info.offset("prb_data_blk_lpos.next"), np.uint64).tolist()
        text_len = info.offset("printk_info.text_len")
        self.seq = infos.column(info.offset("printk_info.seq"), np.uint64).tolist()
        self.ts_nsec = infos.column(info.offset("printk_info.ts_nsec"), np.uint64).tolist()
        self.text_len = infos.column(text_len, np.uint16).tolist()
        # u16 text_len, u8 facility, u8 flags:5 and level:3; VMCOREINFO names the first alone.
        self.facility = infos.column(text_len + 2, np.uint8).tolist()
        self.flags_level = infos.column(text_len + 3, np.uint8).tolist()
        self.caller_id = infos.column(info.offset("printk_info.caller_id"), np.uint32).tolist()
        self._infos = infos
        dev_info = info.get_offset("printk_info.dev_info") or 0
        self._subsystem = _string_span(info, dev_info, "subsystem")
        self._device = _string_span(info, dev_info, "device")

    def _judge(self, state_vars: NDArray[np.uint64], descs: _Table, infos: _Table, ids: NDArray[np.uint64]) -> None:
        """Tell sound records from gaps, which their writers gave up or have not taken yet, and from lost ones."""
        self._desc_present = np.logical_and.reduce(descs.present, axis=1)
        self._owners = state_vars & np.uint64(_ID_MASK)
        has_info = np.logical_and.reduce(infos.present, axis=1)
        is_gap = self._desc_present & (state_vars >> np.uint64(_STATE_SHIFT) == _REUSABLE)
        is_sound = self._desc_present & ~is_gap & (self._owners == ids) & has_info
        self.fates = np.where(is_gap, _GAP, np.where(is_sound, _SOUND, _LOST))
        edges = (np.flatnonzero(np.diff(self.fates)) + 1).tolist()
        self.segments = list(pairwise([0, *edges, len(ids)]))

    def why_lost(self, row: int) -> str:
        """Say what a lost record lacks."""
        if not self._desc_present[row]:
            return f"its descriptor is {_MISSING}"
        if self._owners[row] != self.ids[row]:
            return f"its descriptor belongs to record {int(self._owners[row]):#x}, not {self.ids[row]:#x}"
        return f"its header is {_MISSING}"

    def dictionary(self, row: int) -> tuple[str, str]:
        """Give SUBSYSTEM and DEVICE of a record."""
        data = self._infos.rows[row]
        return _c_string(data, self._subsystem), _c_string(data, self._device)


class _Blocks:
    """The ring of text."""

    def __init__(self, text: BufferWindow) -> None:
        self._text = text

    def read(self, wanted: int, begin: int, next_: int, text_len: int) -> tuple[bytes, str]:
        """
        Give the text between two logical positions, and what is wrong with it.

        Follows ``get_data()``: a block whose end lies in the next turn of the
        ring starts at the ring's first byte, unless it ends exactly with the ring.
        """
        if begin & 1 and next_ & 1:
            return b"", "" if begin == next_ == _NO_TEXT else "the kernel had no space for its text"
        size = self._text.size_bytes
        start, end = begin & (size - 1), next_ & (size - 1)
        # Positions start just below 2^64 (BLK0_LPOS()) and overflow in the ring's first turn.
        turns = (next_ // size - begin // size) % (_POSITIONS // size)
        if turns == 1 and end == 0:
            end = size
        elif turns == 1:
            start = 0
        elif turns or start >= end:
            return b"", f"its text block {begin:#x} to {next_:#x} is impossible"
        if start % _ID_BYTES or end - start < _ID_BYTES:
            return b"", f"its text block {begin:#x} to {next_:#x} is impossible"
        kept = min(text_len, end - start - _ID_BYTES)
        block = self._text.read(start, start + _ID_BYTES + kept)
        if block is None:
            return b"", f"its text is {_MISSING}"
        owner = int.from_bytes(block[:_ID_BYTES], "little")
        if owner & _ID_MASK != wanted:
            return b"", f"its text block belongs to record {owner:#x}"
        return block[_ID_BYTES:], "" if kept == text_len else f"its text is {kept} of {text_len} bytes long"


def _make_record(fields: _Fields, blocks: _Blocks, row: int) -> LogRecord | None:
    """Make a sound record; None when its writer had not even begun with the text."""
    state = _STATES[fields.states[row]]
    text, damage = blocks.read(fields.ids[row], fields.begin[row], fields.next[row], fields.text_len[row])
    if state is RecordState.RESERVED and not text:
        return None
    subsystem, device = fields.dictionary(row)
    return LogRecord(
        seq=fields.seq[row],
        timestamp_ns=fields.ts_nsec[row],
        level=fields.flags_level[row] >> 5,
        facility=fields.facility[row],
        flags=fields.flags_level[row] & 0x1F,
        caller_id=fields.caller_id[row],
        text=text,
        subsystem=subsystem,
        device=device,
        state=state,
        damage=damage,
    )


def _read_ring_header(memory: KernelMemory) -> _Ring:
    info = memory.vmcoreinfo
    prb = memory.read_u64(info.symbol("prb"))
    desc_ring = prb + info.offset("printk_ringbuffer.desc_ring")
    text_ring = prb + info.offset("printk_ringbuffer.text_data_ring")
    counter = info.get_offset("atomic_long_t.counter") or 0
    count_bits = memory.read_u32(desc_ring + info.offset("prb_desc_ring.count_bits"))
    size_bits = memory.read_u32(text_ring + info.offset("prb_data_ring.size_bits"))
    if not 0 < count_bits <= _COUNT_BITS_LIMIT:
        raise CorruptError(f"the printk ring has 2^{count_bits} descriptors, must be 2^1 to 2^{_COUNT_BITS_LIMIT}")
    if not 0 < size_bits <= _SIZE_BITS_LIMIT:
        raise CorruptError(f"the printk ring has 2^{size_bits} bytes of text, must be 2^1 to 2^{_SIZE_BITS_LIMIT}")
    return _Ring(
        count=1 << count_bits,
        descs=VirtAddr(memory.read_u64(desc_ring + info.offset("prb_desc_ring.descs"))),
        infos=VirtAddr(memory.read_u64(desc_ring + info.offset("prb_desc_ring.infos"))),
        head_id=memory.read_u64(desc_ring + info.offset("prb_desc_ring.head_id") + counter) & _ID_MASK,
        tail_id=memory.read_u64(desc_ring + info.offset("prb_desc_ring.tail_id") + counter) & _ID_MASK,
        text_size_bytes=1 << size_bits,
        text=VirtAddr(memory.read_u64(text_ring + info.offset("prb_data_ring.data"))),
    )


def _record_count(ring: _Ring) -> int:
    """Give the number of identifiers from the oldest record to the newest."""
    used = ((ring.head_id - ring.tail_id) & _ID_MASK) + 1
    if used > ring.count:
        raise CorruptError(
            f"the printk ring goes from record {ring.tail_id:#x} to {ring.head_id:#x}, more than its {ring.count}"
        )
    return used


def _read_rows(memory: KernelMemory, vaddr: VirtAddr, row_bytes: int, ids: NDArray[np.uint64], count: int) -> _Table:
    """Read the rows of a ring of structures that belong to the identifiers, in their order."""
    slots = (ids & np.uint64(count - 1)).astype(np.int64)
    first, last = int(slots[0]), int(slots[-1])
    if first <= last:
        data, present = memory.read_available(vaddr + first * row_bytes, len(ids) * row_bytes)
    else:
        tail, tail_present = memory.read_available(vaddr + first * row_bytes, (count - first) * row_bytes)
        head, head_present = memory.read_available(vaddr, (last + 1) * row_bytes)
        data, present = np.concatenate((tail, head)), np.concatenate((tail_present, head_present))
    return _Table(data.reshape(-1, row_bytes), present.reshape(-1, row_bytes))


def _struct_size(info: Vmcoreinfo, name: str) -> int:
    size = info.size(name)
    if not 0 < size <= _STRUCT_LIMIT_BYTES:
        raise CorruptError(f"VMCOREINFO entry SIZE({name}) is {size}, must be 1 to {_STRUCT_LIMIT_BYTES}")
    return size


def _string_span(info: Vmcoreinfo, dev_info: int, member: str) -> tuple[int, int]:
    """Give start and end, in ``printk_info``, of a string of ``dev_printk_info``."""
    offset = info.get_offset(f"dev_printk_info.{member}")
    length = info.get_length(f"printk_info_{member}")
    if offset is None or length is None or offset < 0 or length < 0 or dev_info < 0:
        return 0, 0
    return dev_info + offset, dev_info + offset + length


def _c_string(data: NDArray[np.uint8], span: tuple[int, int]) -> str:
    return data[span[0] : span[1]].tobytes().split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
