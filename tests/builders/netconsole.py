"""
Build the packets that netconsole sends.

Written from ``drivers/net/netconsole.c`` (``send_msg_no_fragmentation``,
``send_fragmented_body``), ``kernel/printk/printk.c`` (``info_print_ext_header``,
``msg_print_ext_body``) and Documentation/networking/netconsole.rst.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CHUNK = 1000
"""MAX_PRINT_CHUNK."""


@dataclass(frozen=True)
class Record:
    """A record of printk, as an extended console gets it."""

    text: bytes
    seq: int = 1
    time_us: int = 1_000_000
    level: int = 6
    facility: int = 0
    flag: str = "-"
    caller: str = ""
    release: str = ""
    properties: dict[str, str] = field(default_factory=dict)
    userdata: dict[str, str] = field(default_factory=dict)
    """What the administrator and the kernel (``cpu``, ``msgid``) add."""

    @property
    def header(self) -> bytes:
        release = f"{self.release}," if self.release else ""
        caller = f",caller={self.caller}" if self.caller else ""
        return f"{release}{self.facility << 3 | self.level},{self.seq},{self.time_us},{self.flag}{caller}".encode()

    @property
    def body(self) -> bytes:
        lines = [f" {key}={value}\n" for pairs in (self.properties, self.userdata) for key, value in pairs.items()]
        return escape(self.text) + b"\n" + "".join(lines).encode()


def escape(text: bytes) -> bytes:
    """Escape as msg_add_ext_text() does."""
    return b"".join(bytes((code,)) if 32 <= code < 127 and code != 0x5C else b"\\x%02x" % code for code in text)


def packets(record: Record, *, chunk: int = CHUNK) -> list[bytes]:
    """Make the packets of a record, fragments if it is longer than a packet."""
    whole = record.header + b";" + record.body
    if len(whole) <= chunk:
        return [whole]
    found: list[bytes] = []
    at, total = 0, len(record.body)
    while at < total:
        head = record.header + b",ncfrag=%d/%d;" % (at, total)
        part = record.body[at : at + max(chunk - len(head), 1)]
        found.append(head + part)
        at += len(part)
    return found


def fragment(record: Record, offset: int, size: int, total: int | None = None) -> bytes:
    """Make any fragment of a record, true or false."""
    total = len(record.body) if total is None else total
    return record.header + b",ncfrag=%d/%d;" % (offset, total) + record.body[offset : offset + size]


def basic(text: bytes, *, chunk: int = CHUNK) -> list[bytes]:
    """Make the packets of a text in the basic format."""
    return [text[at : at + chunk] for at in range(0, len(text), chunk)]
