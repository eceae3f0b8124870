"""Kernel modules with a ``.modinfo`` section and nothing to run (System V gABI, chapter 4; include/linux/module.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

NAMES = b"\0.shstrtab\0.modinfo\0.rodata\0"


def make_module(*entries: str, depends: str = "", rodata: Sequence[str] = ()) -> bytes:
    """
    Return a module.

    Parameters
    ----------
    entries : str
        Of ``.modinfo``: ``softdep=pre: a``.
    rodata : sequence of str
        Texts that only look like such entries, in another section.
    """
    other = b"\0".join(text.encode() for text in ("", *rodata, ""))
    info = b"".join(text.encode() + b"\0" for text in ("license=GPL", *entries, f"depends={depends}"))
    body = NAMES + other + info
    sections = [
        (0, 0, 0, 0),
        (NAMES.index(b".shstrtab"), 3, 64, len(NAMES)),
        (NAMES.index(b".rodata"), 1, 64 + len(NAMES), len(other)),
        (NAMES.index(b".modinfo"), 1, 64 + len(NAMES) + len(other), len(info)),
    ]
    body = body.ljust((len(body) + 7) & ~7, b"\0")
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 1, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64),
        *(len(sections), 1),
    )
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 1, 0) for name, kind, at, size in sections
    )
    return header + body + table
