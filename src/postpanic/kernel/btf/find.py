"""Find a kernel's own BTF in its memory."""

from __future__ import annotations

import struct

import numpy as np

from postpanic.errors import AbsentError, FactAbsentError, FileFaultError
from postpanic.kernel.btf.decode import Btf, decode_btf
from postpanic.kernel.btf.layout import BTF_MAGIC, HEADER_SIZE_BYTES, MAX_DATA_BYTES
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory
from postpanic.units import MIB, VirtAddr

__all__ = ["read_kernel_btf", "search_kernel_btf"]

_CHUNK_BYTES = 8 * MIB
_LEAST_TYPES_BYTES = 64 * 1024
"""vmlinux's type section has megabytes; a few stray bytes that look like a header do not."""
_MAGIC = BTF_MAGIC.to_bytes(2, "little") + b"\x01\x00"


def read_kernel_btf(memory: KernelMemory, symbols: SymbolTable | None) -> Btf:
    """
    Read and decode vmlinux's BTF.

    It lies between ``__start_BTF`` and ``__stop_BTF``
    (``include/asm-generic/vmlinux.lds.h``); where the symbol table does not have
    these (KALLSYMS_ALL off) the image is searched for its header.

    Raises
    ------
    FactAbsentError
        If the kernel has no BTF.
    AbsentError
        If it is not in the dump.
    FileFaultError
        If it is there and damaged.
    """
    start = symbols.get("__start_BTF") if symbols is not None else None
    stop = symbols.get("__stop_BTF") if symbols is not None else None
    if start is not None and stop is not None:
        if not HEADER_SIZE_BYTES < stop - start <= MAX_DATA_BYTES:
            raise FactAbsentError(f"the kernel's BTF has {stop - start} bytes", hint="it was built without BTF")
        return decode_btf(memory.read(start, stop - start), where=f"BTF at {start:#x}")
    found, data = search_kernel_btf(memory)
    return decode_btf(data, where=f"BTF at {found:#x}")


def search_kernel_btf(memory: KernelMemory) -> tuple[VirtAddr, bytes]:
    """
    Search the kernel image for a BTF header whose sections make sense; the section is 4-byte aligned.

    Returns
    -------
    tuple of int and bytes
        Where it is, and all of it.

    Raises
    ------
    FactAbsentError
        If there is none, or it is not in the dump.
    """
    start, end = memory.layout.image_range
    for chunk in range(start, end, _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, end - chunk)
        data, present = memory.read_available(VirtAddr(chunk), size)
        if not present.any():
            continue
        words = data[: len(data) // 4 * 4].view("<u4")
        for index in np.flatnonzero(words == int.from_bytes(_MAGIC, "little")).tolist():
            vaddr = VirtAddr(chunk + 4 * index)
            try:
                return vaddr, _read_candidate(memory, vaddr)
            except (AbsentError, FileFaultError):
                continue
    raise FactAbsentError(
        f"no BTF in the kernel image at {start:#x}", hint="the kernel was built without CONFIG_DEBUG_INFO_BTF"
    )


def _read_candidate(memory: KernelMemory, vaddr: VirtAddr) -> bytes:
    header, type_off, type_len, str_off, str_len = struct.unpack("<IIIII", memory.read(vaddr, HEADER_SIZE_BYTES)[4:])
    size = header + str_off + str_len
    plausible = (
        HEADER_SIZE_BYTES <= header <= 256
        and type_off % 4 == type_len % 4 == 0
        and type_len >= _LEAST_TYPES_BYTES
        and type_off + type_len <= str_off
        and size <= MAX_DATA_BYTES
    )
    if not plausible:
        raise FactAbsentError(f"no BTF header at {vaddr:#x}")
    data = memory.read(vaddr, size)
    decode_btf(data)
    return data
