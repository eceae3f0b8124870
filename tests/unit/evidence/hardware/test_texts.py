"""What is found in texts."""

from __future__ import annotations

import pytest

from postpanic.evidence.hardware import (
    HardwareError,
    Part,
    Severity,
    Source,
    Verdict,
    find_hardware_errors,
    hardware_answer,
)
from postpanic.evidence.hardware.text_events import decode_serror
from postpanic.findings.schema import answer_value
from postpanic.report.text import render_text
from tests.unit.evidence.hardware import logs
from tests.unit.evidence.hardware.logs import stamped

MC_EVENT = (
    "<...>-12 [001] 0.1: mc_event: 2014-01-01 00:00:00 +0000 2 Corrected errors: memory read error on DIMM_A "
    "(mc: 1 location: 1:0 address: 0x12345678 grain: 7 syndrome: 0x00000000 area:DRAM)"
)
TRACED = (
    "x-1 [002] ..s1. 12.3: mce_record: CPU: 2, MCGc/s: f000c14/0, MC7: 8c00004000010090, "
    "ADDR/MISC/SYND: 0000000012345000/0000000000000086/0000000000000000, RIP: 00:<0000000000000000>, TSC: 1, "
    "PROCESSOR: 0:50657, TIME: 1, SOCKET: 1, APIC: 0"
)
BY_RASDAEMON = (
    "x-1 [002] 12.3: mce_record: 2020-01-01 00:00:00 +0000 bank=7, status= 8c00004000010090, mci=Corrected_error, "
    "mca=MEMORY CONTROLLER RD_CHANNEL0_ERR, cpu_type= Intel, cpu= 2, socketid= 1, misc= 86, addr= 12345000, "
    "mcgstatus=0, mcgcap= f000c14, apicid= 0"
)


def one(text: bytes) -> HardwareError:
    (error,) = find_hardware_errors(text)
    return error


@pytest.mark.parametrize("level", ["", "<0>", "Jan 12 10:00:00 host kernel: ", "kern  :emerg : "])
def test_fatal_machine_check(level: str) -> None:
    error = one(stamped(logs.FATAL, level=level))
    assert (error.source, error.part, error.severity) == (Source.MACHINE_CHECK, Part.MEMORY, Severity.RECOVERABLE)
    assert error.what == "bad data was loaded (data cache error, L0, data read)"
    assert error.unit == "data cache unit"
    assert (error.cpu, error.place, error.paddr) == (3, "socket 1, level L0, type data", 0x7B5A3C40)
    check = error.machine_check
    assert check is not None
    assert (check.bank, check.mcgstatus, check.cs, check.ip) == (1, 5, 0x33, 0x7F2D11D0C3AB)
    assert (check.ppin, check.microcode, check.model) == (0x1234567890ABCDEF, 0x5003302, 0x55)
    assert error.is_panic
    assert error.details["panic"] == "Fatal local machine check"
    assert error.details["kernel_says"].startswith("Action required")
    assert "earlier" in error.reason
    assert "find the first report" in error.advice


def test_place_in_the_text() -> None:
    text = b"[    1.000000] nothing\n" * 100 + stamped(logs.FATAL)
    error = one(text)
    assert text[error.offset :].startswith(b"[  100.000000] mce: ")
    assert error.time_s == 100.0
    assert text[error.end :].split(b"\n")[0].endswith(b"Fatal local machine check")


def test_old_kernels_do_not_mark_their_lines() -> None:
    error = one(logs.OLD_KERNEL.encode())
    assert error.what.startswith("bus and interconnect error")
    assert error.place == "socket 1"
    assert error.severity is Severity.UNCORRECTED or error.is_panic
    assert error.is_panic


def test_form_of_amd_with_the_line_of_edac_in_it() -> None:
    error = one(stamped(logs.AMD_SCALABLE))
    assert error.what == "Unified Memory Controller: DRAM ECC error"
    assert error.place == "dimm mc#0csrow#2channel#4, controller 0, channel 4, csrow 2, chip select 2"
    assert error.paddr == 0x4D2A1C40, "the system's address is in the line of EDAC"
    assert error.machine_check is not None
    assert (error.machine_check.family, error.machine_check.ppin) == (0x19, 0x02B6BD1F2D7F0041)
    assert error.details["kernel_says"].endswith("cache level: L3/GEN, tx: GEN, mem-tx: RD")


