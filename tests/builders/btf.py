"""Build BTF from its specification: include/uapi/linux/btf.h and Documentation/bpf/btf.rst."""

from __future__ import annotations

import struct
from collections.abc import Sequence

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)
SIGNED, CHAR, BOOL = 1, 2, 4

Member = tuple[str, int, int] | tuple[str, int, int, int]
"""Name, type, offset in bits, and of a bit-field its size in bits."""


class BtfBuilder:
    """
    Types are numbered in the order they are added, from 1 or from where the base ends.

    A split object is built with ``base``: names go to its own string section.
    """

    def __init__(self, base: BtfBuilder | None = None, *, order: str = "<") -> None:
        self.order = order
        self.first_id = base.next_id if base else 1
        self.string_start = base.string_end if base else 0
        self.strings = bytearray() if base else bytearray(b"\0")
        self.records: list[bytes] = []
        self._names: dict[str, int] = {"": 0}

    @property
    def next_id(self) -> int:
        return self.first_id + len(self.records)

    @property
    def string_end(self) -> int:
        return self.string_start + len(self.strings)

    def name(self, text: str) -> int:
        if text not in self._names:
            self._names[text] = self.string_end
            self.strings += text.encode() + b"\0"
        return self._names[text]

    def add(
        self, kind: int, name: str, size_or_type: int, words: Sequence[int] = (), *, vlen: int = 0, flag: int = 0
    ) -> int:
        header = (self.name(name), flag << 31 | kind << 24 | vlen, size_or_type)
        self.records.append(
            struct.pack(f"{self.order}{3 + len(words)}I", *header, *(word & 0xFFFFFFFF for word in words))
        )
        return self.next_id - 1

    def int_(self, name: str, size: int, encoding: int = 0, *, bits: int | None = None, offset: int = 0) -> int:
        return self.add(INT, name, size, [encoding << 24 | offset << 16 | (size * 8 if bits is None else bits)])

    def ptr(self, target: int) -> int:
        return self.add(PTR, "", target)

    def array(self, element: int, index: int, count: int) -> int:
        return self.add(ARRAY, "", 0, [element, index, count])

    def struct(self, name: str, size: int, members: Sequence[Member], *, kind: int = STRUCT) -> int:
        bit_fields = any(len(member) == 4 for member in members)
        words: list[int] = []
        for text, type_id, offset, *bits in members:
            words += [self.name(text), type_id, offset | (bits[0] << 24 if bits else 0)]
        return self.add(kind, name, size, words, vlen=len(members), flag=int(bit_fields))

    def union(self, name: str, size: int, members: Sequence[Member]) -> int:
        return self.struct(name, size, members, kind=UNION)

    def enum(self, name: str, values: Sequence[tuple[str, int]], *, size: int = 4, signed: bool = False) -> int:
        words = [word for text, value in values for word in (self.name(text), value)]
        return self.add(ENUM, name, size, words, vlen=len(values), flag=int(signed))

    def enum64(self, name: str, values: Sequence[tuple[str, int]], *, signed: bool = False) -> int:
        words = [
            word for text, value in values for word in (self.name(text), value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF)
        ]
        return self.add(ENUM64, name, 8, words, vlen=len(values), flag=int(signed))

    def fwd(self, name: str, *, is_union: bool = False) -> int:
        return self.add(FWD, name, 0, flag=int(is_union))

    def typedef(self, name: str, target: int) -> int:
        return self.add(TYPEDEF, name, target)

    def const(self, target: int) -> int:
        return self.add(CONST, "", target)

    def volatile(self, target: int) -> int:
        return self.add(VOLATILE, "", target)

    def restrict(self, target: int) -> int:
        return self.add(RESTRICT, "", target)

    def proto(self, result: int, parameters: Sequence[tuple[str, int]]) -> int:
        words = [word for text, type_id in parameters for word in (self.name(text), type_id)]
        return self.add(FUNC_PROTO, "", result, words, vlen=len(parameters))

    def func(self, name: str, proto: int) -> int:
        return self.add(FUNC, name, proto)

    def var(self, name: str, type_id: int) -> int:
        return self.add(VAR, name, type_id, [1])

    def datasec(self, name: str, entries: Sequence[tuple[int, int, int]]) -> int:
        words = [word for entry in entries for word in entry]
        return self.add(DATASEC, name, sum(size for _, _, size in entries), words, vlen=len(entries))

    def float_(self, name: str, size: int) -> int:
        return self.add(FLOAT, name, size)

    def decl_tag(self, name: str, target: int, component: int = -1) -> int:
        return self.add(DECL_TAG, name, target, [component])

    def type_tag(self, name: str, target: int) -> int:
        return self.add(TYPE_TAG, name, target)

    def build(self, *, header_bytes: int = 24) -> bytes:
        types = b"".join(self.records)
        header = struct.pack(
            self.order + "HBBIIIII", 0xEB9F, 1, 0, header_bytes, 0, len(types), len(types), len(self.strings)
        )
        return header.ljust(header_bytes, b"\0") + types + bytes(self.strings)


