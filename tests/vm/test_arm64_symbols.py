"""Symbols of arm64 kernels, found without any table of data, against the kernel's own vmlinux."""

from __future__ import annotations

from collections import defaultdict

import pytest

from postpanic.dumps.open import open_dump
from postpanic.errors import PostpanicError
from postpanic.kernel.kallsyms import read_kallsyms
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.recovered import read_all_symbols
from postpanic.kernel.references import find_referenced_symbols
from tests.vm.arm64 import fetch_dump
from tests.vm.arm64_debug import fetch_debug_info
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
}
NOT_SYMBOLS = {"node_online_map"}
"""Names that VMCOREINFO has for something that vmlinux calls otherwise."""
ENDS = {"_end", "__bss_stop", "init_pg_dir", "init_pg_end", "early_init_stack"}
"""Behind the last section, which is all that a debugger moves by the offset of KASLR."""


@pytest.mark.parametrize("key", ["6.1", "6.12"])
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
    assert {symbol.name for symbol in wrong} <= NOT_SYMBOLS | ENDS
    assert {symbol.name for symbol in ours} >= RECOVERED
    assert len(ours) > 45_000


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
