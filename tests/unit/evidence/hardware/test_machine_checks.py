"""The registers of a machine check, and its binary record."""

from __future__ import annotations

import pytest

from postpanic.errors import TruncatedError, UsageError
from postpanic.evidence.hardware import (
    Part,
    Severity,
    Verdict,
    decode_mce_record,
    decode_status,
    error_of_check,
)
from postpanic.evidence.hardware.direct import parse_cpu, parse_registers
from tests.builders import cper

VAL, OVER, UC, EN, MISCV, ADDRV, PCC, S, AR = (1 << bit for bit in range(63, 54, -1))


@pytest.mark.parametrize(
    ("code", "part", "words", "verdict"),
    [
        (0x0001, Part.PROCESSOR, "unclassified", Verdict.HARDWARE),
        (0x0002, Part.PROCESSOR, "microcode ROM", Verdict.HARDWARE),
        (0x0003, Part.PLATFORM, "another agent", Verdict.HARDWARE),
        (0x0005, Part.PROCESSOR, "internal parity", Verdict.HARDWARE),
        (0x0006, Part.FIRMWARE, "SMM", Verdict.FIRMWARE),
        (0x0400, Part.PROCESSOR, "internal timer", Verdict.UNCLEAR),
        (0x0405, Part.PROCESSOR, "internal unclassified error 0x5", Verdict.HARDWARE),
        (0x0E0B, Part.IO, "generic I/O", Verdict.HARDWARE),
        (0x000E, Part.CACHE, "cache hierarchy, L2", Verdict.HARDWARE),
        (0x0010, Part.TLB, "instruction TLB error, L0", Verdict.HARDWARE),
        (0x0015, Part.TLB, "data TLB error, L1", Verdict.HARDWARE),
        (0x0135, Part.CACHE, "data cache error, L1, data read", Verdict.HARDWARE),
        (0x0152, Part.CACHE, "instruction cache error, L2, instruction fetch", Verdict.HARDWARE),
        (0x0179, Part.CACHE, "generic cache error, L1, eviction", Verdict.HARDWARE),
        (0x0090, Part.MEMORY, "read error, channel 0", Verdict.HARDWARE),
        (0x00AF, Part.MEMORY, "memory controller: write error", Verdict.HARDWARE),
        (0x00B2, Part.MEMORY, "address or command error, channel 2", Verdict.HARDWARE),
        (0x00C1, Part.MEMORY, "scrubbing error, channel 1", Verdict.HARDWARE),
        (0x0290, Part.MEMORY, "memory used as a cache", Verdict.HARDWARE),
        (0x0800, Part.BUS, "memory access, this processor made the request, L0", Verdict.HARDWARE),
        (0x0F0F, Part.BUS, "the request timed out", Verdict.HARDWARE),
        (0x1135, Part.CACHE, "data cache error, L1, data read", Verdict.HARDWARE),
        (0xF_0150, Part.CACHE, "instruction cache error", Verdict.SOFTWARE),
        (0xF_0005, Part.PROCESSOR, "internal parity", Verdict.SOFTWARE),
        (0x0150, Part.CACHE, "instruction cache error", Verdict.HARDWARE),
        (0x0000, Part.UNKNOWN, "no error", Verdict.UNCLEAR),
    ],
)
def test_codes_of_intel(code: int, part: Part, words: str, verdict: Verdict) -> None:
    error = decode_status(VAL | UC | EN | PCC | code, vendor="Intel", family=6, model=0x55)
    assert (error.part, error.verdict) == (part, verdict)
    assert words in error.what
    assert error.severity is Severity.FATAL


