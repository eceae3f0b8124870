"""
The kernel's own symbol table, in every layout since 5.10.

:func:`read_kallsyms` finds and decodes vmlinux's table;
:func:`decode_module_symbols` decodes that of one module. Both give a
:class:`SymbolTable`.
"""

from postpanic.kernel.kallsyms.modules import decode_module_symbols
from postpanic.kernel.kallsyms.read import read_kallsyms
from postpanic.kernel.kallsyms.symbols import Symbol, SymbolTable, make_symbol_table

__all__ = ["Symbol", "SymbolTable", "decode_module_symbols", "make_symbol_table", "read_kallsyms"]