def test_form_of_older_amd() -> None:
    error = one(stamped(logs.AMD_OLD))
    assert error.what == "northbridge: DRAM ECC error"
    assert (error.location["dimm"], error.paddr) == ("mc#2csrow#3channel#0", 0xFD1B2EE30)
    assert error.machine_check is not None
    assert error.machine_check.family == 0x10


def test_deferred_error_of_amd() -> None:
    error = one(stamped(logs.AMD_DEFERRED))
    assert (error.part, error.severity) == (Part.MEMORY, Severity.DEFERRED)


def test_arm_processor() -> None:
    error = one(stamped(logs.ARM_PROCESSOR))
    assert (error.part, error.severity, error.paddr) == (Part.CACHE, Severity.RECOVERABLE, 0x2023202E80)
    assert error.what == "cache error: data access, data read, level 2"
    assert error.location == {"mpidr": "0x81080000", "level": "2"}


def test_pcie_error_that_firmware_handed_over() -> None:
    error = one(stamped(logs.AER_APEI))
    assert (error.severity, error.details["aer_errors"]) == (Severity.FATAL, "CmpltTO")
    assert error.details["tlp_header"].startswith("4a000001")


def test_line_of_edac_tells_the_place_of_the_machine_check_before_it() -> None:
    error = one(stamped(logs.EDAC_SKYLAKE))
    assert error.source is Source.MACHINE_CHECK
    assert error.unit == "integrated memory controller"
    assert error.location["dimm"] == "CPU_SrcID#1_MC#0_Chan#0_DIMM#1"
    assert (error.location["rank"], error.location["row"], error.location["bank_group"]) == ("0x0", "0x93e7", "0x1")
    assert error.paddr == 0x2BD5C4F3C0
    assert "CPU_SrcID#1_MC#0_Chan#0_DIMM#1" in error.advice


@pytest.mark.parametrize(
    ("text", "severity", "count", "place", "paddr"),
    [
        (
            "EDAC MC0: 7 CE single-symbol chipkill ECC on unknown memory (node:1 card:0 page:0x12 offset:0x40 grain:8)",
            Severity.CORRECTED,
            7,
            "controller 0",
            0x12040,
        ),
        (
            "EDAC MC1: 1 UE on mc#1csrow#3channel#0 (csrow:3 channel:0 page:0x0 offset:0x0 grain:64)",
            Severity.UNCORRECTED,
            1,
            "dimm mc#1csrow#3channel#0, controller 1, channel 0, csrow 3",
            None,
        ),
        (
            'EDAC MC0: CE page 0x283, offset 0xce0, grain 8, syndrome 0x6ec3, row 2, channel 1, label "DIMM_B1": x',
            Severity.CORRECTED,
            1,
            "dimm DIMM_B1, controller 0, channel 1, csrow 2",
            0x283CE0,
        ),
        (
            MC_EVENT,
            Severity.CORRECTED,
            2,
            "dimm DIMM_A, controller 1",
            0x12345678,
        ),
    ],
)
def test_edac(text: str, severity: Severity, count: int, place: str, paddr: int | None) -> None:
    error = one(text.encode())
    assert (error.source, error.part, error.severity, error.count) == (Source.EDAC, Part.MEMORY, severity, count)
    assert (error.place, error.paddr) == (place, paddr)


def test_firmware_record_and_what_the_kernel_did() -> None:
    error = one(stamped(logs.GHES_MEMORY))
    assert (error.source, error.severity, error.paddr) == (Source.APEI, Severity.CORRECTED, 0x203F8D4A80)
    assert error.location["dimm"] == "P2-DIMMC1 NODE 2"
    assert (error.location["row"], error.location["bit_position"]) == ("51234", "61")
    assert error.details["kernel_action"] == "free buddy page: Recovered"
    assert error.details["fru"] == "P2-DIMMC1"


def test_firmware_record_of_an_old_kernel() -> None:
    error = one(stamped(logs.GHES_OLD))
    assert error.what == "memory: multi-bit ECC error"
    assert error.place == "node 1, card 0, module 2"
    assert error.paddr == 0x123456780


