"""
Build what the kernel leaves in persistent storage, format by format.

Written from ``fs/pstore/{platform,ram,ram_core,zone,ftrace}.c``, ``lib/reed_solomon/encode_rs.c``,
``drivers/mtd/mtdoops.c``, ``drivers/firmware/efi/efi-pstore.c``, ``drivers/acpi/apei/erst.c``,
``lib/842/842.h`` and the UEFI specification (appendix N).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal
from uuid import UUID

import cramjam
import lzallright
import zstandard

Order = Literal["little", "big"]

DBGC = 0x43474244
EFI_GUID = "cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0"
ALGORITHMS = ("deflate", "deflate-2k", "zlib", "lzo", "lz4", "842", "zstd")


def dump_text(reason: str, count: int, part: int, text: bytes) -> bytes:
    return b"%s#%d Part%d\n" % (reason.encode(), count, part) + text


def compress(algorithm: str, text: bytes) -> bytes:
    """Compress as one of the algorithms that a kernel could be told to use."""
    match algorithm:
        case "deflate":
            return _deflate(text, -15)
        case "deflate-2k":
            return _deflate(text, -11)
        case "zlib":
            return _deflate(text, 12)
        case "lzo":
            return bytes(lzallright.LZOCompressor().compress(text))
        case "lz4":
            return bytes(cramjam.lz4.compress_block(text, store_size=False))
        case "842":
            return compress_842(text)
        case "zstd":
            return bytes(zstandard.ZstdCompressor().compress(text))
    raise AssertionError(algorithm)


def _deflate(text: bytes, window_bits: int) -> bytes:
    encoder = zlib.compressobj(6, zlib.DEFLATED, window_bits, 4)
    return encoder.compress(text) + encoder.flush()


class _BitWriter:
    def __init__(self) -> None:
        self.value = self.count = 0

    def put(self, value: int, bits: int) -> None:
        assert 0 <= value < 1 << bits
        self.value, self.count = (self.value << bits) | value, self.count + bits

    def bytes(self) -> bytes:
        padding = -self.count % 64
        return (self.value << padding).to_bytes((self.count + padding) // 8, "big")


_RING = {2: 512, 4: 2048, 8: 2048}
_INDEX_BITS = {2: 8, 4: 9, 8: 8}
_842_TEMPLATES = {"8": 0x19, "44": 0x18, "4D": 0x14, "D4": 0x04, "DD": 0x00, "2222": 0x12, "D22": 0x03, "22D": 0x0F}


def compress_842(text: bytes) -> bytes:
    """Compress with some of the templates: whole, halves and quarters found before, repeats, zeros, a short end."""
    out = _BitWriter()
    place = 0
    while place + 8 <= len(text):
        block = text[place : place + 8]
        repeats = 0
        while place >= 8 and repeats < 64 and text[place + 8 * repeats :][:8] == text[place - 8 : place]:
            repeats += 1
        if repeats:
            out.put(0x1B, 5)
            out.put(repeats - 1, 6)
            place += 8 * repeats
            continue
        if block == bytes(8):
            out.put(0x1C, 5)
        else:
            _put_block(out, text, place, block)
        place += 8
    if place < len(text):
        out.put(0x1D, 5)
        out.put(len(text) - place, 3)
        for byte in text[place:]:
            out.put(byte, 8)
    out.put(0x1E, 5)
    return out.bytes()


def _index(text: bytes, place: int, piece: bytes) -> int | None:
    """Find a piece in the ring that ends before the block: its place in the ring."""
    size = len(piece)
    for start in range(place - size, max(place - _RING[size], -1), -size):
        if start >= 0 and start % size == 0 and text[start : start + size] == piece:
            return start % _RING[size] // size
    return None


def _put_block(out: _BitWriter, text: bytes, place: int, block: bytes) -> None:
    whole = _index(text, place, block)
    if whole is not None:
        out.put(_842_TEMPLATES["8"], 5)
        out.put(whole, 8)
        return
    halves = [(block[i : i + 4], _index(text, place, block[i : i + 4])) for i in (0, 4)]
    quarters = [_index(text, place, block[i : i + 2]) for i in (0, 2, 4, 6)]
    if all(index is not None for index in quarters) and None in [index for _, index in halves]:
        out.put(_842_TEMPLATES["2222"], 5)
        for index in quarters:
            out.put(index or 0, 8)
        return
    out.put(_842_TEMPLATES["".join("D" if index is None else "4" for _, index in halves)], 5)
    for piece, index in halves:
        if index is None:
            out.put(int.from_bytes(piece, "big"), 32)
        else:
            out.put(index, 9)


class KernelReedSolomon:
    """``init_rs(8, 0x11d, 0, 1, nroots)`` and ``encode_rs8``, in the kernel's way: tables of powers and indices."""

    def __init__(self, nroots: int) -> None:
        self.nroots = nroots
        self.alpha_to, self.index_of = [0] * 256, [0] * 256
        self.index_of[0], self.alpha_to[255] = 255, 0
        symbol = 1
        for i in range(255):
            self.index_of[symbol], self.alpha_to[i] = i, symbol
            symbol <<= 1
            if symbol & 256:
                symbol ^= 0x11D
        genpoly = [0] * (nroots + 1)
        genpoly[0] = 1
        for i in range(nroots):
            genpoly[i + 1] = 1
            for j in range(i, 0, -1):
                genpoly[j] = (
                    genpoly[j - 1] ^ self.alpha_to[(self.index_of[genpoly[j]] + i) % 255]
                    if genpoly[j]
                    else genpoly[j - 1]
                )
            genpoly[0] = self.alpha_to[(self.index_of[genpoly[0]] + i) % 255]
        self.genpoly = [self.index_of[coefficient] for coefficient in genpoly]

    def encode(self, data: bytes) -> bytes:
        par = [0] * self.nroots
        for byte in data:
            feedback = self.index_of[byte ^ par[0]]
            if feedback != 255:
                for j in range(1, self.nroots):
                    par[j] ^= self.alpha_to[(feedback + self.genpoly[self.nroots - j]) % 255]
            last = self.alpha_to[(feedback + self.genpoly[0]) % 255] if feedback != 255 else 0
            par = [*par[1:], last]
        return bytes(par)


