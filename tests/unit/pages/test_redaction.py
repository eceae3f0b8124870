from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from postpanic.errors import CorruptError, FactAbsentError, PostpanicError, UnsupportedError, UsageError
from postpanic.kernel.memory import open_kernel_memory
from postpanic.pages.redaction import ERASED_BYTE, Erasure, plan_erasure
from postpanic.pages.redaction.requests import parse_member_request, parse_symbol_request
from tests.builders.btf import BtfBuilder
from tests.builders.slab import Cache, build_slab_types
from tests.unit.kernel.memories import image_paddr, make_x86_kernel
from tests.unit.pages.slab_kernel import CPU_OFFSETS, SlabKernel, build_types, make_slab_kernel

PAGE = 4096
SECRET = Cache("secret", 64, 48, 10)
OTHER = Cache("other", 32, 32, 128)


def kernel(*caches: Cache, **options: object) -> SlabKernel:
    copies = [dataclasses.replace(cache) for cache in caches or (SECRET, OTHER)]
    return make_slab_kernel(copies, **options)  # type: ignore[arg-type]


def slots_of(erasure: Erasure, below: int = 64) -> list[tuple[int, int, int]]:
    """Ranges in the frames of slabs; the kernel's variables are in higher ones."""
    rows = zip(erasure.pfns.tolist(), erasure.offsets.tolist(), erasure.lengths.tolist(), strict=True)
    return [row for row in rows if row[0] < below]


def starts_of(erasure: Erasure) -> set[int]:
    return set((erasure.pfns * np.uint64(PAGE) + erasure.offsets).tolist())


def test_member_is_erased_in_every_slot_used_or_free() -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, ["secret.key"], [], made.block({5: ("secret", 10), 6: ("other", 128)}))
    assert slots_of(erasure) == [(5, 64 * slot + 8, 16) for slot in range(10)]
    assert erasure.gaps == ()


def test_variables_of_the_type_are_erased_in_every_cpu_but_not_where_memory_was_freed() -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, ["secret.key"], [], made.block({}))
    places = [made.symbols["the_secret"], *(made.symbols["secrets"] + 40 * number for number in range(3))]
    places += [made.symbols["cpu_secret"] + offset for offset in CPU_OFFSETS]
    assert starts_of(erasure) == {image_paddr(place + 8) for place in places}
    assert erasure.records[0].objects == 6
    assert erasure.records[0].size_bytes == 6 * 16


@pytest.mark.parametrize(
    ("request_", "offset", "length"),
    [("secret.pin.digits", 28, 4), ("struct secret.pin", 24, 8), ("secret.rest", 40, 8), ("secret.id@secret", 0, 8)],
)
def test_nested_members_and_arrays_without_length(request_: str, offset: int, length: int) -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, [request_], [], made.block({7: ("secret", 3)}))
    assert slots_of(erasure) == [(7, 64 * slot + offset, length) for slot in range(3)]


def test_objects_behind_a_red_zone_and_across_pages() -> None:
    made = kernel(Cache("secret", 1000, 900, 8, order=1, red_left_pad=64))
    erasure = plan_erasure(made.kernel, ["secret.key"], [], made.block({4: ("secret", 8)}))
    # The fifth object begins 24 bytes before the second page: its key is cut in two.
    base = [4 * PAGE + 64 + 1000 * slot + 8 for slot in range(8)]
    assert sum(length for _, _, length in slots_of(erasure)) == 8 * 16
    assert {place for place in base if place % PAGE <= PAGE - 16} <= starts_of(erasure)


def test_range_across_the_end_of_a_page_is_cut_in_two() -> None:
    erasure = Erasure.from_ranges([(np.array([PAGE - 4], np.uint64), np.array([2 * PAGE + 3], np.uint64))], PAGE)
    rows = zip(erasure.pfns.tolist(), erasure.offsets.tolist(), erasure.lengths.tolist(), strict=True)
    assert list(rows) == [(0, PAGE - 4, 4), (1, 0, PAGE), (2, 0, 3)]


