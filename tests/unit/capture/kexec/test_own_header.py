"""Core headers of our own, and loads that the kernel does not show afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from postpanic.capture.host import Host
from postpanic.capture.kexec.arm64_segments import Piece, arrange
from postpanic.capture.kexec.core_header import decode_core_header
from postpanic.capture.kexec.device_tree import DeviceTree, Node
from postpanic.capture.kexec.images import decode_image
from postpanic.capture.kexec.own_header import make_core_header
from postpanic.capture.kexec.refusals import LoadRefusedError
from postpanic.capture.kexec.verify import Expected, Verification, verify
from tests.builders.boot_images import build_arm64_image
from tests.builders.elfcore import EM_AARCH64, Segment, build_elf_core, build_vmcoreinfo_note

MIB = 1 << 20
LINE = "console=ttyAMA0 nr_cpus=1"
IOMEM = """\
09000000-09000fff : pl011@9000000
40000000-7fffffff : System RAM
  40210000-41ceffff : Kernel code
  70000000-73ffffff : Crash kernel
100000800-10ffff7ff : System RAM
"""
NOTES = {"cpu0": 0x5000_1000, "cpu1": 0x5000_2000}
LINEAR, IMAGE = 0xFFFF_0000_0000_0000, 0xFFFF_A000_0800_0000


def make_host(root: Path, *, kcore: bool = True, **changes: str) -> Host:
    files = {
        "proc/iomem": IOMEM,
        "proc/kallsyms": f"{IMAGE:016x} T _stext\n",
        "sys/kernel/vmcoreinfo": "50003000 1000\n",
        "sys/kernel/kexec_crash_loaded": "1\n",
        "sys/kernel/kexec_crash_size": f"{64 * MIB}\n",
        **{f"sys/devices/system/cpu/{cpu}/crash_notes": f"{at:x}\n" for cpu, at in NOTES.items()},
        **{f"sys/devices/system/cpu/{cpu}/crash_notes_size": "424\n" for cpu in NOTES},
    } | {name.replace("__", "/"): text for name, text in changes.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if kcore:
        ram = [Segment(0x4000_0000, vaddr=LINEAR, filesz=MIB << 10, memsz=MIB << 10, offset=0x4000_0000)]
        ram.append(Segment(1 << 32, vaddr=LINEAR + (3 << 30), filesz=256 * MIB, memsz=256 * MIB, offset=1 << 32))
        image = Segment(0x4021_0000, vaddr=IMAGE, filesz=MIB, memsz=MIB, offset=0x4021_0000)
        info = build_vmcoreinfo_note(b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\n")
        (root / "proc/kcore").write_bytes(build_elf_core([image, *ram], notes=info, machine=EM_AARCH64).raw)
    return Host(root, "aarch64", "6.1.0-test")


def test_header_has_the_memory_the_notes_and_the_kernels_own_addresses(tmp_path: Path) -> None:
    header = decode_core_header(make_core_header(make_host(tmp_path)))
    assert header.machine == "aarch64"
    assert header.notes == ((0x5000_1000, 424), (0x5000_2000, 424), (0x5000_3000, 0x1000))
    # Whole pages of what is RAM, without the reservation.
    assert header.loads == (
        (0x4000_0000, 0x7000_0000),
        (0x7400_0000, 0x8000_0000),
        (0x1_0000_1000, 0x1_0FFF_F000),
    )
    assert header.texts == ((0x4021_0000, 0x4021_0000 + MIB),)


def test_header_without_virtual_addresses(tmp_path: Path) -> None:
    header = decode_core_header(make_core_header(make_host(tmp_path, kcore=False)))
    assert len(header.loads) == 3
    assert header.texts == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"proc__iomem": "00000000-00000000 : System RAM\n"}, "hides addresses"),
        ({"proc__iomem": "40000000-7fffffff : System RAM\n"}, "no crash kernel"),
        ({"sys__kernel__vmcoreinfo": "\n"}, "VMCOREINFO"),
        ({"sys__devices__system__cpu__cpu1__crash_notes_size": "\n"}, "save their registers"),
        ({"sys__devices__system__cpu__cpu1__crash_notes": "0\n"}, "save their registers"),
    ],
)
def test_host_that_does_not_tell_enough(changes: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(LoadRefusedError, match=says):
        make_core_header(make_host(tmp_path, kcore=False, **changes))


def verify_handed(root: Path, change: str = "") -> Verification:
    """Verify a load that cannot be read back, one piece of it changed."""
    host = make_host(root)
    (root / "vmlinuz").write_bytes(build_arm64_image(b"kernel" * 5000, image_size=9 * MIB))
    initrd = b"070701" * 5000
    tree = DeviceTree(Node("", {"#address-cells": b"\0\0\0\2", "#size-cells": b"\0\0\0\2"}))
    image = decode_image((root / "vmlinuz").read_bytes())
    reserved = host.read_io_memory().crash_kernel
    pieces: tuple[Piece, ...] = arrange(image, initrd, LINE, tree, reserved, make_core_header(host)).pieces
    pieces = tuple(replace(one, content=one.content[:-16]) if one.name == change else one for one in pieces)
    return verify(host, Expected(root / "vmlinuz", initrd, LINE), handed=pieces)


def test_what_was_handed_over_is_looked_at_where_it_cannot_be_read_back(tmp_path: Path) -> None:
    found = verify_handed(tmp_path)
    assert found.outcome == "good", found.reasons
    names = [check.name for check in found.checks]
    assert names == [
        *("loaded", "contents", "segments", "kernel", "initramfs", "command line", "usable memory"),
        *("core header", "notes", "memory"),
    ]
    assert "cannot be read back" in found.checks[1].evidence


@pytest.mark.parametrize(("piece", "name"), [("kernel", "kernel"), ("core header", "memory")])
def test_what_was_handed_over_may_be_wrong(piece: str, name: str, tmp_path: Path) -> None:
    found = verify_handed(tmp_path, piece)
    assert found.outcome == "bad"
    assert next(check for check in found.checks if check.outcome == "bad").name == name