@cache
def kernel_reed_solomon(nroots: int) -> KernelReedSolomon:
    return KernelReedSolomon(nroots)


class PersistentRamZone:
    """A zone of ramoops, written to as ``persistent_ram_write`` does."""

    def __init__(self, size: int, signature: int = 0, ecc: int = 0, order: Order = "little") -> None:
        self.size, self.ecc, self.order = size, ecc, order
        self.signature = DBGC ^ signature
        self.room = size - 12
        self.blocks = 0
        if ecc:
            self.blocks = -(-(self.room - ecc) // (128 + ecc))
            self.room -= (self.blocks + 1) * ecc
            self.code = kernel_reed_solomon(ecc)
        self.start = self.used = 0
        self.data = bytearray(self.room)
        self.parity = bytearray(self.blocks * ecc)

    def write(self, text: bytes) -> None:
        text = text[-self.room :]
        self.used = min(self.used + len(text), self.room)
        old = self.start
        self.start = (old + len(text)) % self.room
        head = text[: self.room - old]
        self._update(old, head)
        if len(head) < len(text):
            self._update(0, text[len(head) :])

    def _update(self, start: int, text: bytes) -> None:
        self.data[start : start + len(text)] = text
        if not self.ecc:
            return
        block = start & ~127
        while block < start + max(len(text), 1):
            number = block // 128
            piece = bytes(self.data[block : min(block + 128, self.room)])
            self.parity[number * self.ecc : (number + 1) * self.ecc] = self.code.encode(piece)
            block += 128

    @property
    def raw(self) -> bytes:
        header = struct.pack("<III" if self.order == "little" else ">III", self.signature, self.start, self.used)
        tail = bytes(self.parity) + self.code.encode(header) if self.ecc else b""
        raw = header + bytes(self.data) + tail
        assert len(raw) == self.size
        return raw


@dataclass
class RamoopsArea:
    """A memory area of ramoops by its module parameters."""

    mem_size: int = 65536
    record_size: int = 4096
    console_size: int = 4096
    ftrace_size: int = 4096
    pmsg_size: int = 4096
    ecc: int = 0
    cpus: int = 1
    version: int = 0x060C01
    pmsg_first: bool = False
    order: Order = "little"
    dumps: list[PersistentRamZone] = field(init=False)
    console: PersistentRamZone | None = field(init=False, default=None)
    ftrace: list[PersistentRamZone] = field(init=False)
    pmsg: PersistentRamZone | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for_dumps = self.mem_size - self.console_size - self.ftrace_size - self.pmsg_size
        count = for_dumps // self.record_size if self.record_size else 0
        self.dumps = [self._zone(for_dumps // count) for _ in range(count)]
        self.console = self._zone(self.console_size) if self.console_size else None
        each = self.ftrace_size // self.cpus
        self.ftrace = [self._zone(each, self.version) for _ in range(self.cpus)] if self.ftrace_size else []
        self.pmsg = self._zone(self.pmsg_size) if self.pmsg_size else None

    def _zone(self, size: int, signature: int = 0) -> PersistentRamZone:
        return PersistentRamZone(size, signature, self.ecc, self.order)

    def write_dump(self, number: int, content: bytes, time_s: float = 1_700_000_000.25, kind: str = "D") -> None:
        zone = self.dumps[number]
        zone.start = zone.used = 0
        header = b"====%d.%06d-%s\n" % (int(time_s), round(time_s % 1 * 1e6), kind.encode())
        zone.write(header)
        zone.write(content[: zone.room - len(header)])

    @property
    def raw(self) -> bytes:
        last = [self.pmsg, *self.ftrace] if self.pmsg_first else [*self.ftrace, self.pmsg]
        zones = [*self.dumps, self.console, *last]
        return b"".join(zone.raw for zone in zones if zone is not None).ljust(self.mem_size, b"\0")


def ftrace_entry(cpu: int, stamp: int, ip: int, parent_ip: int, *, bits: int = 64) -> bytes:
    return struct.pack("<QQQ" if bits == 64 else "<IIQ", ip, parent_ip, stamp << 8 | cpu)


def ftrace_entry_before_4_10(cpu: int, ip: int, parent_ip: int) -> bytes:
    return struct.pack("<QQI4x", ip, parent_ip, cpu)


@dataclass
class PszZone:
    """A zone of pstore/zone, written to as ``psz_record_write`` does."""

    kind: int
    size: int
    order: Order = "little"
    start: int = 0
    length: int = 0
    data: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.data = bytearray(b"\xff" * (self.size - 12))

    def write(self, text: bytes) -> None:
        room = len(self.data)
        text = text[-room:]
        full = self.length >= room
        head = text[: room - self.start]
        self.data[self.start : self.start + len(head)] = head
        end = self.start + len(head)
        if len(head) < len(text):
            rest = text[len(head) :]
            self.data[: len(rest)] = rest
            end, full = len(rest), True
        self.start, self.length = end, room if full else end

    def write_dump(
        self, content: bytes, *, seconds: int, nanos: int, compressed: bool, counter: int, reason: int, bits: int = 64
    ) -> None:
        mark = "<" if self.order == "little" else ">"
        if bits == 64:
            header = struct.pack(mark + "I4xqqB3xII4x", 0x4DFC3AE5, seconds, nanos, compressed, counter, reason)
        elif bits == 32:
            header = struct.pack(mark + "I4xqI4xB3xII4x", 0x4DFC3AE5, seconds, nanos, compressed, counter, reason)
        else:
            header = struct.pack("<IqIB3xII", 0x4DFC3AE5, seconds, nanos, compressed, counter, reason)
        content = content[: len(self.data) - len(header)]
        self.data[: len(header) + len(content)] = header + content
        self.length = len(header) + len(content)

    @property
    def raw(self) -> bytes:
        form = "<III" if self.order == "little" else ">III"
        return struct.pack(form, DBGC ^ self.kind, self.length, self.start) + bytes(self.data)


def mtdoops_page(
    text: bytes, sequence: int, *, record_size: int = 4096, version: int = 2, time_ns: int = 0, order: Order = "little"
) -> bytes:
    mark = "<" if order == "little" else ">"
    if version == 1:
        header = struct.pack(mark + "II", sequence, 0x5D005D00)
    else:
        header = struct.pack(mark + "IIq", sequence, 0x5D005E00, time_ns)
    return (header + text[: record_size - len(header)]).ljust(record_size, b"\xff")


def efi_variable(
    content: bytes, *, part: int, count: int, time_s: int, compressed: bool | None = False, kind: int = 0
) -> tuple[str, bytes]:
    """Name and contents of a file of efivarfs; ``compressed=None``: named as before there was compression."""
    name = f"dump-type{kind}-{part}-{count}-{time_s}"
    if compressed is not None:
        name += "-C" if compressed else "-D"
    return f"{name}-{EFI_GUID}", struct.pack("<I", 7) + content


def efi_id(part: int, count: int, time_s: int) -> int:
    return (time_s * 100 + part) * 1000 + count


_CREATOR = UUID("75a574e3-5052-4b29-8a8e-be2c6490b89d")
_SECTIONS = {
    "dmesg": UUID("c197e04e-d545-4a70-9c17-a5549419eb12"),
    "dmesg-z": UUID("4f118707-04dd-4055-b5dd-956d34ddfac6"),
    "mce": UUID("fe08ffbe-95e4-4be7-bc73-4096044a38fc"),
}
_NOTIFY_MCE = UUID("e8f56ffe-919c-4cc5-ba88-65abe14913bb")


def erst_record(content: bytes, record_id: int, *, section: str = "dmesg", time_s: int = 0) -> bytes:
    header = struct.pack(
        "<4sHIHIIIQ16s16s16s16sQIQ12s",
        b"CPER", 0x100, 0xFFFFFFFF, 1, 1, 2 if time_s else 0, 200 + len(content), time_s,
        bytes(16), bytes(16), _CREATOR.bytes_le, _NOTIFY_MCE.bytes_le, record_id, 2, 0, bytes(12),
    )  # fmt: skip
    descriptor = struct.pack(
        "<IIHBBI16s16sI20s",
        200, len(content), 0x100, 0, 0, 1, _SECTIONS[section].bytes_le, bytes(16), 1, bytes(20),
    )  # fmt: skip
    assert len(header) == 128
    assert len(descriptor) == 72
    return header + descriptor + content


def erst_store(records: Sequence[bytes], *, record_size: int = 8192, slots: int = 16) -> bytes:
    """Build the file in which QEMU keeps the records of its ERST device."""
    ids = [struct.unpack_from("<Q", record, 96)[0] for record in records]
    header = struct.pack("<QIIHHI", 0x524F545354535245, record_size, record_size, 0x100, 0, len(records))
    header += bytes(8) + struct.pack(f"<{len(ids)}Q", *ids)
    store = header.ljust(record_size, b"\0")
    for record in records:
        store += record.ljust(record_size, b"\0")
    return store.ljust(record_size * slots, b"\xff")