def test_page_of_its_own_is_erased_as_a_whole() -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, ["secret.key"], [], made.block({5: ("secret", 1)}))
    assert slots_of(erasure) == [(5, 0, PAGE)]
    assert "KFENCE" in erasure.records[0].notes[0]


def test_slab_of_an_impossible_count_is_full() -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, ["secret.key"], [], made.block({5: ("secret", 11), 6: ("secret", 0)}))
    assert len(slots_of(erasure)) == 20
    assert "2 slabs do not tell" in erasure.records[0].notes[0]


def test_cache_that_was_merged_is_found_by_its_variable_and_by_its_alias() -> None:
    cache = Cache("shared", 64, 64, 10, refcount=3)
    links = [("shared", "shared"), ("cred_jar", "shared"), ("third", "shared")]
    types = build_types()
    word = types.next_id
    types.int_("u64", 8)
    types.struct("cred", 16, [("uid", word, 64)])
    types.struct("third", 16, [("word", word, 0)])
    for options in ({"pointers": {"cred_jar": "shared"}}, {"links": links}):
        made = kernel(OTHER, cache, types=types, **options)
        erasure = plan_erasure(made.kernel, ["cred.uid"], [], made.block({9: ("shared", 2)}))
        assert slots_of(erasure) == [(9, 8, 8), (9, 72, 8)]
        assert "3 caches merged into one" in erasure.records[0].notes[0]
    assert "(shared, cred_jar, third)" in erasure.records[0].notes[0]
    found = plan_erasure(made.kernel, ["third.word"], [], made.block({9: ("shared", 2)}))
    assert slots_of(found) == [(9, 0, 8), (9, 64, 8)]


def test_slabs_of_kernels_with_a_page_flag() -> None:
    made = kernel(page_type=False)
    block = made.block({5: ("secret", 10)})
    assert slots_of(plan_erasure(made.kernel, ["secret.key"], [], block)) == []
    rows = block[0].rows.copy()
    rows[:, 1] |= 2
    block[0].rows = rows
    assert len(slots_of(plan_erasure(made.kernel, ["secret.key"], [], block))) == 10


def test_what_a_pointer_leads_to_is_said_to_stay() -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, ["secret.next"], [], made.block({}))
    assert erasure.records[0].notes == ("it is void *: what it leads to is not erased",)


@pytest.mark.parametrize(
    ("text", "error", "words", "hint"),
    [
        ("secrt.key", FactAbsentError, "no struct secrt", "secret"),
        ("secret.kye", FactAbsentError, "struct secret has no member kye", "key"),
        ("secret.pin.digit", FactAbsentError, "struct pin has no member digit", "digits"),
        ("secret.key.x", FactAbsentError, r"secret.key is char \[16\], it has no member x", ""),
        ("secret.next.x", FactAbsentError, r"secret.next is void \*", "pointers are not followed"),
        ("secret.key@othr", FactAbsentError, "no slab cache othr", "other"),
        ("secret.rest@other", UsageError, "objects of slab cache other have 32", ""),
        ("page.flags", FactAbsentError, "no slab cache and no variable", "@CACHE"),
        ("bits.one", UsageError, "a bit-field of 1 bits", ""),
    ],
)
def test_what_there_is_not(text: str, error: type[PostpanicError], words: str, hint: str) -> None:
    made = kernel()
    with pytest.raises(error, match=words) as caught:
        plan_erasure(made.kernel, [text], [], made.block({}))
    assert hint in caught.value.hint


def test_caches_of_the_size_are_offered() -> None:
    made = kernel(Cache("other", 32, 32, 4), Cache("eight", 8, 8, 512), Cache("pages", 64, 64, 64))
    with pytest.raises(FactAbsentError) as caught:
        plan_erasure(made.kernel, ["page.flags"], [], made.block({}))
    assert "of this size: pages" in caught.value.hint


