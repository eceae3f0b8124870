"""
Symbols that no table of the kernel has, found by what is known of them.

Where kallsyms has functions only (no ``CONFIG_KALLSYMS_ALL``) and a symbol is
not exported, two things remain: the kernel's types list the variables that each
CPU has, with their places among each other, and a list can be followed from
any of its entries to its head. What remains is found by the code that uses it
(:mod:`.references`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from postpanic.errors import AbsentError, FactAbsentError, FileFaultError
from postpanic.kernel.btf.decode import Btf
from postpanic.kernel.btf.find import read_kernel_btf, search_kernel_btf
from postpanic.kernel.btf.layout import Kind
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.kallsyms.symbols import make_table_of_names
from postpanic.kernel.ksymtab import read_symbols
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.references import find_referenced_symbols, list_data_addresses
from postpanic.kernel.variables_by_use import find_used_variables
from postpanic.units import MIB, VirtAddr

__all__ = [
    "AllSymbols",
    "find_module_list",
    "find_per_cpu_symbols",
    "find_slab_caches",
    "read_all_symbols",
    "recover_symbols",
]

_PER_CPU = b".data..percpu"
_FEWEST_WITNESSES = 3
_MOST_AREAS = 100_000
_MOST_MODULES = 4096
_MOST_KMALLOC_SIZES = 14
"""``KMALLOC_SHIFT_HIGH + 1`` of the smallest pages (``include/linux/slab.h``): the caches of one type."""
_LARGEST_AREA_BYTES = 64 * MIB
_REACH_BYTES = 4 << 30
"""How far a module's code can be from the kernel's: what ``adrp`` reaches."""
_ALIGNMENT_BYTES = 64
"""``struct module`` is ``____cacheline_aligned``."""
_KERNEL_HALF = np.uint64(1 << 63)
_WORD = (1 << 64) - 1
_NAME_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def recover_symbols(memory: KernelMemory, table: SymbolTable, btf: Btf, *, by_use: bool = True) -> SymbolTable:
    """
    Add what can be found to a table that lacks data.

    Parameters
    ----------
    table : SymbolTable
        Of kallsyms, VMCOREINFO and exports.
    by_use : bool
        Whether to look for variables in the code of functions, too, and in all of the image's data.

    Returns
    -------
    SymbolTable
        The same where it has the list of modules already, which every table with data has.
    """
    if "modules" in table:
        return table
    found = dict(find_per_cpu_symbols(table, btf))
    # No module may be loaded, or none be in the dump.
    with contextlib.suppress(AbsentError):
        found["modules"] = find_module_list(memory, btf)
    with contextlib.suppress(AbsentError):
        found["slab_caches"] = find_slab_caches(memory, table, btf)
    with contextlib.suppress(AbsentError):
        found["btf_modules"] = find_btf_modules(memory, table, btf, found.get("modules", 0))
    for name, find in (("workqueues", _find_workqueues), ("init_ipc_ns", _find_ipc_namespace)):
        with contextlib.suppress(AbsentError):
            found[name] = find(memory, table, btf)
    found["_end"] = _find_end(memory, table)
    found.update(find_referenced_symbols(memory, table))
    found.update(_find_marks(memory, table, btf))
    if by_use:
        found.update(find_used_variables(memory, table, btf))
    missing = [(name, vaddr) for name, vaddr in found.items() if name not in table]
    return table.merge(make_table_of_names(missing)) if missing else table


@dataclass(frozen=True, slots=True)
class AllSymbols:
    """What names a kernel's functions and data."""

    table: SymbolTable
    per_cpu: frozenset[str]
    """Names of variables that each CPU has a copy of: the image's own is freed after the start."""


def read_all_symbols(memory: KernelMemory, *, by_use: bool = True) -> AllSymbols:
    """
    Read what names a kernel's functions and data, and add what can be found otherwise.

    Takes a second where kallsyms has functions only: it needs all names, and the types.

    Parameters
    ----------
    by_use : bool
        As :func:`recover_symbols` has it.

    Raises
    ------
    FactAbsentError, CorruptError, TruncatedError, TranslationError, PageAbsentError
        As :func:`.read_kallsyms` does.
    """
    table = read_symbols(memory)
    try:
        btf = read_kernel_btf(memory, table)
        per_cpu = frozenset(name for name, _ in find_per_cpu_symbols(table, btf))
        return AllSymbols(recover_symbols(memory, table, btf, by_use=by_use), per_cpu)
    except (AbsentError, FileFaultError):
        return AllSymbols(table, frozenset())


def find_per_cpu_symbols(table: SymbolTable, btf: Btf) -> Iterator[tuple[str, int]]:
    """
    Give the variables that each CPU has, with their addresses.

    BTF has their offsets in the section (``DATASEC``, pahole's ``--btf_encode_force`` or not); where
    the section begins is told by those whose addresses are known, and at least three must agree.
    """
    base, _, names, offsets = _find_per_cpu_section(table, btf)
    if base is not None:
        for name, offset in zip(names, offsets, strict=True):
            yield name, (base + offset) & _WORD


