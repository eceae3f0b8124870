"""Where parameters are passed: the examples follow System V (AMD64) 3.2.3 and AAPCS64 6.8.2."""

from __future__ import annotations

import drgn
import pytest

from postpanic.analysis.stacks.arguments.flow import MACHINES
from postpanic.analysis.stacks.arguments.parameters import Parameter, find_parameters
from postpanic.analysis.stacks.code_index import Place

PLATFORMS = {"x86_64": drgn.Architecture.X86_64, "aarch64": drgn.Architecture.AARCH64}
ADDRESS = 0x1000


def find(machine: str, *sizes: int, returned: int | None = None) -> tuple[Parameter, ...]:
    """Find the parameters of a function with integers (to 8 bytes), ``__int128`` (-16), and structures (0: empty)."""
    prog = drgn.Program(drgn.Platform(PLATFORMS[machine]))
    integer = prog.int_type("long", 8, is_signed=True)

    def make(size: int) -> drgn.Type:
        if size == -16:
            return prog.int_type("__int128", 16, is_signed=True)
        if 0 < size <= 8:
            return prog.int_type(f"int{size}", size, is_signed=True)
        members = [drgn.TypeMember(integer, f"m{number}", 64 * number) for number in range(size // 8)]
        return prog.struct_type(f"s{size}", size, members)

    parameters = [drgn.TypeParameter(make(size), f"p{number}") for number, size in enumerate(sizes)]
    result = prog.void_type() if returned is None else prog.typedef_type("result", make(returned))
    type_ = prog.function_type(result, parameters)

    def look_up(prog: drgn.Program, name: str, _flags: object, _filename: object) -> drgn.Object | None:
        return drgn.Object(prog, type_, address=ADDRESS) if name == "function" else None

    prog.register_object_finder("test", look_up, enable_index=0)
    found = find_parameters(prog, Place("function", 0, "", ADDRESS, 16), MACHINES[machine]())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("machine", "sizes", "expected"),
    [
        ("x86_64", (8, 4, 8), ["rdi", "rsi", "rdx"]),
        ("x86_64", (8,) * 7, ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "stack0"]),
        # What is large lies on the stack itself, and what follows is in registers.
        ("x86_64", (8, 24, 8), ["rdi", "stack0 stack1 stack2", "rsi"]),
        ("x86_64", (8, 8, 8, 8, 8, 16, 8), ["rdi", "rsi", "rdx", "rcx", "r8", "stack0 stack1", "r9"]),
        ("aarch64", (8, 4, 8), ["x0", "x1", "x2"]),
        ("aarch64", (8,) * 10, [*(f"x{number}" for number in range(8)), "stack0", "stack1"]),
        ("aarch64", (8, 16, 8), ["x0", "x1 x2", "x3"]),
        # Of what is large the address is passed.
        ("aarch64", (8, 24, 8), ["x0", "*x1", "x2"]),
        # GCC passes nothing of an empty structure.
        ("x86_64", (8, 0, 8), ["rdi", "", "rsi"]),
        ("x86_64", (*(8,) * 7, 0, 8), ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "stack0", "", "stack1"]),
        ("aarch64", (8, 0, 8), ["x0", "", "x1"]),
        # Once one does not fit, no later one is in a register.
        ("aarch64", (8, 8, 8, 8, 8, 8, 8, 16, 8), [*(f"x{number}" for number in range(7)), "stack0 stack1", "stack2"]),
        # What is aligned to 16 bytes begins with an even register.
        ("aarch64", (8, -16, 8), ["x0", "x2 x3", "x4"]),
        ("aarch64", (*(8,) * 9, -16), [*(f"x{number}" for number in range(8)), "stack0", "stack2 stack3"]),
    ],
)
def test_parameters_are_where_the_abi_has_them(machine: str, sizes: tuple[int, ...], expected: list[str]) -> None:
    found = find(machine, *sizes)
    assert ["*" * one.by_address + " ".join(one.registers) for one in found] == expected
    assert [one.name for one in found] == [f"p{number}" for number in range(len(sizes))]


@pytest.mark.parametrize(
    ("machine", "returned", "expected"),
    [
        # The first register is the address of the room for it.
        ("x86_64", 24, ["rsi", "rdx"]),
        ("x86_64", 16, ["rdi", "rsi"]),
        ("x86_64", 8, ["rdi", "rsi"]),
        # That is in x8.
        ("aarch64", 24, ["x0", "x1"]),
    ],
)
def test_room_for_what_is_returned_takes_a_register(machine: str, returned: int, expected: list[str]) -> None:
    assert [" ".join(one.registers) for one in find(machine, 8, 8, returned=returned)] == expected


def test_copies_that_the_compiler_changed_have_unknown_parameters() -> None:
    place = Place("function.constprop.0", 0, "", ADDRESS, 16)
    assert find_parameters(drgn.Program(), place, MACHINES["aarch64"]()) is None