def test_variables_by_name() -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, [], ["the_secret", "plain", "secrets.key", "far:32", "cpu_secret.pin.digits"])
    expected = {
        "the_secret": (1, 40),
        "plain": (1, 24),
        "secrets.key": (3, 48),
        "far:32": (1, 32),
        "cpu_secret.pin.digits": (2, 8),
    }
    assert {record.request: (record.objects, record.size_bytes) for record in erasure.records} == expected
    assert image_paddr(made.symbols["far"]) in starts_of(erasure)
    for offset in CPU_OFFSETS:
        assert image_paddr(made.symbols["cpu_secret"] + offset + 28) in starts_of(erasure)
    assert erasure.text.splitlines()[2:4] == [b"erase secrets.key size 48", b"erase far size 32"]
    assert erasure.record[1] == {
        "request": "plain",
        "objects": 1,
        "bytes": 24,
        "notes": ["its size is not known: erased up to the next symbol, 24 bytes"],
        "gaps": [],
    }


def test_what_a_variable_points_at_is_erased_when_asked_for() -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, [], ["text_pointer->", "secret_pointer->", "the_secret.next->:8", "plain->:16"])
    assert [record.size_bytes for record in erasure.records] == [11, 40, 0, 0]
    text = made.kernel.read_u64(made.symbols["text_pointer"])
    assert made.kernel.read(text, 11) == b"top secret\0"
    assert {image_paddr(text), image_paddr(made.kernel.read_u64(made.symbols["secret_pointer"]))} <= starts_of(erasure)
    assert image_paddr(made.symbols["text_pointer"]) not in starts_of(erasure)
    assert erasure.records[0].expression == "text_pointer->"
    assert erasure.records[2].notes == ("it leads nowhere (NULL)",)
    pointer = plan_erasure(made.kernel, [], ["text_pointer"])
    assert pointer.records[0].notes == ("it is const char *: what it leads to is not erased, text_pointer-> would be",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the_secret->", "the_secret is no pointer"),
        ("plain->", "plain has no known type"),
        ("null_pointer->", "how much it leads to is not known"),
        ("text_pointer->:2G", "more than 1.0 GiB"),
    ],
)
def test_pointers_that_cannot_be_followed(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_erasure(kernel().kernel, [], [text])


def test_variable_whose_memory_was_freed_is_a_gap() -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, [], ["freed_secret"])
    assert len(erasure) == 0
    assert "was freed when the kernel had started" in erasure.gaps[0]


def test_size_beyond_the_next_symbol_is_noted_and_what_is_not_mapped_is_a_gap() -> None:
    made = kernel()
    erasure = plan_erasure(made.kernel, [], ["plain:1000M"])
    assert "has room for 24 bytes" in erasure.records[0].notes[0]
    # The kernel image's mapping ends at 1 GiB.
    mapped = 0xFFFFFFFFC0000000 - made.symbols["plain"]
    assert erasure.records[0].size_bytes == mapped
    assert erasure.gaps[0].startswith(f"plain:1000M: {1000 * (1 << 20) - mapped} bytes")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("the_secrt", FactAbsentError, "no symbol the_secrt"),
        ("a_function", UsageError, "a_function is a function"),
        ("far", UsageError, "the size of far is not known"),
        ("plain.x", FactAbsentError, "type of plain is not known"),
        ("the_secret.nope", FactAbsentError, "no member nope"),
        ("plain:2G", UsageError, "more than 1.0 GiB"),
    ],
)
def test_variables_that_cannot_be_erased(text: str, error: type[PostpanicError], words: str) -> None:
    with pytest.raises(error, match=words):
        plan_erasure(kernel().kernel, [], [text])


@pytest.mark.parametrize(
    "text", ["", "task_struct", "a.b.", ".b", "a->b", "a.b->c", "*a.b", "a b.c", "a.b@", "a.b[1]", "x." + "y" * 600]
)
def test_requests_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_member_request(text)


