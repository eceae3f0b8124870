"""
Write records of the kernel log as the kernel does.

Every line of a record gets the whole prefix, as ``record_print_text()`` of
``kernel/printk/printk.c`` gives it.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.kernel.printk import LogRecord

__all__ = [
    "FACILITIES",
    "LEVELS",
    "LogStyle",
    "escape_text",
    "format_record",
    "name_of",
    "parse_facilities",
    "parse_levels",
]

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
"""Names of dmesg(1), by number (``include/linux/kern_levels.h``)."""

FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
    "res0", "res1", "res2", "res3", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip
"""Names by number, as syslog(3) has them."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class LogStyle:
    """Which parts of the prefix are written."""

    time: bool = True
    decode: bool = False
    raw: bool = False
    caller: bool = False
    boot_time_s: float | None = None
    """Seconds since 1970 at time 0 of the log: then times are dates."""


def escape_text(text: bytes) -> str:
    r"""
    Decode UTF-8; write control characters and what is not UTF-8 as ``\xNN``.

    Tabs and newlines stay.

    >>> escape_text(b"caf\xc3\xa9 \x1b[1m\xff")
    'café \\x1b[1m\\xff'
    """
    decoded = text.decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: "".join(f"\\x{byte:02x}" for byte in match.group().encode()), decoded)


def format_record(record: LogRecord, style: LogStyle) -> str:
    """Write a record as lines, without the last newline; a record without its text says why it has none."""
    prefix = _prefix(record, style)
    if record.damage and not record.text:
        return f"{prefix}(unavailable: {record.damage})"
    return "\n".join(prefix + line for line in escape_text(record.text).split("\n"))


def name_of(names: tuple[str, ...], number: int) -> str:
    """Give the name of a level or facility; the number where it has none."""
    return names[number] if 0 <= number < len(names) else str(number)


def _prefix(record: LogRecord, style: LogStyle) -> str:
    parts = []
    if style.raw:
        parts.append(f"<{record.facility << 3 | record.level}>")
    elif style.decode:
        parts.append(f"{name_of(FACILITIES, record.facility):<6}:{name_of(LEVELS, record.level):<6}: ")
    bracketed = ""
    if style.time:
        bracketed += f"[{_time(record.timestamp_ns, style.boot_time_s)}]"
    if style.caller:
        # The command line imports this module at every start; printk brings numpy with it.
        from postpanic.kernel.printk import caller_name

        bracketed += f"[{caller_name(record.caller_id):>6}]"
    return "".join(parts) + (f"{bracketed} " if bracketed else "")


def _time(timestamp_ns: int, boot_time_s: float | None) -> str:
    if boot_time_s is not None:
        try:
            return (
                dt.datetime.fromtimestamp(boot_time_s + timestamp_ns / _NS_PER_S)
                .astimezone()
                .strftime("%a %b %e %T %Y")
            )
        except (ValueError, OverflowError, OSError):
            pass
    return f"{timestamp_ns // _NS_PER_S:5}.{timestamp_ns % _NS_PER_S // 1000:06}"


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
