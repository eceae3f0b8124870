"""The layout of struct page, as every range of kernels describes it."""

from __future__ import annotations

import numpy as np
import pytest

from postpanic.errors import CorruptError, FactAbsentError
from postpanic.kernel.vmcoreinfo import parse_vmcoreinfo
from postpanic.pages.layout import PageLayout, decode_page_type, find_page_layout
from postpanic.pages.verdict import DumpLevel
from tests.builders.struct_pages import FORMS, add_entries
from tests.builders.vmcoreinfo import VmcoreinfoBuilder


def find(name: str, *, drop: tuple[str, ...] = (), replace: dict[str, object] | None = None) -> PageLayout:
    info = add_entries(VmcoreinfoBuilder(), FORMS[name])
    lines = [line for line in info.lines if line.partition("=")[0] not in drop]
    lines += [f"{key}={value}" for key, value in (replace or {}).items()]
    return find_page_layout(parse_vmcoreinfo("\n".join(lines).encode()))


@pytest.mark.parametrize(
    ("name", "order", "dtor", "tail_flag", "has_type"),
    [
        ("5.10", 17, (16, 2), 0, False),
        ("6.1", 17, (16, 2), 0, False),
        ("6.3", 17, (16, 2), 0, False),
        ("6.6", 0, None, 1 << 8, False),
        ("6.9", 0, None, 0, True),
        ("6.10", 0, None, 0, True),
        ("6.11", 0, None, 0, True),
        ("6.12", 0, None, 0, True),
        ("6.16", 0, None, 0, True),
        ("7.1", 0, None, 0, True),
    ],
)
def test_place_of_order_and_hugetlb_in_each_kernel(
    name: str, order: int, dtor: tuple[int, int] | None, tail_flag: int, *, has_type: bool
) -> None:
    layout = find(name)
    assert (layout.order, layout.hugetlb_dtor, layout.hugetlb_tail_mask) == (order, dtor, tail_flag)
    assert (layout.hugetlb is not None) == has_type
    assert layout.head == 8
    assert layout.limit_level(31) == (DumpLevel(31), ())


@pytest.mark.parametrize("name", FORMS)
def test_slab_is_a_flag_or_a_type_but_never_a_number_that_the_kernel_does_not_have(name: str) -> None:
    layout, form = find(name), FORMS[name]
    assert layout.slab_mask == (0 if form.slab_flag is None else 1 << form.slab_flag)
    assert (layout.slab is None) == (form.slab is None)


@pytest.mark.parametrize(
    ("number", "same", "other"),
    [
        # Cleared bits in -1 (4.18 to 6.10): several types at once, and any other bit cleared.
        (-129, [-129, -129 & ~0x100, -129 & ~0x40], [-1, -257, 0, 127, -2, 0x7FFFFF7F]),
        (-4097, [-4097], [-1, -129, 0]),
        # 6.11: the low 16 bits are free for use.
        (~0x40000000, [~0x40000000, ~0x40000000 & ~0xFFFF, ~0x40001234], [-1, ~0x20000000, 0, 5, 0x3FFFFFFF]),
        # Since 6.12: the top byte alone.
        ((0xF0 << 24) - (1 << 32), [0xF0000000, 0xF0123456, 0xF0FFFFFF], [-1, 0xF1000000, 0, 0xF00000, 0x70000000]),
        # An encoding that nobody knows yet is compared whole.
        (12345, [12345], [12346, 0]),
    ],
)
def test_page_type_in_each_encoding(number: int, same: list[int], other: list[int]) -> None:
    kind = decode_page_type(number)
    assert kind.matches(np.array([value & 0xFFFFFFFF for value in same], dtype=np.uint32)).all()
    assert not kind.matches(np.array([value & 0xFFFFFFFF for value in other], dtype=np.uint32)).any()


@pytest.mark.parametrize("name", FORMS)
def test_types_of_page_tables_follow_from_that_of_free_pages(name: str) -> None:
    layout = find(name)
    table = np.array([FORMS[name].table & 0xFFFFFFFF], dtype=np.uint32)
    assert any(kind.matches(table).all() for kind in layout.tables)
    assert layout.has_byte_types == (name in {"6.12", "6.16", "7.1"})


@pytest.mark.parametrize(
    ("drop", "level", "applied"),
    [
        ("OFFSET(page.compound_info)", 31, 1),
        ("NUMBER(PG_head_mask)", 31, 17),
        ("OFFSET(page.mapping)", 31, 17),
        ("NUMBER(PG_lru)", 31, 25),
        ("NUMBER(PG_private)", 31, 29),
        ("NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)", 31, 7),
        ("OFFSET(page._mapcount)", 31, 15),
        ("OFFSET(page.private)", 31, 15),
        ("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", 31, 15),
        ("OFFSET(page.private)", 8, 8),
    ],
)
def test_bit_whose_entry_is_missing_is_not_applied_and_said(drop: str, level: int, applied: int) -> None:
    result, notes = find("7.1", drop=(drop,)).limit_level(level)
    assert result == applied
    entry = drop.replace("compound_info", "compound_head")
    limited = [bit for bit in DumpLevel if level & bit & ~applied]
    for bit in limited:
        assert any(note.startswith(f"level {int(bit)} is not applied") and entry in note for note in notes)
    assert sum(note.startswith("level ") for note in notes) == len(limited)


def test_missing_mark_of_offline_pages_is_said() -> None:
    _, notes = find("6.1", drop=("NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)",)).limit_level(0)
    assert notes == ("pages that are logically offline cannot be told: VMCOREINFO lacks what marks them",)


def test_kernel_without_hugetlb_keeps_its_order_in_the_newest_place() -> None:
    layout = find("6.12", drop=("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)",))
    assert (layout.order, layout.hugetlb) == (0, None)


def test_entries_can_be_supplied_from_elsewhere_but_do_not_replace_any() -> None:
    info = parse_vmcoreinfo(
        add_entries(VmcoreinfoBuilder(), FORMS["6.1"]).text().replace(b"OFFSET(page.private)", b"x")
    )
    assert find_page_layout(info).private is None
    layout = find_page_layout(info, {"OFFSET(page.private)": 40, "OFFSET(page.mapping)": 0})
    assert (layout.private, layout.mapping) == (40, 24)
    assert layout.limit_level(16)[0] == DumpLevel.FREE


@pytest.mark.parametrize("drop", ["SIZE(page)", "OFFSET(page.flags)"])
def test_nothing_can_be_told_without_size_and_flags(drop: str) -> None:
    with pytest.raises(FactAbsentError, match=drop.replace("(", r"\(").replace(")", r"\)")):
        find("6.1", drop=(drop,))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SIZE(page)", 0),
        ("SIZE(page)", -64),
        ("SIZE(page)", 1 << 40),
        ("SIZE(page)", 61),
        ("OFFSET(page.flags)", 60),
        ("OFFSET(page.mapping)", -8),
        ("OFFSET(page.private)", 1 << 40),
        ("NUMBER(PG_lru)", 64),
        ("NUMBER(PG_lru)", -1),
        ("LENGTH(zone.free_area)", 0),
        ("LENGTH(zone.free_area)", 1000),
        ("OFFSET(folio._folio_order)", 17),
        ("OFFSET(folio._folio_order)", 128),
    ],
)
def test_value_that_no_kernel_has_is_corrupt(key: str, value: int) -> None:
    with pytest.raises(CorruptError, match=key.replace("(", r"\(").replace(")", r"\)")):
        find("6.3", replace={key: value})
