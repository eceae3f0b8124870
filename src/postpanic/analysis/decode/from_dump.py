"""A dump in the place of a log, and in the place of a kernel's file: its log, and the symbols that it holds."""

from __future__ import annotations

from pathlib import Path

from postpanic.analysis.decode.context import LogContext
from postpanic.analysis.decode.kernel import KernelSymbols
from postpanic.analysis.decode.symbols import Symbol
from postpanic.dumps.open import open_dump
from postpanic.errors import FactAbsentError
from postpanic.kernel.kallsyms import read_kallsyms
from postpanic.kernel.log_text import LogStyle, format_record
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.printk import read_log

__all__ = ["load_dump_symbols", "read_dump_log"]


def load_dump_symbols(kernel: KernelSymbols, path: Path) -> str:
    """
    Take the symbols that the kernel has in its own memory, at the addresses it was linked to; give its release.

    Raises
    ------
    PostpanicError
        If the dump cannot be read or its tables were left out.
    """
    with open_dump(path) as dump:
        memory = open_kernel_memory(dump)
        table = read_kallsyms(memory)
        info = memory.vmcoreinfo
    names = table.names.decode("latin-1")
    slide = memory.kaslr_offset
    columns = zip(table.vaddrs.tolist(), table.name_offsets.tolist(), strict=True)
    symbols = [
        # Symbols of per-CPU data are offsets, which do not move with the kernel.
        Symbol(vaddr - slide if vaddr >> 63 else vaddr, names[start : names.find("\0", start)])
        for vaddr, start in columns
    ]
    if not symbols:
        raise FactAbsentError("the dump holds no symbols", where=str(path))
    kernel.load_table({"": symbols}, str(path), info.build_id or "")
    return info.osrelease or ""


def read_dump_log(path: Path) -> tuple[bytes, LogContext]:
    """
    Read the kernel's log out of a dump, and what the dump says of the kernel.

    Raises
    ------
    PostpanicError
        If the dump cannot be read or does not hold the log.
    """
    with open_dump(path) as dump:
        memory = open_kernel_memory(dump)
        style = LogStyle(caller=True)
        lines = [format_record(record, style) for record in read_log(memory)]
        info = memory.vmcoreinfo
        context = LogContext(info.osrelease or "", info.build_id or "", memory.kaslr_offset)
    return "\n".join([*lines, ""]).encode(), context
