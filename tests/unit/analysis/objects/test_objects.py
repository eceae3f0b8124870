"""Types and values as gdb lays them out, made of types of our own."""

from __future__ import annotations

import struct

import pytest
from drgn import Architecture, Object, Platform, Program, Type, TypeEnumerator, TypeMember

from postpanic.analysis.objects.braces import ValueWriter
from postpanic.analysis.objects.contents import Contents, read_contents
from postpanic.analysis.objects.declarations import declare, definition_rows
from postpanic.analysis.objects.paths import resolve_member
from postpanic.analysis.objects.style import Speller, Style, spell_string
from postpanic.errors import FactAbsentError, PageAbsentError, UsageError
from postpanic.findings.absent import Absent, Reason


@pytest.fixture(scope="module")
def prog() -> Program:
    return Program(Platform(Architecture.X86_64))


@pytest.fixture(scope="module")
def pair(prog: Program) -> Type:
    return prog.struct_type("pair", 8, (_member(prog, "int", "a", 0), _member(prog, "int", "b", 4)))


@pytest.fixture(scope="module")
def box(prog: Program, pair: Type) -> Type:
    """Hold one of everything: text, numbers, structures in an array, a nameless union, bit fields, pointers."""
    nameless = prog.union_type(None, 8, (_member(prog, "long", "whole", 0), TypeMember(pair, "halves")))
    function = prog.function_type(prog.type("int"), (), is_variadic=False)
    return prog.struct_type(
        "box",
        80,
        (
            TypeMember(prog.array_type(prog.type("char"), 8), "name", 0),
            TypeMember(prog.array_type(prog.type("short"), 3), "numbers", 64),
            TypeMember(Object(prog, prog.type("unsigned int"), bit_field_size=3), "low", 16 * 8),
            TypeMember(Object(prog, prog.type("int"), bit_field_size=2), "sign", 16 * 8 + 3),
            TypeMember(prog.array_type(pair, 2), "pairs", 24 * 8),
            TypeMember(nameless, None, 40 * 8),
            TypeMember(prog.pointer_type(prog.void_type()), "pointer", 48 * 8),
            TypeMember(prog.pointer_type(function), "call", 56 * 8),
            TypeMember(prog.type("_Bool"), "flag", 64 * 8),
            TypeMember(prog.type("unsigned char"), "byte", 65 * 8),
            TypeMember(prog.array_type(prog.type("int"), 0), "rest", 72 * 8),
        ),
    )


def _member(prog: Program, type_name: str, name: str, offset: int) -> TypeMember:
    return TypeMember(prog.type(type_name), name, offset * 8)


DATA = (
    b"init\0\0\0\0"
    + struct.pack("<3h", 1, -2, 3)
    + b"\0\0"
    + struct.pack("<I", 5 | 2 << 3)
    + bytes(4)
    + struct.pack("<4i", 1, 2, 3, 4)
    + struct.pack("<q", -1)
    + struct.pack("<QQ", 0, 0x1234)
    + b"\1\x41"
    + bytes(14)
)

SHOWN = r"""box = {
  name = "init\000\000\000",
  numbers = {1, -2, 3},
  low = 5,
  sign = -2,
  pairs = {{
      a = 1,
      b = 2
    }, {
      a = 3,
      b = 4
    }},
  {
    whole = -1,
    halves = {
      a = -1,
      b = -1
    }
  },
  pointer = 0x0,
  call = 0x1234,
  flag = true,
  byte = 65 'A',
  rest = 0x1048
}"""


def shown(prog: Program, type_: Type, contents: Contents, style: Style, lead: str = "") -> str:
    writer = ValueWriter(prog, style)
    writer.write(type_, contents, vaddr=0x1000, lead=lead)
    return "\n".join(str(row[-1]) for row in writer.table_rows())


def test_structure_is_laid_out_as_gdb_does(prog: Program, box: Type) -> None:
    assert shown(prog, box, Contents(DATA), Style(), "box = ") == SHOWN


def test_numbers_in_hexadecimal(prog: Program, box: Type) -> None:
    text = shown(prog, box, Contents(DATA), Style(radix=16))
    assert "numbers = {0x1, 0xfffe, 0x3}," in text
    assert "whole = 0xffffffffffffffff," in text
    assert 'name = "init' in text
    assert "byte = 0x41," in text


def test_rows_are_the_members(prog: Program, box: Type) -> None:
    writer = ValueWriter(prog, Style())
    writer.write(box, Contents(DATA), vaddr=0x1000, name="box")
    rows = {row[0]: row for row in writer.table_rows()}
    assert rows["pairs[1].b"][:5] == ("pairs[1].b", "int", 36, 0x1024, 4)
    assert rows["halves.a"][2] == 40
    assert rows["sign"][5:7] == (131, 2)
    assert rows["call"][9] == 0x1234
    assert rows["low"][9] == 5


def test_missing_memory_spoils_only_what_lies_in_it(prog: Program, box: Type) -> None:
    gap = Absent(Reason.EXCLUDED, "page left out")
    text = shown(prog, box, Contents(DATA, ((0, 8, gap), (24, 32, gap))), Style())
    assert "name = (excluded)," in text
    assert "a = (excluded)," in text
    assert "a = 3," in text
    assert "numbers = {1, -2, 3}," in text