@pytest.mark.parametrize("text", ["", "a:", "a:x", "a:0", "a:-1", "a->b", "a b", "a.b:", "a:1:2", "1a"])
def test_symbol_requests_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_symbol_request(text)


def test_requests_are_parsed() -> None:
    request = parse_member_request("union key.payload.data@key_jar")
    assert (request.struct, request.member, request.cache) == ("key", "payload.data", "key_jar")
    assert request.expression == "key.payload.data"
    symbol = parse_symbol_request("count.12.a.b:0x20")
    assert (symbol.symbol, symbol.member, symbol.size_bytes) == ("count.12", "a.b", 32)


def test_list_of_caches_that_does_not_end() -> None:
    made = kernel()
    loop = made.caches["other"] + 40
    with pytest.raises(CorruptError, match="leads back to"):
        plan_erasure(kernel(end_of_list=loop).kernel, ["secret.key"], [], [])


def test_list_of_caches_that_leads_nowhere() -> None:
    with pytest.raises(CorruptError, match="breaks off after 2 caches"):
        plan_erasure(kernel(end_of_list=0xFFFF888000000000).kernel, ["secret.key"], [], [])


def test_allocator_that_is_not_slub() -> None:
    types = BtfBuilder()
    ids = build_slab_types(BtfBuilder())
    word = types.int_("unsigned long", 8)
    types.struct("kmem_cache", 16, [("array_cache", word, 0), ("name", word, 64)])
    types.struct("secret", 8, [("key", word, 0)])
    assert ids
    with pytest.raises(UnsupportedError, match="not SLUB"):
        plan_erasure(kernel(types=types).kernel, ["secret.key"], [], [])


def test_kernel_without_types_says_what_is_missing() -> None:
    dump, _ = make_x86_kernel()
    made = kernel()
    with pytest.raises(FactAbsentError):
        plan_erasure(open_kernel_memory(dump), ["secret.key"], [])
    start = made.symbols["__start_BTF"]
    paddr = image_paddr(start)
    made.dump.write(paddr, bytes(64))
    with pytest.raises(PostpanicError):
        plan_erasure(open_kernel_memory(made.dump), ["secret.key"], [], [])


def test_nothing_asked_for_reads_nothing() -> None:
    dump, _ = make_x86_kernel()
    erasure = plan_erasure(open_kernel_memory(dump), [], [])
    assert len(erasure) == 0
    assert erasure.apply(np.arange(4, dtype=np.uint64), np.ones((4, PAGE), dtype=np.uint8)) == 0


def _pages(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 80, size=(count, PAGE), dtype=np.uint8)


def test_only_the_ranges_are_overwritten() -> None:
    starts = np.array([3 * PAGE + 8, 3 * PAGE + 100, 5 * PAGE, 9 * PAGE + 4000], np.uint64)
    ends = np.array([3 * PAGE + 24, 3 * PAGE + 101, 6 * PAGE, 9 * PAGE + 4096], np.uint64)
    erasure = Erasure.from_ranges([(starts, ends)], PAGE)
    pfns = np.array([9, 2, 3, 4, 5, 77], dtype=np.uint64)
    pages = _pages(len(pfns))
    expected = pages.copy()
    expected[0, 4000:] = expected[4] = ERASED_BYTE
    expected[2, 8:24] = ERASED_BYTE
    expected[2, 100] = ERASED_BYTE
    assert erasure.apply(pfns, pages) == 96 + 4096 + 17
    assert np.array_equal(pages, expected)


def test_many_ranges_are_filled_part_by_part() -> None:
    starts = np.arange(0, 4096 * PAGE, 32, dtype=np.uint64)
    erasure = Erasure.from_ranges([(starts, starts + np.uint64(16))], PAGE)
    pages = _pages(4096)
    assert erasure.apply(np.arange(4096, dtype=np.uint64), pages) == 4096 * 2048
    halves = pages.reshape(-1, 2, 16)
    assert (halves[:, 0] == ERASED_BYTE).all()
    assert (halves[:, 1] < ERASED_BYTE).all()
