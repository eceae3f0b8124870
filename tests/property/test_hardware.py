"""What must hold for any hardware record and any text: no error but ours, no hang, time that grows with the size."""

from __future__ import annotations

import re
import time
from re import Pattern
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postpanic.errors import FileFaultError, UsageError
from postpanic.evidence.hardware import (
    decode_cper,
    decode_error_status,
    decode_mce_record,
    decode_status,
    error_of_check,
    errors_of,
    find_hardware_errors,
    hardware_answer,
    text,
    text_cper,
    text_devices,
    text_events,
    text_mce,
)
from postpanic.evidence.hardware.direct import parse_cpu, parse_registers
from postpanic.evidence.lines import LINE_LIMIT
from postpanic.findings.schema import answer_value
from tests.builders import cper
from tests.unit.evidence.hardware import logs
from tests.unit.evidence.hardware.logs import stamped

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=150)
ALL = "".join(getattr(logs, name) for name in logs.__all__[:-1])
PIECES = [line for name in logs.__all__[:-1] for line in stamped(getattr(logs, name)).splitlines(keepends=True)]
SECTIONS = [
    (cper.MEMORY, cper.memory_section(error_type=2, node=1, physical_address=0x1234, module_handle=3)),
    (cper.MEMORY_2, cper.memory_2_section(row=7, error_type=3)),
    (cper.PCIE, cper.pcie_section(uncorrectable=1 << 18)),
    (cper.PROCESSOR_GENERIC, cper.processor_section(error_type=1, level=2)),
    (cper.PROCESSOR_X86, cper.x86_section([cper.x86_error(cper.CACHE_CHECK, 7)], [cper.x86_context(0x401, [1, 2, 3])])),
    (cper.PROCESSOR_ARM, cper.arm_section([cper.arm_error(2, 7)])),
    (cper.FIRMWARE, cper.firmware_section(2, 0, 1)),
    (cper.PCI_BUS, cper.pci_bus_section(error_type=1, bus=2, address=3)),
    (cper.LINUX_MCE, cper.struct_mce(status=1 << 63 | 0x90, cpuid=0x50657)),
]
RECORD = cper.record(SECTIONS, time="2026-11-21 20:15:09", fru_text="DIMM")
BLOCK = cper.status_block(SECTIONS, severity=cper.FATAL, time="2026-11-21 20:15:09")


@st.composite
def changed(draw: st.DrawFn, raw: bytes) -> bytes:
    """Change bytes of a record, or cut it short."""
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 8))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def read_record(data: bytes) -> None:
    for decode in (decode_cper, decode_error_status):
        try:
            record = decode(data)
        except FileFaultError:
            continue
        answer_value(hardware_answer(errors_of(record)))


@DETERMINISTIC
@given(
    st.one_of(st.binary(max_size=400), changed(RECORD), changed(BLOCK), st.binary(max_size=300).map(b"CPER".__add__))
)
def test_any_record_is_decoded_or_refused(data: bytes) -> None:
    read_record(data)


@pytest.mark.parametrize("raw", [RECORD, BLOCK], ids=["record", "status block"])
def test_record_that_is_cut_anywhere(raw: bytes) -> None:
    for size in range(0, len(raw), 3):
        read_record(raw[:size])


@DETERMINISTIC
@given(st.binary(max_size=160))
def test_any_machine_check_is_decoded_or_refused(data: bytes) -> None:
    try:
        check = decode_mce_record(data)
    except FileFaultError:
        assert len(data) < 88
        return
    answer_value(hardware_answer([error_of_check(check)]))


NUMBERS = st.integers(0, (1 << 64) - 1)


@DETERMINISTIC
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.sampled_from(["", "Intel", "AMD", "Zhaoxin"]), st.integers(0, 255))
def test_any_registers_have_a_verdict(status: int, misc: int, ipid: int, mcgcap: int, vendor: str, bank: int) -> None:
    error = decode_status(
        status, misc=misc, addr=misc, ipid=ipid, mcgcap=mcgcap, vendor=vendor, bank=bank, family=bank, model=bank
    )
    assert error.what
    assert error.reason
    assert error.advice
    assert "{" not in error.advice


