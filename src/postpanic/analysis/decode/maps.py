r"""
Symbol tables as text: ``System.map`` and copies of ``/proc/kallsyms``.

``ffffffff81a114f0 T schedule`` and, of a module, ``ffffffffc0123450 t llc_rcv\t[llc]``.

References
----------
nm(1) ``--format=bsd``; kernel/kallsyms.c ``s_show``.
"""

from __future__ import annotations

import re
from pathlib import Path

from postpanic.analysis.decode.symbols import Symbol
from postpanic.errors import CorruptError, FileFaultError, TruncatedError
from postpanic.units import MIB, format_size

__all__ = ["decode_map", "is_map", "read_map"]

_LINE = re.compile(
    rb"([0-9a-f]{8}|[0-9a-f]{16}) ([A-Za-z?]) (\S{1,512})(?:[ \t]{1,4}\[([\w-]{1,64})\])?[ \t\r]{0,8}$", re.MULTILINE
)
_LARGEST_BYTES = 256 * MIB


def is_map(head: bytes) -> bool:
    r"""
    Tell whether a text begins like a symbol table.

    >>> is_map(b"ffffffff81000000 T _stext\n"), is_map(b"[    0.000000] Linux version")
    (True, False)
    """
    return _LINE.match(head) is not None


def decode_map(text: bytes) -> dict[str, list[Symbol]]:
    r"""
    Decode a table: symbols by module, the kernel's under an empty name.

    >>> decode_map(b"ffffffff81000000 T _stext\nffffffffc0000010 t llc_rcv\t[llc]\n")["llc"]
    [Symbol(vaddr=18446744072635809808, name='llc_rcv', size=0)]
    """
    found: dict[str, list[Symbol]] = {}
    for address, _, name, module in _LINE.findall(text):
        found.setdefault(module.decode(), []).append(Symbol(int(address, 16), name.decode("utf-8", "backslashreplace")))
    return found


def read_map(path: Path) -> dict[str, list[Symbol]]:
    """
    Read a table from a file.

    Raises
    ------
    FileFaultError
        If it cannot be read, holds no symbol, or its addresses were hidden.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise TruncatedError(f"larger than {format_size(_LARGEST_BYTES)}, no symbol table is", where=str(path))
        text = path.read_bytes()
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    found = decode_map(text)
    if not found:
        raise CorruptError("no line of it is a symbol", where=str(path))
    if not any(symbol.vaddr for symbols in found.values() for symbol in symbols):
        raise CorruptError(
            "all its addresses are zero",
            where=str(path),
            hint="copy /proc/kallsyms as root, with kernel.kptr_restrict=0",
        )
    return found
