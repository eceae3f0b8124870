"""
Entries that VMCOREINFO lacks, from the kernel's types and symbols, or from a text file.

What the kernel itself exported always counts: an entry is only ever added. Each
is what ``kernel/vmcore_info.c`` (before 6.9 ``kernel/crash_core.c``) would have
written; numbers that are plain macros (``SECTION_SIZE_BITS``, page types to
6.10) are in no type information, and stay absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from postpanic.dumps.source import FileSource
from postpanic.errors import FileFaultError, MismatchError, NotADumpError
from postpanic.kernel.btf import Btf, Kind, StructLayout
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo
from postpanic.kernel.vmlinux_file import VmlinuxFile, read_vmlinux
from postpanic.units import KIB

__all__ = [
    "generate_vmcoreinfo",
    "read_vmcoreinfo_file",
    "supplement_from_file",
    "supplement_from_vmlinux",
    "supplement_vmcoreinfo",
]

_TEXT_LIMIT_BYTES = 64 * KIB
_UPPER_HALF = 1 << 63
_WORD = (1 << 64) - 1

_SIZES = ("page", "pglist_data", "zone", "free_area", "list_head", "nodemask_t", "mem_section")
_OFFSETS = (
    *("page.flags", "page._refcount", "page.mapping", "page.lru", "page._mapcount", "page.private"),
    *("page.compound_dtor", "page.compound_order", "page.compound_head", "page.compound_info"),
    "mem_section.section_mem_map",
    *("pglist_data.node_zones", "pglist_data.nr_zones", "pglist_data.node_mem_map", "pglist_data.node_start_pfn"),
    *("pglist_data.node_spanned_pages", "pglist_data.node_id"),
    *("zone.free_area", "zone.vm_stat", "zone.spanned_pages"),
    *("free_area.free_list", "list_head.next", "list_head.prev", "uts_namespace.name"),
)
_FOLIO_OFFSETS = ("folio._folio_dtor", "folio._folio_order")
"""Of 6.3 to 6.5 alone (1c5509be58f6): other kernels have members of these names that mean something else."""
_LENGTHS = ("zone.free_area", "free_area.free_list")
_FLAGS = ("PG_lru", "PG_private", "PG_swapcache", "PG_swapbacked", "PG_slab", "PG_hwpoison", "PG_hugetlb")
_PAGE_TYPES = ("buddy", "offline", "hugetlb", "slab", "unaccepted")
_SYMBOLS = (
    *("init_uts_ns", "swapper_pg_dir", "init_top_pgt", "_stext", "mem_section", "node_data", "mem_map"),
    *("contig_page_data", "vmap_area_list", "prb", "printk_rb_static", "clear_seq"),
    *("kallsyms_names", "kallsyms_num_syms", "kallsyms_token_table", "kallsyms_token_index", "kallsyms_offsets"),
    *("kallsyms_relative_base", "kallsyms_addresses"),
)
_POINTER_BYTES = 8


def supplement_vmcoreinfo(
    vmcoreinfo: Vmcoreinfo,
    *,
    btf: Btf | None = None,
    symbols: Mapping[str, int] | SymbolTable | None = None,
    source: str = "the kernel's types and symbols",
) -> Vmcoreinfo:
    """
    Add the entries that VMCOREINFO lacks.

    Parameters
    ----------
    btf : Btf, optional
        The kernel's types, of the dump or of its vmlinux.
    symbols : mapping or SymbolTable, optional
        Runtime addresses by name. ``mem_section`` is not for a symbol table of a
        kernel that allocates it: there the entry is the pointer's value, not its place.
    source : str
        Where these come from, as one phrase.

    Returns
    -------
    Vmcoreinfo
        *vmcoreinfo* itself where nothing is missing.
    """
    offered: dict[str, str] = {}
    if btf is not None:
        offered.update(_type_entries(btf))
    if symbols is not None:
        offered.update(_symbol_entries(symbols.get))
    return _add(vmcoreinfo, offered, source)


def supplement_from_vmlinux(vmcoreinfo: Vmcoreinfo, path: Path) -> Vmcoreinfo:
    """
    Add the entries that VMCOREINFO lacks from the dump's vmlinux.

    Raises
    ------
    MismatchError
        If it is another kernel's.
    UnsupportedError
        If it has DWARF only: types are read from its ``.BTF`` section.
    FileFaultError
        If it cannot be read.
    """
    file = read_vmlinux(path)
    _check_identity(vmcoreinfo, file.build_id, file.release, file.path)
    shift = vmcoreinfo.kerneloffset or 0
    runtime = {name: (vaddr + shift) & _WORD for name, vaddr in _link_symbols(file).items()}
    return supplement_vmcoreinfo(vmcoreinfo, btf=file.require_btf(), symbols=runtime, source=file.path)


def supplement_from_file(vmcoreinfo: Vmcoreinfo, path: Path) -> Vmcoreinfo:
    """
    Add the entries that VMCOREINFO lacks from a text file (makedumpfile's ``-i``).

    Addresses in it are those of the link, unless it has a ``KERNELOFFSET`` of its own.

    Raises
    ------
    MismatchError
        If it describes another kernel.
    FileFaultError
        If it cannot be read, or is no such text.
    """
    other = read_vmcoreinfo_file(path)
    _check_identity(vmcoreinfo, other.build_id or "", other.osrelease, str(path))
    shift = (vmcoreinfo.kerneloffset or 0) - (other.kerneloffset or 0)
    moved = other.symbols
    offered = {
        key: f"{(moved[key[7:-1]] + shift) & _WORD:x}" if key.startswith("SYMBOL(") else value
        for key, value in other.entries.items()
        if key.startswith(("OFFSET(", "SIZE(", "LENGTH(", "NUMBER("))
        or (key.startswith("SYMBOL(") and key[7:-1] in moved)
    }
    return _add(vmcoreinfo, offered, str(path))


def read_vmcoreinfo_file(path: Path) -> Vmcoreinfo:
    """
    Read a VMCOREINFO text from a file, as ``makedumpfile -g`` writes it.

    Raises
    ------
    NotADumpError
        If it is no such text.
    FileFaultError
        If it cannot be opened or is too large to be one.
    """
    source = FileSource(path)
    try:
        text = source.read(0, _TEXT_LIMIT_BYTES + 1)
    finally:
        source.close()
    if len(text) > _TEXT_LIMIT_BYTES:
        raise FileFaultError(f"a VMCOREINFO text has at most {_TEXT_LIMIT_BYTES} bytes", where=str(path))
    info = parse_vmcoreinfo(text, source=str(path))
    if not info.osrelease or b"\0" in text:
        raise NotADumpError(
            "no VMCOREINFO text: it has no line OSRELEASE=",
            where=str(path),
            hint="make one from a vmlinux with -g FILE -x VMLINUX",
        )
    return info


def generate_vmcoreinfo(path: Path, *, page_size_bytes: int = 4096) -> bytes:
    """
    Write the VMCOREINFO text of a vmlinux (makedumpfile's ``-g -x``).

    Addresses are those of the link. Numbers that no type information has
    (``SECTION_SIZE_BITS``, say) are not in it.

    Raises
    ------
    UnsupportedError
        If the file has DWARF only.
    FileFaultError
        If the file cannot be read, or does not tell its release.
    """
    file = read_vmlinux(path)
    btf = file.require_btf()
    if not file.release:
        raise FileFaultError("the file does not tell its release: linux_banner has no contents", where=file.path)
    lines = [f"OSRELEASE={file.release}"]
    if file.build_id:
        lines.append(f"BUILD-ID={file.build_id}")
    lines.append(f"PAGESIZE={page_size_bytes}")
    entries = {**_symbol_entries(_link_symbols(file).get), **dict(_type_entries(btf))}
    lines += [f"{key}={value}" for key, value in entries.items()]
    return "".join(f"{line}\n" for line in lines).encode()


def _add(vmcoreinfo: Vmcoreinfo, offered: Mapping[str, str], source: str) -> Vmcoreinfo:
    new = {key: value for key, value in offered.items() if key not in vmcoreinfo.entries}
    if not new:
        return vmcoreinfo
    text = vmcoreinfo.text
    if text and not text.endswith(b"\n"):
        text += b"\n"
    text += "".join(f"{key}={value}\n" for key, value in new.items()).encode()
    return Vmcoreinfo(
        text, {**vmcoreinfo.entries, **new}, f"{vmcoreinfo.source}, {len(new)} entries added from {source}"
    )


def _check_identity(vmcoreinfo: Vmcoreinfo, build_id: str, release: str, where: str) -> None:
    """Refuse another kernel's file: by build ID where both have one, else by release."""
    own = (vmcoreinfo.build_id or "").lower()
    if own and build_id:
        if own != build_id.lower():
            raise MismatchError(f"build ID {build_id}, the dump's kernel has {own}", where=where)
        return
    if release and vmcoreinfo.osrelease and release != vmcoreinfo.osrelease:
        raise MismatchError(f"of kernel {release}, the dump's is {vmcoreinfo.osrelease}", where=where)


def _link_symbols(file: VmlinuxFile) -> dict[str, int]:
    """Give the symbols that are entries, at link-time addresses."""
    found: dict[str, int] = {}
    for name in _SYMBOLS:
        vaddr = file.symbols.get(name)
        # VMCOREINFO_SYMBOL_ARRAY(mem_section): of an allocated table the entry is where it lies.
        is_pointer = name == "mem_section" and file.sizes.get(name) == _POINTER_BYTES
        if vaddr is not None and vaddr >= _UPPER_HALF and not is_pointer:
            found[name] = int(vaddr)
    return found


def _symbol_entries(get: Callable[[str], int | None]) -> dict[str, str]:
    addresses = {name: get(name) for name in _SYMBOLS}
    # x86-64 has swapper_pg_dir as another word for init_top_pgt (arch/x86/include/asm/pgtable_64.h).
    if addresses["swapper_pg_dir"] is None:
        addresses["swapper_pg_dir"] = addresses["init_top_pgt"]
    return {f"SYMBOL({name})": f"{vaddr:x}" for name, vaddr in addresses.items() if vaddr is not None}


def _type_entries(btf: Btf) -> Iterator[tuple[str, str]]:
    """Give the entries that types tell."""
    for name in _SIZES:
        type_id = btf.detect(name, Kind.STRUCT, Kind.TYPEDEF)
        if type_id is not None and btf.size_of(type_id):
            yield f"SIZE({name})", str(btf.size_of(type_id))
    structs: dict[str, StructLayout | None] = {}
    for path in (*_OFFSETS, *_folio_offsets(btf)):
        struct, _, member = path.partition(".")
        if struct not in structs:
            type_id = btf.detect(struct, Kind.STRUCT)
            structs[struct] = None if type_id is None else StructLayout(btf, type_id)
        layout = structs[struct]
        if layout is not None and layout.has(member):
            yield f"OFFSET({path})", str(layout.offset_of(member))
            length = _array_length(btf, layout.find(member).type_id) if path in _LENGTHS else 0
            if length:
                yield f"LENGTH({path})", str(length)
    yield from _flag_entries(btf)


def _folio_offsets(btf: Btf) -> tuple[str, ...]:
    page = btf.detect("page", Kind.STRUCT)
    has_old = page is not None and StructLayout(btf, page).has("compound_order")
    return () if has_old or "PG_hugetlb" in _enumerators(btf, "pageflags") else _FOLIO_OFFSETS


def _flag_entries(btf: Btf) -> Iterator[tuple[str, str]]:
    """Give page flags, and page types in the encodings that are enumerations (6.11, and since 6.12)."""
    flags = _enumerators(btf, "pageflags")
    for name in _FLAGS:
        if name in flags:
            yield f"NUMBER({name})", str(flags[name])
    if "PG_head" in flags:
        yield "NUMBER(PG_head_mask)", str(1 << flags["PG_head"])
    types = _enumerators(btf, "pagetype")
    for name in _PAGE_TYPES:
        number = None
        if f"PGTY_{name}" in types:
            number = types[f"PGTY_{name}"] << 24
        elif types.get(f"PG_{name}"):
            number = ~types[f"PG_{name}"]
        if number is not None:
            yield f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)", str(_signed(number))
    destructors = _enumerators(btf, "compound_dtor_id")
    if "HUGETLB_PAGE_DTOR" in destructors:
        yield "NUMBER(HUGETLB_PAGE_DTOR)", str(destructors["HUGETLB_PAGE_DTOR"])
    items = _enumerators(btf, "zone_stat_item")
    if "NR_FREE_PAGES" in items:
        yield "NUMBER(NR_FREE_PAGES)", str(items["NR_FREE_PAGES"])


def _signed(number: int) -> int:
    """As ``int``, which is how the kernel prints it."""
    number &= 0xFFFF_FFFF
    return number - (1 << 32) if number >> 31 else number


def _enumerators(btf: Btf, name: str) -> dict[str, int]:
    """Values of one enumeration; empty where there is none of that name."""
    type_id = btf.detect(name, Kind.ENUM)
    if type_id is None:
        return {}
    owner, position = btf.owner_of(type_id)
    at = int(owner.start[position]) + 3
    words = owner.words[at : at + 2 * int(owner.vlen[position])].reshape(-1, 2)
    return {btf.string(text): value for text, value in words.tolist()}


def _array_length(btf: Btf, type_id: int) -> int:
    type_id = btf.skip_modifiers(type_id)
    if btf.kind_of(type_id) != Kind.ARRAY:
        return 0
    owner, position = btf.owner_of(type_id)
    return int(owner.words[int(owner.start[position]) + 5])
