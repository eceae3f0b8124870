"""
A dump of a kernel that carries no types (BTF): what still works.

The log, the symbols, memory in numbers, and the stacks of the CPUs that left
their registers, unwound by the kernel's ORC tables. Everything else needs a
vmlinux with debug information.
"""

from postpanic.analysis.symbols_only.banner import read_symbols_only_banner, warn_symbols_only
from postpanic.analysis.symbols_only.commands import run_without_types
from postpanic.analysis.symbols_only.kernel import SymbolsOnly

__all__ = ["SymbolsOnly", "read_symbols_only_banner", "run_without_types", "warn_symbols_only"]
