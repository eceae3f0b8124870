"""
DWARF in bulk: debugging information entries as rows of numpy tables.

An entry has a *shape*, its tag and the attributes it has; every attribute form
that is used here has a fixed length, so all entries of one shape are one
structured array, and writing them is one scattered copy into the section.
Format: DWARF version 4, which drgn, gdb 10 and newer, crash and readelf all read.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from postpanic.errors import UnsupportedError

__all__ = [
    "ARANGES",
    "UNIT_HEADER",
    "Abbreviations",
    "Addresses",
    "At",
    "Ate",
    "Form",
    "Shape",
    "Tag",
    "place",
    "scatter",
    "sleb128",
]

Addresses = list[tuple[NDArray[np.int64], NDArray[np.uint64]]]
"""Where addresses stand in a section, and which: what a relocatable file leaves to its relocations."""


class Tag(enum.IntEnum):
    """``DW_TAG_*``."""

    ARRAY_TYPE = 0x01
    ENUMERATION_TYPE = 0x04
    FORMAL_PARAMETER = 0x05
    MEMBER = 0x0D
    POINTER_TYPE = 0x0F
    COMPILE_UNIT = 0x11
    STRUCTURE_TYPE = 0x13
    SUBROUTINE_TYPE = 0x15
    TYPEDEF = 0x16
    UNION_TYPE = 0x17
    UNSPECIFIED_PARAMETERS = 0x18
    SUBRANGE_TYPE = 0x21
    BASE_TYPE = 0x24
    CONST_TYPE = 0x26
    ENUMERATOR = 0x28
    SUBPROGRAM = 0x2E
    VARIABLE = 0x34
    VOLATILE_TYPE = 0x35
    RESTRICT_TYPE = 0x37


class At(enum.IntEnum):
    """``DW_AT_*``."""

    SIBLING = 0x01
    LOCATION = 0x02
    NAME = 0x03
    BYTE_SIZE = 0x0B
    LOW_PC = 0x11
    HIGH_PC = 0x12
    LANGUAGE = 0x13
    CONST_VALUE = 0x1C
    UPPER_BOUND = 0x2F
    BIT_SIZE = 0x0D
    PRODUCER = 0x25
    PROTOTYPED = 0x27
    ABSTRACT_ORIGIN = 0x31
    DATA_MEMBER_LOCATION = 0x38
    DECLARATION = 0x3C
    ENCODING = 0x3E
    EXTERNAL = 0x3F
    TYPE = 0x49
    DATA_BIT_OFFSET = 0x6B


class Ate(enum.IntEnum):
    """``DW_ATE_*``."""

    BOOLEAN = 0x02
    FLOAT = 0x04
    SIGNED = 0x05
    SIGNED_CHAR = 0x06
    UNSIGNED = 0x07
    UNSIGNED_CHAR = 0x08


class Form(enum.Enum):
    """``DW_FORM_*`` with the bytes each takes here."""

    ADDR = (0x01, "<u8")
    DATA4 = (0x06, "<u4")
    DATA8 = (0x07, "<u8")
    DATA1 = (0x0B, "u1")
    SDATA5 = (0x0D, ("u1", (5,)))
    """DW_FORM_sdata, padded to five bytes: any 32-bit value."""
    SDATA10 = (0x0D, ("u1", (10,)))
    STRP = (0x0E, "<u4")
    REF_ADDR = (0x10, "<u4")
    REF4 = (0x13, "<u4")
    EXPRLOC_ADDR = (0x18, [("length", "u1"), ("op", "u1"), ("vaddr", "<u8")])
    """DW_FORM_exprloc of DW_OP_addr and an address."""
    FLAG_PRESENT = (0x19, None)


@cache
def _entry_dtype(attributes: tuple[tuple[At, Form], ...]) -> np.dtype[np.void]:
    fields: list[tuple[str, object]] = [("code", "u1")]
    fields += [(at.name, form.value[1]) for at, form in attributes if form.value[1] is not None]
    return np.dtype([(name, *kind) if isinstance(kind, tuple) else (name, kind) for name, kind in fields])


@dataclass(frozen=True, slots=True)
class Shape:
    """What entries of one kind look like: tag, attributes in order, whether children follow."""

    tag: Tag
    attributes: tuple[tuple[At, Form], ...]
    children: bool = False

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Numpy type of one entry: the abbreviation code and the attributes, packed."""
        return _entry_dtype(self.attributes)

    @property
    def size_bytes(self) -> int:
        """Bytes of one entry, without its children."""
        return self.dtype.itemsize


