"""
Real kernels print firmware's error records that we built; their text and our decoding of the bytes must agree.

A guest finds the records of the last boot (BERT) in its memory, and two error sources (HEST) that it polls: one with a
corrected error and one with a fatal error, over which it panics.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.evidence.hardware import (
    HardwareError,
    Verdict,
    decode_error_status,
    decode_record_file,
    errors_of,
    find_hardware_errors,
)
from postpanic.evidence.oops import Kind, find_reports
from postpanic.process import find_program
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Machine, MachineConfig, scale_timeout
from tests.builders import cper
from tests.vm.lab import Lab, hold_machine
from tests.vm.records import Evidence

pytestmark = pytest.mark.vm

BASE = 0x1F000000
SIZE = 0x10000
POINTER_1, POINTER_2 = BASE, BASE + 8
BLOCK_1, BLOCK_2, BERT = BASE + 0x1000, BASE + 0x2000, BASE + 0x4000
POLL_MS = 200
INIT = f"""\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox sleep 1
echo guest: now the fatal one
/bin/busybox devmem {BLOCK_2:#x} 32 0x11
exec /bin/busybox sleep 1000
"""
"""The fatal block is there from the beginning, without an error in it: sources are looked at once at start-up."""

LAST_BOOT = (
    cper.status_block(
        [
            (
                cper.MEMORY,
                cper.memory_section(
                    error_status=0x400,
                    physical_address=0x123456000,
                    physical_address_mask=0xFFFFFFFFFFFFF000,
                    node=1,
                    card=2,
                    module=3,
                    rank=1,
                    bank=5,
                    device=17,
                    row=4660,
                    column=112,
                    bit_position=9,
                    error_type=3,
                    module_handle=0x1107,
                ),
            )
        ],
        severity=cper.FATAL,
        fru_text="DIMM_B1",
        time="2026-11-20 23:59:58",
    ),
    cper.status_block(
        [
            (
                cper.PROCESSOR_GENERIC,
                cper.processor_section(
                    processor_type=0,
                    isa=2,
                    error_type=1 | 4,
                    operation=1,
                    flags=1 | 2,
                    level=2,
                    processor_id=0x24,
                    target_address=0xFEE00000,
                    ip=0xFFFFFFFF81001234,
                ),
            )
        ],
        severity=cper.RECOVERABLE,
    ),
    cper.status_block(
        [
            (
                cper.PROCESSOR_X86,
                cper.x86_section(
                    [
                        cper.x86_error(cper.CACHE_CHECK, 0xFF | 1 << 16 | 3 << 18 | 2 << 22 | 1 << 26, ip=0x401000),
                        cper.x86_error(cper.TLB_CHECK, 0xFF | 1 << 18 | 1 << 22 | 1 << 25),
                        cper.x86_error(
                            cper.BUS_CHECK, 0x7FF | 2 << 16 | 2 << 18 | 3 << 22 | 1 << 32, requestor_id=0x77
                        ),
                        cper.x86_error(cper.MS_CHECK, 0x3F | 2 << 16 | 1 << 20),
                    ],
                    apic=6,
                    cpuid=0x50657,
                ),
            )
        ],
        severity=cper.FATAL,
    ),
    cper.status_block(
        [
            (cper.FIRMWARE, cper.firmware_section(2, 0, 0xABCDEF)),
            (
                cper.PCIE,
                cper.pcie_section(
                    bus=0x3A,
                    device=4,
                    function=1,
                    slot=7,
                    uncorrectable=1 << 18 | 1 << 14,
                    uncorrectable_severity=1 << 18,
                    tlp=(0x4A000001, 0x3A000004, 0x0100, 0),
                ),
            ),
        ],
        severity=cper.FATAL,
    ),
)
CORRECTED = cper.status_block(
    [(cper.MEMORY, cper.memory_section(physical_address=0x77777000, node=0, module=1, error_type=2))],
    severity=cper.CORRECTED,
    fru_text="DIMM_A1",
)
FATAL = cper.status_block(
    [(cper.PCIE, cper.pcie_section(bus=1, device=2, slot=3, uncorrectable=1 << 5))], severity=cper.FATAL
)


@dataclass(frozen=True)
class Printed:
    """What a kernel printed of the records."""

    console: bytes
    errors: list[HardwareError]


@pytest.fixture(scope="module")
def printed(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """Boot a kernel with the records, until it panics over the last."""
    directory = tmp_path_factory.mktemp("firmware")
    kernel = fetch_kernel("6.12")
    image = ImageTree()
    image.add_program("bin/busybox", find_program("busybox"))
    image.add_device("dev/console", 5, 1)
    image.add_bytes("init", INIT.encode(), 0o755)
    initrd = directory / "initrd"
    initrd.write_bytes(image.encode())
    config = MachineConfig(
        kernel.image,
        initrd,
        f"console=ttyS0 no_timer_check panic=0 memmap={SIZE:#x}${BASE:#x}",
        memory_mib=512,
        cpus=1,
        extra=_firmware(directory),
    )
    with hold_machine(crash_lab.cache_dir), Machine(config, directory) as machine:
        machine.wait_for(r"end Kernel panic - not syncing: .*Fatal hardware error", timeout_s=scale_timeout(25))
        console = machine.read_console().encode()
    return Printed(console, find_hardware_errors(console))


def _firmware(directory: Path) -> tuple[str, ...]:
    """Make the words of QEMU that put tables and memory there."""
    bert = b"".join(LAST_BOOT)
    memory = bytearray(SIZE)
    for paddr, data in (
        (POINTER_1, struct.pack("<QQ", BLOCK_1, BLOCK_2)),
        (BLOCK_1, CORRECTED),
        (BLOCK_2, bytes(4) + FATAL[4:]),
        (BERT, bert),
    ):
        memory[paddr - BASE : paddr - BASE + len(data)] = data
    hest = cper.hest_table([(POINTER_1, 0x1000, POLL_MS), (POINTER_2, 0x1000, POLL_MS)])
    words: list[str] = []
    for name, data in (("BERT", cper.bert_table(BERT, len(bert))), ("HEST", hest)):
        path = directory / f"{name}.bin"
        path.write_bytes(data)
        words += ["-acpitable", f"sig={name},rev=1,oem_id=TESTED,oem_table_id=TESTED,data={path}"]
    image = directory / "memory.bin"
    image.write_bytes(memory)
    return (*words, "-device", f"loader,file={image},addr={BASE:#x},force-raw=on")


def facts(error: HardwareError) -> dict[str, object]:
    """Give what text and bytes both say; a handle of the machine's own tables is printed as the kernel finds it."""
    return {
        "part": error.part,
        "severity": error.severity,
        "what": error.what,
        "location": error.location,
        "paddr": error.paddr,
        "verdict": error.verdict,
        "reason": error.reason.partition("; this is a virtual machine")[0],
    }


def of_block(block: bytes) -> list[dict[str, object]]:
    return [facts(error) for error in errors_of(decode_error_status(block))]


def test_kernel_prints_what_we_decode(printed: Printed) -> None:
    expected = [fact for block in (CORRECTED, *LAST_BOOT, FATAL) for fact in of_block(block)]
    assert len(expected) == 10
    assert [facts(error) for error in printed.errors] == expected


def test_kernel_panics_over_the_fatal_one(printed: Printed) -> None:
    assert [error.is_panic for error in printed.errors] == [False] * 9 + [True]
    assert printed.errors[-1].verdict is Verdict.UNCLEAR
    reports = find_reports(printed.console, with_notices=True)
    assert Kind.HARDWARE_ERROR in {report.kind for report in reports}


def test_details_are_the_same(printed: Printed) -> None:
    decoded = [error for block in (CORRECTED, *LAST_BOOT, FATAL) for error in errors_of(decode_error_status(block))]
    for ours, theirs in zip(decoded, printed.errors, strict=True):
        told = {name: value for name, value in ours.details.items() if name != "section"}
        assert {name: theirs.details.get(name) for name in told} == told


def test_records_of_the_last_boot_are_told_apart(printed: Printed) -> None:
    assert [error.details.get("previous_boot", "") for error in printed.errors] == ["", *["yes"] * 8, ""]


def test_records_are_of_a_virtual_machine(printed: Printed) -> None:
    assert all("virtual machine" in error.reason for error in printed.errors)


def test_real_machine_check_is_the_same_on_the_console_in_pstore_and_in_the_store(
    evidence: Callable[..., Evidence],
) -> None:
    crash = evidence("erst")
    (panic,) = (error for error in find_hardware_errors(crash.console) if error.is_panic)
    (path,) = crash.pstore.glob("mce-erst-*")
    (shown,) = decode_record_file(path.read_bytes(), path.name)
    stored = [
        error
        for error in decode_record_file(_records_of(crash.directory / "erst.img"), "erst.img")
        if error.machine_check is not None
    ]
    for error in (shown, *stored):
        assert (error.what, error.part, error.severity, error.paddr, error.cpu) == (
            panic.what,
            panic.part,
            panic.severity,
            panic.paddr,
            panic.cpu,
        )
    assert len(stored) == 1
    assert stored[0].machine_check == shown.machine_check
    ours, theirs = panic.machine_check, shown.machine_check
    assert ours is not None
    assert theirs is not None
    # What a text does not print: the capabilities, the kernel's own grade.
    assert ours == msgspec.structs.replace(theirs, mcgcap=0, severity=0)


def _records_of(store: Path) -> bytes:
    """Give what firmware keeps from its first record on; before it is the store's own table."""
    raw = store.read_bytes()
    return raw[raw.index(b"CPER") :]


def test_next_boot_finds_the_same_error_in_the_bank(evidence: Callable[..., Evidence]) -> None:
    crash = evidence("erst")
    whole = find_hardware_errors((crash.directory / "console.log").read_bytes())
    (panic,) = (error for error in whole if error.is_panic)
    found = [error for error in whole if error.what == panic.what and not error.is_panic and "when" in error.details]
    assert found
    assert "from before the reset" in found[0].details["when"]
