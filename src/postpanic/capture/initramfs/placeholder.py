"""
A shared library that has names and nothing behind them.

numpy's core is linked against BLAS, from 0.5 to 40 MB of linear algebra that
the saver never calls. In the image stands a library of a few KiB that defines
the same names; whoever calls one of them gets a line on stderr and SIGILL.

References: System V gABI chapters 4 and 5; Intel SDM (``ud2``), Arm ARM (``udf``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

__all__ = ["MACHINES", "make_placeholder"]

_MESSAGE = b"postpanic: %s is not in this image, and was called\n"
# Segments at their own multiple of the largest page size of any of the machines.
_ALIGNMENT = 0x10000
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SYM = struct.Struct("<IBBHQQ")
_DYN = struct.Struct("<QQ")
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_READ, _WRITE, _EXECUTE = 4, 2, 1
_DT_NULL, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 0, 4, 5, 6, 10, 11, 14
_GLOBAL_FUNCTION = 0x12
_TEXT_SECTION = 1
"""Any index that is not SHN_UNDEF: there are no sections."""


def _encode_x86_64(size: int) -> bytes:
    """``write(2, message, size)``, then an instruction that is none; the message follows the code."""
    code = struct.pack("<BI", 0xB8, 1)  # mov eax, 1 (write)
    code += struct.pack("<BI", 0xBF, 2)  # mov edi, 2
    code += b"\x48\x8d\x35" + struct.pack("<i", 9)  # lea rsi, [rip + 9]
    code += struct.pack("<BI", 0xBA, size)  # mov edx, size
    return code + b"\x0f\x05\x0f\x0b"  # syscall; ud2


def _encode_aarch64(size: int) -> bytes:
    words = (
        0xD2800808,  # mov x8, #64 (write)
        0xD2800040,  # mov x0, #2
        0x10000081,  # adr x1, . + 16
        0xD2800002 | size << 5,  # mov x2, #size
        0xD4000001,  # svc #0
        0x00000000,  # udf #0
    )
    return struct.pack("<6I", *words)


MACHINES: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "EM_X86_64": (62, _encode_x86_64),
    "EM_AARCH64": (183, _encode_aarch64),
}
"""Those that a placeholder can be made for: ``e_machine`` and code."""


def make_placeholder(name: str, symbols: Sequence[str], machine: str) -> bytes:
    """
    Make a shared library.

    Parameters
    ----------
    name : str
        Its DT_SONAME.
    symbols : sequence of str
        The functions that it defines.
    machine : str
        A key of :data:`MACHINES`.
    """
    number, encode_code = MACHINES[machine]
    strings = bytearray(b"\0")
    places = {}
    for text in (name, *symbols):
        places[text] = len(strings)
        strings += text.encode() + b"\0"
    message = _MESSAGE % name.encode()
    code = encode_code(len(message)) + message

    symbols_at = _EHDR.size + 4 * _PHDR.size
    hash_at = symbols_at + _SYM.size * (len(symbols) + 1)
    table = _make_hash(len(symbols))
    strings_at = hash_at + len(table)
    code_at = (strings_at + len(strings) + 15) & ~15
    end = code_at + len(code)
    dynamic_at = (end + 15) & ~15
    entries = (
        *((_DT_SONAME, places[name]), (_DT_HASH, hash_at), (_DT_STRTAB, strings_at), (_DT_SYMTAB, symbols_at)),
        *((_DT_STRSZ, len(strings)), (_DT_SYMENT, _SYM.size), (_DT_NULL, 0)),
    )
    dynamic = b"".join(_DYN.pack(*entry) for entry in entries)
    image = bytearray(_make_headers(number, end, dynamic_at, len(dynamic)))
    image += _SYM.pack(0, 0, 0, 0, 0, 0)
    for text in symbols:
        image += _SYM.pack(places[text], _GLOBAL_FUNCTION, 0, _TEXT_SECTION, code_at, 0)
    image += table + strings
    image += bytes(code_at - len(image)) + code
    image += bytes(dynamic_at - len(image)) + dynamic
    return bytes(image)


def _make_headers(machine: int, end: int, dynamic_at: int, size: int) -> bytes:
    """Return the ELF header and the program headers of a library without sections."""
    address = _ALIGNMENT + dynamic_at
    headers = (
        (_PT_LOAD, _READ | _EXECUTE, 0, 0, 0, end, end, _ALIGNMENT),
        # The loader writes addresses into it.
        (_PT_LOAD, _READ | _WRITE, dynamic_at, address, address, size, size, _ALIGNMENT),
        (_PT_DYNAMIC, _READ | _WRITE, dynamic_at, address, address, size, size, 8),
        (_PT_GNU_STACK, _READ | _WRITE, 0, 0, 0, 0, 0, 16),
    )
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    fields = (3, machine, 1, 0, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, len(headers), 0, 0, 0)
    return _EHDR.pack(identity, *fields) + b"".join(_PHDR.pack(*header) for header in headers)


def _make_hash(count: int) -> bytes:
    """Return a hash table with one bucket: the chain of all symbols, from the first to the last."""
    chain = [0, *range(2, count + 1), 0] if count else [0]
    return struct.pack(f"<{3 + len(chain)}I", 1, len(chain), min(count, 1), *chain)
