from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.kexec.verify import Expected, Verification, verify
from tests.unit.capture.kexec.loaded_host import (
    CPU_NOTES,
    CRASH_END,
    CRASH_START,
    HEADER_AT,
    INITRD_AT,
    KERNEL_AT,
    LINE,
    RAM_END,
    VMCOREINFO_PADDR,
    LoadedHost,
)

NAMES = [
    *("loaded", "segments", "kernel", "initramfs", "command line", "usable memory", "core header", "notes", "memory"),
]


def verify_all(loaded: LoadedHost, root: Path) -> Verification:
    host = loaded.build(root)
    return verify(host, Expected(root / "boot/vmlinuz-6.1.0-test", root / "initrd", LINE))


def outcomes(verification: Verification) -> dict[str, str]:
    return {check.name: check.outcome for check in verification.checks}


def test_right_load_is_good_in_every_respect(tmp_path: Path) -> None:
    found = verify_all(LoadedHost(), tmp_path)
    assert outcomes(found) == dict.fromkeys(NAMES, "good")
    assert found.outcome == "good"
    assert found.reasons == []
    evidence = {check.name: check.evidence for check in found.checks}
    assert f"at {VMCOREINFO_PADDR:#x}" in evidence["notes"]
    assert evidence["notes"].startswith("2 processors")
    assert f"{KERNEL_AT:#x}, equal" in evidence["kernel"]
    assert "2 loads, 763.0 MiB" in evidence["core header"]


def test_kexec_program_adds_low_memory_and_fills_the_boot_flag(tmp_path: Path) -> None:
    loaded = LoadedHost(boot_flag=b"\xff\xff")
    loaded.loads.insert(0, (0, 0xA0000))
    assert verify_all(loaded, tmp_path).outcome == "good"


def wrong(**changes: object) -> Callable[[], LoadedHost]:
    return lambda: LoadedHost(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (wrong(loaded="0"), "loaded", "no capture kernel is loaded"),
        (wrong(has_image=False), "segments", "no image"),
        (wrong(outside=True), "segments", "1 of 6 are not in the reserved memory"),
        (wrong(damage={KERNEL_AT: b"nothing"}), "kernel", "in none of the segments"),
        (wrong(damage={KERNEL_AT + 9000: b"!"}), "kernel", f"overwritten at {KERNEL_AT:#x}"),
        (wrong(damage={INITRD_AT + 5000: b"!"}), "initramfs", f"overwritten at {INITRD_AT:#x}"),
        (wrong(initrd_place=(INITRD_AT, 17)), "initramfs", "17 bytes are loaded"),
        (wrong(initrd_place=(0x5000000, 6306)), "initramfs", "where nothing was loaded"),
        (wrong(line=f"elfcorehdr={HEADER_AT:#x} quiet"), "command line", "not what was asked for"),
        (wrong(line=LINE), "command line", "no /proc/vmcore"),
        (wrong(usable=[(CRASH_START, CRASH_END + 0x1000)]), "usable memory", f"{CRASH_END:#x}-{CRASH_END + 0xFFF:#x}"),
        (wrong(usable=[]), "usable memory", "name none"),
        (wrong(header=bytes(64)), "core header", ""),
        (wrong(header=b"\x7fELF" + b"\xff" * 60), "core header", "ELF"),
        (wrong(line=f"elfcorehdr=0x5000000 {LINE}"), "core header", "where nothing was loaded"),
        (wrong(notes=[*CPU_NOTES]), "notes", "no VMCOREINFO"),
        (wrong(notes=[CPU_NOTES[0], VMCOREINFO_PADDR]), "notes", "no registers of processor 1"),
        (wrong(loads=[(0x100000, CRASH_START)]), "memory", f"not in the dump: {CRASH_END:#x}-{RAM_END - 1:#x}"),
        (wrong(loads=[(0x100000, RAM_END)]), "memory", f"no memory of the host's: {CRASH_START:#x}-"),
        (wrong(loads=[(0x100000, CRASH_START), (CRASH_END, 1 << 63)]), "memory", "no memory of the host's"),
        (
            wrong(loads=[(0x100000, CRASH_START), (CRASH_END, RAM_END), (CRASH_END, CRASH_END + 0x2000)]),
            "memory",
            f"twice: {CRASH_END:#x}-{CRASH_END + 0x1FFF:#x}",
        ),
    ],
)
def test_wrong_load_is_bad(make: Callable[[], LoadedHost], name: str, says: str, tmp_path: Path) -> None:
    found = verify_all(make(), tmp_path)
    assert found.outcome == "bad"
    assert outcomes(found)[name] == "bad"
    check = next(check for check in found.checks if check.name == name)
    assert says in check.evidence
    assert any(reason.startswith(f"{name}: ") for reason in found.reasons)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (wrong(files={"proc/kallsyms": "0000000000000000 B kexec_crash_image\n"}), "kptr_restrict"),
        (wrong(files={"proc/kallsyms": "ffffffff81000000 T _stext\n"}), "CONFIG_KALLSYMS_ALL"),
        (wrong(files={"proc/iomem": "00000000-00000000 : System RAM\n"}), "hides addresses"),
        (wrong(blank=True), "reads as zeros"),
    ],
)
def test_what_cannot_be_read_is_not_claimed(make: Callable[[], LoadedHost], says: str, tmp_path: Path) -> None:
    found = verify_all(make(), tmp_path)
    assert found.outcome == "unverified"
    assert says in found.reasons[0]
    assert "not verified" in found.reasons[0]
    # What depends on it is named.
    assert found.reasons[0].endswith("not verified: kernel, initramfs, command line, core header, notes, memory")


@pytest.mark.parametrize("name", ["proc/kcore", "sys/kernel/btf/vmlinux", "proc/kallsyms"])
def test_missing_file_is_not_claimed(name: str, tmp_path: Path) -> None:
    host = LoadedHost().build(tmp_path)
    (tmp_path / name).unlink()
    assert verify(host).outcome == "unverified"


def test_nothing_expected_compares_nothing(tmp_path: Path) -> None:
    found = verify(LoadedHost().build(tmp_path))
    assert found.outcome == "good"
    assert sum("not compared" in check.evidence for check in found.checks) == 2


@pytest.mark.parametrize("seed", range(40))
def test_damaged_reservation_never_raises(seed: int, tmp_path: Path) -> None:
    import random

    noise = random.Random(seed)
    places = [CRASH_START + noise.randrange(0, 0x60000) & ~7 for _ in range(200)]
    found = verify_all(LoadedHost(damage={place: noise.randbytes(8) for place in places}), tmp_path)
    assert found.outcome in ("bad", "unverified", "good")