@pytest.mark.parametrize("vendor", ["Intel", "AMD"])
def test_every_error_code_has_a_verdict(vendor: str) -> None:
    for code in range(1 << 16):
        error = decode_status(1 << 63 | code, vendor=vendor, family=6 if vendor == "Intel" else 0x10, model=0x55)
        assert error.what
        assert error.reason


@DETERMINISTIC
@given(st.text(max_size=60))
def test_any_words_are_registers_or_refused(words: str) -> None:
    for parse in (parse_registers, parse_cpu):
        try:
            parse(words)
        except UsageError:
            continue


@st.composite
def torn(draw: st.DrawFn) -> bytes:
    """Shuffle pieces of messages and change bytes."""
    pieces = draw(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=30)), max_size=60))
    data = bytearray(b"".join(pieces))
    for _ in range(draw(st.integers(0, 10)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@DETERMINISTIC
@given(st.one_of(torn(), st.binary(max_size=1000)))
def test_any_text_is_read_without_an_error(data: bytes) -> None:
    errors = find_hardware_errors(data)
    for error in errors:
        assert 0 <= error.offset <= error.end <= len(data)
    answer_value(hardware_answer(errors))


def test_cut_anywhere() -> None:
    data = stamped(ALL)
    for size in range(0, len(data), 97):
        find_hardware_errors(data[:size])


def patterns() -> list[tuple[str, Pattern[str]]]:
    modules: tuple[ModuleType, ...] = (text, text_cper, text_devices, text_events, text_mce)
    return [
        (f"{module.__name__.rpartition('.')[2]}.{name}", value)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern)
    ]


EVIL = (
    " ", "a", "0", "_", ".", "[", "(", ":", "\t", "0x0 ", ": ", "a:0x1 ", "CPU 1: Machine Check: 0 Bank 1: 1",
    "EDAC MC0: 1 CE on on (", "EDAC MC0: CE page 0x1 ", "EDAC PCI0: Parity Error on ", "mc_event: 1 Corrected error ",
    "0000:00:00.0: ", "0000:00:00.0: AER: [ 1] ", "severity=a, type=", "MC0_STATUS[", "CPU:0 (1:1:1) MC0_STATUS[",
    "node:1 ", "DIMM location: ", "not syncing: ", "Memory failure: 0x1: recovery action for ",
    "SError Interrupt on CPU",
    "CPU 0 BANK 1 ", "Sending SIGBUS to a:1 due", "mce_record: ", "status= 1 ", "Error ", "A b ", "EINJ: ", "slot: 1",
    "aer_event: ", "CPU: 0, MCGc/s: 0/0, MC0: 0, ", "synchronous external abort",
)  # fmt: skip


@pytest.mark.parametrize(("name", "pattern"), patterns(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_pattern_takes_longer_than_the_length_of_its_text(name: str, pattern: Pattern[str]) -> None:
    for seed in EVIL:
        line = (seed * (LINE_LIMIT // len(seed) + 1))[: LINE_LIMIT // 2] + "!"
        started = time.process_time()
        pattern.search(line)
        pattern.match(line)
        assert time.process_time() - started < 0.5, f"{name} on {seed!r}"


LONG = 1 << 17


@pytest.mark.parametrize("unit", [*(seed.encode() for seed in EVIL), *(seed.encode() + b"\n" for seed in EVIL), b"\0"])
def test_time_grows_with_the_size_alone(unit: bytes) -> None:
    small, large = unit * (LONG // 4 // len(unit)), unit * (LONG // len(unit))
    took = []
    for data in (small, large):
        started = time.process_time()
        find_hardware_errors(data)
        took.append(time.process_time() - started)
    assert took[1] < 8 * took[0] + 0.5, "four times the text must not take much more than four times the time"
    assert took[1] < 10
