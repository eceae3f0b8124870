"""
Read the log of variable-length records (3.5 to 5.9).

``struct printk_log`` of ``kernel/printk/printk.c`` before 5.10: each record is a
header, text and dictionary, padded; the length in the header leads to the next.
A record with length 0 says: go on at the buffer's start.
"""

from __future__ import annotations

import struct

from postpanic.errors import CorruptError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.printk.records import LogRecord
from postpanic.kernel.printk.window import BufferWindow
from postpanic.kernel.vmcoreinfo import Vmcoreinfo
from postpanic.units import MIB

__all__ = ["read_linear_log"]

_LOG_LIMIT_BYTES = 256 * MIB


def read_linear_log(memory: KernelMemory) -> list[LogRecord]:
    """
    Read all records from ``log_first_idx`` to ``log_next_idx``; :func:`.read_log` says more.

    A record whose lengths are impossible ends the list: where the next one
    starts is then unknown.
    """
    info = memory.vmcoreinfo
    size = memory.read_u32(info.symbol("log_buf_len"))
    if not 0 < size <= _LOG_LIMIT_BYTES:
        raise CorruptError(f"log_buf_len is {size}, must be 1 to {_LOG_LIMIT_BYTES}")
    buffer = BufferWindow(memory, memory.read_u64(info.symbol("log_buf")), size)
    first = memory.read_u32(info.symbol("log_first_idx"))
    next_ = memory.read_u32(info.symbol("log_next_idx"))
    if first >= size or next_ > size:
        raise CorruptError(f"the log goes from {first:#x} to {next_:#x}, beyond its {size} bytes")
    layout = _Layout(info)
    records: list[LogRecord] = []
    position = first
    seen = 0
    while seen < size:
        record, length = layout.decode(buffer, position, len(records))
        if record is None:
            # A zero length, or no room for a header: the rest of the log is at the buffer's start.
            if position < next_ or position == 0:
                break
            seen += size - position
            position = 0
        else:
            records.append(record)
            if not length:
                break
            position += length
            seen += length
        if position == next_:
            break
    return records


class _Layout:
    """Where the members of ``struct printk_log`` are, in bytes."""

    def __init__(self, info: Vmcoreinfo) -> None:
        self.size = info.size("printk_log")
        self.ts_nsec = info.offset("printk_log.ts_nsec")
        self.len = info.offset("printk_log.len")
        self.text_len = info.offset("printk_log.text_len")
        self.dict_len = info.offset("printk_log.dict_len")
        self.caller_id = info.get_offset("printk_log.caller_id")
        ends = (self.ts_nsec + 8, self.len + 2, self.text_len + 2, self.dict_len + 4, (self.caller_id or 0) + 4)
        starts = (self.ts_nsec, self.len, self.text_len, self.dict_len, self.caller_id or 0)
        if min(starts) < 0 or max(ends) > self.size:
            raise CorruptError(f"VMCOREINFO has a printk_log member outside its {self.size} bytes")

    def decode(self, buffer: BufferWindow, position: int, seq: int) -> tuple[LogRecord | None, int]:
        """Decode the record at a position: it, and its length, 0 where the next one cannot be found."""
        if position + self.size > buffer.size_bytes:
            return None, 0
        header = buffer.read(position, position + self.size)
        if header is None:
            return LogRecord(seq, 0, 0, 0, 0, 0, b"", damage="its header is not in the dump"), 0
        length, text_len, dict_len = (
            struct.unpack_from("<H", header, at)[0] for at in (self.len, self.text_len, self.dict_len)
        )
        if length == 0:
            return None, 0
        # u16 dict_len, u8 facility, u8 flags:5 and level:3; VMCOREINFO names the first alone.
        facility, flags_level = header[self.dict_len + 2], header[self.dict_len + 3]
        body = position + self.size
        damage = ""
        content: bytes | None = b""
        is_possible = self.size + text_len + dict_len <= length <= buffer.size_bytes - position
        if not is_possible:
            damage = f"its length of {length} bytes is impossible"
        else:
            content = buffer.read(body, body + text_len + dict_len)
            damage = "its text is not in the dump" if content is None else ""
        text = (content or b"")[:text_len]
        subsystem, device = _dictionary((content or b"")[text_len:])
        record = LogRecord(
            seq=seq,
            timestamp_ns=struct.unpack_from("<Q", header, self.ts_nsec)[0],
            level=flags_level >> 5,
            facility=facility,
            flags=flags_level & 0x1F,
            caller_id=struct.unpack_from("<I", header, self.caller_id)[0] if self.caller_id is not None else 0,
            text=text,
            subsystem=subsystem,
            device=device,
            damage=damage,
        )
        return record, length if is_possible else 0


def _dictionary(data: bytes) -> tuple[str, str]:
    """Give SUBSYSTEM and DEVICE of a dictionary, NUL-separated ``KEY=value`` words."""
    words = dict(word.partition(b"=")[::2] for word in data.split(b"\0") if b"=" in word)
    subsystem, device = words.get(b"SUBSYSTEM", b""), words.get(b"DEVICE", b"")
    return subsystem.decode("utf-8", "backslashreplace"), device.decode("utf-8", "backslashreplace")
