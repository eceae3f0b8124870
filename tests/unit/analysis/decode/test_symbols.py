"""Functions are told apart by their size, and nothing is said of one whose size is another."""

from __future__ import annotations

import pytest

from postpanic.analysis.decode.symbols import Fit, Symbol, SymbolTable, plain_name

TABLE = SymbolTable(
    [
        Symbol(0x1000, "start", 0x20),
        Symbol(0x1020, "show", 0x33),
        Symbol(0x1060, "store", 0x40),
        Symbol(0x10A0, "show", 0x7B),
        Symbol(0x1120, "__pfx_open"),
        Symbol(0x1130, "open", 0x10),
        Symbol(0x1140, "walk.isra.0", 0x30),
        Symbol(0x1170, "walk.part.0.cold", 0x15),
        Symbol(0x1188, "stop", 0x8),
        Symbol(0x1190, ".Ltmp"),
        Symbol(0x11A0, "twin", 0x20),
        Symbol(0x11C0, "twin", 0x20),
        Symbol(0x11E0, "end"),
    ],
    ends=[0x2000],
)


@pytest.mark.parametrize(
    ("name", "size", "fit", "vaddrs"),
    [
        ("start", 0x20, Fit.EXACT, [0x1000]),
        # The kernel prints the distance to the next symbol, ELF has the size of the code.
        ("show", 0x40, Fit.EXACT, [0x1020]),
        ("show", 0x33, Fit.EXACT, [0x1020]),
        # Behind it is padding that some kernels list as a symbol.
        ("show", 0x80, Fit.EXACT, [0x10A0]),
        ("show", 0x90, Fit.EXACT, [0x10A0]),
        ("show", 0x8C, Fit.PADDED, [0x10A0]),
        ("show", 0x400, Fit.NAME, [0x1020, 0x10A0]),
        # What compilers append need not agree if the size does.
        ("walk", 0x30, Fit.ALIAS, [0x1140]),
        ("walk.constprop.1", 0x30, Fit.ALIAS, [0x1140]),
        ("walk.cold", 0x15, Fit.ALIAS, [0x1170]),
        ("walk.part.0.cold", 0x18, Fit.EXACT, [0x1170]),
        ("twin", 0x20, Fit.EXACT, [0x11A0, 0x11C0]),
        # Up to the end of what it lies in.
        ("end", 0xE20, Fit.EXACT, [0x11E0]),
    ],
)
def test_find(name: str, size: int, fit: Fit, vaddrs: list[int]) -> None:
    match = TABLE.find(name, size)
    assert match is not None
    assert (match.fit, [symbol.vaddr for symbol in match.symbols]) == (fit, vaddrs)


@pytest.mark.parametrize(("name", "size"), [("walk", 0x31), ("nothing", 0x20), (".Ltmp", 0x10)])
def test_what_is_not_there(name: str, size: int) -> None:
    assert TABLE.find(name, size) is None


def test_without_a_size_the_offset_decides() -> None:
    match = TABLE.find("show", None, 0x60)
    assert match is not None
    assert [symbol.vaddr for symbol in match.symbols] == [0x10A0]


@pytest.mark.parametrize(
    ("vaddr", "name"), [(0x1000, "start"), (0x101F, "start"), (0x1052, "show"), (0x10FF, "show"), (0xFFF, None)]
)
def test_at(vaddr: int, name: str | None) -> None:
    symbol = TABLE.at(vaddr)
    assert (symbol.name if symbol is not None else None) == name


def test_of_two_names_of_one_place_the_function_is_given() -> None:
    symbol = SymbolTable([Symbol(0x10, "label"), Symbol(0x10, "function", 8), Symbol(0x20, "next")]).at(0x14)
    assert symbol is not None
    assert symbol.name == "function"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("foo.cold", "foo"),
        ("foo.part.12.isra.0", "foo"),
        ("foo.llvm.123456789", "foo"),
        ("foo.1", "foo"),
        (".sys_read", ".sys_read"),
        ("foo.colder", "foo.colder"),
        ("isra.0", "isra"),
    ],
)
def test_plain_name(name: str, plain: str) -> None:
    assert plain_name(name) == plain