def test_records_that_are_printed_at_once_are_told_apart() -> None:
    first = logs.GHES_MEMORY.splitlines()[:-1]
    second = [line.replace("{12}", "{13}").replace("node:1", "node:7") for line in first]
    text = "\n".join(line for pair in zip(first, second, strict=True) for line in pair).encode()
    assert [error.location["node"] for error in find_hardware_errors(text)] == ["1", "7"]


def test_machine_checks_of_two_cpus_that_print_at_once() -> None:
    first, second = find_hardware_errors(logs.BROKEN_UP.encode())
    assert first.machine_check is not None
    assert second.machine_check is not None
    assert (first.cpu, first.machine_check.addr, first.machine_check.apic) == (1, 0x1000, 2)
    assert (second.cpu, second.machine_check.tsc, second.machine_check.apic) == (7, 2, 0xE)


def test_pcie_error_with_its_recovery() -> None:
    error = one(stamped(logs.AER_NEW))
    assert (error.source, error.part, error.severity) == (Source.AER, Part.PCIE, Severity.RECOVERABLE)
    assert error.what == "PCI Express: completion timeout, reported by 0000:02:00.0"
    assert (error.verdict, error.details["driver"]) == (Verdict.UNCLEAR, "nvme")
    assert error.details["recovery"].startswith("failed")


def test_pcie_error_of_older_kernels() -> None:
    error = one(stamped(logs.AER_OLD))
    assert (error.severity, error.verdict) == (Severity.CORRECTED, Verdict.HARDWARE)
    assert error.details["aer_errors"] == "Timeout"
    assert error.details["role"] == "Transmitter ID"


@pytest.mark.parametrize("tag", ["", "2017-05-05T08:57:16+02:00 host mcelog: ", "Sep 16 19:51:15 host mcelog[987]: "])
def test_what_mcelog_prints(tag: str) -> None:
    error = one("".join(f"{tag}{line}\n" for line in logs.MCELOG.splitlines()).encode())
    assert error.what == "memory controller: scrubbing error, channel 1"
    assert (error.cpu, error.place, error.count) == (0, "socket 1, channel 1", 1)
    assert error.machine_check is not None
    assert (error.machine_check.model, error.machine_check.mcgcap) == (44, 0x1C09)


@pytest.mark.parametrize(
    "text",
    [
        TRACED,
        BY_RASDAEMON,
        BY_RASDAEMON.replace("mce_record: ", "mce_record <CANT FIND FIELD v_data>[ERROR] "),
    ],
)
def test_trace_events(text: str) -> None:
    error = one(text.encode())
    assert error.what == "memory controller: read error, channel 0"
    assert (error.cpu, error.place, error.paddr) == (2, "socket 1, channel 0", 0x12345000)


@pytest.mark.parametrize(
    ("text", "what", "verdict", "cpu"),
    [
        ("NMI: PCI system error (SERR) for reason a1 on CPU 0.", "NMI: PCI system error (SERR)", Verdict.HARDWARE, 0),
        ("NMI: IOCK error (debug interrupt?) for reason 71 on CPU 3.", "NMI: IOCK error", Verdict.HARDWARE, 3),
        ("Uhhuh. NMI received for unknown reason 3d on CPU 5.", "NMI for an unknown reason", Verdict.UNCLEAR, 5),
        (
            "SError Interrupt on CPU4, code 0x00000000be000411 -- SError",
            "SError: asynchronous error, unrecoverable",
            Verdict.UNCLEAR,
            4,
        ),
        (
            "SError Interrupt on CPU4, code 0x00000000be000c11 -- SError",
            "SError: asynchronous error, recoverable",
            Verdict.HARDWARE,
            4,
        ),
        (
            "Internal error: synchronous external abort: 0000000096000210 [#1] SMP",
            "synchronous external abort",
            Verdict.UNCLEAR,
            None,
        ),
        (
            "CPU12: Package temperature above threshold, cpu clock throttled (total events = 9)",
            "package temperature above the threshold: the processor is slowed down",
            Verdict.HARDWARE,
            12,
        ),
    ],
)
def test_other_messages(text: str, what: str, verdict: Verdict, cpu: int | None) -> None:
    error = one(text.encode())
    assert (error.what, error.verdict, error.cpu) == (what, verdict, cpu)


