"""Kernel memory made for tests: words at addresses, and the types of lists and trees."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from drgn import Architecture, FaultError, Platform, Program, Type, TypeKind, TypeMember

__all__ = ["BASE", "make_program"]

BASE = 0xFFFF888000000000
_SIZE = 0x10000


def make_program(words: Mapping[int, int]) -> Program:
    """Make a program whose memory holds these words, by their distance from :data:`BASE`; pages without one fault."""
    program = Program(Platform(Architecture.X86_64))
    memory = bytearray(_SIZE)
    present = {place >> 12 for place in words}
    for place, word in words.items():
        struct.pack_into("<Q", memory, place, word & (1 << 64) - 1)

    def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:
        place = address - BASE
        if any(page not in present for page in range(place >> 12, (place + count - 1 >> 12) + 1)):
            raise FaultError("not in the dump", address)
        return bytes(memory[place : place + count])

    program.add_memory_segment(BASE, _SIZE, read)
    types = _types(program)

    def find(_prog: Program, kinds: frozenset[TypeKind], name: str, _file: str | None) -> Type | None:
        return types.get(name) if TypeKind.STRUCT in kinds else None

    program.register_type_finder("test", find, enable_index=0)
    return program


def _types(program: Program) -> dict[str, Type]:
    word = program.type("unsigned long")

    def array(count: int) -> Type:
        return program.array_type(word, count)

    def make(name: str, size: int, *members: tuple[Type, str, int]) -> Type:
        return program.struct_type(name, size, tuple(TypeMember(kind, tag, at * 8) for kind, tag, at in members))

    parent = (word, "parent", 0)
    return {
        "rb_root": make("rb_root", 8, (word, "rb_node", 0)),
        "rb_node": make("rb_node", 24, (word, "__rb_parent_color", 0), (word, "rb_right", 8), (word, "rb_left", 16)),
        "xarray": make("xarray", 16, (word, "xa_head", 8)),
        "xa_node": make("xa_node", 552, (program.type("unsigned char"), "shift", 0), (array(64), "slots", 40)),
        "maple_tree": make("maple_tree", 16, (word, "ma_root", 8)),
        "maple_node": make("maple_node", 256, parent),
        "maple_range_64": make(
            "maple_range_64", 256, (word, "parent", 0), (array(15), "pivot", 8), (array(16), "slot", 128)
        ),
        "maple_arange_64": make("maple_arange_64", 256, parent, (array(9), "pivot", 8), (array(10), "slot", 80)),
    }
