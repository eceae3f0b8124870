"""
Variables that no table names, by the functions that use them and by what they must hold.

Where kallsyms has functions only (no ``CONFIG_KALLSYMS_ALL``) the code of a function whose name is known says
which variables it uses (:func:`.list_data_addresses`); which of them is which, their contents say: the array of
interrupts holds descriptors with those very numbers, the class of disks calls itself ``block``. A variable is
named only if one of the addresses, and no other, holds what it must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import AbsentError, FactAbsentError, FileFaultError
from postpanic.kernel.btf.decode import Btf
from postpanic.kernel.contents import (
    KernelData,
    is_area_tree,
    is_block_class,
    is_block_major_table,
    is_call_table,
    is_class_set,
    is_device_map,
    is_device_table,
    is_file_system_list,
    is_interrupt_tree,
    is_map_tree,
    is_memory_bus,
    is_pointer_to_text,
    is_pool_tree,
    is_power_of_two,
    is_program_tree,
    is_softirq_table,
    is_swap_table,
    is_taint,
    is_timekeeper,
    is_unit_size,
    is_wait_queue,
    list_swap_devices,
)
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.references import list_data_addresses
from postpanic.kernel.uts import read_utsname
from postpanic.units import MIB, VirtAddr

__all__ = ["VARIABLES", "find_used_variables"]

_MOST_FILE_SYSTEMS = 500
_PIECE_BYTES = 8 * MIB

_Check = Callable[[KernelData, int], bool]


@dataclass(frozen=True, slots=True)
class _Recipe:
    """
    How a variable is found.

    Attributes
    ----------
    functions : tuple of str
        Which use it; not every kernel has all.
    check : callable
        Whether it may be the variable, by what it holds.
    by_all : bool
        Whether only what all these functions use is asked about: where the contents say little.
    """

    functions: tuple[str, ...]
    check: _Check
    by_all: bool = False


def find_used_variables(memory: KernelMemory, table: SymbolTable, btf: Btf) -> Iterator[tuple[str, int]]:
    """
    Find variables by the functions that use them; what cannot be told for certain is left out.

    Yields
    ------
    tuple of str and int
        Name and address; of machines other than arm64 none.
    """
    if memory.machine != "aarch64":
        return
    kernel = KernelData(memory, table, btf)
    used: dict[str, set[int]] = {}
    for name, recipe in _RECIPES.items():
        if name in table:
            continue
        found = [vaddr for vaddr in _candidates(kernel, recipe, used) if _holds(kernel, recipe.check, vaddr)]
        if len(found) == 1:
            yield name, found[0]
            if name == "swap_info":
                yield from _find_swap_count(kernel, found[0], used)
    for name, find in _BY_WAY_OF.items():
        if name not in table:
            try:
                yield name, find(kernel)
            except (AbsentError, FileFaultError):
                continue


def _candidates(kernel: KernelData, recipe: _Recipe, used: dict[str, set[int]]) -> set[int]:
    sets = [found for name in recipe.functions if (found := _used_by(kernel, name, used))]
    if not sets:
        return set()
    found = set.intersection(*sets) if recipe.by_all else set.union(*sets)
    start, end = kernel.data_range
    inside = {vaddr for vaddr in found if start <= vaddr < end}
    # What has a name is another variable.
    named = kernel.table.vaddrs
    return {vaddr for vaddr in inside if not np.any(named == np.uint64(vaddr))}


def _used_by(kernel: KernelData, function: str, used: dict[str, set[int]]) -> set[int]:
    if function not in used:
        used[function] = list_data_addresses(kernel.memory, kernel.table, function)
    return used[function]


def _holds(kernel: KernelData, check: _Check, vaddr: int) -> bool:
    try:
        return check(kernel, vaddr)
    except (AbsentError, FileFaultError):
        return False


def _find_swap_count(kernel: KernelData, vaddr: int, used: dict[str, set[int]]) -> Iterator[tuple[str, int]]:
    """Find ``nr_swapfiles``, which says how many there are."""
    count = len(list_swap_devices(kernel, vaddr))
    users = ("si_swapinfo", "count_swap_pages")
    recipe = _Recipe(users, lambda kernel, at: kernel.memory.read_u32(at) == count, by_all=True)
    found = [at for at in _candidates(kernel, recipe, used) - {vaddr} if _holds(kernel, recipe.check, at)]
    if len(found) == 1 and "nr_swapfiles" not in kernel.table:
        yield "nr_swapfiles", found[0]


_RECIPES = {
    "tk_core": _Recipe(("ktime_get", "ktime_get_real_ts64"), is_timekeeper),
    "irq_desc_tree": _Recipe(("irq_to_desc",), is_interrupt_tree),
    "block_class": _Recipe(("__alloc_disk_node", "blk_lookup_devt"), is_block_class),
    "chrdevs": _Recipe(("chrdev_show", "__register_chrdev_region"), is_device_table),
    "cdev_map": _Recipe(("cdev_add", "cdev_del"), is_device_map),
    "softirq_vec": _Recipe(("open_softirq", "handle_softirqs", "__do_softirq"), is_softirq_table),
    "class_kset": _Recipe(("class_register", "__class_register"), is_class_set),
    "major_names": _Recipe(("blkdev_show", "__register_blkdev", "unregister_blkdev"), is_block_major_table),
    "memory_subsys": _Recipe(("for_each_memory_block", "walk_memory_blocks"), is_memory_bus),
    "pcpu_unit_size": _Recipe(("per_cpu_ptr_to_phys", "pcpu_alloc", "pcpu_nr_pages"), is_unit_size),
    "sys_call_table": _Recipe(("do_el0_svc",), is_call_table),
    "swap_info": _Recipe(("si_swapinfo", "swap_start", "get_swap_device"), is_swap_table),
    "file_systems": _Recipe(("register_filesystem", "unregister_filesystem"), is_file_system_list),
    "worker_pool_idr": _Recipe(("show_all_workqueues", "work_busy"), is_pool_tree),
    "prog_idr": _Recipe(("bpf_prog_by_id", "bpf_prog_get_curr_or_next"), is_program_tree, by_all=True),
    "map_idr": _Recipe(("bpf_map_get_curr_or_next",), is_map_tree, by_all=True),
    "vmap_area_root": _Recipe(("find_vmap_area", "remove_vm_area"), is_area_tree),
    "log_wait": _Recipe(("devkmsg_poll", "kmsg_poll", "wake_up_klogd_work_func"), is_wait_queue, by_all=True),
    "saved_command_line": _Recipe(("cmdline_proc_show",), is_pointer_to_text, by_all=True),
    "sections_per_block": _Recipe(("phys_index_show", "find_memory_block"), is_power_of_two, by_all=True),
    "tainted_mask": _Recipe(("get_taint", "test_taint"), is_taint, by_all=True),
}


def _find_init_mm(kernel: KernelData) -> int:
    """Find ``init_mm``: of the kernel's own data only this has the kernel's tables and the first user namespace."""
    root = kernel.memory.vmcoreinfo.symbol("swapper_pg_dir")
    namespace = kernel.place_of("init_user_ns")
    tables, owner = kernel.offset("mm_struct", "pgd"), kernel.offset("mm_struct", "user_ns")
    found = []
    for data, start in _read_data(kernel):
        words = data[: len(data) // 8 * 8].view(np.uint64)
        for place in np.flatnonzero(words == np.uint64(root)).tolist():
            vaddr = start + 8 * place - tables
            if _holds(kernel, lambda kernel, at: kernel.word(at + owner) == namespace, vaddr):
                found.append(vaddr)
    if len(found) != 1:
        raise FactAbsentError("the kernel's own address space cannot be told")
    return int(found[0])


def _find_banner(kernel: KernelData) -> int:
    """Find ``linux_banner`` (``init/version.c``): the one text that begins so and ends with the version and a line."""
    names = read_utsname(kernel.memory)
    beginning, end = f"Linux version {names.release} (".encode(), f" {names.version}\n".encode()
    found = []
    for data, start in _read_data(kernel):
        text = data.tobytes()
        at = text.find(beginning)
        while at >= 0:
            if text[at : text.find(b"\0", at)].endswith(end):
                found.append(start + at)
            at = text.find(beginning, at + 1)
    if len(found) != 1:
        raise FactAbsentError("the kernel's banner cannot be told")
    return found[0]


def _read_data(kernel: KernelData) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Read the image's data, piece by piece; what is not there is zeros."""
    start, end = kernel.data_range
    end = min(end, kernel.table.get("_end") or end)
    for at in range(start & ~7, end, _PIECE_BYTES):
        data, present = kernel.memory.read_available(VirtAddr(at), min(_PIECE_BYTES, end - at))
        if present.any():
            yield data, at


def _find_super_blocks(kernel: KernelData) -> int:
    """Find the head of the list of file systems in use, by the one that the first task's root is on."""
    at = kernel.place_of("init_task") + kernel.offset("task_struct", "fs")
    at = kernel.pointer(at) + kernel.offset("fs_struct", "root.mnt")
    at = kernel.pointer(at) + kernel.offset("vfsmount", "mnt_sb")
    at = kernel.pointer(at) + kernel.offset("super_block", "s_list")
    start, end = kernel.memory.layout.image_range
    for _ in range(_MOST_FILE_SYSTEMS):
        after = kernel.pointer(at)
        if kernel.word(after + 8) != at:
            break
        if start <= after < end:
            return after
        at = after
    raise FactAbsentError("the list of file systems in use has no head in the kernel's own data")


_BY_WAY_OF: dict[str, Callable[[KernelData], int]] = {
    "init_mm": _find_init_mm,
    "super_blocks": _find_super_blocks,
    "linux_banner": _find_banner,
}
VARIABLES = frozenset({*_RECIPES, *_BY_WAY_OF, "nr_swapfiles"})
"""What is looked for."""