def test_members_beyond_the_contents_are_missing(prog: Program, box: Type) -> None:
    text = shown(prog, box, Contents(DATA[:20]), Style())
    assert "low = 5," in text
    assert "pointer = -," in text


def test_memory_is_read_page_by_page_around_what_is_missing() -> None:
    def read(address: int, size: int) -> bytes:
        if address < 0x2000 < address + size or 0x2000 <= address < 0x3000:
            raise PageAbsentError("left out", paddr=0x2000)
        return b"x" * size

    contents = read_contents(read, 0x1800, 0x2000)
    assert [(start, end) for start, end, _ in contents.gaps] == [(0x800, 0x1800)]
    assert not contents.is_lost
    assert contents.missing(0x7FF, 1) is None
    assert contents.missing(0x7FF, 2) is not None
    assert read_contents(read, 0x2000, 16).is_lost


@pytest.mark.parametrize(
    ("data", "style", "text"),
    [
        (b"abc\0", Style(), '"abc"'),
        (b"abc\0\0", Style(), r'"abc\000"'),
        (b"abc\0xyz\0", Style(null_stop=True), '"abc"'),
        (b"abcdef", Style(print_max=3), '"abc"...'),
        (b'a"\\\n\x80', Style(), r'"a\"\\\n\200"'),
        (b"", Style(), '""'),
    ],
)
def test_text(data: bytes, style: Style, text: str) -> None:
    assert spell_string(data, style) == text


@pytest.mark.parametrize(
    ("letter", "value", "text"),
    [
        ("x", -1, "0xffffffff"),
        ("o", 64, "0100"),
        ("t", 5, "101"),
        ("z", 5, "0x00000005"),
        ("u", -1, "4294967295"),
        ("d", -1, "-1"),
        ("c", 65, "65 'A'"),
        ("a", 16, "0x10"),
    ],
)
def test_format(prog: Program, letter: str, value: int, text: str) -> None:
    assert Speller(prog, Style(letter=letter)).scalar(prog.type("int"), value) == text


def test_enumerators_and_flags(prog: Program) -> None:
    unsigned = prog.type("unsigned int")
    flags = prog.enum_type("flags", unsigned, (TypeEnumerator("A", 1), TypeEnumerator("B", 4)))
    plain = prog.enum_type("plain", unsigned, (TypeEnumerator("ONE", 1), TypeEnumerator("THREE", 3)))
    speller = Speller(prog, Style())
    assert [speller.scalar(flags, value) for value in (1, 5, 0, 9)] == ["A", "(A | B)", "0", "(A | unknown: 0x8)"]
    assert [speller.scalar(plain, value) for value in (3, 2)] == ["THREE", "2"]


def test_declarations_are_those_of_c(prog: Program, pair: Type) -> None:
    integer, pointer = prog.type("int"), prog.pointer_type(prog.type("char"))
    function = prog.function_type(integer, (), is_variadic=False)
    assert declare(prog.array_type(integer, 3), "a") == "int a[3]"
    assert declare(prog.array_type(prog.array_type(integer, 3), 2), "a") == "int a[2][3]"
    assert declare(prog.pointer_type(pair), "p") == "struct pair *p"
    assert declare(prog.pointer_type(function), "f") == "int (*f)(void)"
    assert declare(prog.array_type(prog.pointer_type(function), 2), "f") == "int (*f[2])(void)"
    assert declare(prog.pointer_type(prog.array_type(integer, 2)), "p") == "int (*p)[2]"
    assert declare(pointer) == "char *"


def test_definition_with_offsets(box: Type) -> None:
    text = "\n".join(str(row[-1]) for row in definition_rows(box, offsets=True))
    assert text.startswith("struct box {\n   [0] char name[8];\n   [8] short numbers[3];\n  [16] unsigned int low : 3;")
    assert "\n       union {\n  [40]     long whole;\n  [40]     struct pair halves;\n       };\n" in text
    assert text.endswith("\n}\nSIZE: 80")


@pytest.mark.parametrize(
    ("path", "bit_offset", "bit_size"),
    [
        ("name", 0, None),
        ("pairs[1].b", 36 * 8, None),
        ("halves.b", 44 * 8, None),
        ("sign", 131, 2),
        ("numbers[0x2]", 12 * 8, None),
    ],
)
def test_member_paths(prog: Program, box: Type, path: str, bit_offset: int, bit_size: int | None) -> None:
    found = resolve_member(prog, box, path, "box")
    assert (found.bit_offset, found.bit_size) == (bit_offset, bit_size)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("nosuch", FactAbsentError),
        ("name.x", FactAbsentError),
        ("halves[1]", FactAbsentError),
        (".name", UsageError),
        ("name[x]", UsageError),
        ("pairs[1]b", UsageError),
        ("pairs[99999999999]", UsageError),
    ],
)
def test_member_paths_that_lead_nowhere(prog: Program, box: Type, path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        resolve_member(prog, box, path, "box")
