"""
Decode a module's own symbol table.

``struct mod_kallsyms`` (``kernel/module/kallsyms.c``) keeps the ELF symbols of a
loaded module, with addresses resolved, its string table, and since 5.2 the type
letters apart (1c7651f43777, "kallsyms: store type information in its own
array"); before, ``st_info`` held the letter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError
from postpanic.kernel.kallsyms.symbols import SymbolTable, make_symbol_table

__all__ = ["decode_module_symbols"]

_ELF64_SYM = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_SHN_UNDEF = 0
_UNKNOWN = ord("?")


def decode_module_symbols(syms: bytes, strings: bytes, typetab: bytes | None) -> SymbolTable:
    """
    Decode the symbols of one module.

    Undefined symbols, those without a name and those whose name lies outside the
    string table are left out, as are the mapping symbols of arm64 (``$x``, ``$d``).

    Parameters
    ----------
    syms : bytes
        ``mod_kallsyms.symtab``: an array of ``Elf64_Sym``, ``num_symtab`` long.
    strings : bytes
        ``mod_kallsyms.strtab``.
    typetab : bytes or None
        ``mod_kallsyms.typetab``, one letter for each symbol; None: the letters are in ``st_info``.

    Raises
    ------
    CorruptError
        If *syms* is no whole number of symbols or *typetab* is shorter than that.
    """
    if len(syms) % _ELF64_SYM.itemsize:
        raise CorruptError(f"a module's symbol table is {len(syms)} bytes, must be a multiple of {_ELF64_SYM.itemsize}")
    entries = np.frombuffer(syms, dtype=_ELF64_SYM)
    if typetab is None:
        types = entries["info"].copy()
    elif len(typetab) < len(entries):
        raise CorruptError(f"a module has {len(entries)} symbols but {len(typetab)} type letters")
    else:
        types = np.frombuffer(typetab, dtype=np.uint8, count=len(entries)).copy()
    types[(types < ord(" ")) | (types > ord("~"))] = _UNKNOWN
    blob = strings + b"\0"
    data = np.frombuffer(blob, dtype=np.uint8)
    offsets = entries["name"].astype(np.int64)
    inside = offsets < len(strings)
    first: NDArray[np.uint8] = data[np.where(inside, offsets, len(strings))]
    kept = inside & (entries["shndx"] != _SHN_UNDEF) & (first != 0) & (first != ord("$"))
    return make_symbol_table(entries["value"][kept].astype(np.uint64), types[kept], blob, offsets[kept])