def test_serror_of_the_implementations_own() -> None:
    words, _, is_classified = decode_serror(0xBF000002)
    assert "0x2" in words
    assert not is_classified


def test_page_that_was_spoilt_on_purpose() -> None:
    text = (
        b"[    1.000000] Injecting memory failure for pfn 0x18c0f at process virtual address 0x7f5075818000\n"
        b"[    1.000001] Memory failure: 0x18c0f: recovery action for dirty LRU page: Recovered\n"
        b"[    2.000001] Memory failure: 0x18c10: recovery action for dirty LRU page: Recovered\n"
    )
    assert [error.verdict for error in find_hardware_errors(text)] == [Verdict.INJECTED, Verdict.HARDWARE]


def test_virtual_machine_is_said() -> None:
    text = b"[    0.000000] Hypervisor detected: KVM\n" + stamped(logs.FATAL)
    assert "virtual machine" in one(text).reason
    assert one(text).advice.startswith("on the host: ")
    again = text + b"[    0.000000] Linux version 6.1\n" + stamped(logs.AER_OLD)
    assert "virtual machine" not in find_hardware_errors(again)[1].reason, "the next boot is another machine's"


def test_panic_belongs_to_the_gravest_error() -> None:
    text = stamped(logs.AER_OLD + logs.FATAL)
    assert [error.is_panic for error in find_hardware_errors(text)] == [False, True]


def test_machine_check_of_which_nothing_was_printed() -> None:
    text = "Kernel panic - not syncing: Timeout: Not all CPUs entered broadcast exception handler"
    error = one(f"[    9.000000] {text}\n".encode())
    assert (error.severity, error.verdict, error.is_panic) == (Severity.FATAL, Verdict.UNCLEAR, True)
    assert "firmware holds it" in error.reason
    assert error.lines == (text,)
    other = one(b"Kernel panic - not syncing: Fatal machine check on current CPU\n")
    assert (other.part, other.verdict) == (Part.UNKNOWN, Verdict.HARDWARE)


@pytest.mark.parametrize(
    "text",
    [
        "EDAC MC: Ver: 3.0.0",
        "EDAC MC0: Giving out device to module skx_edac controller Skylake Socket#0 IMC#0: DEV 0000:3a:0a.0",
        "pcieport 0000:00:1c.0: AER: enabled with IRQ 122",
        "mce: [Hardware Error]: Machine check events logged",
        "mce: CPU supports 20 MCE banks",
        "BERT: Boot Error Record Table support is disabled. Enable it by using bert_enable as kernel parameter.",
        "GHES: APEI firmware first mode is enabled by APEI bit and WHEA _OSC.",
        "NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
        "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 1.5 msecs",
        "smpboot: CPU 3 is now offline",
        "Kernel panic - not syncing: Fatal exception",
        "CPU 0 BANK x",
        "Machine check injector initialized",
        "EINJ: Error INJection is initialized.",
        "systemd[1]: Started Machine Check Exception Logging Daemon.",
    ],
)
def test_ordinary_messages_are_no_errors(text: str) -> None:
    assert find_hardware_errors(f"[    1.000000] {text}\n".encode()) == []


def test_answer_groups_by_part_and_shows_the_gravest_first() -> None:
    corrected = "EDAC MC0: {n} CE error on DIMM_A1 (channel:0 slot:0 page:0x{n}2 offset:0x40 grain:8)\n"
    text = "".join(corrected.format(n=n) for n in range(1, 5)) + logs.FATAL
    errors = find_hardware_errors(stamped(text))
    answer = hardware_answer(errors)
    parts = answer["hardware_parts"].records()
    assert [(row["part"], row["count"], row["severity"]) for row in parts] == [
        ("memory", 1, "recoverable"),
        ("memory", 1 + 2 + 3 + 4, "corrected"),
    ]
    assert parts[1]["place"] == "dimm DIMM_A1, controller 0, channel 0, slot 0"
    assert parts[0]["is_panic"]
    assert len(answer["hardware_errors"]) == 5
    answer_value(answer)
    shown = "\n".join(render_text(answer))
    assert "PLACE: socket 1\n" in shown
    assert "replace memory module DIMM_A1" in shown


def test_answer_without_errors() -> None:
    assert len(hardware_answer([])["hardware_parts"]) == 0
