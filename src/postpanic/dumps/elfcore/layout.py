"""
The structures of an ELF core file, decoded and bounded.

References: System V gABI chapters 4 and 5 (ELF header, program header,
``PN_XNUM``); the kernel's ``include/uapi/linux/elf.h`` and ``fs/proc/vmcore.c``;
makedumpfile's ``elf_info.h`` (``DUMP_ELF_INCOMPLETE``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import CorruptError, NotADumpError, TruncatedError

__all__ = [
    "ELF_HEADER_BYTES",
    "ELF_MAGIC",
    "MAX_PROGRAM_HEADERS",
    "PROGRAM_HEADER_BYTES",
    "PT_LOAD",
    "PT_NOTE",
    "SECTION_HEADER_BYTES",
    "ElfHeader",
    "decode_elf_header",
    "decode_program_headers",
    "encode_elf_header",
    "encode_section_zero",
    "has_free_flags",
    "machine_name",
    "machine_number",
    "program_header_dtype",
]

ELF_MAGIC = b"\x7fELF"
PT_LOAD = 1
PT_NOTE = 4
MAX_PROGRAM_HEADERS = 1 << 22
"""QEMU's ``paging`` mode writes one for each run of mapped pages: many, but not more than this."""

_ET_CORE = 4
_ET_WORDS = {1: "a relocatable object (a kernel module?)", 2: "an executable (a vmlinux?)", 3: "a shared object"}
_PN_XNUM = 0xFFFF
_ELF_INCOMPLETE = 1
_NO_FLAGS_OF_THEIR_OWN = frozenset({3, 22, 40, 62, 183})
"""i386, s390, arm, x86-64, aarch64: the machines whose ABI leaves bit 0 of ``e_flags`` free."""

ELF_HEADER_BYTES = 64
PROGRAM_HEADER_BYTES = 56
SECTION_HEADER_BYTES = 64
"""All three of ELF64."""

_SECTION_HEADER_64 = "IIQQQQIIQQ"
_EV_CURRENT = 1
_HEADER = {1: "HHIIIIIHHHHHH", 2: "HHIQQQIHHHHHH"}
_SECTION_INFO = {1: (28, "I"), 2: (44, "I")}
_PHENTSIZE = {1: 32, 2: 56}

_MACHINES: dict[int, tuple[str, str]] = {
    2: ("sparc", "sparc64"),
    3: ("i686", "i686"),
    4: ("m68k", "m68k"),
    8: ("mips", "mips64"),
    15: ("parisc", "parisc64"),
    20: ("ppc", "ppc"),
    21: ("ppc64", "ppc64"),
    22: ("s390", "s390x"),
    40: ("arm", "arm"),
    42: ("sh4", "sh4"),
    43: ("sparc64", "sparc64"),
    50: ("ia64", "ia64"),
    62: ("x86_64", "x86_64"),
    93: ("arc", "arc"),
    94: ("xtensa", "xtensa"),
    183: ("aarch64", "aarch64"),
    243: ("riscv32", "riscv64"),
    252: ("csky", "csky"),
    258: ("loongarch32", "loongarch64"),
    0x9026: ("alpha", "alpha"),
}


@dataclass(frozen=True, slots=True)
class ElfHeader:
    """
    What the reader needs of ``Elf32_Ehdr`` or ``Elf64_Ehdr``.

    ``program_header_count`` is the real one: the 16-bit field, or with
    ``PN_XNUM`` the ``sh_info`` of section header 0.
    """

    is_64bit: bool
    byte_order: str
    machine: int
    flags: int
    program_header_offset: int
    program_header_size: int
    program_header_count: int
    section_header_offset: int

    @property
    def prefix(self) -> str:
        """Byte order as :mod:`struct` and numpy spell it."""
        return "<" if self.byte_order == "little" else ">"

    @property
    def is_incomplete(self) -> bool:
        """Whether makedumpfile says that it could not write everything."""
        return self.machine in _NO_FLAGS_OF_THEIR_OWN and bool(self.flags & _ELF_INCOMPLETE)

    @property
    def has_extended_count(self) -> bool:
        """Whether the number of program headers is in section header 0."""
        return self.program_header_count == _PN_XNUM

    @property
    def section_info_place(self) -> tuple[int, struct.Struct]:
        """File offset and form of ``sh_info`` of section header 0."""
        offset, form = _SECTION_INFO[2 if self.is_64bit else 1]
        return self.section_header_offset + offset, struct.Struct(self.prefix + form)