def build_example() -> tuple[BtfBuilder, dict[str, int]]:
    """Build an object with every kind, and the identifiers of its types by a name of ours."""
    b = BtfBuilder()
    ids: dict[str, int] = {}
    ids["int"] = b.int_("int", 4, SIGNED)
    ids["char"] = b.int_("char", 1)
    ids["unsigned int"] = b.int_("unsigned int", 4)
    ids["long unsigned int"] = b.int_("long unsigned int", 8)
    ids["_Bool"] = b.int_("_Bool", 1, BOOL)
    ids["index"] = b.int_("__ARRAY_SIZE_TYPE__", 4)
    ids["double"] = b.float_("double", 8)
    ids["list_head"] = b.next_id
    b.struct("list_head", 16, [("next", b.next_id + 1, 0), ("prev", b.next_id + 1, 64)])
    ids["list_head *"] = b.ptr(ids["list_head"])
    ids["const char"] = b.const(ids["char"])
    ids["const char *"] = b.ptr(ids["const char"])
    ids["void *"] = b.ptr(0)
    ids["const void"] = b.const(0)
    ids["u32"] = b.typedef("u32", ids["unsigned int"])
    ids["jiffies_t"] = b.volatile(ids["long unsigned int"])
    ids["restrict"] = b.restrict(ids["void *"])
    ids["char[16]"] = b.array(ids["char"], ids["index"], 16)
    ids["int[]"] = b.array(ids["int"], ids["index"], 0)
    ids["int[2][3]"] = b.array(b.array(ids["int"], ids["index"], 3), ids["index"], 2)
    ids["inner"] = b.union("", 8, [("word", ids["long unsigned int"], 0), ("bytes", ids["char"], 0)])
    ids["packed"] = b.struct(
        "packed",
        24,
        [
            ("flag", ids["unsigned int"], 0, 1),
            ("count", ids["unsigned int"], 1, 31),
            ("", ids["inner"], 64),
            ("name", ids["const char *"], 128),
        ],
    )
    ids["flexible"] = b.struct("flexible", 4, [("n", ids["int"], 0), ("items", ids["int[]"], 32)])
    ids["color"] = b.enum("color", [("RED", 0), ("GREEN", 7), ("BLUE", 0x80000001)])
    ids["signed"] = b.enum("outcome", [("MINUS", -5), ("PLUS", 5)], signed=True)
    ids["big"] = b.enum64("big", [("HUGE", 1 << 40), ("ALL", (1 << 64) - 1)])
    ids["bigsigned"] = b.enum64("bigsigned", [("LOW", -(1 << 40))], signed=True)
    ids["opaque"] = b.fwd("opaque")
    ids["opaque union"] = b.fwd("opaque_union", is_union=True)
    ids["opaque *"] = b.ptr(ids["opaque"])
    ids["callback proto"] = b.proto(ids["int"], [("", ids["list_head *"]), ("", ids["const char *"])])
    ids["callback"] = b.ptr(ids["callback proto"])
    ids["tagged"] = b.ptr(b.type_tag("user", ids["char"]))
    ids["variadic"] = b.proto(ids["int"], [("format", ids["const char *"]), ("", 0)])
    ids["nothing"] = b.proto(0, [])
    ids["printk"] = b.func("printk", ids["variadic"])
    ids["schedule"] = b.func("schedule", ids["nothing"])
    ids["counter"] = b.var("counter", ids["long unsigned int"])
    ids["percpu"] = b.datasec(".data..percpu", [(ids["counter"], 64, 8)])
    b.decl_tag("bpf_kfunc", ids["printk"])
    return b, ids