@pytest.mark.parametrize(
    ("bits", "severity"),
    [
        (0, Severity.CORRECTED),
        (UC, Severity.DEFERRED),
        (UC | S, Severity.RECOVERABLE),
        (UC | S | AR, Severity.RECOVERABLE),
        (UC | S | AR | OVER, Severity.FATAL),
        (UC | S | OVER, Severity.RECOVERABLE),
        (UC | PCC, Severity.FATAL),
        (UC | S | AR | PCC, Severity.FATAL),
    ],
)
def test_severity_of_intel(bits: int, severity: Severity) -> None:
    assert decode_status(VAL | EN | bits | 0x134, vendor="intel", family=6, model=0x55).severity is severity


def test_error_that_raised_no_exception_is_not_fatal() -> None:
    error = decode_status(VAL | UC | PCC | ADDRV | 0x0002_0408, bank=4, vendor="Intel", family=6, model=0x7A)
    assert (error.part, error.severity) == (Part.POWER, Severity.UNCORRECTED)
    assert error.details["enabled"] == "no: it raised no exception"


def test_data_that_was_used_went_bad_elsewhere() -> None:
    error = decode_status(VAL | UC | EN | S | AR | 0x134, vendor="Intel", family=6, model=0x55)
    assert (error.part, error.severity) == (Part.MEMORY, Severity.RECOVERABLE)
    assert "earlier" in error.reason


def test_uncorrected_without_recovery_is_neither_fatal_nor_recoverable() -> None:
    assert decode_status(VAL | UC | 0x134, vendor="Intel", family=6, model=0xF).severity is Severity.UNCORRECTED
    capable = decode_status(VAL | UC | 0x134, vendor="Intel", family=6, model=0xF, mcgcap=1 << 24)
    assert capable.severity is Severity.DEFERRED


def test_corrected_errors_are_counted_and_graded() -> None:
    error = decode_status(VAL | 77 << 38 | 2 << 53 | 0x90, vendor="Intel", family=6, model=0x55, mcgcap=0xC00)
    assert error.count == 77
    assert error.details["threshold"].startswith("yellow")
    uncounted = decode_status(VAL | 77 << 38 | 0x90, vendor="Intel", family=6, model=0x55, mcgcap=1)
    assert uncounted.count == 1


@pytest.mark.parametrize(
    ("misc", "paddr"),
    [
        (2 << 6 | 6, 0x12345FC0),
        (2 << 6 | 12, 0x12345000),
        (3 << 6 | 6, 0x12345FC0),
        (1 << 6 | 6, None),
        (0 << 6 | 6, None),
        (7 << 6 | 6, None),
    ],
)
def test_only_a_physical_address_counts_as_one(misc: int, paddr: int | None) -> None:
    error = decode_status(VAL | ADDRV | MISCV | 0x90, addr=0x12345FED, misc=misc, vendor="Intel")
    assert error.paddr == paddr


def test_address_that_is_not_valid_is_not_shown() -> None:
    error = decode_status(VAL | 0x90, addr=0x12345FED, misc=0x86, vendor="Intel")
    assert error.paddr is None
    assert "address" not in error.details


def test_io_error_names_the_device() -> None:
    misc = 0x02 << 32 | (0x3A << 8 | 4 << 3 | 1) << 16
    error = decode_status(VAL | UC | PCC | MISCV | 0x0E0B, misc=misc, vendor="Intel", family=6, model=0x55)
    assert error.location["device"] == "0002:3a:04.1"


@pytest.mark.parametrize(
    ("model", "bank", "unit"),
    [
        (0x55, 1, "data cache unit"),
        (0x55, 13, "integrated memory controller"),
        (0x55, 6, "integrated I/O"),
        (0x6A, 17, "integrated memory controller"),
        (0x3F, 9, "integrated memory controller"),
        (0x9E, 4, "power control unit"),
        (0x9E, 9, ""),
        (0x0F, 0, ""),
    ],
)
def test_banks_of_intel(model: int, bank: int, unit: str) -> None:
    assert decode_status(VAL | 0x401, bank=bank, vendor="Intel", family=6, model=model).unit == unit


def test_memory_controllers_own_code_is_read() -> None:
    error = decode_status(VAL | 0x0008 << 16 | 0xC0, bank=13, vendor="Intel", family=6, model=0x55)
    assert "patrol scrub" in error.details["model_specific_code"]


