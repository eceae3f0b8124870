"""A few symbols, found without expanding all names, are those that the whole table has."""

from __future__ import annotations

import contextlib

import pytest

from postpanic.dumps.memory import PageState
from postpanic.errors import AbsentError, CorruptError, FactAbsentError, PostpanicError
from postpanic.kernel.kallsyms import read_kallsyms
from postpanic.kernel.kallsyms.lookup import find_symbols
from postpanic.kernel.memory import open_kernel_memory
from tests.builders.kallsyms import LAYOUTS, build_kallsyms
from tests.unit.kernel.memories import PAGE, PLACE, STEXT, image_paddr, make_x86_kernel, open_x86_kernel
from tests.unit.kernel.test_kallsyms import _entries_for, _lines, make_entries


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("named", [True, False], ids=["named", "by-shape"])
def test_symbols_of_every_layout_are_those_of_the_whole_table(name: str, named: bool) -> None:
    entries = _entries_for(LAYOUTS[name])
    image = build_kallsyms(entries, PLACE, LAYOUTS[name])
    memory = open_x86_kernel({PLACE: image.data}, _lines(image) if named else None)
    wanted = [entry[0] for entry in entries[::97]] + ["_stext", "_end", "r" * 300 + "_mangled", "no_such_symbol", ""]
    found = find_symbols(memory, wanted)
    table = read_kallsyms(memory)
    assert found.vaddrs == {name: table.find(name).vaddr for name in wanted if name in table}
    assert found.get("no_such_symbol") is None
    assert found.count == len(entries)


def test_names_of_the_same_letters_are_told_apart() -> None:
    entries = [("_stext", "T", STEXT), ("abc", "T", STEXT + 8), ("cab", "t", STEXT + 16), ("bca", "D", STEXT + 24)]
    entries += [(f"filler{number}", "t", STEXT + 32 + number) for number in range(3000)]
    image = build_kallsyms(entries, PLACE, LAYOUTS["6.4"])
    assert find_symbols(open_x86_kernel({PLACE: image.data}, _lines(image)), ["cab"]).vaddrs == {"cab": STEXT + 16}


def test_the_lowest_of_several_symbols_of_one_name_is_taken() -> None:
    entries = [*make_entries(600)[:-1], ("twice", "t", STEXT + 0x10000), ("twice", "T", STEXT + 0x20000)]
    image = build_kallsyms(entries, PLACE, LAYOUTS["6.4"])
    found = find_symbols(open_x86_kernel({PLACE: image.data}, _lines(image)), ["twice"])
    assert found.vaddrs == {"twice": STEXT + 0x10000}


def test_the_tables_are_all_that_is_read() -> None:
    entries = make_entries()
    image = build_kallsyms(entries, PLACE, LAYOUTS["6.4"])
    dump, _ = make_x86_kernel({PLACE: image.data}, _lines(image))
    found = find_symbols(open_kernel_memory(dump), ["_end"])
    tables = {vaddr // PAGE for start, size in found.tables for vaddr in range(start, start + size, 64)}
    for vaddr in range(PLACE, PLACE + len(image.data), PAGE):
        if vaddr // PAGE not in tables:
            dump.states[image_paddr(vaddr) // PAGE] = PageState.EXCLUDED
    assert find_symbols(open_kernel_memory(dump), ["_end"]) == found


def test_a_page_of_the_names_that_is_missing_is_an_absent_page() -> None:
    image = build_kallsyms(make_entries(), PLACE, LAYOUTS["6.4"])
    dump, _ = make_x86_kernel({PLACE: image.data}, _lines(image))
    dump.states[image_paddr(image.symbols["kallsyms_names"]) // PAGE + 1] = PageState.EXCLUDED
    with pytest.raises(AbsentError, match="left out of the dump by its filter"):
        find_symbols(open_kernel_memory(dump), ["_end"])


def test_a_table_whose_stext_is_elsewhere_is_corrupt() -> None:
    entries = [(name, letter, vaddr + (0x1000 if name == "_stext" else 0)) for name, letter, vaddr in make_entries(9)]
    entries.sort(key=lambda entry: entry[2])
    image = build_kallsyms(entries, PLACE, LAYOUTS["6.4"])
    with pytest.raises(CorruptError, match="puts _stext where"):
        find_symbols(open_x86_kernel({PLACE: image.data}, _lines(image)), ["_end"])


def test_a_table_without_stext_is_an_absent_fact() -> None:
    entries = [entry for entry in make_entries() if entry[0] != "_stext"]
    image = build_kallsyms(entries, PLACE, LAYOUTS["6.4"])
    with pytest.raises(FactAbsentError, match="no _stext"):
        find_symbols(open_x86_kernel({PLACE: image.data}, _lines(image)), ["_end"])


def test_thousands_of_names_of_one_weight_are_refused() -> None:
    entries = [("_stext", "T", STEXT), *(("tsext_", "t", STEXT + number) for number in range(5000))]
    image = build_kallsyms(entries, PLACE, LAYOUTS["6.4"])
    with pytest.raises(CorruptError, match="weigh as much"):
        find_symbols(open_x86_kernel({PLACE: image.data}, _lines(image)), ["_end"])


@pytest.mark.parametrize("step", range(0, 4096, 331))
def test_damaged_tables_end_in_an_error_or_in_symbols(step: int) -> None:
    image = build_kallsyms(make_entries(300), PLACE, LAYOUTS["6.4"])
    damaged = bytearray(image.data)
    for at in range(step, len(damaged), 4099):
        damaged[at] ^= 0xFF
    with contextlib.suppress(PostpanicError):
        find_symbols(open_x86_kernel({PLACE: bytes(damaged)}, _lines(image)), ["_end"])
