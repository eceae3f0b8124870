"""A host with a capture kernel loaded: its files below a directory, its memory in a kcore."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from postpanic.capture.host import Host
from tests.builders.boot_images import build_boot_params, build_bzimage
from tests.builders.btf import BtfBuilder
from tests.builders.elfcore import Segment, build_elf_core, build_vmcoreinfo_note
from tests.unit.kernel.memories import PAGE, PLACE, START_KERNEL_MAP, STEXT, image_paddr, make_x86_kernel

CRASH_START, CRASH_END = 0x20000000, 0x20400000
RAM_END = 0x30000000
VMCOREINFO_PADDR = 0x1234000
CPU_NOTES = (0x2345000, 0x2346000)
LINE = "console=ttyS0 nr_cpus=1 irqpoll"
KERNEL_AT, INITRD_AT, BOOT_AT, LINE_AT, HEADER_AT = (
    CRASH_START + offset for offset in (0x200000, 0x100000, 0x50000, 0x51000, 0)
)
IOMEM = f"""\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
000f0000-000fffff : System ROM
00100000-{RAM_END - 1:08x} : System RAM
  01000000-01ffffff : Kernel code
  {CRASH_START:08x}-{CRASH_END - 1:08x} : Crash kernel
fec00000-fec003ff : IOAPIC 0
"""


@dataclass
class LoadedHost:
    """
    What is loaded; every field can be made wrong before :meth:`build`.

    Attributes
    ----------
    segments : list of (int, bytes)
        Physical address and content.
    loads : list of (int, int)
        Of the core header.
    """

    payload: bytes = b"\xfc\xfa kernel " + bytes(range(256)) * 40
    initrd: bytes = b"070701" + b"initramfs" * 700
    line: str = f"elfcorehdr={HEADER_AT:#x} {LINE}"
    loads: list[tuple[int, int]] = field(default_factory=lambda: [(0x100000, CRASH_START), (CRASH_END, RAM_END)])
    notes: list[int] = field(default_factory=lambda: [*CPU_NOTES, VMCOREINFO_PADDR])
    usable: list[tuple[int, int]] = field(default_factory=lambda: [(0x1000, 0x9FC00), (CRASH_START, CRASH_END)])
    initrd_place: tuple[int, int] | None = None
    boot_flag: bytes = b"\x55\xaa"
    loaded: str = "1"
    has_image: bool = True
    header: bytes | None = None
    damage: dict[int, bytes] = field(default_factory=dict)
    outside: bool = False
    blank: bool = False
    files: dict[str, str] = field(default_factory=dict)

    def build(self, root: Path) -> Host:
        image = build_bzimage(self.payload, init_size=0x8000)
        texts = {
            "proc/iomem": IOMEM,
            "proc/kallsyms": f"0000000000000000 A fixed\n{PLACE:016x} B kexec_crash_image\n",
            "sys/kernel/kexec_crash_loaded": f"{self.loaded}\n",
            "sys/kernel/kexec_crash_size": f"{CRASH_END - CRASH_START}\n",
            "sys/kernel/vmcoreinfo": f"{VMCOREINFO_PADDR:x} 1000\n",
            **{f"sys/devices/system/cpu/cpu{n}/crash_notes": f"{paddr:x}\n" for n, paddr in enumerate(CPU_NOTES)},
            **self.files,
        }
        contents = {name: text.encode() for name, text in texts.items()}
        contents |= {"sys/kernel/btf/vmlinux": build_btf(), "boot/vmlinuz-6.1.0-test": image, "initrd": self.initrd}
        contents["proc/kcore"] = self._build_kcore()
        for name, content in contents.items():
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return Host(root, "x86_64", "6.1.0-test")

    def _build_kcore(self) -> bytes:
        header = self.header if self.header is not None else self._build_header()
        initrd = self.initrd_place or (INITRD_AT, len(self.initrd))
        boot = build_boot_params(
            command_line_paddr=LINE_AT, initrd=initrd, memory=self.usable, boot_flag=self.boot_flag
        )
        line = self.line.encode() + b"\0"
        pieces = [
            (HEADER_AT, header),
            (INITRD_AT, self.initrd),
            (KERNEL_AT, self.payload),
            (BOOT_AT, boot),
            (LINE_AT, line),
        ]
        region = bytearray(CRASH_END - CRASH_START)
        if not self.blank:
            for at, content in [*pieces, *self.damage.items()]:
                region[at - CRASH_START : at - CRASH_START + len(content)] = content
        dump, info = make_x86_kernel({PLACE: self._build_kimage(pieces)})
        runs = [Segment(pfn * PAGE, bytes(page), vaddr_of(pfn * PAGE)) for pfn, page in sorted(dump.pages.items())]
        runs.append(Segment(CRASH_START, bytes(region), 0xFFFF888000000000 + CRASH_START))
        return build_elf_core(runs, notes=build_vmcoreinfo_note(info.text())).raw

    def _build_kimage(self, pieces: list[tuple[int, bytes]]) -> bytes:
        """Return the pointer, and what it points to 256 bytes behind it: struct kimage."""
        places = [(paddr, len(content), -(-len(content) // PAGE) * PAGE) for paddr, content in pieces]
        if self.outside:
            places.append((CRASH_END - PAGE, PAGE, 2 * PAGE))
        kimage = struct.pack("<QQQ", 0xAAAA, 0xBBBB, len(places))
        kimage += b"".join(struct.pack("<QQQQ", 0xDEAD, size, paddr, room) for paddr, size, room in places)
        return struct.pack("<Q", PLACE + 256 if self.has_image else 0).ljust(256, b"\0") + kimage

    def _build_header(self) -> bytes:
        notes = [Segment(paddr, filesz=0x1000, memsz=0x1000, offset=paddr, type=4) for paddr in self.notes]
        text = [Segment(0x1000000, vaddr=STEXT, filesz=0x1000000, memsz=0x1000000, offset=0x1000000)]
        loads = [
            Segment(start, vaddr=0xFFFF888000000000 + start, filesz=end - start, memsz=end - start, offset=start)
            for start, end in self.loads
        ]
        return build_elf_core([*notes, *text, *loads], notes=b"").raw


def vaddr_of(paddr: int) -> int:
    first = image_paddr(START_KERNEL_MAP)
    return paddr - first + START_KERNEL_MAP if paddr >= first else 0xFFFF888000000000 + paddr


def build_btf() -> bytes:
    b = BtfBuilder()
    word = b.int_("long unsigned int", 8)
    segment = b.struct(
        "kexec_segment", 32, [("buf", word, 0), ("bufsz", word, 64), ("mem", word, 128), ("memsz", word, 192)]
    )
    segments = b.array(segment, word, 16)
    b.struct(
        "kimage",
        24 + 16 * 32,
        [("head", word, 0), ("entry", word, 64), ("nr_segments", word, 128), ("segment", segments, 192)],
    )
    return b.build()
