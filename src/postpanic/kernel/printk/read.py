"""Read the kernel log, whichever kind the kernel has."""

from __future__ import annotations

from postpanic.errors import FactAbsentError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.printk.linear import read_linear_log
from postpanic.kernel.printk.records import LogRecord
from postpanic.kernel.printk.ring import read_ring

__all__ = ["read_log"]


def read_log(memory: KernelMemory) -> list[LogRecord]:
    """
    Read the kernel log, oldest record first.

    Needs no symbols and no types: VMCOREINFO has the addresses and layouts
    (``log_buf_vmcoreinfo_setup()`` of ``kernel/printk/printk.c``). A record that
    is damaged or partly missing does not spoil the others: it comes with what is
    left of it and says what is wrong.

    Raises
    ------
    FactAbsentError
        If VMCOREINFO describes no log.
    CorruptError
        If the log's own description contradicts itself.
    TranslationError, PageAbsentError
        If that description is not in the dump.
    """
    info = memory.vmcoreinfo
    if info.get_symbol("prb") is not None:
        return read_ring(memory)
    if info.get_symbol("log_buf") is not None:
        return read_linear_log(memory)
    raise FactAbsentError("VMCOREINFO describes no kernel log: it has neither SYMBOL(prb) nor SYMBOL(log_buf)")
