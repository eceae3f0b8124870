"""Variables found by the code of arm64 that uses them; instructions are put together from the Arm ARM, C6.2."""

from __future__ import annotations

import struct

import pytest

from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.kallsyms.symbols import make_table_of_names
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.kernel.references import find_referenced_symbols, list_data_addresses
from tests.builders.page_tables import PageTableBuilder
from tests.builders.vmcoreinfo import build_aarch64_vmcoreinfo
from tests.unit.kernel.memories import DictDump

STEXT, VOFFSET = 0xFFFF800080010000, 0xFFFF800040000000
SWAPPER = STEXT + 0x1000000
CRASH_KEXEC, PANIC, SAVE_CPU, BEHIND = STEXT + 0x1000, STEXT + 0x1400, STEXT + 0x1800, STEXT + 0x1C00
DATA = STEXT + 0x200000
PANIC_CPU, OTHER, NOTES, OFFSETS = DATA + 0x60, DATA + 0x80, DATA + 0x100, DATA + 0x200
PER_CPU = 0x10000

MOVE_X20_X0 = 0xAA0003F4
CALL = 0x94000010
RETURN = 0xD65F03C0


def adrp(register: int, vaddr: int, pc: int) -> int:
    pages = (vaddr >> 12) - (pc >> 12) & 0x1FFFFF
    return 0x90000000 | (pages & 3) << 29 | pages >> 2 << 5 | register


def add(target: int, source: int, immediate: int) -> int:
    return 0x91000000 | immediate << 10 | source << 5 | target


def load(target: int, source: int, immediate: int, size: int = 2) -> int:
    return size << 30 | 0x39400000 | immediate >> size << 10 | source << 5 | target


def name_panic_cpu(pc: int) -> list[int]:
    return [adrp(0, PANIC_CPU, pc), add(0, 0, PANIC_CPU & 0xFFF), RETURN]


def name_by_anchor(pc: int) -> list[int]:
    """Name it, and its neighbour, by way of one anchor that survives a call."""
    anchor = [adrp(0, DATA, pc), add(0, 0, 0x40), MOVE_X20_X0, CALL]
    return [*anchor, add(1, 20, PANIC_CPU - DATA - 0x40), load(2, 20, OTHER - DATA - 0x40), RETURN]


def name_notes(pc: int) -> list[int]:
    return [adrp(1, NOTES, pc), load(2, 1, NOTES & 0xFFF, 3), adrp(3, OFFSETS, pc), add(3, 3, OFFSETS & 0xFFF), RETURN]


def open_kernel(
    crash_kexec: list[int], panic: list[int], *, panic_cpu: int = 1, notes: int = DATA - PER_CPU
) -> tuple[KernelMemory, SymbolTable]:
    info = build_aarch64_vmcoreinfo(
        stext=STEXT, swapper=SWAPPER, kimage_voffset=VOFFSET, page_size=4096, va_bits=48, t1sz=16
    )
    dump = DictDump(machine="aarch64", vmcoreinfo=info.text(), page_size=4096)
    tables = PageTableBuilder("arm", tables_paddr=SWAPPER - VOFFSET)
    for page in (CRASH_KEXEC & ~0xFFF, DATA):
        tables.map(page, page - VOFFSET)
    for vaddr, words in ((CRASH_KEXEC, crash_kexec), (PANIC, panic), (SAVE_CPU, name_notes(SAVE_CPU))):
        dump.write(vaddr - VOFFSET, struct.pack(f"<{len(words)}I", *words))
    for vaddr, form, value in ((PANIC_CPU, "I", panic_cpu), (NOTES, "Q", notes), (OFFSETS, "Q", PER_CPU)):
        dump.write(vaddr - VOFFSET, struct.pack(f"<{form}", value))
    for paddr, contents in tables.pages().items():
        dump.write(paddr, contents)
    names = {"_stext": STEXT, "_etext": DATA, "__per_cpu_offset": OFFSETS, "behind": BEHIND}
    names |= {"crash_kexec": CRASH_KEXEC, "panic": PANIC, "crash_save_cpu": SAVE_CPU}
    return open_kernel_memory(dump), make_table_of_names(names.items())


def test_addresses_are_put_together_also_by_way_of_an_anchor() -> None:
    memory, table = open_kernel(name_panic_cpu(CRASH_KEXEC), name_by_anchor(PANIC))
    assert list_data_addresses(memory, table, "crash_kexec") == {PANIC_CPU}
    assert list_data_addresses(memory, table, "panic") == {DATA + 0x40, PANIC_CPU, OTHER}
    assert list_data_addresses(memory, table, "no_such_function") == set()


def test_call_forgets_what_it_may_change() -> None:
    lost = [adrp(0, DATA, PANIC), CALL, add(0, 0, 0x60), RETURN]
    memory, table = open_kernel(name_panic_cpu(CRASH_KEXEC), lost)
    assert list_data_addresses(memory, table, "panic") == set()


@pytest.mark.parametrize("cpu", [0, 1, 0xFFFF_FFFF])
def test_variables_are_those_that_all_their_functions_use(cpu: int) -> None:
    memory, table = open_kernel(name_panic_cpu(CRASH_KEXEC), name_by_anchor(PANIC), panic_cpu=cpu)
    assert dict(find_referenced_symbols(memory, table)) == {"panic_cpu": PANIC_CPU, "crash_notes": NOTES}


def test_what_is_not_certain_is_left_out() -> None:
    both = name_by_anchor(CRASH_KEXEC)
    memory, table = open_kernel(both, name_by_anchor(PANIC))
    assert "panic_cpu" not in dict(find_referenced_symbols(memory, table))
    memory, table = open_kernel(name_panic_cpu(CRASH_KEXEC), name_by_anchor(PANIC), panic_cpu=70_000, notes=0)
    assert dict(find_referenced_symbols(memory, table)) == {}
    memory, table = open_kernel(name_panic_cpu(CRASH_KEXEC), [RETURN])
    assert "panic_cpu" not in dict(find_referenced_symbols(memory, table))


def test_names_that_are_known_are_not_searched() -> None:
    memory, table = open_kernel(name_panic_cpu(CRASH_KEXEC), name_by_anchor(PANIC))
    known = table.merge(make_table_of_names([("panic_cpu", OTHER), ("crash_notes", OTHER)]))
    assert dict(find_referenced_symbols(memory, known)) == {}