def _find_marks(memory: KernelMemory, table: SymbolTable, btf: Btf) -> Iterator[tuple[str, int]]:
    """Give the ends of what the kernel's image has of its own: per-CPU variables, types."""
    base, size, _, _ = _find_per_cpu_section(table, btf)
    if base is not None and size:
        yield from (("__per_cpu_start", base), ("__per_cpu_end", base + size))
    if "__start_BTF" not in table:
        with contextlib.suppress(AbsentError):
            start, data = search_kernel_btf(memory)
            yield from (("__start_BTF", int(start)), ("__stop_BTF", start + len(data)))


def _find_per_cpu_section(table: SymbolTable, btf: Btf) -> tuple[int | None, int, list[str], list[int]]:
    """Find where the section of per-CPU variables begins, how long it is, and what is where in it."""
    sections = btf.items(Kind.DATASEC)
    if not len(sections.owner):
        return None, 0, [], []
    owners = np.unique(sections.owner)
    wanted = [owner for owner, name in zip(owners.tolist(), btf.names_at(owners), strict=True) if name == _PER_CPU]
    rows = np.flatnonzero(np.isin(sections.owner, wanted))
    positions = sections.words[0][rows].astype(np.int64) - btf.start_id
    names = [name.decode("latin-1") for name in btf.names_at(positions)]
    offsets = sections.words[1][rows].tolist()
    bases = Counter(
        (vaddr - offset) & _WORD
        for name, offset in zip(names, offsets, strict=True)
        if (vaddr := table.get(name)) is not None
    )
    if not bases:
        return None, 0, [], []
    ((base, witnesses),) = bases.most_common(1)
    if witnesses < _FEWEST_WITNESSES:
        return None, 0, [], []
    size = int(btf.size_or_type[wanted[0]]) if len(wanted) == 1 else 0
    return base, size, names, offsets