UMC, LS, CS, L3, NBIO = (
    0x0000009600000000,
    0x001000B000000000,
    0x0002002E00000000,
    0x000700B000000000,
    0x0000001800000000,
)


@pytest.mark.parametrize(
    ("ipid", "extended", "part", "words", "verdict"),
    [
        (UMC | 0x350F00, 0, Part.MEMORY, "DRAM ECC", Verdict.HARDWARE),
        (UMC, 4, Part.MEMORY, "command or address parity", Verdict.HARDWARE),
        (UMC, 1, Part.MEMORY, "poison", Verdict.HARDWARE),
        (UMC, 6, Part.MEMORY_CONTROLLER, "command queue", Verdict.HARDWARE),
        (LS, 1, Part.CACHE, "data cache read by a load", Verdict.HARDWARE),
        (LS, 9, Part.TLB, "L2 TLB parity", Verdict.HARDWARE),
        (LS, 19, Part.BUS, "outside the core", Verdict.HARDWARE),
        (CS, 1, Part.BUS, "no such address", Verdict.SOFTWARE),
        (L3, 4, Part.CACHE, "data ECC", Verdict.HARDWARE),
        (NBIO, 1, Part.PCIE, "PCIe", Verdict.HARDWARE),
        (0x0000000500000000, 0, Part.PROCESSOR, "Parameter Block", Verdict.HARDWARE),
    ],
)
def test_units_of_amd(ipid: int, extended: int, part: Part, words: str, verdict: Verdict) -> None:
    status = VAL | UC | PCC | EN | extended << 16 | 0x11B
    error = decode_status(status, vendor="AMD", family=0x19, model=1, ipid=ipid)
    assert (error.part, error.verdict) == (part, verdict)
    assert words in error.what


def test_unit_that_is_not_known_is_shown_by_its_number() -> None:
    error = decode_status(VAL | 0x0135, vendor="AMD", family=0x1A, model=1, ipid=0x0007012300000000)
    assert error.details["hardware_id"] == "0x123, type 0x7"
    assert error.part is Part.CACHE


def test_memory_of_amd_has_channel_and_chip_select() -> None:
    error = decode_status(
        VAL | ADDRV | 1 << 53 | 0x11B,
        addr=0x1234,
        vendor="AMD",
        family=0x17,
        model=0x31,
        ipid=UMC | 0x350F00,
        synd=0x2A1,
    )
    assert error.location == {"channel": "3", "chip_select": "1"}
    assert error.paddr is None, "a memory controller has addresses of its own"
    assert error.details["address"] == "0x1234"


@pytest.mark.parametrize(
    ("bits", "severity"),
    [
        (0, Severity.CORRECTED),
        (1 << 44, Severity.DEFERRED),
        (UC, Severity.RECOVERABLE),
        (UC | 1 << 55, Severity.RECOVERABLE),
        (UC | PCC, Severity.FATAL),
    ],
)
def test_severity_of_amd(bits: int, severity: Severity) -> None:
    error = decode_status(VAL | EN | bits | 0x135, vendor="AMD", family=0x17, model=1, ipid=LS)
    assert error.severity is severity


@pytest.mark.parametrize(
    ("bank", "extended", "code", "part", "verdict"),
    [
        (4, 0x8, 0x0813, Part.MEMORY, Verdict.HARDWARE),
        (4, 0x5, 0x0011, Part.BUS, Verdict.SOFTWARE),
        (4, 0x3, 0x0E0B, Part.BUS, Verdict.SOFTWARE),
        (4, 0x1C, 0x0136, Part.CACHE, Verdict.HARDWARE),
        (0, 0, 0x0015, Part.TLB, Verdict.HARDWARE),
        (1, 0, 0x0151, Part.CACHE, Verdict.HARDWARE),
        (5, 0, 0x0F0F, Part.BUS, Verdict.UNCLEAR),
    ],
)
def test_banks_of_older_amd(bank: int, extended: int, code: int, part: Part, verdict: Verdict) -> None:
    error = decode_status(VAL | UC | PCC | extended << 16 | code, bank=bank, vendor="AMD", family=0x10, model=9)
    assert (error.part, error.verdict) == (part, verdict)


