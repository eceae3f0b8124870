"""
Build the kernel log: the lock-less ring buffer, and the older log.

Written from ``kernel/printk/printk_ringbuffer.[ch]`` and ``kernel/printk/printk.c``
(5.9 for the older one).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)
ID_MASK = (1 << 62) - 1
WORD = (1 << 64) - 1
FAILED_LPOS, NO_LPOS = 1, 3

DESC_BYTES, INFO_BYTES, RING_BYTES = 24, 88, 88


@dataclass
class Message:
    text: bytes
    level: int = 6
    timestamp_ns: int = 0
    caller_id: int = 0
    facility: int = 0
    flags: int = 2
    subsystem: str = ""
    device: str = ""
    state: int = FINALIZED
    failed: bool = False


@dataclass
class RingImage:
    """Where everything lies, and the contents: virtual address to bytes."""

    parts: dict[int, bytes]
    lines: list[tuple[str, str, int]]
    """VMCOREINFO entries: kind, name, value."""
    places: dict[str, int] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)
    """Sequence numbers that are still in the ring."""


class RingBuilder:
    """
    A ring that messages are logged to, one by one, as the kernel does.

    *exact_fit_wraps*: a block that would end exactly with the ring starts over at
    its beginning, as in older kernels. Positions are kept beyond 64 bits and cut
    when they are written.
    """

    def __init__(self, vaddr: int, *, count_bits: int = 4, size_bits: int = 9, exact_fit_wraps: bool = False) -> None:
        self.vaddr = vaddr
        self.exact_fit_wraps = exact_fit_wraps
        self.count_bits, self.size_bits = count_bits, size_bits
        self.count, self.size = 1 << count_bits, 1 << size_bits
        self.descs = [(((REUSABLE << 62) | ((-self.count - 1) & ID_MASK)), FAILED_LPOS, FAILED_LPOS)] * self.count
        self.infos = [bytes(INFO_BYTES)] * self.count
        self.text = bytearray(self.size)
        # BLK0_LPOS(): one turn before positions overflow.
        self.head_lpos = self.tail_lpos = WORD + 1 - self.size
        self.head_id = self.tail_id = (-self.count - 1) & ID_MASK
        self.seq = -1

    def log(self, message: Message) -> int:
        """Log one message; gives its sequence number."""
        self.seq += 1
        identifier = (self.head_id + 1) & ID_MASK
        if self.seq == 0:
            self.tail_id = identifier
        elif (identifier - self.tail_id) & ID_MASK == self.count:
            self._drop_oldest()
        self.head_id = identifier
        slot = identifier & (self.count - 1)
        begin, next_ = self._allocate(identifier, message)
        self.descs[slot] = ((message.state << 62) | identifier, begin, next_)
        self.infos[slot] = struct.pack(
            "<QQHBBI16s48s",
            self.seq,
            message.timestamp_ns,
            len(message.text),
            message.facility,
            message.flags | message.level << 5,
            message.caller_id,
            message.subsystem.encode(),
            message.device.encode(),
        )
        return self.seq

    def build(self) -> RingImage:
        ring, descs = self.vaddr, self.vaddr + 0x100
        infos = descs + DESC_BYTES * self.count
        text = infos + INFO_BYTES * self.count
        pointer = text + self.size
        header = struct.pack("<IxxxxQQQQq", self.count_bits, descs, infos, self.head_id, self.tail_id, 0)
        header += struct.pack("<IxxxxQQQq", self.size_bits, text, self.head_lpos & WORD, self.tail_lpos & WORD, 0)
        parts = {
            ring: header,
            descs: b"".join(
                struct.pack("<QQQ", state_var, begin & WORD, next_ & WORD) for state_var, begin, next_ in self.descs
            ),
            infos: b"".join(info.ljust(INFO_BYTES, b"\0") for info in self.infos),
            text: bytes(self.text),
            pointer: struct.pack("<Q", ring),
        }
        oldest = self.seq - ((self.head_id - self.tail_id) & ID_MASK) if self.seq >= 0 else 0
        places = {"prb": pointer, "ring": ring, "descs": descs, "infos": infos, "text": text}
        return RingImage(parts, _RING_LINES(pointer), places, list(range(oldest, self.seq + 1)))

    def _drop_oldest(self) -> None:
        slot = self.tail_id & (self.count - 1)
        _, begin, next_ = self.descs[slot]
        if not begin & 1:
            self.tail_lpos = next_
        self.descs[slot] = ((REUSABLE << 62) | self.tail_id, begin, next_)
        self.tail_id = (self.tail_id + 1) & ID_MASK

    def _allocate(self, identifier: int, message: Message) -> tuple[int, int]:
        if message.failed:
            return FAILED_LPOS, FAILED_LPOS
        if not message.text:
            return NO_LPOS, NO_LPOS
        need = 8 + (len(message.text) + 7) // 8 * 8
        begin = self.head_lpos
        next_ = begin + need
        wraps = begin // self.size != (next_ - (0 if self.exact_fit_wraps else 1)) // self.size
        if wraps:
            next_ = (begin // self.size + 1) * self.size + need
        # Descriptors whose text is about to be overwritten are given up first.
        while next_ - self.tail_lpos > self.size and self.tail_id != self.head_id:
            self._drop_oldest()
        index = 0 if wraps else begin & (self.size - 1)
        block = struct.pack("<Q", identifier) + message.text
        self.text[index : index + len(block)] = block
        self.head_lpos = next_
        return begin, next_


def _RING_LINES(prb: int) -> list[tuple[str, str, int]]:  # noqa: N802 - reads as the constant that it nearly is
    return [
        ("SYMBOL", "prb", prb),
        ("SIZE", "printk_ringbuffer", RING_BYTES),
        ("OFFSET", "printk_ringbuffer.desc_ring", 0),
        ("OFFSET", "printk_ringbuffer.text_data_ring", 48),
        ("OFFSET", "printk_ringbuffer.fail", 80),
        ("SIZE", "prb_desc_ring", 48),
        ("OFFSET", "prb_desc_ring.count_bits", 0),
        ("OFFSET", "prb_desc_ring.descs", 8),
        ("OFFSET", "prb_desc_ring.infos", 16),
        ("OFFSET", "prb_desc_ring.head_id", 24),
        ("OFFSET", "prb_desc_ring.tail_id", 32),
        ("SIZE", "prb_desc", DESC_BYTES),
        ("OFFSET", "prb_desc.state_var", 0),
        ("OFFSET", "prb_desc.text_blk_lpos", 8),
        ("OFFSET", "prb_data_blk_lpos.begin", 0),
        ("OFFSET", "prb_data_blk_lpos.next", 8),
        ("SIZE", "printk_info", INFO_BYTES),
        ("OFFSET", "printk_info.seq", 0),
        ("OFFSET", "printk_info.ts_nsec", 8),
        ("OFFSET", "printk_info.text_len", 16),
        ("OFFSET", "printk_info.caller_id", 20),
        ("OFFSET", "printk_info.dev_info", 24),
        ("OFFSET", "dev_printk_info.subsystem", 0),
        ("LENGTH", "printk_info_subsystem", 16),
        ("OFFSET", "dev_printk_info.device", 16),
        ("LENGTH", "printk_info_device", 48),
        ("OFFSET", "prb_data_ring.size_bits", 0),
        ("OFFSET", "prb_data_ring.data", 8),
        ("OFFSET", "atomic_long_t.counter", 0),
    ]


LOG_HEADER_BYTES = 16


def build_linear_log(
    messages: list[Message], vaddr: int, *, size: int = 1024, has_caller: bool = False
) -> tuple[dict[int, bytes], list[tuple[str, str, int]]]:
    """
    Build the log of variable-length records; it wraps when the messages need it.

    Gives the contents by virtual address, and the VMCOREINFO entries.
    """
    header_bytes = LOG_HEADER_BYTES + (4 if has_caller else 0)
    data = bytearray(size)
    placed: list[tuple[int, int]] = []
    position = 0
    for message in messages:
        words = [("SUBSYSTEM", message.subsystem), ("DEVICE", message.device)]
        dictionary = b"\0".join(f"{key}={value}".encode() for key, value in words if value)
        need = header_bytes + len(message.text) + len(dictionary)
        need += -need % 4
        if position + need + header_bytes > size:
            data[position : position + header_bytes] = bytes(header_bytes)
            position = 0
        header = struct.pack(
            "<QHHHBB",
            message.timestamp_ns,
            need,
            len(message.text),
            len(dictionary),
            message.facility,
            message.flags | message.level << 5,
        )
        header += struct.pack("<I", message.caller_id) if has_caller else b""
        placed = [(at, length) for at, length in placed if at + length <= position or at >= position + need]
        data[position : position + need] = (header + message.text + dictionary).ljust(need, b"\0")
        placed.append((position, need))
        position += need
    variables = vaddr + size
    parts = {vaddr: bytes(data), variables: struct.pack("<QIII", vaddr, size, placed[0][0], position)}
    lines = [
        ("SYMBOL", "log_buf", variables),
        ("SYMBOL", "log_buf_len", variables + 8),
        ("SYMBOL", "log_first_idx", variables + 12),
        ("SYMBOL", "log_next_idx", variables + 16),
        ("SIZE", "printk_log", header_bytes),
        ("OFFSET", "printk_log.ts_nsec", 0),
        ("OFFSET", "printk_log.len", 8),
        ("OFFSET", "printk_log.text_len", 10),
        ("OFFSET", "printk_log.dict_len", 12),
    ]
    return parts, [*lines, ("OFFSET", "printk_log.caller_id", 16)] if has_caller else lines
