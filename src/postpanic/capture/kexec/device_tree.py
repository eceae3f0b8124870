"""
Flattened device trees: taken apart, changed, put together again.

Source: Devicetree Specification 0.4, chapter 5 (flattened format). The running
machine's is ``/sys/firmware/fdt``; where the firmware's was changed in passing
and the kernel does not show it there, the same tree is unfolded in
``/sys/firmware/devicetree/base`` (``drivers/of/fdt.c``, ``drivers/of/kobj.c``).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from postpanic.errors import CorruptError, FactAbsentError

__all__ = ["FDT_MAGIC", "DeviceTree", "Node", "decode_tree", "encode_tree", "read_unfolded_tree"]

FDT_MAGIC = b"\xd0\x0d\xfe\xed"
LIMIT_BYTES = 4 << 20
"""Twice what arm64 maps of one (``MAX_FDT_SIZE``, ``arch/arm64/include/asm/boot.h``)."""

_HEADER = struct.Struct(">10I")
_RESERVATION = struct.Struct(">QQ")
_VERSION, _COMPATIBLE_VERSION = 17, 16
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_DEPTH_LIMIT = 64
_NODES_LIMIT = 1 << 17
_RESERVATIONS_LIMIT = 1024
_CELLS_LIMIT = 4


@dataclass
class Node:
    """
    A node.

    Attributes
    ----------
    name : str
        With its unit address; empty for the root.
    properties : dict
        Values as they stand, in order.
    children : list of Node
    """

    name: str
    properties: dict[str, bytes] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def find_child(self, name: str) -> Node | None:
        """Return a child by its name; None if there is none."""
        return next((child for child in self.children if child.name == name), None)

    def number(self, name: str, default: int) -> int:
        """Return a property of one or two cells as a number; *default* for what is no such property."""
        value = self.properties.get(name, b"")
        return int.from_bytes(value, "big") if len(value) in (4, 8) else default


@dataclass
class DeviceTree:
    """
    A tree.

    Attributes
    ----------
    root : Node
    reservations : list of (int, int)
        Physical addresses and sizes in bytes that the kernel must leave alone.
    boot_cpu : int
        The number of the processor that boots.
    """

    root: Node
    reservations: list[tuple[int, int]] = field(default_factory=list)
    boot_cpu: int = 0

    @property
    def chosen(self) -> Node | None:
        """The node of what firmware and kernel tell each other."""
        return self.root.find_child("chosen")

    def make_chosen(self) -> Node:
        """Return that node, made if there is none."""
        found = self.chosen
        if found is None:
            found = Node("chosen")
            self.root.children.append(found)
        return found

    @property
    def cells(self) -> tuple[int, int]:
        """How many cells of 32 bits an address has in the root's children, and a size; 2 and 1 unless it says so."""
        found = self.root.number("#address-cells", 2), self.root.number("#size-cells", 1)
        return min(found[0], _CELLS_LIMIT), min(found[1], _CELLS_LIMIT)

    def encode_range(self, address: int, size_bytes: int) -> bytes:
        """
        Write an address and a size as the root's cells have them.

        Raises
        ------
        CorruptError
            If they do not fit.
        """
        address_cells, size_cells = self.cells
        try:
            return address.to_bytes(4 * address_cells, "big") + size_bytes.to_bytes(4 * size_cells, "big")
        except OverflowError:
            raise CorruptError(
                f"{address:#x} and {size_bytes:#x} do not fit into {address_cells} and {size_cells} cells",
                where="the root of the device tree",
            ) from None

    def decode_ranges(self, value: bytes) -> list[tuple[int, int]]:
        """Read what :meth:`encode_range` writes, several one after the other; what is left over is passed over."""
        address_bytes, size_bytes = (4 * cells for cells in self.cells)
        step = address_bytes + size_bytes
        found = []
        for at in range(0, len(value) - step + 1, step) if step else ():
            middle = at + address_bytes
            found.append((int.from_bytes(value[at:middle], "big"), int.from_bytes(value[middle : at + step], "big")))
        return found


def decode_tree(raw: bytes) -> DeviceTree:
    """
    Decode a flattened tree.

    Raises
    ------
    CorruptError
        If it makes no sense.
    """
    if raw[:4] != FDT_MAGIC:
        raise CorruptError(f"not a device tree: it begins with {raw[:4].hex() or 'nothing'}, not {FDT_MAGIC.hex()}")
    if len(raw) < _HEADER.size:
        raise CorruptError(f"{len(raw)} bytes, the header of a device tree has {_HEADER.size}")
    _, size, struct_at, strings_at, reserved_at, _, _, boot_cpu, _, _ = _HEADER.unpack_from(raw)
    if not _HEADER.size <= size <= min(len(raw), LIMIT_BYTES) or struct_at >= size or strings_at > size:
        raise CorruptError(
            f"a device tree of {size} bytes in {len(raw)}, its parts at {struct_at:#x} and {strings_at:#x}"
        )
    raw = raw[:size]
    return DeviceTree(_Parser(raw, struct_at, strings_at).parse(), _decode_reservations(raw, reserved_at), boot_cpu)


