from __future__ import annotations

import struct

import pytest

from postpanic.errors import FactAbsentError
from postpanic.kernel.ksymtab import make_vmcoreinfo_symbols, read_exported_symbols, read_symbols
from tests.builders.kallsyms import LAYOUTS, build_kallsyms
from tests.unit.kernel.memories import PLACE, STEXT, open_x86_kernel

TABLE = STEXT + 0x600000


def build_ksymtab(exports: list[tuple[str, int]], vaddr: int) -> bytes:
    """Build exports as ``include/linux/export-internal.h`` has them; every fourth has no name space string."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name, _ in exports)
    strings_vaddr = vaddr + 12 * len(exports) + 64
    table = b""
    for number, (name, symbol) in enumerate(exports):
        entry = vaddr + 12 * number
        name_vaddr = strings_vaddr + strings.index(b"\0" + name.encode() + b"\0") + 1
        space = 0 if number % 4 == 0 else strings_vaddr - (entry + 8)
        table += struct.pack("<Iii", (symbol - entry) & 0xFFFFFFFF, name_vaddr - (entry + 4), space)
    return table + bytes(64) + strings


EXPORTS = [(f"exported_{number:03}", STEXT + 0x100000 + 32 * number) for number in range(200)]
EXPORTS += [("init_task", STEXT + 0x1500000), ("cpu_number", 0x1A048)]


@pytest.mark.parametrize("place", [TABLE, TABLE + 4, STEXT + (8 << 20) - 600])
def test_exported_symbols_are_found_by_the_shape_of_their_table(place: int) -> None:
    memory = open_x86_kernel({place: build_ksymtab(EXPORTS, place)})
    table = read_exported_symbols(memory)
    assert {symbol.name: symbol.vaddr for symbol in table} == dict(EXPORTS)
    assert {symbol.type for symbol in table} == {"D"}


def test_smaller_table_of_a_module_is_not_taken_for_the_kernels() -> None:
    module = [(f"module_{number}", STEXT + 64 * number) for number in range(60)]
    memory = open_x86_kernel(
        {TABLE - 0x100000: build_ksymtab(module, TABLE - 0x100000), TABLE: build_ksymtab(EXPORTS, TABLE)}
    )
    assert {symbol.name for symbol in read_exported_symbols(memory)} == dict(EXPORTS).keys()


def test_image_without_exports_is_a_fact_that_is_absent() -> None:
    with pytest.raises(FactAbsentError, match="no table of exported symbols"):
        read_exported_symbols(open_x86_kernel({TABLE: struct.pack("<3i", 64, 64, 64) * 500}))


def test_vmcoreinfo_names_symbols_of_the_image_only() -> None:
    lines = [("SYMBOL", "prb", STEXT + 0x1400000), ("SYMBOL", "mem_section", 0xFFFF8B79FFFD3000)]
    table = make_vmcoreinfo_symbols(open_x86_kernel(lines=lines))
    assert table.get("prb") == STEXT + 0x1400000
    assert "mem_section" not in table


def test_kallsyms_without_data_is_filled_up_from_the_other_sources() -> None:
    entries = [("_stext", "T", STEXT)] + [(f"function_{n}", "t", STEXT + 16 * n) for n in range(1, 3000)]
    image = build_kallsyms(entries, PLACE, LAYOUTS["5.10-arm64"])
    lines = [("SYMBOL", "prb", STEXT + 0x1400000)]
    parts = {PLACE: image.data, TABLE: build_ksymtab(EXPORTS, TABLE)}
    table = read_symbols(open_x86_kernel(parts, lines))
    assert table.get("function_7") == STEXT + 16 * 7
    assert table.get("prb") == STEXT + 0x1400000
    assert table.get("init_task") == STEXT + 0x1500000
    without = read_symbols(open_x86_kernel({PLACE: image.data}, lines))
    assert without.get("prb") == STEXT + 0x1400000
    assert "init_task" not in without
