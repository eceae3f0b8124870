"""The page frame that a word means: a ``struct page`` address, a kernel address, or a physical one."""

from __future__ import annotations

from postpanic.analysis.commands.values import parse_vaddr
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.spaces import is_kernel_vaddr
from postpanic.analysis.workspace import Workspace
from postpanic.units import VirtAddr

__all__ = ["find_paddr", "find_pfn"]


def find_paddr(workspace: Workspace, address: int, *, physical: bool = False) -> int:
    """
    Give the physical address that an address means; of a ``struct page``, the page's.

    Raises
    ------
    TranslationError
        If it is a kernel address that is not mapped.
    """
    if physical or not is_kernel_vaddr(address):
        return address
    pfn = page_structs(workspace).pfn_of(address)
    if pfn is not None:
        return pfn * workspace.memory.page_size_bytes
    return int(workspace.memory.translate(VirtAddr(address)))


def find_pfn(workspace: Workspace, word: str, *, physical: bool = False) -> int:
    """
    Give the page frame that a word means.

    Raises
    ------
    TranslationError, UsageError
        If it means none.
    """
    paddr = find_paddr(workspace, parse_vaddr(workspace, word), physical=physical)
    return paddr // workspace.memory.page_size_bytes