def _decode_reservations(raw: bytes, at: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while at + _RESERVATION.size <= len(raw) and len(found) < _RESERVATIONS_LIMIT:
        start, size = _RESERVATION.unpack_from(raw, at)
        if (start, size) == (0, 0):
            return found
        found.append((start, size))
        at += _RESERVATION.size
    raise CorruptError("the device tree's list of reserved memory has no end")


class _Parser:
    def __init__(self, raw: bytes, struct_at: int, strings_at: int) -> None:
        self._raw = raw
        self._at = struct_at
        self._strings_at = strings_at

    def parse(self) -> Node:
        path: list[Node] = []
        root: Node | None = None
        nodes = 0
        while True:
            token = self._take_token()
            if token == _BEGIN_NODE:
                node = Node(self._take_name())
                nodes += 1
                if len(path) >= _DEPTH_LIMIT or nodes > _NODES_LIMIT or (root is not None and not path):
                    raise CorruptError(f"a device tree deeper than {_DEPTH_LIMIT}, or of too many nodes")
                if path:
                    path[-1].children.append(node)
                root = root or node
                path.append(node)
            elif token == _END_NODE:
                if not path:
                    raise CorruptError("more nodes end than have begun")
                path.pop()
            elif token == _PROP:
                self._take_property(path)
            elif token == _END:
                if root is None or path:
                    raise CorruptError("the device tree ends within a node")
                return root
            elif token != _NOP:
                raise CorruptError(f"token {token:#x} at {self._at - 4:#x} is none of a device tree")

    def _take_token(self) -> int:
        if self._at + 4 > len(self._raw):
            raise CorruptError("the device tree has no end")
        self._at += 4
        return int.from_bytes(self._raw[self._at - 4 : self._at], "big")

    def _take_name(self) -> str:
        end = self._raw.find(b"\0", self._at)
        if end < 0:
            raise CorruptError("a node's name has no end")
        name = _to_text(self._raw[self._at : end])
        self._at = end + 4 & ~3
        return name

    def _take_property(self, path: list[Node]) -> None:
        if not path:
            raise CorruptError("a property outside of all nodes")
        length, name_at = self._take_token(), self._take_token()
        start = self._strings_at + name_at
        end = self._raw.find(b"\0", start)
        if end < 0:
            raise CorruptError("a property's name has no end")
        name = _to_text(self._raw[start:end])
        if self._at + length > len(self._raw):
            raise CorruptError(f"property {name!r} of {length} bytes goes beyond the end")
        path[-1].properties[name] = self._raw[self._at : self._at + length]
        self._at = self._at + length + 3 & ~3


def encode_tree(tree: DeviceTree) -> bytes:
    """Write a flattened tree, version 17."""
    structure = bytearray()
    strings = _Strings()
    _encode_node(tree.root, structure, strings)
    structure += struct.pack(">I", _END)
    reserved = b"".join(_RESERVATION.pack(*one) for one in (*tree.reservations, (0, 0)))
    struct_at = _HEADER.size + len(reserved)
    strings_at = struct_at + len(structure)
    size = strings_at + len(strings.content) + 7 & ~7
    sizes = (_VERSION, _COMPATIBLE_VERSION, tree.boot_cpu, len(strings.content), len(structure))
    magic = int.from_bytes(FDT_MAGIC, "big")
    header = _HEADER.pack(magic, size, struct_at, strings_at, _HEADER.size, *sizes)
    return (header + reserved + structure + strings.content).ljust(size, b"\0")


class _Strings:
    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[str, int] = {}

    def place(self, name: str) -> int:
        if name not in self._places:
            self._places[name] = len(self.content)
            self.content += _to_bytes(name) + b"\0"
        return self._places[name]


def _encode_node(node: Node, structure: bytearray, strings: _Strings) -> None:
    structure += struct.pack(">I", _BEGIN_NODE) + _to_bytes(node.name) + b"\0"
    structure += bytes(-len(structure) % 4)
    for name, value in node.properties.items():
        structure += struct.pack(">III", _PROP, len(value), strings.place(name)) + value
        structure += bytes(-len(structure) % 4)
    for child in node.children:
        _encode_node(child, structure, strings)
    structure += struct.pack(">I", _END_NODE)


def read_unfolded_tree(directory: Path) -> DeviceTree:
    """
    Read a tree as the kernel shows it: a directory for each node, a file for each property.

    Raises
    ------
    FactAbsentError
        If there is none, or it may not be read.
    CorruptError
        If it is too large.
    """
    room = [LIMIT_BYTES]
    try:
        root = _read_node(directory, "", room, 0)
    except OSError as exc:
        raise FactAbsentError(f"no device tree: {exc.strerror}", where=str(directory)) from exc
    return DeviceTree(root)


def _read_node(directory: Path, name: str, room: list[int], depth: int) -> Node:
    node = Node(name)
    if depth > _DEPTH_LIMIT:
        raise CorruptError(f"a device tree deeper than {_DEPTH_LIMIT}", where=str(directory))
    for entry in sorted(os.scandir(directory), key=lambda one: one.name):
        if entry.is_symlink():
            continue
        if entry.is_dir():
            node.children.append(_read_node(Path(entry.path), entry.name, room, depth + 1))
        # The kernel adds the name, which a flattened tree of version 17 has in the node itself.
        elif entry.name != "name":
            with Path(entry.path).open("rb") as stream:
                value = stream.read(room[0] + 1)
            room[0] -= len(value) + 16
            if room[0] < 0:
                raise CorruptError(f"a device tree of more than {LIMIT_BYTES} bytes", where=str(directory))
            node.properties[entry.name] = value
    return node


def _to_text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _to_bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
