"""Firmware's binary records: every kind of section, records that are damaged."""

from __future__ import annotations

import pytest

from postpanic.errors import CorruptError, NotADumpError, TruncatedError
from postpanic.evidence.hardware import (
    HardwareError,
    Part,
    Severity,
    Source,
    Verdict,
    decode_cper,
    decode_error_status,
    errors_of,
)
from postpanic.evidence.hardware.cper import BODY_LIMIT
from tests.builders import cper


def one(kind: str, body: bytes, severity: int = cper.FATAL, **changes: object) -> HardwareError:
    """Decode a record of one section, which holds one error."""
    (error,) = errors_of(decode_cper(cper.record([(kind, body)], severity=severity, **changes)))  # type: ignore[arg-type]
    return error


def test_header() -> None:
    record = decode_cper(cper.record([], time="2026-11-21 20:15:09", flags=2))
    assert record.record_id == 0x6543210000000001
    assert record.timestamp == "2026-11-21 20:15:09"
    assert record.notification == "machine check exception"
    assert record.is_linux
    assert record.is_previous_boot
    assert not record.is_simulated
    assert record.severity is Severity.FATAL
    assert not record.damage


def test_memory() -> None:
    error = one(
        cper.MEMORY,
        cper.memory_section(
            error_status=0x400,
            physical_address=0x123456780,
            node=1,
            card=2,
            module=3,
            bank=4,
            device=5,
            row=0x1234,
            column=6,
            bit_position=7,
            rank=1,
            error_type=3,
            module_handle=0x1102,
        ),
        fru_text="P1-DIMMA1",
    )
    assert (error.source, error.part, error.severity) == (Source.APEI, Part.MEMORY, Severity.FATAL)
    assert error.paddr == 0x123456780
    assert error.place == (
        "dimm P1-DIMMA1, node 1, card 2, module 3, rank 1, bank 4, device 5, row 4660, column 6, bit position 7, "
        "dmi handle 0x1102"
    )
    assert error.verdict is Verdict.HARDWARE
    assert "replace memory module P1-DIMMA1" in error.advice
    assert error.details["error_status"] == "0x400: storage error in DRAM"


def test_memory_with_wide_rows_and_bank_groups() -> None:
    body = cper.memory_section(more_bits=1 << 18 | 1 << 19 | 1 << 20 | 1 << 21, row=5, extended=0b10100010)
    error = one(cper.MEMORY, body)
    assert error.location == {"bank_group": "0", "bank_address": "0", "row": str(2 << 16 | 5), "chip_id": "5"}


def test_old_memory_section_has_no_rank() -> None:
    error = one(cper.MEMORY, cper.memory_section(is_old=True, more_bits=0xFF8000, error_type=2, row=9))
    assert error.location == {"row": "9"}


def test_second_memory_section() -> None:
    error = one(cper.MEMORY_2, cper.memory_2_section(row=0x123456, rank=2, device=77, chip_id=3, error_type=2))
    assert error.location == {"rank": "2", "device": "77", "row": str(0x123456), "chip_id": "3"}
    assert error.what == "memory: single-bit ECC error"


def test_corrected_memory_is_watched_first() -> None:
    error = one(cper.MEMORY, cper.memory_section(error_type=2), cper.CORRECTED)
    assert error.severity is Severity.CORRECTED
    assert error.advice.startswith("watch the count")


@pytest.mark.parametrize(
    ("bit", "words", "verdict"),
    [
        (4, "data link protocol", Verdict.HARDWARE),
        (5, "surprise link down", Verdict.UNCLEAR),
        (12, "poisoned", Verdict.HARDWARE),
        (14, "completion timeout", Verdict.UNCLEAR),
        (18, "malformed", Verdict.HARDWARE),
        (20, "unsupported request", Verdict.SOFTWARE),
        (21, "access control", Verdict.SOFTWARE),
        (22, "internal error", Verdict.HARDWARE),
    ],
)
def test_pcie(bit: int, words: str, verdict: Verdict) -> None:
    body = cper.pcie_section(segment=1, bus=0x3A, device=4, function=1, slot=9, uncorrectable=1 << bit)
    error = one(cper.PCIE, body)
    assert words in error.what
    assert error.verdict is verdict
    assert error.location["device"] == "0001:3a:04.1"
    assert error.location["slot"] == "9"


def test_masked_bits_do_not_hide_the_others() -> None:
    error = one(cper.PCIE, cper.pcie_section(uncorrectable=1 << 20 | 1 << 18, uncorrectable_mask=1 << 20))
    assert error.details["aer_errors"] == "MalfTLP"


def test_correctable_pcie_reads_the_other_register() -> None:
    error = one(cper.PCIE, cper.pcie_section(correctable=1 | 1 << 6, uncorrectable=1 << 18), cper.CORRECTED)
    assert error.details["aer_errors"] == "RxErr BadTLP"


def test_generic_processor() -> None:
    error = one(cper.PROCESSOR_GENERIC, cper.processor_section(error_type=2, level=1, processor_id=8, operation=1))
    assert (error.part, error.what) == (Part.TLB, "tlb error: data read, level 1")
    assert error.location == {"processor_id": "0x8", "level": "1"}


