"""Symbols of arm64 kernels, found without any table of data, against the kernel's own vmlinux."""

from __future__ import annotations

from collections import defaultdict

import pytest

from postpanic.dumps.open import open_dump
from postpanic.errors import PostpanicError
from postpanic.kernel.btf.find import read_kernel_btf
from postpanic.kernel.kallsyms import read_kallsyms
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.recovered import read_all_symbols
from postpanic.kernel.references import find_referenced_symbols
from postpanic.kernel.variables_by_use import VARIABLES, find_used_variables
from tests.vm.arm64 import fetch_dump
from tests.vm.arm64_debug import fetch_debug_info
from tests.vm.arm64_work import fetch_work
from tests.vm.lab import Lab
from tests.vm.oracle import open_real

pytestmark = pytest.mark.matrix

RECOVERED = {
    "modules",
    "btf_modules",
    "slab_caches",
    "panic_cpu",
    "crash_notes",
    "runqueues",
    "init_task",
    "__per_cpu_offset",
    # By the functions that use them.
    *("tk_core", "block_class", "chrdevs", "cdev_map", "softirq_vec", "sys_call_table", "file_systems"),
    *("worker_pool_idr", "prog_idr", "map_idr", "log_wait", "saved_command_line", "sections_per_block"),
    *("tainted_mask", "init_mm", "super_blocks", "linux_banner", "class_kset", "major_names", "memory_subsys"),
    "pcpu_unit_size",
    # By what the types say, and where they are.
    *("__per_cpu_start", "__per_cpu_end", "__start_BTF", "__stop_BTF"),
}
BY_USE_IN = {"6.1": {"irq_desc_tree", "vmap_area_root"}}
"""Of kernels that have these."""
NOT_IN = {"newest": {"tk_core"}}
"""Of kernels that call it otherwise."""
NOT_SYMBOLS = {"node_online_map"}
"""Names that VMCOREINFO has for something that vmlinux calls otherwise."""
ENDS = {"_end", "__bss_stop", "init_pg_dir", "init_pg_end", "early_init_stack"}
"""Behind the last section, which is all that a debugger moves by the offset of KASLR."""


@pytest.mark.parametrize("key", ["6.1", "6.12", "newest"])
def test_every_symbol_is_vmlinuxs(crash_lab: Lab, key: str) -> None:
    try:
        dump = fetch_dump(crash_lab, key)
        real = open_real(dump.path, fetch_debug_info(crash_lab, key, dump).vmlinux, [])
    except PostpanicError as exc:
        pytest.skip(f"no arm64 machine, or no debug information: {exc}")
    theirs: dict[str, set[int]] = defaultdict(set)
    for symbol in real.symbols():
        theirs[symbol.name].add(symbol.address)
    with open_dump(dump.path) as opened:
        ours = list(read_all_symbols(open_kernel_memory(opened)).table)
    wrong = [symbol for symbol in ours if symbol.vaddr not in theirs[symbol.name]]
    # The early code that is position-independent has names of its own for them.
    assert {symbol.name.removeprefix("__pi_") for symbol in wrong} <= NOT_SYMBOLS | ENDS
    assert {symbol.name for symbol in ours} >= (RECOVERED | BY_USE_IN.get(key, set())) - NOT_IN.get(key, set())
    assert len(ours) > 45_000


MAY_BE_MISSING = {
    # Without a device there is nothing to tell them by.
    "6.12": {"swap_info", "nr_swapfiles", "chrdevs", "file_systems", "major_names"},
    "newest": {"swap_info", "nr_swapfiles", "file_systems", "init_mm"},
}
"""Names that share an address with another, or are of another kind; nothing is found then."""


@pytest.mark.parametrize("key", ["6.12", "newest"], ids=lambda key: f"arm64-{key}")
def test_variables_found_by_their_use_are_those_of_the_table(crash_lab: Lab, key: str) -> None:
    """Kernels that name their data: what is found as if they did not must be the same, and nothing must be wrong."""
    try:
        dump = fetch_dump(crash_lab, key)
    except PostpanicError as exc:
        pytest.skip(f"no arm64 machine: {exc}")
    with open_dump(dump.path) as opened:
        memory = open_kernel_memory(opened)
        table = read_kallsyms(memory)
        kept = [number for number, symbol in enumerate(table) if symbol.name not in VARIABLES]
        without = type(table)(table.vaddrs[kept], table.types[kept], table.names, table.name_offsets[kept])
        found = dict(find_used_variables(memory, without, read_kernel_btf(memory, table)))
    known = {name: vaddr for name in VARIABLES if (vaddr := table.get(name)) is not None}
    assert {name: vaddr for name, vaddr in found.items() if known.get(name) != vaddr} == {}
    assert set(known) - set(found) <= MAY_BE_MISSING[key]
    assert len(found) >= 12


@pytest.mark.parametrize("key", ["6.1", "6.12"], ids=lambda key: f"arm64-{key}")
def test_swap_devices_are_found_where_there_is_one(crash_lab: Lab, key: str) -> None:
    try:
        work = fetch_work(crash_lab, key, "swapped")
    except PostpanicError as exc:
        pytest.skip(f"no arm64 machine: {exc}")
    names = ("swap_info", "nr_swapfiles")
    with open_dump(work.dump) as opened:
        memory = open_kernel_memory(opened)
        table = read_kallsyms(memory)
        kept = [number for number, symbol in enumerate(table) if symbol.name not in names]
        without = type(table)(table.vaddrs[kept], table.types[kept], table.names, table.name_offsets[kept])
        found = dict(find_used_variables(memory, without, read_kernel_btf(memory, table)))
    # 6.1 does not say; that it is right is told by what it leads to (test_arm64_swap).
    assert all(found[name] == (table.get(name) or found[name]) for name in names)


def test_code_tells_what_the_table_of_data_does(crash_lab: Lab) -> None:
    """6.12 names its data: what is found without looking there must be the same."""
    try:
        dump = fetch_dump(crash_lab, "6.12")
    except PostpanicError as exc:
        pytest.skip(f"no arm64 machine: {exc}")
    with open_dump(dump.path) as opened:
        memory = open_kernel_memory(opened)
        table = read_kallsyms(memory)
        kept = [number for number, symbol in enumerate(table) if symbol.name not in {"panic_cpu", "crash_notes"}]
        without = type(table)(table.vaddrs[kept], table.types[kept], table.names, table.name_offsets[kept])
        found = dict(find_referenced_symbols(memory, without))
        assert found == {"panic_cpu": table.get("panic_cpu"), "crash_notes": table.get("crash_notes")}
