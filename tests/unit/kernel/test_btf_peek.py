"""A structure that is peeked at is the one that decoding everything finds."""

from __future__ import annotations

import contextlib

import pytest

from postpanic.errors import CorruptError, PostpanicError
from postpanic.kernel.btf import decode_btf
from postpanic.kernel.btf.peek import PeekedStruct, peek_struct
from tests.builders.btf import BtfBuilder, build_example


@pytest.mark.parametrize("name", ["list_head", "packed", "flexible"])
def test_struct_is_as_decoding_has_it(name: str) -> None:
    data = build_example()[0].build()
    layout = decode_btf(data).find_struct(name)
    wanted = ["next", "prev", "flag", "count", "name", "n", "items"]
    own = {member: layout.offset_of(member) for member in wanted if layout.has(member)}
    assert peek_struct(data, name, wanted) == PeekedStruct(layout.size_bytes, own)


def test_name_that_is_a_member_or_a_typedef_first_does_not_mislead() -> None:
    b = BtfBuilder()
    number = b.int_("int", 4)
    b.typedef("task_struct", number)
    b.struct("other", 8, [("task_struct", number, 0), ("pid", number, 32)])
    b.fwd("task_struct")
    b.struct("task_struct", 4096, [("stack", number, 256), ("pid", number, 512)])
    assert peek_struct(b.build(), "task_struct", ["pid", "stack"]) == PeekedStruct(4096, {"stack": 32, "pid": 64})


def test_members_of_anonymous_structures_are_not_found() -> None:
    data = build_example()[0].build()
    peeked = peek_struct(data, "packed", ["word", "name"])
    assert peeked is not None
    assert peeked.offsets == {"name": 16}


@pytest.mark.parametrize("name", ["no_such", "", "head", "opaque", "color"])
def test_what_is_no_struct_is_none(name: str) -> None:
    assert peek_struct(build_example()[0].build(), name, ["next"]) is None


@pytest.mark.parametrize("length", [0, 23, 24, 100])
def test_cut_data_is_corrupt(length: int) -> None:
    with pytest.raises(CorruptError):
        peek_struct(build_example()[0].build()[:length], "list_head", ["next"])


def test_damage_anywhere_ends_in_an_error_or_an_answer() -> None:
    data = build_example()[0].build()
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        with contextlib.suppress(PostpanicError):
            peek_struct(bytes(damaged), "list_head", ["next", "prev"])
