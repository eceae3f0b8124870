"""
Build the tables of kallsyms, as ``scripts/kallsyms.c`` lays them out.

Compression is simpler than the kernel's: a few words that kernels are full of
become tokens, every other character stands for itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

WORDS = ("Tsys", "ting", "_init", "get_", "set_", "task", "pci", "dev", "mm", "__", "ed")


@dataclass(frozen=True)
class Layout:
    """
    What changed over time.

    ``order`` is ``addresses-first`` (to 6.3) or ``addresses-last``; ``encoding``
    is ``absolute``, ``base-percpu``, ``base`` or ``place``.
    """

    order: str
    encoding: str
    align: int = 8
    has_seqs: bool = False


LAYOUTS = {
    "5.10-x86": Layout("addresses-first", "base-percpu"),
    "5.10-arm64": Layout("addresses-first", "base"),
    "5.10-no-base": Layout("addresses-first", "absolute"),
    "6.2": Layout("addresses-first", "base-percpu", has_seqs=True),
    "6.4": Layout("addresses-last", "base-percpu", has_seqs=True),
    "6.15": Layout("addresses-last", "base", has_seqs=True),
    "7.0": Layout("addresses-last", "place", align=4, has_seqs=True),
}


@dataclass
class KallsymsImage:
    data: bytes
    symbols: dict[str, int] = field(default_factory=dict)
    """The tables' own names and addresses, as VMCOREINFO has them."""


def build_kallsyms(entries: Sequence[tuple[str, str, int]], vaddr: int, layout: Layout) -> KallsymsImage:
    """Build the tables of (name, type letter, address) entries, to lie at *vaddr*; sorted by address as given."""
    writer = _Writer(vaddr, layout.align)
    if layout.order == "addresses-first":
        _write_addresses(writer, entries, layout)
    writer.label("kallsyms_num_syms")
    writer.data += struct.pack("<I", len(entries))
    names, markers = _compress(entries)
    writer.label("kallsyms_names")
    writer.data += names
    writer.label("kallsyms_markers")
    writer.data += struct.pack(f"<{len(markers)}I", *markers)
    seqs = b"".join(index.to_bytes(3, "big") for index in sorted(range(len(entries)), key=lambda i: entries[i][0]))
    if layout.has_seqs and layout.order == "addresses-first":
        writer.label("kallsyms_seqs_of_names")
        writer.data += seqs
    table, index = _token_table()
    writer.label("kallsyms_token_table")
    writer.data += table
    writer.label("kallsyms_token_index")
    writer.data += index
    if layout.order == "addresses-last":
        _write_addresses(writer, entries, layout)
        if layout.has_seqs:
            writer.label("kallsyms_seqs_of_names")
            writer.data += seqs
    return KallsymsImage(bytes(writer.data), writer.labels)


class _Writer:
    def __init__(self, vaddr: int, align: int) -> None:
        self.vaddr = vaddr
        self.align = align
        self.data = bytearray()
        self.labels: dict[str, int] = {}

    def label(self, name: str) -> int:
        self.data += bytes(-len(self.data) % self.align)
        self.labels[name] = self.vaddr + len(self.data)
        return self.labels[name]


def _write_addresses(writer: _Writer, entries: Sequence[tuple[str, str, int]], layout: Layout) -> None:
    if layout.encoding == "absolute":
        writer.label("kallsyms_addresses")
        writer.data += struct.pack(f"<{len(entries)}Q", *(vaddr for _, _, vaddr in entries))
        return
    start = writer.label("kallsyms_offsets")
    if layout.encoding == "place":
        values = [vaddr - (start + 4 * index) for index, (_, _, vaddr) in enumerate(entries)]
        writer.data += struct.pack(f"<{len(values)}i", *values)
        return
    percpu = layout.encoding == "base-percpu"
    base = min(vaddr for _, letter, vaddr in entries if not (percpu and letter == "A"))
    for _, letter, vaddr in entries:
        if percpu:
            writer.data += struct.pack("<i", vaddr if letter == "A" else base - 1 - vaddr)
        else:
            writer.data += struct.pack("<I", vaddr - base)
    writer.label("kallsyms_relative_base")
    writer.data += struct.pack("<Q", base)


def _tokens() -> list[str]:
    """Characters stand for themselves; the words take codes that no name uses."""
    tokens = [chr(code) if 33 <= code < 127 else "" for code in range(256)]
    for offset, word in enumerate(WORDS):
        tokens[128 + offset] = word
    return tokens


def _token_table() -> tuple[bytes, bytes]:
    table = bytearray()
    offsets = []
    for token in _tokens():
        offsets.append(len(table))
        table += token.encode() + b"\0"
    return bytes(table), struct.pack("<256H", *offsets)


def _compress(entries: Sequence[tuple[str, str, int]]) -> tuple[bytes, list[int]]:
    names = bytearray()
    markers = []
    for number, (name, letter, _) in enumerate(entries):
        if number % 256 == 0:
            markers.append(len(names))
        codes = _encode(letter + name)
        if len(codes) > 127:
            names += bytes((len(codes) & 0x7F | 0x80, len(codes) >> 7))
        else:
            names.append(len(codes))
        names += codes
    return bytes(names), markers


def _encode(text: str) -> bytes:
    codes = bytearray()
    position = 0
    while position < len(text):
        for offset, word in enumerate(WORDS):
            if text.startswith(word, position):
                codes.append(128 + offset)
                position += len(word)
                break
        else:
            codes.append(ord(text[position]))
            position += 1
    return bytes(codes)
