"""The kernel's direct mapping of all memory: where a physical address is in it."""

from __future__ import annotations

from drgn.helpers.linux.mm import phys_to_virt

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError
from postpanic.units import VirtAddr

__all__ = ["direct_map_offset", "direct_vaddr"]

_WORD = (1 << 64) - 1


def direct_map_offset(workspace: Workspace) -> int:
    """
    Give what is added to a physical address, modulo 2^64.

    drgn asks variables that lie there. Where their symbols are not known (``CONFIG_KALLSYMS_ALL``), a task tells: its
    ``struct task_struct`` is a slab object, and all of those are in the direct mapping.

    Raises
    ------
    FactAbsentError
        If nothing tells.
    """
    return workspace.once("direct mapping", lambda: _find(workspace))


def direct_vaddr(workspace: Workspace, paddr: int) -> int:
    """Give the address of a physical one in the direct mapping."""
    return (paddr + direct_map_offset(workspace)) & _WORD


def _find(workspace: Workspace) -> int:
    try:
        return int(phys_to_virt(workspace.prog, 0).value_()) & _WORD
    except Exception as exc:  # noqa: BLE001 - drgn has no class of its own for it
        failure = exc
    try:
        # The next task: the first one's own structure is a variable of the kernel image.
        vaddr = int(workspace.prog["init_task"].tasks.next.value_())
        return (vaddr - int(workspace.memory.translate(VirtAddr(vaddr)))) & _WORD
    except UNREADABLE:
        raise FactAbsentError(f"where the direct mapping of memory begins is not known: {failure}") from failure
