"""Records of the kernel log as dmesg(1) writes them, and the words of its options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from postpanic.errors import UsageError
from postpanic.kernel.log_text import FACILITIES, LEVELS, LogStyle, escape_text, format_record, name_of

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


def parse_levels(text: str) -> frozenset[int]:
    """
    Read a list of levels: ``err,warn``; ``err+`` is err and worse, ``+err`` err and milder.

    Raises
    ------
    UsageError
        If one of them is no level.

    >>> sorted(parse_levels("crit+,debug"))
    [0, 1, 2, 7]
    """
    chosen: set[int] = set()
    for word in text.split(","):
        level = _number(LEVELS, word.strip().strip("+"), "level")
        if word.strip().endswith("+"):
            chosen |= set(range(level + 1))
        elif word.strip().startswith("+"):
            chosen |= set(range(level, len(LEVELS)))
        else:
            chosen.add(level)
    return frozenset(chosen)


def parse_facilities(text: str) -> frozenset[int]:
    """
    Read a list of facilities: ``kern,daemon``.

    Raises
    ------
    UsageError
        If one of them is no facility.
    """
    return frozenset(_number(FACILITIES, word.strip(), "facility") for word in text.split(","))


def _number(names: tuple[str, ...], word: str, what: str) -> int:
    if word in names:
        return names.index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    raise UsageError(f"{word!r} is no {what}", hint=", ".join(names))
