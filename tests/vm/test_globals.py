"""The table of globals carries over to a kernel that took no part in making it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import drgn
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.program import open_program
from tests.vm.lab import Crash
from tests.vm.oracle import open_real

KERNEL_THAT_TOOK_NO_PART = "newest"
TYPED_EXACTLY = 0.97


def unique_data_symbols(vmlinux: Path) -> list[str]:
    with vmlinux.open("rb") as file:
        symtab = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(symtab, SymbolTableSection)
        counts = Counter(symbol.name for symbol in symtab.iter_symbols() if symbol.entry.st_info.type == "STT_OBJECT")
    return [name for name, count in counts.items() if count == 1 and "." not in name]


def type_of(prog: drgn.Program, name: str) -> drgn.Type | None:
    try:
        return prog.variable(name).type_
    except LookupError:
        return None


def same_type(expected: drgn.Type, found: drgn.Type) -> bool:
    if expected.type_name() != found.type_name():
        return False
    if "<anonymous>" in expected.type_name():
        return str(expected) == str(found)
    return True


def size_of(type_: drgn.Type) -> int | None:
    try:
        return int(drgn.sizeof(type_))
    except TypeError:
        return None


def test_globals_are_typed_as_dwarf_has_them(crashed: Callable[..., Crash], tmp_path: Path) -> None:
    crash = crashed(KERNEL_THAT_TOOK_NO_PART)
    assert crash.vmlinux is not None
    real = open_real(crash.filtered, crash.vmlinux, [])
    exact = other = untyped = 0
    wrong_size: list[str] = []
    with open_program([crash.filtered], policy=DebugPolicy.SYNTHESIZED, cache_directory=tmp_path) as opened:
        for name in unique_data_symbols(crash.vmlinux):
            expected, found = type_of(real, name), type_of(opened.prog, name)
            if expected is None:
                continue
            if found is None:
                untyped += 1
            elif same_type(expected, found):
                exact += 1
            else:
                other += 1
                if None not in {size_of(expected), size_of(found)} and size_of(expected) != size_of(found):
                    wrong_size.append(f"{name}: {expected.type_name()} / {found.type_name()}")
    assert exact + other + untyped > 20_000
    assert exact / (exact + other + untyped) >= TYPED_EXACTLY, (exact, other, untyped)
    assert wrong_size == []
