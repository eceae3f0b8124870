"""
Kernel messages out of any text: one line at a time, whatever wrote it.

A log reaches us through a serial line (carriage returns, colours, a login
prompt in front), syslog, journald, ``dmesg`` in any of its formats,
``vmcore-dmesg``, ``/dev/kmsg``, netconsole or a cloud's console. Each puts
something else before the message. :func:`split_line` takes that off and keeps
what it says: level, time, and the printk caller, which tells the CPUs apart.

Every pattern is anchored or bounded, so that the work is linear in the length
of the text, whatever is in it; a line longer than :data:`LINE_LIMIT` bytes
goes on as the next line.

References
----------
kernel/printk/printk.c ``print_prefix``, ``print_caller``, ``msg_print_ext_header``;
Documentation/ABI/testing/dev-kmsg; util-linux 2.40 sys-utils/dmesg.c.
"""

from __future__ import annotations

import re

import msgspec

__all__ = ["LINE_LIMIT", "Line", "clean_text", "find_message", "split_line"]

LINE_LIMIT = 16384
"""Bytes of one line; the kernel's own limit for a message is 1 to 2 KiB."""


class Line(msgspec.Struct, frozen=True):
    """
    One message line.

    Parameters
    ----------
    text : str
        The message without what was put before it; leading blanks are kept, as traces have them.
    time_s : float, optional
        Seconds since the kernel started, where the log says so.
    caller : str
        printk's caller, ``T123`` (a task) or ``C1`` (a CPU in interrupt); empty: not known.
    level : int, optional
        0 (emergency) to 7 (debug).
    offset : int
        Place of the line in the text, bytes.
    is_foreign : bool
        Text of somebody else that stood before a message on the same line.
    """

    text: str
    time_s: float | None = None
    caller: str = ""
    level: int | None = None
    offset: int = 0
    is_foreign: bool = False


_CALLER = r"(?:\[ {0,10}([TC]\d{1,10})(?:@C?\d{1,5})?\])?"
_PRINTK = re.compile(r"(?:<(\d{1,3})>)?\[ {0,11}(\d{1,10}\.\d{3,9})\]" + _CALLER + r" ?")
_EMBEDDED = re.compile(r"(?:<\d{1,3}>)?\[ {0,11}\d{1,10}\.\d{6}\]" + _CALLER + r"(?=[ \[]|$)")
_KMSG = re.compile(r"(?:\d[\w.+-]{2,80},)?(\d{1,4}),\d{1,20},(\d{1,20}),[-c+f][^;]{0,300};")
_FACILITY = r"(?:kern|user|daemon|auth|syslog|local\d) {0,8}:(?:emerg|alert|crit|err|warn|notice|info|debug) {0,8}: ?"
_STAMPS = re.compile(
    r"(?:" + _FACILITY + r")?"
    r"(?:"
    r"\[[A-Z][a-z]{2} [A-Z][a-z]{2} {1,2}\d{1,2} \d\d:\d\d:\d\d \d{4}\] ?"  # dmesg -T, crash log -T
    r"|\[[A-Z][a-z]{2}[ \d]\d \d\d:\d\d(?::\d\d)?\] ?"  # dmesg --human
    r"|\[ {0,10}[+<] {0,10}\d{1,9}\.\d{1,9}>?\] ?"  # dmesg --human, --show-delta
    r"|\[ {0,11}\d{1,10}\.\d{3,9} {1,10}< {0,10}\d{1,9}\.\d{1,9}>\] ?"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)? "  # ISO 8601
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,9})? "  # RFC 3164
    r"|\d\d:\d\d:\d\d(?:\.\d{1,9})? "
    r"|<\d{1,3}>(?:1 )?"
    r"){1,6}"
    r"(?:" + _FACILITY + r")?"
)
_TAG = re.compile(r"(?:[\w.:-]{1,255} )?(?:kernel|vmunix|klogd?)(?:\[\d{1,10}\])?: ?")
_VENDOR_CALLER = re.compile(r" ?(?:<\d>)?(?:-\(\d\))?\[ {0,5}\d{0,2}:? {0,20}[\w/:.-]{1,40}: {0,6}\d{1,7}\] ?")
_ESCAPES = re.compile(
    "\x1b(?:\\[[0-?]{0,32}[ -/]{0,8}[@-~]|\\][^\x07\x1b]{0,256}(?:\x07|\x1b\\\\)?|[ -/]{0,4}[0-Z\\\\^-~])"
)
_CONTROL = {code: None for code in range(32) if code not in {9, 10}} | {0x7F: None}


