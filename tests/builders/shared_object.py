"""64-bit ELF programs and libraries with a dynamic section and nothing to run (System V gABI, chapters 4 and 5)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

MACHINES = {"x86_64": 62, "aarch64": 183, "s390": 22}
_NEEDED, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _HASH, _SONAME, _RPATH, _RUNPATH = 1, 5, 6, 10, 11, 4, 14, 15, 29


def make_shared_object(
    *,
    needed: Sequence[str] = (),
    soname: str = "",
    rpath: str = "",
    runpath: str = "",
    interpreter: str = "",
    undefined: Sequence[str] = (),
    machine: str = "x86_64",
    sections: bytes = b"",
) -> bytes:
    """
    Return the file.

    Parameters
    ----------
    undefined : sequence of str
        Symbols that it needs.
    sections : bytes
        Something behind all segments and a table of one empty section.
    """
    strings = bytearray(b"\0")

    def add(text: str) -> int:
        place = len(strings)
        strings.extend(text.encode() + b"\0")
        return place

    tags = [(_NEEDED, add(name)) for name in needed]
    tags += [(tag, add(text)) for tag, text in ((_SONAME, soname), (_RPATH, rpath), (_RUNPATH, runpath)) if text]
    symbols = bytes(24) + b"".join(struct.pack("<IBBHQQ", add(name), 0x12, 0, 0, 0, 0) for name in undefined)
    count = len(undefined) + 1
    chain = [*range(2, count), 0] if undefined else []
    hashes = struct.pack(f"<{3 + count}I", 1, count, 1 if undefined else 0, 0, *chain)

    header_bytes = 64 + 3 * 56
    symbols_at = header_bytes
    hash_at = symbols_at + len(symbols)
    strings_at = hash_at + len(hashes)
    interpreter_at = strings_at + len(strings)
    dynamic_at = (interpreter_at + len(interpreter) + 1 + 7) & ~7
    tags += [(_STRTAB, strings_at), (_STRSZ, len(strings)), (_SYMTAB, symbols_at), (_SYMENT, 24), (_HASH, hash_at)]
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in (*tags, (0, 0)))
    end = dynamic_at + len(dynamic)
    segments = [(1, 5, 0, end), (2, 6, dynamic_at, len(dynamic))]
    if interpreter:
        segments.insert(0, (3, 4, interpreter_at, len(interpreter) + 1))
    image = bytearray(
        struct.pack(
            "<16sHHIQQQIHHHHHH",
            *(b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 3, MACHINES[machine], 1, 0, 64),
            *(end if sections else 0, 0, 64, 56, len(segments), 64, 1 if sections else 0, 0),
        )
    )
    for kind, flags, at, size in segments:
        image += struct.pack("<IIQQQQQQ", kind, flags, at, at, at, size, size, 8)
    image = image.ljust(header_bytes, b"\0") + symbols + hashes + strings + interpreter.encode() + b"\0"
    table = bytes(64) if sections else b""
    return bytes(image.ljust(dynamic_at, b"\0") + dynamic + table + sections)