def test_status_that_is_not_valid_says_nothing() -> None:
    error = decode_status(UC | PCC | 0x135, vendor="Intel", family=6, model=0x55)
    assert error.verdict is Verdict.UNCLEAR
    assert "valid bit" in error.reason


RECORD = {
    "status": 0xBD80000000100134,
    "misc": 0x86,
    "addr": 0x7B5A3C40,
    "mcgstatus": 5,
    "ip": 0x401000,
    "tsc": 77,
    "time": 1700000000,
    "cpuvendor": 0,
    "cpuid": 0x50657,
    "cs": 0x33,
    "bank": 1,
    "cpu": 4,
    "extcpu": 300,
    "socketid": 1,
    "apicid": 0x46,
    "mcgcap": 0xF000C14,
    "synd": 5,
    "ipid": 6,
    "ppin": 7,
    "microcode": 0x5003302,
}


def test_record_of_a_machine_check() -> None:
    check = decode_mce_record(cper.struct_mce(**RECORD))
    assert (check.status, check.misc, check.addr, check.mcgstatus) == (0xBD80000000100134, 0x86, 0x7B5A3C40, 5)
    assert (check.ip, check.cs, check.tsc, check.time_s) == (0x401000, 0x33, 77, 1700000000)
    assert (check.vendor, check.family, check.model) == (0, 6, 0x55)
    assert (check.bank, check.cpu, check.socket, check.apic) == (1, 300, 1, 0x46)
    assert (check.mcgcap, check.synd, check.ipid, check.ppin, check.microcode) == (0xF000C14, 5, 6, 7, 0x5003302)


@pytest.mark.parametrize(
    ("size", "synd", "ppin", "microcode"), [(88, 0, 0, 0), (104, 5, 0, 0), (112, 5, 7, 0), (120, 5, 7, 0x5003302)]
)
def test_record_of_an_older_kernel_is_shorter(size: int, synd: int, ppin: int, microcode: int) -> None:
    check = decode_mce_record(cper.struct_mce(size_bytes=size, **RECORD))
    assert (check.synd, check.ppin, check.microcode) == (synd, ppin, microcode)
    assert check.mcgcap == 0xF000C14


def test_record_that_is_cut_short() -> None:
    with pytest.raises(TruncatedError, match="87 of at least 88 bytes"):
        decode_mce_record(cper.struct_mce(size_bytes=87, **RECORD))


def test_error_that_was_injected() -> None:
    error = error_of_check(decode_mce_record(cper.struct_mce(**RECORD, inject_flags=8)))
    assert error.verdict is Verdict.INJECTED
    assert error.part is Part.MEMORY


def test_registers_are_read_by_place_or_name() -> None:
    assert parse_registers("0xBE00000000800400,ff,86") == {"status": 0xBE00000000800400, "addr": 255, "misc": 0x86}
    assert parse_registers("status=9c, bank=12 ,IPID=0x9600000000") == {
        "status": 0x9C,
        "bank": 12,
        "ipid": 0x9600000000,
    }


@pytest.mark.parametrize("text", ["", "xyz", "1,2,3,4", "bank=1", "colour=7", "status=1,bank=ff", "1" * 17, "status="])
def test_registers_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_registers(text)


def test_processors_are_named() -> None:
    assert parse_cpu("AMD:0x19:1") == ("AMD", 0x19, 1)
    assert parse_cpu("intel") == ("intel", 0, 0)


@pytest.mark.parametrize("text", ["", "Motorola:6:85", "Intel:six", "Intel:6:85:7", "Intel:"])
def test_processors_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_cpu(text)