def test_x86_processor_gives_its_errors_and_its_banks() -> None:
    body = cper.x86_section(
        [
            cper.x86_error(cper.CACHE_CHECK, 7 | 1 << 16 | 3 << 18 | 2 << 22),
            cper.x86_error(cper.MS_CHECK, 1 | 2 << 16),
        ],
        [
            cper.x86_context(0xC0002001 | 17 << 4, [0xDC2040000000011B, 0x1000, 0, 0, 0x0000009600350F00, 1]),
            cper.x86_context(0x400 + 4 * 9, [0xFF, 0x8C00004000010091, 0x2000, 0x86]),
        ],
        apic=6,
        cpuid=0x50657,
    )
    cache, micro, amd, intel = errors_of(decode_cper(cper.record([(cper.PROCESSOR_X86, body)])))
    assert cache.what == "cache error: data access, data read, level 2"
    assert micro.details["micro_architectural_type"] == "microcode ROM parity"
    assert amd.what == "Unified Memory Controller: DRAM ECC error"
    assert amd.machine_check is not None
    assert (amd.machine_check.bank, amd.machine_check.apic) == (17, 6)
    assert intel.what == "memory controller: read error, channel 1"
    assert intel.machine_check is not None
    assert (intel.machine_check.bank, intel.machine_check.addr) == (9, 0x2000)


@pytest.mark.parametrize(
    ("kind", "part"),
    [(2, Part.CACHE), (4, Part.TLB), (8, Part.BUS), (16, Part.PROCESSOR), (0, Part.CACHE), (1, Part.TLB)],
)
def test_arm_processor(kind: int, part: Part) -> None:
    info = 7 | 1 << 16 | 3 << 18 | 2 << 22
    error = one(cper.PROCESSOR_ARM, cper.arm_section([cper.arm_error(kind, info, physical=0x8000_1000)], mpidr=0x81))
    assert error.part is part
    assert error.paddr == 0x8000_1000
    assert error.location["mpidr"] == "0x81"
    assert "data access, data read, level 2" in error.what


def test_firmware_reference() -> None:
    error = one(cper.FIRMWARE, cper.firmware_section(2, 0, 0xABC))
    assert (error.part, error.verdict) == (Part.FIRMWARE, Verdict.FIRMWARE)
    assert error.details["revision"] == "0"


def test_pci_bus() -> None:
    error = one(cper.PCI_BUS, cper.pci_bus_section(error_type=6, bus=0x0102, address=0xF000))
    assert error.what == "PCI: address parity error"
    assert (error.location["bus"], error.paddr) == ("0001:02", 0xF000)


def test_section_that_is_not_known_is_named() -> None:
    error = one("12345678-1234-1234-1234-123456789abc", b"\1\2\3")
    assert (error.part, error.details["section_bytes"]) == (Part.UNKNOWN, "3")
    assert "12345678-1234" in error.what


def test_linux_puts_a_machine_check_and_its_log_there() -> None:
    body = cper.struct_mce(status=0xBE00000000800400, cpuid=0x50657, bank=3, extcpu=9)
    record = decode_cper(cper.record([(cper.LINUX_MCE, body), (cper.LINUX_DMESG, b"Panic#1 Part1\nx")]))
    assert [section.kind for section in record.sections] == ["linux-mce", "linux-dmesg"]
    assert record.sections[1].body == b"Panic#1 Part1\nx"
    (error,) = errors_of(record)
    assert (error.source, error.cpu, error.severity) == (Source.MACHINE_CHECK, 9, Severity.FATAL)


def test_simulated_record() -> None:
    assert one(cper.MEMORY, cper.memory_section(error_type=3), flags=4).verdict is Verdict.INJECTED


def test_status_block_of_both_revisions() -> None:
    body = cper.memory_section(error_type=2, node=3)
    for time in ("", "2026-11-21 20:15:09"):
        block = cper.status_block([(cper.MEMORY, body)] * 2, severity=cper.CORRECTED, fru_text="A", time=time)
        record = decode_error_status(block)
        assert record.timestamp == time
        assert [error.location for error in errors_of(record)] == [{"dimm": "A", "node": "3"}] * 2


def test_status_block_without_an_error() -> None:
    with pytest.raises(CorruptError, match="holds no error"):
        decode_error_status(cper.status_block([], severity=cper.CORRECTED, status=0))


def test_another_signature() -> None:
    with pytest.raises(NotADumpError, match=r"b'NOPE' instead of b'CPER'"):
        decode_cper(b"NOPE" + bytes(200))


@pytest.mark.parametrize("size", [4, 127, 128, 199])
def test_header_that_is_cut_short(size: int) -> None:
    with pytest.raises(TruncatedError):
        decode_cper(cper.record([(cper.MEMORY, cper.memory_section())])[:size])


def test_section_that_is_cut_short_is_said_and_spoils_no_other() -> None:
    raw = cper.record([(cper.FIRMWARE, cper.firmware_section(2, 0, 1)), (cper.MEMORY, cper.memory_section(node=1))])
    record = decode_cper(raw[:-20])
    assert "cut short" in record.damage[0]
    assert "60 of 80 bytes" in record.sections[1].damage
    assert [error.part for error in errors_of(record)] == [Part.FIRMWARE]


def test_wrong_end_of_the_signature() -> None:
    raw = bytearray(cper.record([]))
    raw[6:10] = bytes(4)
    with pytest.raises(CorruptError, match="0xffffffff"):
        decode_cper(bytes(raw))


def test_too_many_sections() -> None:
    raw = bytearray(cper.record([]))
    raw[10:12] = b"\xff\xff"
    with pytest.raises(CorruptError, match="65535 sections"):
        decode_cper(bytes(raw))


def test_sections_that_claim_the_whole_file_take_no_more_room() -> None:
    raw = bytearray(cper.record([("12345678-1234-1234-1234-123456789abc", b"")] * 200) + bytes(4 << 20))
    for number in range(200):
        raw[128 + 72 * number : 136 + 72 * number] = (0).to_bytes(4, "little") + len(raw).to_bytes(4, "little")
    record = decode_cper(bytes(raw))
    assert sum(len(section.body) for section in record.sections) <= 200 * BODY_LIMIT
    assert all("cut short" in section.damage for section in record.sections)
