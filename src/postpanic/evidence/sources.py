"""
Plain text out of logs that wrap it: journald's export and JSON, dmesg's JSON.

Everything else is plain text already and comes back untouched; what stands
before each message there is taken off line by line (:mod:`postpanic.evidence.lines`).

References
----------
systemd: docs "Journal Export Formats" and journalctl(1) ``-o json``; util-linux: dmesg(1) ``--json``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from mmap import mmap
from typing import Any, TypeAlias

import msgspec

__all__ = ["Form", "Text", "detect_form", "plain_text"]

Text: TypeAlias = "bytes | mmap"

_SNIFFED_BYTES = 16384
_FIELD_LIMIT = 1 << 20
_DMESG = re.compile(rb'\s{0,64}\{\s{0,64}"dmesg"\s{0,16}:\s{0,16}\[')
_EXPORT_FIELD = re.compile(rb"(?:__CURSOR|__REALTIME_TIMESTAMP|_BOOT_ID|PRIORITY|MESSAGE|_TRANSPORT)=")
_JOURNAL = re.compile(
    rb'\s{0,64}(?:\[\s{0,64})?\{.{0,4096}?"(?:MESSAGE|__CURSOR|_BOOT_ID|__REALTIME_TIMESTAMP)"', re.DOTALL
)


class Form(StrEnum):
    """How a log wraps its messages."""

    PLAIN = "plain"
    JOURNAL_JSON = "journal-json"
    JOURNAL_EXPORT = "journal-export"
    DMESG_JSON = "dmesg-json"


def detect_form(text: Text) -> Form:
    """
    Tell how a log wraps its messages, by its beginning.

    >>> detect_form(b'{"dmesg": [{"pri": 4, "msg": "x"}]}').value
    'dmesg-json'
    >>> detect_form(b"[    0.000000] Linux version 6.1").value
    'plain'
    """
    head = bytes(text[:_SNIFFED_BYTES])
    if _DMESG.match(head):
        return Form.DMESG_JSON
    if _JOURNAL.match(head):
        return Form.JOURNAL_JSON
    if _EXPORT_FIELD.match(head):
        return Form.JOURNAL_EXPORT
    return Form.PLAIN


def plain_text(text: Text) -> Text:
    r"""
    Return the messages of a log as plain text, one in a line; plain text comes back as it is.

    A record that cannot be read is left out: a log that was cut short still gives what it has.

    >>> plain_text(b'{"MESSAGE":"BUG: bad","_TRANSPORT":"kernel","_SOURCE_MONOTONIC_TIMESTAMP":"1500000"}\n')
    b'[    1.500000] BUG: bad\n'
    """
    unwrap = _UNWRAPPERS.get(detect_form(text))
    return text if unwrap is None else b"".join(unwrap(text))


def _lines(text: Text) -> Iterator[bytes]:
    position, size = 0, len(text)
    while position < size:
        end = text.find(b"\n", position)
        end = size if end < 0 else end
        yield text[position:end]
        position = end + 1


def _message(value: object) -> bytes | None:
    """Return a field of the journal as bytes: a string, or a list of numbers where it is not text."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, list):
        try:
            return bytes(value)
        except (ValueError, TypeError):
            return None
    return None


def _stamped(message: bytes, time_us: object, level: object) -> bytes:
    prefix = b""
    if isinstance(level, (str, bytes)) and level.isdigit() and len(level) < 4:
        prefix = b"<%d>" % int(level)
    if isinstance(time_us, (str, bytes)) and time_us.isdigit() and len(time_us) < 20:
        prefix += b"[%12.6f] " % (int(time_us) / 1e6)
    return b"".join(prefix + part + b"\n" for part in message.split(b"\n"))


def _journal_json(text: Text) -> Iterator[bytes]:
    decode = msgspec.json.Decoder().decode
    for line in _lines(text):
        line = line.strip(b" \t\r\x1e,[]")
        if not line:
            continue
        try:
            record = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(record, dict) and (message := _message(record.get("MESSAGE"))) is not None:
            yield _stamped(message, record.get("_SOURCE_MONOTONIC_TIMESTAMP"), record.get("PRIORITY"))


def _dmesg_json(text: Text) -> Iterator[bytes]:
    """One record in an object; read record by record, so that a file that was cut short is read as far as it goes."""
    whole = _decoded(bytes(text))
    if isinstance(whole, dict) and isinstance(whole.get("dmesg"), list):
        records: Iterator[Any] = iter(whole["dmesg"])
    else:
        found = (match[0] for match in re.finditer(rb'\{[^{}]{0,65536}"msg"[^{}]{0,65536}\}', bytes(text)))
        records = (_decoded(part) for part in found)
    for record in records:
        if isinstance(record, dict) and isinstance(record.get("msg"), str):
            time_s = record.get("time")
            stamp = b"[%12.6f] " % time_s if isinstance(time_s, (int, float)) else b""
            yield b"".join(
                stamp + part + b"\n" for part in record["msg"].encode("utf-8", "surrogateescape").split(b"\n")
            )


def _decoded(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _journal_export(text: Text) -> Iterator[bytes]:
    fields: dict[bytes, bytes] = {}
    position, size = 0, len(text)
    while position < size:
        end = text.find(b"\n", position)
        end = size if end < 0 else end
        line = text[position : min(end, position + _FIELD_LIMIT)]
        position = end + 1
        name, equals, value = line.partition(b"=")
        if equals:
            fields[name] = value
        elif line:
            # A name alone: the length in eight bytes and the value, which may hold anything, follow.
            length = int.from_bytes(text[position : position + 8], "little")
            if length <= min(size - position - 8, _FIELD_LIMIT):
                fields[line] = text[position + 8 : position + 8 + length]
                position += 8 + length + 1
        if not line or position >= size:
            if b"MESSAGE" in fields:
                time_us = fields.get(b"_SOURCE_MONOTONIC_TIMESTAMP")
                yield _stamped(fields[b"MESSAGE"], time_us, fields.get(b"PRIORITY"))
            fields = {}


_UNWRAPPERS: dict[Form, Callable[[Text], Iterator[bytes]]] = {
    Form.JOURNAL_JSON: _journal_json,
    Form.JOURNAL_EXPORT: _journal_export,
    Form.DMESG_JSON: _dmesg_json,
}