def clean_text(raw: bytes) -> str:
    r"""
    Decode bytes, and take out terminal control: colours, carriage returns, NULs.

    A carriage return inside a line starts a new one, as it does on a terminal.

    >>> clean_text(b"\x1b[33mBUG\x1b[0m: bad\x00\xff\r\n")
    'BUG: bad\\xff\n'
    """
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    if "\r" in text:
        text = text.rstrip("\r").replace("\r\n", "\n").replace("\r", "\n")
    if "\x1b" in text:
        text = _ESCAPES.sub("", text)
    return text.translate(_CONTROL)


def find_message(text: str) -> int:
    """
    Find where in a line the kernel's first message starts, by its time.

    Returns
    -------
    int
        Characters before it; -1: there is none.

    >>> find_message("saved, lev[    2.250000] usb 1-1: reset")
    10
    """
    match = _EMBEDDED.search(text)
    return match.start() if match is not None else -1


def split_line(text: str, offset: int = 0) -> list[Line]:
    """
    Take what was put before the message off one line of text.

    More than one line comes back when the text holds more than one message,
    because one printk broke into another or into somebody else's output.

    >>> split_line("<4>[   12.500000][   T77] BUG: bad")
    [Line(text='BUG: bad', time_s=12.5, caller='T77', level=4, offset=0, is_foreign=False)]
    >>> split_line("Jan 12 10:00:00 host kernel: Call Trace:")[0].text
    'Call Trace:'
    """
    match = _PRINTK.match(text)
    if match is None:
        return _split_unusual(text, offset)
    level, time_s, caller = match.groups()
    message = text[match.end() :]
    if message[:2].lstrip()[:1] in {"<", "-", "["} and (vendor := _VENDOR_CALLER.match(message)):
        message = message[vendor.end() :]
    line = Line(message, float(time_s), caller or "", None if level is None else int(level) & 7, offset)
    return [line] if "[" not in message else _split_embedded(line)


def _split_embedded(line: Line) -> list[Line]:
    lines: list[Line] = []
    while (match := _EMBEDDED.search(line.text)) is not None and len(lines) < 64:
        before, after = line.text[: match.start()], line.text[match.start() :]
        lines.append(msgspec.structs.replace(line, text=before))
        inner = _PRINTK.match(after)
        if inner is None:  # pragma: no cover - the two patterns agree
            break
        level, time_s, caller = inner.groups()
        line = Line(
            after[inner.end() :], float(time_s), caller or "", None if level is None else int(level) & 7, line.offset
        )
    return [*lines, line]


def _split_unusual(text: str, offset: int) -> list[Line]:
    place = _EMBEDDED.search(text)
    if place is not None:
        prefix = text[: place.start()]
        rest = split_line(text[place.start() :], offset)
        if not prefix.strip() or _is_log_prefix(prefix):
            return rest
        return [Line(prefix, offset=offset, is_foreign=True), *rest]
    match = _KMSG.match(text)
    if match is not None:
        level, time_us = match.groups()
        return [Line(text[match.end() :], int(time_us) / 1e6, "", int(level) & 7, offset)]
    start = 0
    match = _STAMPS.match(text)
    if match is not None:
        start = match.end()
        tag = _TAG.match(text, start)
        if tag is not None:
            start = tag.end()
    return [Line(text[start:], offset=offset)]


def _is_log_prefix(text: str) -> bool:
    match = _STAMPS.match(text)
    start = match.end() if match is not None else 0
    tag = _TAG.match(text, start)
    if tag is not None:
        return tag.end() == len(text)
    return match is not None and start == len(text)
