"""
rasdaemon judges: the machine reports errors of every class, it decodes them, and so do we.

Both read the same registers: rasdaemon by the kernel's trace event, we by the kernel's messages and by the lines that
rasdaemon prints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.errors import FactAbsentError, ProcessError
from postpanic.evidence.hardware import HardwareError, Severity, find_hardware_errors
from postpanic.process import find_program
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Machine, MachineConfig, scale_timeout
from postpanic.rehearse.programs import ProgramStore, UnpackedProgram
from tests.vm.lab import Lab, hold_machine

pytestmark = pytest.mark.vm

CPU = "max,la57=off,vendor=GenuineIntel,family=6,model=85,stepping=7"
"""A processor whose codes both know."""
BANKS = range(2, 10)
STATUS = 0x9C00004000000000
"""Valid, enabled, with address and a count of one; corrected."""
ADDRESS, MISC = 0x1F3A5C40, 0x8C

CODES: dict[int, tuple[str, str]] = {
    0x0001: ("Unclassified", "unclassified error"),
    0x0002: ("Microcode ROM parity error", "microcode ROM"),
    0x0003: ("External error", "another agent signalled"),
    0x0005: ("Internal parity error", "internal parity error"),
    0x0006: ("SMM Handler Code Access Violation", "SMM handler"),
    0x0400: ("Internal Timer error", "internal timer error"),
    0x0E0B: ("IO MCA", "generic I/O error"),
    0x000E: ("Generic memory hierarchy", "cache hierarchy, L2"),
    0x0010: ("Instruction TLB Level-0", "instruction TLB error, L0"),
    0x0015: ("Data TLB Level-1", "data TLB error, L1"),
    0x0135: ("Data CACHE Level-1 Data-Read", "data cache error, L1, data read"),
    0x0152: ("Instruction CACHE Level-2 Instruction-Fetch", "instruction cache error, L2, instruction fetch"),
    0x017A: ("Generic CACHE Level-2 Eviction", "generic cache error, L2, eviction"),
    0x0189: ("Generic CACHE Level-1 Snoop", "generic cache error, L1, snoop"),
    0x0090: ("MEMORY CONTROLLER RD_CHANNEL0_ERR", "read error, channel 0"),
    0x00A1: ("MEMORY CONTROLLER WR_CHANNEL1_ERR", "write error, channel 1"),
    0x00B2: ("MEMORY CONTROLLER AC_CHANNEL2_ERR", "address or command error, channel 2"),
    0x00C3: ("MEMORY CONTROLLER MS_CHANNEL3_ERR", "scrubbing error, channel 3"),
    0x008F: ("MEMORY CONTROLLER GEN_CHANNELunspecified_ERR", "memory controller: generic error"),
    0x0800: ("BUS Level-0 Local-CPU-originated-request Generic Memory-access", "memory access, this processor made"),
    0x0A35: ("BUS Level-1 Responed-to-request Data-Read Reserved", "data read, reserved, this processor responded"),
    0x1135: ("corrected filtering", "data cache error, L1, data read"),
}
"""By the code: what rasdaemon says, and what we say."""

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
for cpu in /sys/devices/system/machinecheck/machinecheck*; do echo 1 >$cpu/check_interval; done
mkdir -p /var/lib/rasdaemon /tmp
/judge/ld-linux-x86-64.so.2 --library-path /judge /judge/rasdaemon -f &
sleep 1
echo "lab: listening"
sleep 1000
"""


class _Machine(Machine):
    """A machine that can be struck."""

    def report_error(self, bank: int, status: int) -> None:
        words = f"mce 0 {bank} {status:#x} 0x0 {ADDRESS:#x} {MISC:#x}"
        self._execute("human-monitor-command", {"command-line": words})


@dataclass(frozen=True)
class Judged:
    """Say of each code what rasdaemon printed, and our errors out of the kernel's messages and of that line."""

    lines: dict[int, str]
    ours: dict[int, HardwareError]
    of_line: dict[int, HardwareError]


@pytest.fixture(scope="module")
def judged(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Report one error of each code; rasdaemon and the kernel print them."""
    directory = tmp_path_factory.mktemp("judged")
    kernel = fetch_kernel("6.12")
    initrd = directory / "initrd"
    initrd.write_bytes(_initramfs(crash_lab))
    config = MachineConfig(
        kernel.image, initrd, "console=ttyS0 no_timer_check ras=cec_disable", memory_mib=512, cpus=1, cpu=CPU
    )
    codes = list(CODES)
    with hold_machine(crash_lab.cache_dir), _Machine(config, directory) as machine:
        machine.wait_for(r"^lab: listening", timeout_s=scale_timeout(15))
        for start in range(0, len(codes), len(BANKS)):
            some = codes[start : start + len(BANKS)]
            for bank, code in zip(BANKS, some, strict=False):
                machine.report_error(bank, STATUS | code)
            for code in some:
                machine.wait_for(rf"mce_record.* status= ?{STATUS | code:x}", timeout_s=scale_timeout(8))
        console = machine.read_console()
    return _sort(console)


def _fetch_judge(lab: Lab) -> UnpackedProgram:
    try:
        return ProgramStore(lab.cache_dir).fetch("rasdaemon", "usr/sbin/rasdaemon")
    except (ProcessError, FactAbsentError) as exc:
        reason = f"rasdaemon is neither in the cache nor to be fetched: {exc}"
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(reason)
        pytest.skip(reason)


def _initramfs(lab: Lab) -> bytes:
    program = _fetch_judge(lab)
    image = ImageTree()
    image.add_program("bin/busybox", find_program("busybox"))
    image.add_device("dev/console", 5, 1)
    for name in ("proc", "sys", "tmp"):
        image.add_directory(name)
    image.add_bytes("init", INIT.encode(), 0o755)
    image.add_file("judge/rasdaemon", program.path, 0o755)
    libraries = Path(program.command[0]).parent
    for path in sorted(libraries.glob("*.so*")):
        image.add_file(f"judge/{path.name}", path.resolve(), 0o755)
    return image.encode()


def _sort(console: str) -> Judged:
    lines, ours, of_line = {}, {}, {}
    for line in console.splitlines():
        found = re.search(r"mce_record.* status= ?([0-9a-f]{16})", line)
        if found is not None:
            code = int(found[1], 16) & 0xFFFF
            lines[code] = line
            (of_line[code],) = find_hardware_errors(line.encode())
    rest = "\n".join(line for line in console.splitlines() if "mce_record" not in line)
    for error in find_hardware_errors(rest.encode()):
        if error.machine_check is not None:
            ours[error.machine_check.status & 0xFFFF] = error
    return Judged(lines, ours, of_line)


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code:#06x}")
def test_both_say_the_same(judged: Judged, code: int) -> None:
    theirs, ours = CODES[code]
    assert theirs in judged.lines[code]
    assert ours in judged.ours[code].what
    assert "orrected" in judged.lines[code]
    assert judged.ours[code].severity is Severity.CORRECTED


@pytest.mark.parametrize("code", CODES, ids=lambda code: f"{code:#06x}")
def test_line_of_rasdaemon_is_read_as_the_kernels(judged: Judged, code: int) -> None:
    kernel, line = judged.ours[code], judged.of_line[code]
    assert (line.what, line.part, line.severity, line.verdict) == (
        kernel.what,
        kernel.part,
        kernel.severity,
        kernel.verdict,
    )
    assert (line.cpu, line.paddr, line.location) == (kernel.cpu, kernel.paddr, kernel.location)
