"""What a word of memory may point to, in one short name: a symbol, or the slab cache of an object."""

from __future__ import annotations

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.slabs.objects import find_slab
from postpanic.analysis.memory.spaces import is_kernel_vaddr
from postpanic.analysis.workspace import Workspace

__all__ = ["ObjectNames"]


class ObjectNames:
    """Names of what kernel addresses point to; remembers what it was asked."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._symbols: dict[int, str | None] = {}
        self._caches: dict[int, str | None] = {}

    def symbol(self, vaddr: int) -> str | None:
        """Name the symbol at or around an address: ``init_task+192``; None if there is none."""
        if not is_kernel_vaddr(vaddr & ((1 << 64) - 1)):
            return None
        if vaddr not in self._symbols:
            self._symbols[vaddr] = self._find_symbol(vaddr)
        return self._symbols[vaddr]

    def _find_symbol(self, vaddr: int) -> str | None:
        try:
            symbol = self._workspace.prog.symbol(vaddr)
        except LookupError:
            return None
        offset = vaddr - symbol.address
        return f"{symbol.name}+{offset}" if offset else str(symbol.name)

    def cache(self, vaddr: int) -> str | None:
        """Name the slab cache of the object that an address is in; None if it is in none."""
        if not is_kernel_vaddr(vaddr & ((1 << 64) - 1)):
            return None
        if vaddr not in self._caches:
            try:
                slab = find_slab(self._workspace, vaddr)
                self._caches[vaddr] = slab.cache.name if slab is not None else None
            except UNREADABLE:
                self._caches[vaddr] = None
        return self._caches[vaddr]
