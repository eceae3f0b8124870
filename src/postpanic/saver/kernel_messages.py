"""The capture kernel's own messages, for ``saver.log``: why a driver found no disk is said there, or nowhere."""

from __future__ import annotations

import os

__all__ = ["format_message", "read_kernel_messages"]

_MOST_BYTES = 256 << 10
_RECORD_BYTES = 8192
"""More than a record of ``/dev/kmsg`` can have (``PRINTKRB_RECORD_MAX``, ``CONSOLE_EXT_LOG_MAX``)."""


def read_kernel_messages(path: str = "/dev/kmsg") -> str:
    """Read what the running kernel has logged so far, as dmesg prints it; empty where that cannot be had."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    lines: list[str] = []
    size = 0
    try:
        while size < _MOST_BYTES:
            try:
                record = os.read(fd, _RECORD_BYTES)
            except BrokenPipeError:
                # What came next has been overwritten meanwhile.
                continue
            if not record:
                break
            line = format_message(record)
            lines.append(line)
            size += len(line)
    except OSError:
        pass
    finally:
        os.close(fd)
    return "".join(lines)


def format_message(record: bytes) -> str:
    r"""
    Decode a record of ``/dev/kmsg`` (Documentation/ABI/testing/dev-kmsg).

    >>> format_message(b"6,339,5140900,-;NET: Registered\n SUBSYSTEM=x\n")
    '[    5.140900] NET: Registered\n'
    """
    prefix, _, text = record.partition(b";")
    fields = prefix.split(b",")
    try:
        microseconds = int(fields[2])
    except (IndexError, ValueError):
        microseconds = 0
    first = text.split(b"\n", 1)[0].decode("utf-8", "backslashreplace")
    return f"[{microseconds // 1_000_000:5}.{microseconds % 1_000_000:06}] {first}\n"