def decode_elf_header(raw: bytes, *, where: str = "") -> ElfHeader:
    """
    Decode the ELF header of a core file.

    Raises
    ------
    TruncatedError
        If *raw* is shorter than the header.
    NotADumpError
        If it is another kind of ELF file.
    CorruptError
        If class, byte order, version or entry size are not those of the specification.
    """
    if len(raw) < 20:
        raise TruncatedError(f"{len(raw)} bytes of ELF header, at least 52 are needed", where=where)
    ident_class, ident_data, ident_version = raw[4], raw[5], raw[6]
    if ident_class not in (1, 2):
        raise CorruptError(f"ELF class {ident_class}, must be 1 (32-bit) or 2 (64-bit)", where=f"{where}+0x4")
    if ident_data not in (1, 2):
        raise CorruptError(f"ELF byte order {ident_data}, must be 1 (little) or 2 (big)", where=f"{where}+0x5")
    if ident_version != 1:
        raise CorruptError(f"ELF version {ident_version}, must be 1", where=f"{where}+0x6")
    form = struct.Struct(("<" if ident_data == 1 else ">") + _HEADER[ident_class])
    if len(raw) < 16 + form.size:
        raise TruncatedError(f"{len(raw)} bytes of ELF header, {16 + form.size} are needed", where=where)
    (kind, machine, _version, _entry, phoff, shoff, flags, _ehsize, phentsize, phnum, _shentsize, _shnum, _shstrndx) = (
        form.unpack_from(raw, 16)
    )
    if kind != _ET_CORE:
        words = _ET_WORDS.get(kind, f"an ELF file of type {kind}")
        raise NotADumpError(
            f"{words}, not a core file",
            where=where,
            hint="give the dump; a vmlinux goes beside it" if kind in (2, 3) else "",
        )
    if phnum and phentsize != _PHENTSIZE[ident_class]:
        raise CorruptError(
            f"program headers of {phentsize} bytes, must be {_PHENTSIZE[ident_class]}",
            where=f"{where}+{54 if ident_class == 2 else 42:#x}",
        )
    return ElfHeader(
        is_64bit=ident_class == 2,
        byte_order="little" if ident_data == 1 else "big",
        machine=machine,
        flags=flags,
        program_header_offset=phoff,
        program_header_size=phentsize,
        program_header_count=phnum,
        section_header_offset=shoff,
    )


def decode_program_headers(raw: bytes, header: ElfHeader) -> NDArray[np.void]:
    """
    Decode program headers in bulk.

    Parameters
    ----------
    raw : bytes
        A whole number of entries of ``header.program_header_size`` bytes.

    Returns
    -------
    ndarray
        Fields ``type offset vaddr paddr filesz memsz``, in native byte order;
        addresses and sizes are ``uint64`` for both classes.
    """
    disk = program_header_dtype(
        header.prefix, is_64bit=header.is_64bit, entry_bytes=header.program_header_size or PROGRAM_HEADER_BYTES
    )
    names = ("type", "offset", "vaddr", "paddr", "filesz", "memsz")
    native = np.dtype([("type", "u4")] + [(name, "u8") for name in names[1:]])
    return np.frombuffer(raw, dtype=disk)[list(names)].astype(native)


def program_header_dtype(
    prefix: str, *, is_64bit: bool = True, entry_bytes: int = PROGRAM_HEADER_BYTES
) -> np.dtype[np.void]:
    """Build the numpy type of ``Elf64_Phdr`` or ``Elf32_Phdr``."""
    names = ["type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align"]
    word = prefix + ("u8" if is_64bit else "u4")
    formats = [prefix + "u4" if name in ("type", "flags") else word for name in names]
    offsets = [0, 4, 8, 16, 24, 32, 40, 48] if is_64bit else [0, 24, 4, 8, 12, 16, 20, 28]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": entry_bytes})


def encode_elf_header(
    machine: int, *, program_header_count: int, section_header_offset: int, is_incomplete: bool
) -> bytes:
    """
    Encode the ELF64 header of a little-endian core file, whose program headers follow it.

    Parameters
    ----------
    section_header_offset : int
        Of section header 0, which is used when the count does not fit.
    is_incomplete : bool
        Sets makedumpfile's mark, where the machine leaves ``e_flags`` free.
    """
    is_extended = program_header_count >= _PN_XNUM
    ident = ELF_MAGIC + bytes([2, 1, _EV_CURRENT]) + bytes(9)
    return ident + struct.pack(
        "<" + _HEADER[2],
        _ET_CORE,
        machine,
        _EV_CURRENT,
        0,
        ELF_HEADER_BYTES,
        section_header_offset if is_extended else 0,
        _ELF_INCOMPLETE if is_incomplete and has_free_flags(machine) else 0,
        ELF_HEADER_BYTES,
        PROGRAM_HEADER_BYTES,
        min(program_header_count, _PN_XNUM),
        SECTION_HEADER_BYTES if is_extended else 0,
        1 if is_extended else 0,
        0,
    )


def encode_section_zero(program_header_count: int) -> bytes:
    """Encode section header 0: its ``sh_info`` is the number of program headers, if that needs more than 16 bits."""
    return struct.pack("<" + _SECTION_HEADER_64, 0, 0, 0, 0, 0, 0, 0, program_header_count, 0, 0)


def has_free_flags(machine: int) -> bool:
    """Whether the machine's ABI leaves room for makedumpfile's mark in ``e_flags``."""
    return machine in _NO_FLAGS_OF_THEIR_OWN


def machine_number(name: str) -> int | None:
    """Find ``e_machine`` of a 64-bit machine as ``uname -m`` spells it; None when it is unknown."""
    abi_name = name.removesuffix("le")
    return next((number for number, names in _MACHINES.items() if names[1] == abi_name), None)


def machine_name(machine: int, *, is_64bit: bool) -> str:
    """
    Spell ``e_machine`` as ``uname -m`` does, empty when it is unknown.

    The ABI, not the kernel, has little-endian suffixes: ``ppc64`` here is also
    what a ``ppc64le`` kernel writes.
    """
    names = _MACHINES.get(machine)
    return names[1 if is_64bit else 0] if names else ""
