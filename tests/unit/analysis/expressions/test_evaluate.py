"""Expressions on a program that was made for the purpose."""

from __future__ import annotations

import struct

import pytest
from drgn import (
    Architecture,
    FaultError,
    FindObjectFlags,
    Object,
    Platform,
    Program,
    Symbol,
    SymbolBinding,
    SymbolKind,
    Type,
    TypeEnumerator,
    TypeKind,
    TypeMember,
)

from postpanic.analysis.expressions import ExpressionError, evaluate, evaluate_number
from postpanic.errors import FactAbsentError

HEAD = 0xFFFF888000001000
NODE = HEAD + 0x100
UNTYPED = HEAD + 0x200
FUNCTION = 0xFFFFFFFF81000000


@pytest.fixture(scope="module")
def prog() -> Program:
    """Make a list of one node, a structure with bit fields, a symbol without a type, a function, an enumeration."""
    program = Program(Platform(Architecture.X86_64))
    memory = bytearray(0x1000)
    struct.pack_into("<QQ", memory, 0, NODE, NODE)
    struct.pack_into("<QQ", memory, NODE - HEAD, HEAD, HEAD)
    struct.pack_into("<4iI", memory, 0x20, 10, 20, 30, -40, 0b1011)
    struct.pack_into("<I", memory, UNTYPED - HEAD, 77)

    def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        return bytes(memory[address - HEAD : address - HEAD + count])

    program.add_memory_segment(HEAD, len(memory), read)
    integer = program.type("int")
    list_head: Type = program.struct_type(
        "list_head",
        16,
        (
            TypeMember(lambda: program.pointer_type(list_head), "next"),
            TypeMember(lambda: program.pointer_type(list_head), "prev", 64),
        ),
    )
    item = program.struct_type(
        "item",
        20,
        (
            TypeMember(program.array_type(integer, 4), "numbers"),
            TypeMember(Object(program, program.type("unsigned int"), bit_field_size=3), "flags", 128),
            TypeMember(Object(program, program.type("unsigned int"), bit_field_size=1), "last", 131),
        ),
    )
    colour = program.enum_type("colour", integer, (TypeEnumerator("RED", 0), TypeEnumerator("GREEN", 5)))
    function = program.function_type(program.void_type(), (), is_variadic=False)
    types = {
        (TypeKind.STRUCT, "list_head"): list_head,
        (TypeKind.STRUCT, "item"): item,
        (TypeKind.ENUM, "colour"): colour,
        (TypeKind.TYPEDEF, "number_t"): program.typedef_type("number_t", integer),
    }
    objects = {
        "head": Object(program, list_head, address=HEAD),
        "item": Object(program, item, address=HEAD + 0x20),
        "go": Object(program, function, address=FUNCTION),
        "GREEN": Object(program, colour, 5),
        "lost": Object(program, integer, address=0x10),
    }

    def find_type(_prog: Program, kinds: frozenset[TypeKind], name: str, _file: str | None) -> Type | None:
        return next((types[kind, name] for kind in kinds if (kind, name) in types), None)

    def find_object(_prog: Program, name: str, _flags: FindObjectFlags, _file: str | None) -> Object | None:
        return objects.get(name)

    def find_symbol(_prog: Program, name: str | None, address: int | None, _one: bool) -> list[Symbol]:
        found = Symbol("untyped", UNTYPED, 4, SymbolBinding.GLOBAL, SymbolKind.OBJECT)
        return [found] if name == found.name or address == found.address else []

    program.register_type_finder("test", find_type, enable_index=0)
    program.register_object_finder("test", find_object, enable_index=0)
    program.register_symbol_finder("test", find_symbol, enable_index=0)
    return program


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("7 / 2", 3),
        ("-7 / 2", -3),
        ("-7 % 3", -1),
        ("1 << 4 | 1", 17),
        ("~0", -1),
        ("!5", 0),
        ("1 ? 2 : 3", 2),
        ("0 ? 2 : 1 ? 4 : 5", 4),
        ("2 > 1 && 1 != 1 || 3 == 3", 1),
        ("0 && 1 / 0", 0),
        ("1 || lost", 1),
        ("'a'", 97),
        (r"'\n'", 10),
        (r"'\x7f'", 127),
        ("0x10 + 010 + 0b11", 27),
        ("sizeof(int)", 4),
        ("sizeof head", 16),
        ("sizeof(struct item)", 20),
        ("sizeof item.numbers", 16),
        ("offsetof(struct list_head, prev)", 8),
        ("offsetof(item, numbers[2])", 8),
        ("item.numbers[3]", -40),
        ("(&item)->numbers[1]", 20),
        ("(&item).numbers[1]", 20),
        ("*item.numbers", 10),
        ("*(item.numbers + 2)", 30),
        ("*(&item.numbers[2] - 1)", 20),
        ("item.flags", 3),
        ("item.last", 1),
        ("head.next->prev == &head", 1),
        ("head.next - &head", 16),
        ("((struct list_head *)ffff888000001000)->next == head.next", 1),
        ("{int}0xffff888000001024", 20),
        ("(int)untyped", 77),
        ("*(int *)&untyped", 77),
        ("GREEN + 1", 6),
        ("(enum colour)5 == GREEN", 1),
        ("(number_t)-1", -1),
        ("(unsigned char)0x1ff", 255),
        ("(char)0xff", -1),
        ("go == 0xffffffff81000000", 1),
        ("(long)go + 4 == (long)0xffffffff81000004", 1),
        ("$1 + $", 5 + 9),
        ("$$ + $$2", 7 + 5),
    ],
)
def test_value(prog: Program, text: str, value: int) -> None:
    history = [Object(prog, "int", number) for number in (5, 7, 9)]
    assert int(evaluate(prog, text, history=history).value_()) == value