@dataclass(slots=True)
class Abbreviations:
    """The ``.debug_abbrev`` table, filled as shapes are used."""

    codes: dict[Shape, int] = field(default_factory=dict)

    def code(self, shape: Shape) -> int:
        """Abbreviation code of a shape; one byte as LEB128."""
        code = self.codes.setdefault(shape, len(self.codes) + 1)
        if code >= 0x80:
            raise UnsupportedError("more than 127 shapes of entries")
        return code

    def encode(self) -> bytes:
        """Encode the section: every number in it is below 128, thus one byte."""
        out = bytearray()
        for shape, code in self.codes.items():
            out += bytes((code, shape.tag, shape.children))
            for at, form in shape.attributes:
                out += bytes((at, form.value[0]))
            out += b"\0\0"
        return bytes(out) + b"\0"


UNIT_HEADER = np.dtype([("length", "<u4"), ("version", "<u2"), ("abbrev_off", "<u4"), ("address_size", "u1")])
"""``.debug_info`` unit header of DWARF 4, 32-bit format."""

ARANGES = np.dtype(
    [
        ("length", "<u4"),
        ("version", "<u2"),
        ("info_off", "<u4"),
        ("address_size", "u1"),
        ("segment_size", "u1"),
        ("padding", "<u4"),
        ("vaddr", "<u8"),
        ("size", "<u8"),
        ("end", "<u8", (2,)),
    ]
)
"""``.debug_aranges`` set of one range."""


def place(
    section: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    shape: Shape,
    code: int,
    columns: Mapping[At, ArrayLike],
    addresses: Addresses | None = None,
) -> None:
    """
    Write one entry of *shape* at each offset of the section.

    With *addresses*, addresses are listed there and left zero in the section.
    """
    if not len(offsets):
        return
    dtype = shape.dtype
    rows = np.zeros(len(offsets), dtype=dtype)
    rows["code"] = code
    for at, form in shape.attributes:
        if form is Form.FLAG_PRESENT:
            continue
        target, field, within = rows, at.name, 0
        if form is Form.EXPRLOC_ADDR:
            target, field, within = rows[at.name], "vaddr", 2
            target["length"] = 9
            target["op"] = 0x03
        if addresses is not None and form in (Form.ADDR, Form.EXPRLOC_ADDR):
            position = int(dtype.fields[at.name][1]) if dtype.fields else 0
            addresses.append((offsets + position + within, np.asarray(columns[at], dtype=np.uint64)))
        else:
            target[field] = columns[at]
    scatter(section, offsets, rows)


def scatter(section: NDArray[np.uint8], offsets: NDArray[np.int64], rows: NDArray[np.void]) -> None:
    """Copy each row to its offset: an assignment to a view in which an item begins at every byte."""
    size = rows.dtype.itemsize
    if int(offsets.min()) < 0 or int(offsets.max()) + size > len(section):
        raise IndexError("entry outside its section")
    item = np.dtype((np.void, size))
    view: NDArray[np.void] = np.ndarray((len(section) - size + 1,), dtype=item, buffer=section, strides=(1,))
    view[offsets] = rows.view(item)


def sleb128(values: NDArray[np.int64], size_bytes: int) -> NDArray[np.uint8]:
    """Encode each value as signed LEB128, padded to *size_bytes*."""
    shifts = np.minimum(7 * np.arange(size_bytes, dtype=np.int64), 63)
    encoded = ((values[:, None] >> shifts) & 0x7F).astype(np.uint8)
    encoded[:, :-1] |= 0x80
    return encoded
