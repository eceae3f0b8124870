"""Records of the kernel log as dmesg(1) writes them, and the words of its options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from postpanic.kernel.log_text import (
    FACILITIES,
    LEVELS,
    LogStyle,
    escape_text,
    format_record,
    name_of,
    parse_facilities,
    parse_levels,
)

if TYPE_CHECKING:
    from postpanic.kernel.printk import LogRecord

__all__ = [
    "FACILITIES",
    "LEVELS",
    "LogStyle",
    "escape_text",
    "format_json",
    "format_record",
    "parse_facilities",
    "parse_levels",
]

_NS_PER_S = 1_000_000_000


def format_json(record: LogRecord) -> str:
    """
    Write a record as one line of JSON.

    ``timestamp`` is in seconds since boot; ``dict`` has ``SUBSYSTEM`` and
    ``DEVICE`` as in ``/dev/kmsg``; ``damage`` is there for damaged records only.
    """
    from postpanic.kernel.printk import caller_name

    pairs = {"SUBSYSTEM": record.subsystem, "DEVICE": record.device}
    fields: dict[str, object] = {
        "seq": record.seq,
        "timestamp": record.timestamp_ns / _NS_PER_S,
        "level": name_of(LEVELS, record.level),
        "facility": name_of(FACILITIES, record.facility),
        "caller": caller_name(record.caller_id),
        "text": escape_text(record.text),
        "dict": {key: value for key, value in pairs.items() if value},
    }
    if not record.is_finalized:
        fields["state"] = record.state.value
    if record.damage:
        fields["damage"] = record.damage
    return json.dumps(fields, ensure_ascii=False)