@pytest.mark.parametrize(
    ("text", "type_name"),
    [
        ("1", "int"),
        ("2147483648", "long"),
        ("0x80000000", "unsigned int"),
        ("0xffffffffffffffff", "unsigned long"),
        ("1UL", "unsigned long"),
        ("1.5", "double"),
        ("&head", "struct list_head *"),
        ("head.next", "struct list_head *"),
        ("item.numbers", "int [4]"),
        ("&item.numbers[1]", "int *"),
        ("item.numbers[0]@2", "int [2]"),
        ("&go", "void (*)(void)"),
        ("go + 4", "void (*)(void)"),
        ("&untyped", "void *"),
        ("(list_head *)0", "struct list_head *"),
        ("1 == 1", "int"),
    ],
)
def test_type(prog: Program, text: str, type_name: str) -> None:
    assert evaluate(prog, text).type_.type_name() == type_name


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ExpressionError, "column 1: the expression ends here"),
        ("1 +", ExpressionError, "column 4: the expression ends here"),
        ("(1", ExpressionError, r"column 3: '\)' is missing"),
        ("1 2", ExpressionError, "column 3: '2' does not fit here"),
        ("a = 1", ExpressionError, "nothing is assigned"),
        ("go(1)", ExpressionError, "cannot be called"),
        ("1 / 0", ExpressionError, "column 3: division by zero"),
        ("7 % (2 - 2)", ExpressionError, "column 3: division by zero"),
        ("*5", ExpressionError, "int is no pointer"),
        ("*(void *)0", ExpressionError, "void pointer"),
        ("&5", ExpressionError, "column 1: this has no address"),
        ("5.x", ExpressionError, "column"),
        ("head + 1", ExpressionError, r"column 6: struct list_head \+ int makes no sense"),
        ("head && 1", ExpressionError, "neither true nor false"),
        ("&item.flags", ExpressionError, "no address"),
        ("08zz", ExpressionError, "'08zz' is not a number"),
        ("0x1ffffffffffffffff", ExpressionError, "wider than 64 bits"),
        ("1 $ 2", ExpressionError, "column"),
        ("$9", ExpressionError, "no value that was shown"),
        ("struct item", ExpressionError, "a type stands where a value must"),
        ("(struct nosuch *)0", FactAbsentError, "no type struct nosuch"),
        ("nosuch", FactAbsentError, "no symbol nosuch"),
        ("head.nosuch", FactAbsentError, "column 6: struct list_head has no member nosuch"),
        ("untyped", FactAbsentError, "the type of untyped is not known"),
        ("untyped + 1", FactAbsentError, "the type of untyped is not known"),
        ("item.numbers[0]@99999999", ExpressionError, "elements"),
        ("5@2", ExpressionError, "lies in memory"),
        ("lost + 1", FaultError, "could not find memory segment|memory"),
    ],
)  # fmt: skip
def test_error(prog: Program, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate(prog, text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("head + 8", HEAD + 8),
        ("(untyped + 4)", UNTYPED + 4),
        ("go+4", FUNCTION + 4),
        ("head.next", NODE),
        ("&head", HEAD),
        ("item.numbers[1]", 20),
        ("*(int *)&untyped", 77),
        ("head", HEAD),
        ("lost", 0x10),
        ("-1", (1 << 64) - 1),
        ("GREEN", 5),
    ],
)
def test_symbols_are_addresses_where_an_address_is_wanted(prog: Program, text: str, value: int) -> None:
    assert evaluate_number(prog, text) == value
