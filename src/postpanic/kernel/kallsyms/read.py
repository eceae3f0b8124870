"""Find, read and decode vmlinux's kallsyms."""

from __future__ import annotations

import numpy as np

from postpanic.errors import AbsentError, CorruptError
from postpanic.kernel.kallsyms.addresses import AddressEncoding, decode_addresses
from postpanic.kernel.kallsyms.locate import AddressPlace, KallsymsPlace, find_kallsyms
from postpanic.kernel.kallsyms.names import TOKEN_COUNT, DecodedNames, TokenTable, decode_names, decode_token_table
from postpanic.kernel.kallsyms.symbols import SymbolTable, make_symbol_table
from postpanic.kernel.memory import KernelMemory
from postpanic.units import MIB

__all__ = ["read_count", "read_kallsyms", "read_names", "read_tokens"]

_SYMBOL_COUNT_LIMIT = 1 << 22
"""An allyesconfig kernel has some 700,000."""
_NAMES_LIMIT_BYTES = 64 * MIB
_TOKEN_TABLE_LIMIT_BYTES = 1 << 16
"""Its index has 16-bit offsets."""


def read_kallsyms(memory: KernelMemory) -> SymbolTable:
    """
    Read the kernel's symbol table, addresses as they were at runtime.

    Found by VMCOREINFO (since 6.0, 5fd8fea935a1, "vmcoreinfo: include kallsyms
    symbols") or else by the shape of its tables in the kernel image.

    Raises
    ------
    FactAbsentError
        If the kernel has no kallsyms (``CONFIG_KALLSYMS``), or it cannot be found.
    CorruptError, TruncatedError
        If the tables contradict themselves.
    TranslationError, PageAbsentError
        If part of them is not in the dump.
    """
    place = find_kallsyms(memory)
    count = read_count(memory, place)
    names = decode_names(read_names(memory, place), count, read_tokens(memory, place))
    missing: AbsentError | None = None
    for candidate in place.addresses:
        try:
            table = _read_addresses(memory, candidate, count, names)
        except AbsentError as error:
            missing = error
            continue
        if table is not None:
            return table
    if missing is not None:
        raise missing
    raise CorruptError("no encoding of kallsyms addresses puts _stext where VMCOREINFO has it")


def read_count(memory: KernelMemory, place: KallsymsPlace) -> int:
    """Read the number of symbols; raises as :func:`read_kallsyms` does."""
    count = memory.read_u32(place.num_syms)
    if not 0 < count <= _SYMBOL_COUNT_LIMIT:
        raise CorruptError(f"kallsyms_num_syms is {count}, must be 1 to {_SYMBOL_COUNT_LIMIT}")
    return count


def read_names(memory: KernelMemory, place: KallsymsPlace) -> bytes:
    """Read the stream of names and what lies between it and the tokens; raises as :func:`read_kallsyms` does."""
    size = place.token_table - place.names
    if not 0 < size <= _NAMES_LIMIT_BYTES:
        raise CorruptError(f"kallsyms_names span {size} bytes, must be 1 to {_NAMES_LIMIT_BYTES}")
    return memory.read(place.names, size)


def read_tokens(memory: KernelMemory, place: KallsymsPlace) -> TokenTable:
    """Read what each byte of a name stands for; raises as :func:`read_kallsyms` does."""
    size = place.token_index - place.token_table
    if not 0 < size <= _TOKEN_TABLE_LIMIT_BYTES:
        raise CorruptError(f"kallsyms_token_table spans {size} bytes, must be 1 to {_TOKEN_TABLE_LIMIT_BYTES}")
    return decode_token_table(
        memory.read(place.token_table, size), memory.read_array(place.token_index, np.uint16, TOKEN_COUNT)
    )


def _read_addresses(memory: KernelMemory, place: AddressPlace, count: int, names: DecodedNames) -> SymbolTable | None:
    """Decode the addresses as a candidate has them; None when _stext does not come out right."""
    is_absolute = place.encodings == (AddressEncoding.ABSOLUTE,)
    entries = memory.read_array(place.entries, np.uint64 if is_absolute else np.int32, count)
    anchor = place.entries if place.relative_base is None else memory.read_u64(place.relative_base)
    stext = memory.vmcoreinfo.symbol("_stext")
    for encoding in place.encodings:
        vaddrs = decode_addresses(encoding, entries, anchor)
        table = make_symbol_table(vaddrs, names.types, names.blob, names.offsets)
        if any(symbol.vaddr == stext for symbol in table.find_all("_stext")):
            return table
    return None