def find_module_list(memory: KernelMemory, btf: Btf) -> int:
    """
    Find the head of the list of modules (``kernel/module/main.c``), by a module.

    A ``struct module`` lies in memory of the module itself, which the areas of
    vmalloc (``vmap_area_list`` in VMCOREINFO, up to 6.8) lead to; it is known by a
    name and by neighbours that point back.

    Raises
    ------
    AbsentError
        If there is no such thing, or it is not in the dump.
    """
    module = btf.find_struct("module")
    link, name, name_bytes = module.offset_of("list"), module.offset_of("name"), module.size_of("name")
    for start, end in _module_areas(memory, btf):
        data, _ = memory.read_available(start, end - start)
        words = data[: len(data) // 8 * 8].view("<u8")
        step = _ALIGNMENT_BYTES // 8
        following = words[link // 8 :: step]
        before = words[link // 8 + 1 :: step]
        count = min(len(following), len(before))
        likely = np.flatnonzero((following[:count] >= _KERNEL_HALF) & (before[:count] >= _KERNEL_HALF))
        for number in likely.tolist():
            vaddr = start + number * _ALIGNMENT_BYTES
            text = data[vaddr - start + name : vaddr - start + name + name_bytes].tobytes().split(b"\0")[0]
            if text and _NAME_CHARACTERS.issuperset(text) and _points_back(memory, vaddr + link):
                return _follow(memory, vaddr + link)
    raise FactAbsentError("no module is loaded from which their list could be found")


def find_slab_caches(memory: KernelMemory, table: SymbolTable, btf: Btf) -> int:
    """
    Find the head of the list of slab caches (``mm/slab_common.c``), by one of ``kmalloc_caches``, which is exported.

    Raises
    ------
    AbsentError
        If none is known, or it is not in the dump.
    """
    caches = table.get("kmalloc_caches")
    if caches is None:
        raise FactAbsentError("no slab cache is known")
    link = btf.find_struct("kmem_cache").offset_of("list")
    # The first sizes have none where objects are larger at the least.
    pointers = memory.read_array(caches, np.uint64, _MOST_KMALLOC_SIZES).tolist()
    cache = next((pointer for pointer in pointers if pointer >= int(_KERNEL_HALF)), None)
    if cache is None or not _points_back(memory, cache + link):
        raise FactAbsentError("kmalloc_caches leads to no list of slab caches")
    return _follow(memory, cache + link)


def find_btf_modules(memory: KernelMemory, table: SymbolTable, btf: Btf, modules: int) -> int:
    """
    Find the head of the list of modules' types (``kernel/bpf/btf.c``), among what ``btf_module_notify()`` uses.

    Raises
    ------
    AbsentError
        If no module has types, or not exactly one of these is a list that begins with a module of the list *modules*.
    """
    entry = btf.find_struct("btf_module")
    link, module = entry.offset_of("list"), entry.offset_of("module")
    loaded = set(_walk(memory, modules))
    offset = btf.find_struct("module").offset_of("list")

    def begins_list(vaddr: int) -> bool:
        try:
            first = memory.read_u64(vaddr)
            return memory.read_u64(first + 8) == vaddr and memory.read_u64(first - link + module) + offset in loaded
        except AbsentError:
            return False

    found = [vaddr for vaddr in list_data_addresses(memory, table, "btf_module_notify") if begins_list(vaddr)]
    if len(found) != 1:
        raise FactAbsentError("the list of modules' types cannot be told")
    return found[0]


def _find_workqueues(memory: KernelMemory, table: SymbolTable, btf: Btf) -> int:
    """Find the head of the list of workqueues (``kernel/workqueue.c``), by one that is exported."""
    queue = memory.read_u64(_place_of(table, "system_wq"))
    entry = queue + btf.find_struct("workqueue_struct").offset_of("list")
    if not _points_back(memory, entry):
        raise FactAbsentError("system_wq leads to no list of workqueues")
    return _follow(memory, entry)


def _find_ipc_namespace(memory: KernelMemory, table: SymbolTable, btf: Btf) -> int:
    """Find the first namespace of IPC: that of the first task, in the kernel's own data."""
    proxy = memory.read_u64(_place_of(table, "init_task") + btf.find_struct("task_struct").offset_of("nsproxy"))
    vaddr = memory.read_u64(proxy + btf.find_struct("nsproxy").offset_of("ipc_ns"))
    start, end = memory.layout.image_range
    if not start <= vaddr < end:
        raise FactAbsentError("the first task has another namespace of IPC")
    return vaddr


def _place_of(table: SymbolTable, name: str) -> int:
    vaddr = table.get(name)
    if vaddr is None:
        raise FactAbsentError(f"no symbol {name}")
    return vaddr


def _walk(memory: KernelMemory, head: int) -> Iterator[int]:
    """Give the entries of a list, not more than there can be modules."""
    at = memory.read_u64(head)
    for _ in range(_MOST_MODULES):
        if at == head:
            return
        yield at
        at = memory.read_u64(at)


def _find_end(memory: KernelMemory, table: SymbolTable) -> int:
    """Find where the image ends: at the first page behind its last known symbol that is not mapped."""
    start, end = memory.layout.image_range
    inside = table.vaddrs[(table.vaddrs >= np.uint64(start)) & (table.vaddrs < np.uint64(end))]
    page_bytes = memory.page_size_bytes
    at = (int(inside.max()) // page_bytes + 1) * page_bytes if len(inside) else start
    while at < end:
        try:
            memory.translate(VirtAddr(at))
        except AbsentError:
            break
        at += page_bytes
    return at


def _module_areas(memory: KernelMemory, btf: Btf) -> Iterator[tuple[int, int]]:
    """Give the areas of vmalloc that modules lie in."""
    info = memory.vmcoreinfo
    head = info.get_symbol("vmap_area_list")
    low, high = info.get_number("MODULES_VADDR"), info.get_number("MODULES_END")
    if head is None or low is None or high is None:
        raise FactAbsentError("VMCOREINFO does not tell where modules are")
    image, image_end = memory.layout.image_range
    area = btf.find_struct("vmap_area")
    link, start, end = area.offset_of("list"), area.offset_of("va_start"), area.offset_of("va_end")
    low, high = low & _WORD, high & _WORD
    entry = memory.read_u64(head)
    for _ in range(_MOST_AREAS):
        if entry == head:
            return
        first, last = memory.read_u64(entry - link + start), memory.read_u64(entry - link + end)
        # With KASLR modules of arm64 are near the image, wherever that is (kaslr_init(), up to 6.4).
        is_near = image - _REACH_BYTES <= first < last <= image_end + _REACH_BYTES and not image <= first < image_end
        if last - first <= _LARGEST_AREA_BYTES and (is_near or low <= first < last <= high):
            yield first, last
        entry = memory.read_u64(entry)


def _points_back(memory: KernelMemory, entry: int) -> bool:
    try:
        after, before = memory.read_u64(entry), memory.read_u64(entry + 8)
        return memory.read_u64(after + 8) == entry and memory.read_u64(before) == entry
    except AbsentError:
        return False


def _follow(memory: KernelMemory, entry: int) -> int:
    """Follow a list to the entry that is in the kernel's own data: the head."""
    start, end = memory.layout.image_range
    at = entry
    for _ in range(_MOST_MODULES):
        if start <= at < end:
            return at
        at = memory.read_u64(at)
    raise FactAbsentError("the list has no head in the kernel's own data")
