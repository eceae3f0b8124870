"""What the kernel says of itself in its memory: ``uname`` and the banner. No types are needed."""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.errors import CorruptError
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory

__all__ = ["UtsName", "read_banner", "read_utsname"]

_FIELD_BYTES = 65
"""``__NEW_UTS_LEN`` + 1 (``include/uapi/linux/utsname.h``)."""
_FIELD_COUNT = 6
_SYSNAME = b"Linux\0"
_SEARCH_BYTES = 64
_OFFSET_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class UtsName:
    """``struct new_utsname``: what ``uname`` gave in the initial namespace."""

    sysname: str
    nodename: str
    release: str
    version: str
    machine: str
    domainname: str


def read_utsname(memory: KernelMemory) -> UtsName:
    """
    Read the names of the initial UTS namespace.

    ``OFFSET(uts_namespace.name)`` says where they are; kernels as old as 5.10 do not
    write it, there they are looked for at the start of ``init_uts_ns``.

    Raises
    ------
    FactAbsentError
        If VMCOREINFO lacks ``SYMBOL(init_uts_ns)``.
    CorruptError
        If the system is not named Linux.
    TranslationError, PageAbsentError
        If it is not in the dump.
    """
    vaddr = memory.vmcoreinfo.symbol("init_uts_ns")
    offset = memory.vmcoreinfo.get_offset("uts_namespace.name")
    if offset is None:
        offset = memory.read(vaddr, _SEARCH_BYTES).find(_SYSNAME)
    if not 0 <= offset <= _OFFSET_LIMIT_BYTES:
        raise CorruptError(f"init_uts_ns at {vaddr:#x} has its names at offset {offset}, must be at most 4096")
    data = memory.read(vaddr + offset, _FIELD_BYTES * _FIELD_COUNT)
    if not data.startswith(_SYSNAME):
        raise CorruptError(f"init_uts_ns at {vaddr:#x} names the system {data[:_FIELD_BYTES]!r}, must be Linux")
    fields = [data[at : at + _FIELD_BYTES].split(b"\0", 1)[0] for at in range(0, len(data), _FIELD_BYTES)]
    return UtsName(*(field.decode("utf-8", "backslashreplace") for field in fields))


def read_banner(memory: KernelMemory, symbols: SymbolTable) -> str:
    """
    Read ``linux_banner``, the first line of every kernel's log, without its newline.

    Raises
    ------
    FactAbsentError
        If the symbol is not there: kallsyms without data.
    CorruptError
        If the text has no end.
    TranslationError, PageAbsentError
        If it is not in the dump.
    """
    banner = memory.read_c_string(symbols.find("linux_banner").vaddr)
    return banner.decode("utf-8", "backslashreplace").rstrip("\n")
