"""BTF is decoded, described and resolved as the specification says; what is wrong is refused."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest

from postpanic.errors import CorruptError, FactAbsentError, TruncatedError, UnsupportedError
from postpanic.kernel.btf import Btf, Kind, TypeResolver, decode_btf, format_c_type
from postpanic.kernel.btf.find import read_kernel_btf
from tests.builders import btf as spec
from tests.builders.btf import BtfBuilder, build_example
from tests.unit.kernel.memories import PLACE, open_x86_kernel


@pytest.fixture(name="example")
def _example() -> tuple[Btf, dict[str, int]]:
    builder, ids = build_example()
    return decode_btf(builder.build()), ids


SPELLINGS = {
    "int": "int",
    "long unsigned int": "unsigned long",
    "list_head": "struct list_head",
    "list_head *": "struct list_head *",
    "const char *": "const char *",
    "void *": "void *",
    "const void": "const void",
    "u32": "u32",
    "jiffies_t": "volatile unsigned long",
    "restrict": "void * restrict",
    "char[16]": "char [16]",
    "int[]": "int []",
    "int[2][3]": "int [2][3]",
    "inner": "union <anonymous>",
    "color": "enum color",
    "big": "enum big",
    "opaque *": "struct opaque *",
    "opaque union": "union opaque_union",
    "callback": "int (*)(struct list_head *, const char *)",
    "tagged": "char *",
    "variadic": "int (const char *format, ...)",
    "nothing": "void (void)",
    "double": "double",
}


@pytest.mark.parametrize(("key", "text"), SPELLINGS.items())
def test_type_is_spelled_as_in_c(example: tuple[Btf, dict[str, int]], key: str, text: str) -> None:
    btf, ids = example
    assert format_c_type(btf, ids[key]) == text


def test_qualified_pointers_and_arrays_of_pointers_are_spelled_as_in_c() -> None:
    b = BtfBuilder()
    char = b.int_("char", 1)
    index = b.int_("unsigned int", 4)
    constant_pointer = b.const(b.ptr(b.const(char)))
    array = b.array(constant_pointer, index, 3)
    function = b.ptr(b.proto(0, []))
    pointer_to_array = b.ptr(b.array(char, index, 4))
    functions = b.array(function, index, 2)
    btf = decode_btf(b.build())
    assert format_c_type(btf, constant_pointer) == "const char * const"
    assert format_c_type(btf, array) == "const char * const [3]"
    assert format_c_type(btf, pointer_to_array) == "char (*)[4]"
    assert format_c_type(btf, functions) == "void (*[2])(void)"


def test_sizes_follow_typedefs_qualifiers_and_arrays(example: tuple[Btf, dict[str, int]]) -> None:
    btf, ids = example
    sizes = {
        key: btf.size_of(ids[key]) for key in ("u32", "jiffies_t", "int[2][3]", "packed", "big", "void *", "opaque")
    }
    assert sizes == {"u32": 4, "jiffies_t": 8, "int[2][3]": 24, "packed": 24, "big": 8, "void *": 8, "opaque": 0}


def test_member_offsets_reach_into_anonymous_members_and_down_dotted_paths() -> None:
    b, ids = build_example()
    b.struct("outer", 40, [("head", ids["list_head"], 0), ("packed", ids["packed"], 128)])
    outer = decode_btf(b.build()).find_struct("outer")
    assert outer.size_bytes == 40
    assert outer.offset_of("head.prev") == 8
    assert outer.offset_of("packed.word") == 24
    assert outer.offset_of("packed.name") == 32
    assert outer.size_of("packed.bytes") == 1
    count = outer.find("packed.count")
    assert (count.offset_bits, count.size_bits) == (129, 31)
    assert not outer.has("packed.none")
    assert not outer.has("head.prev.deeper")
    with pytest.raises(FactAbsentError, match="struct outer has no member none"):
        outer.offset_of("none")


def test_missing_type_is_named_in_the_error(example: tuple[Btf, dict[str, int]]) -> None:
    with pytest.raises(FactAbsentError, match="no struct or union task_struct"):
        example[0].find_struct("task_struct")


def test_first_of_two_types_with_one_name_is_found() -> None:
    b = BtfBuilder()
    first = b.struct("twice", 4, [])
    b.struct("twice", 8, [])
    assert decode_btf(b.build()).find("twice", Kind.STRUCT) == first


def test_split_btf_uses_types_and_strings_of_its_base() -> None:
    base_builder, ids = build_example()
    base = decode_btf(base_builder.build())
    b = BtfBuilder(base_builder)
    private = b.struct("private", 24, [("list", ids["list_head"], 0), ("name", ids["const char *"], 128)])
    pointer = b.ptr(private)
    split = decode_btf(b.build(), base=base, where="module")
    assert private == base.end_id
    assert format_c_type(split, pointer) == "struct private *"
    assert split.find_struct("private").offset_of("list.prev") == 8
    assert split.find("list_head", Kind.STRUCT) == ids["list_head"]
    assert split.names_at(np.array([0, 1], dtype=np.int64)) == [b"private", b""]
    assert split.string(1) == base.string(1)


def test_longer_header_of_a_later_kernel_is_accepted() -> None:
    builder, ids = build_example()
    btf = decode_btf(builder.build(header_bytes=32))
    assert format_c_type(btf, ids["list_head *"]) == "struct list_head *"


def test_big_endian_btf_is_decoded() -> None:
    b = BtfBuilder(order=">")
    number = b.int_("int", 4, spec.SIGNED)
    pointer = b.ptr(number)
    assert format_c_type(decode_btf(b.build()), pointer) == "int *"


def test_empty_btf_has_only_void() -> None:
    btf = decode_btf(BtfBuilder().build())
    assert len(btf) == 1
    assert btf.kind_of(0) == Kind.VOID


def _one(kind: int, size_or_type: int, words: list[int], *, vlen: int = 0) -> bytes:
    b = BtfBuilder()
    b.int_("int", 4)
    b.add(kind, "x", size_or_type, words, vlen=vlen)
    return b.build()


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", TruncatedError, "a BTF header has 24"),
        (b"\x9f\xeb\x01\x00" + bytes(19), TruncatedError, "23 bytes"),
        (b"\x00" * 24, CorruptError, "magic 0000"),
        (b"\x9f\xeb\x02\x00" + bytes(20), UnsupportedError, "version 2"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 1 << 30, 0, 1), TruncatedError, "types end at"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 2, 0, 0, 1) + b"\0", CorruptError, "types at 2"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"x", CorruptError, "end in a zero byte"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 2) + b"x\0", CorruptError, "empty string"),
        (_one(spec.PTR, 99, []), CorruptError, "99 is no type identifier, at most 2"),
        (_one(spec.STRUCT, 4, [1, 99, 0], vlen=1), CorruptError, "99 is no type identifier of an item"),
        (_one(spec.STRUCT, 4, [9999, 1, 0], vlen=1), CorruptError, "9999 is no name offset of an item"),
        (_one(spec.STRUCT, 4, [1, 1, 0], vlen=9), CorruptError, "does not fit into the type section"),
        (_one(spec.ARRAY, 0, [99, 1, 1]), CorruptError, "99 is no element type"),
        (_one(spec.FUNC, 1, []), CorruptError, "1 is no type of kind FUNC_PROTO"),
        (_one(spec.DATASEC, 4, [1, 0, 4], vlen=1), CorruptError, "1 is no type of kind VAR"),
        (_one(spec.TYPEDEF, 2, []), CorruptError, "refers to itself"),
        (_one(spec.ARRAY, 0, [2, 1, 4]), CorruptError, "refers to itself"),
        (_one(spec.ENUM, 300, []), CorruptError, "300 is no size of a base type"),
        (_one(31, 0, []), CorruptError, "of kind 31"),
    ],
)
def test_damaged_btf_is_refused(data: bytes, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        decode_btf(data)


def test_resolver_finds_what_the_btf_has(example: tuple[Btf, dict[str, int]]) -> None:
    btf, ids = example
    resolver = TypeResolver(btf)
    for text, key in (
        ("struct list_head", "list_head"),
        ("struct list_head *", "list_head *"),
        ("const char *", "const char *"),
        ("unsigned long", "long unsigned int"),
        ("long unsigned int", "long unsigned int"),
        ("unsigned long int", "long unsigned int"),
        ("u32", "u32"),
        ("enum color", "color"),
        ("enum big", "big"),
        ("volatile unsigned long", "jiffies_t"),
        ("struct opaque *", "opaque *"),
        ("union {word, bytes}", "inner"),
        ("double", "double"),
        ("_Bool", "_Bool"),
    ):
        assert resolver.resolve_c_type(text) == ids[key], text
    assert len(resolver.constructed()) == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("struct list_head [3]", 48),
        ("struct packed *", 8),
        ("const struct packed * const [2]", 16),
        ("int [4][5]", 80),
        ("char (*)[4]", 8),
        ("int (*)(struct packed *, int)", 8),
        ("void (*[7])(void)", 56),
        ("int (*)(const char *, ...)", 8),
        ("void (* const)(void)", 8),
        ("unsigned int *", 8),
        ("int (*(*)(void))(u32)", 8),
        ("const volatile int", 4),
    ],
)
def test_resolver_builds_what_the_btf_lacks(example: tuple[Btf, dict[str, int]], text: str, size: int) -> None:
    resolver = TypeResolver(example[0])
    type_id = resolver.resolve_c_type(text)
    assert resolver.size_of(type_id) == size
    whole = resolver.constructed()
    assert format_c_type(whole, type_id) == text
    assert whole.size_of(type_id) == size
    assert resolver.resolve_c_type(text) == type_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "struct",
        "struct nothing_here",
        "int int",
        "int [",
        "int [x]",
        "int [99999999999999999999]",
        "int (",
        "int (*",
        "unknown_t",
        "struct {a, b}",
        "struct {a",
        "*",
        "int ? int",
        "(" * 5000,
        "int " + "(*" * 200 + ")" * 200,
        "struct opaque_union",
    ],
)
def test_resolver_refuses_what_is_no_type_of_this_kernel(example: tuple[Btf, dict[str, int]], text: str) -> None:
    resolver = TypeResolver(example[0])
    assert resolver.detect_c_type(text) is None
    with pytest.raises(FactAbsentError):
        resolver.resolve_c_type(text)


def test_two_anonymous_types_with_the_same_members_are_not_told_apart() -> None:
    b = BtfBuilder()
    number = b.int_("int", 4)
    b.struct("", 4, [("same", number, 0)])
    b.struct("", 8, [("same", number, 32)])
    assert TypeResolver(decode_btf(b.build())).detect_c_type("struct {same}") is None


def test_hundred_thousand_types_are_decoded_in_a_moment() -> None:
    b = BtfBuilder()
    number = b.int_("int", 4)
    for index in range(100_000):
        b.struct(f"s{index}", 8, [("a", number, 0), ("b", number, 32)])
    data = b.build()
    started = time.process_time()
    btf = decode_btf(data)
    assert len(btf) == 100_002
    assert time.process_time() - started < 5.0


def test_kernel_btf_is_found_by_its_header_when_no_symbol_tells() -> None:
    b = BtfBuilder()
    number = b.int_("int", 4, spec.SIGNED)
    for index in range(4000):
        b.struct(f"s{index}", 8, [("a", number, 0), ("b", number, 32)])
    decoy = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 1 << 20, 1 << 20, 1 << 20)
    memory = open_x86_kernel({PLACE: decoy, PLACE + 0x10004: b.build()})
    btf = read_kernel_btf(memory, None)
    assert btf.find_struct("s3999").size_bytes == 8


def test_kernel_without_btf_is_said_to_have_none() -> None:
    with pytest.raises(FactAbsentError, match="no BTF in the kernel image"):
        read_kernel_btf(open_x86_kernel(), None)


def test_btf_of_unreasonable_size_is_refused_at_once() -> None:
    with pytest.raises(CorruptError, match="at most 33554432"):
        decode_btf(bytes(33 << 20))
