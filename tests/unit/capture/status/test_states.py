"""What is well, not there, or cannot be seen is said to be so, each with what was read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.unit.capture.kexec.loaded_host import LoadedHost
from tests.unit.capture.status.machines import RELEASE, StatusTree, arm_machine

SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
Step = Callable[[StatusTree], object]


def put(**files: str | bytes | int) -> Step:
    def step(tree: StatusTree) -> None:
        for name, content in files.items():
            tree.put(name.replace("__", "/"), content)

    return step


def mount_pstore(tree: StatusTree) -> None:
    tree.put("sys/module/pstore/parameters/backend", "ramoops")
    tree.put("sys/module/ramoops/parameters/mem_size", 1 << 20)
    (tree.root / "sys/fs/pstore").mkdir(parents=True)
    tree.machine.mount("0:20 pstore", "/sys/fs/pstore", "pstore")


def record_first(tree: StatusTree) -> None:
    mount_pstore(tree)
    tree.put("sys/module/kernel/parameters/crash_kexec_post_notifiers", "Y")


def set_up_netconsole(tree: StatusTree) -> None:
    values: dict[str, str | int] = {"enabled": 1, "dev_name": "eth0", "remote_ip": "192.0.2.9", "remote_port": 6666}
    for name, value in values.items():
        tree.put(f"sys/kernel/config/netconsole/box/{name}", value)


def run_watchdog(identity: str, **values: str | int) -> Step:
    def step(tree: StatusTree) -> None:
        for name, value in {"identity": identity, **values}.items():
            tree.put(f"sys/class/watchdog/watchdog0/{name}", value)

    return step


STATES = [
    (
        "lockdown",
        put(sys__kernel__security__lockdown="none [integrity] confidentiality"),
        "security/lockdown",
        "ok",
        "integrity: only a signed kernel can be loaded, loaded by file",
    ),
    (
        "confidentiality",
        put(sys__kernel__security__lockdown="none integrity [confidentiality]"),
        "security/lockdown",
        "ok",
        "what is loaded cannot be read back",
    ),
    (
        "Secure Boot",
        put(**{SECURE_BOOT: b"\6\0\0\0\1"}),
        "security/Secure Boot",
        "ok",
        "on: the capture kernel must be",
    ),
    ("no Secure Boot", put(**{SECURE_BOOT: b"\6\0\0\0\0"}), "security/Secure Boot", "ok", "off"),
    ("UEFI that does not tell", put(sys__firmware__efi__x=""), "security/Secure Boot", "unknown", "does not tell"),
    ("loads left", put(proc__sys__kernel__kexec_load_limit_panic=3), "security/loading", "ok", "allowed, 3 loads left"),
    ("loaded before", put(proc__sys__kernel__kexec_load_disabled=1), "security/loading", "ok", "stays until the next"),
    (
        "signatures enforced",
        lambda tree: tree.edit(
            f"boot/config-{RELEASE}", "CONFIG_KEXEC_SIG=y", "CONFIG_KEXEC_SIG=y\nCONFIG_KEXEC_SIG_FORCE=y"
        ),
        "kernel/signatures",
        "ok",
        "only a signed kernel can be loaded",
    ),
    ("ramoops", mount_pstore, "other evidence/pstore", "ok", "ramoops, in reserved memory"),
    ("no records", mount_pstore, "other evidence/pstore, records", "ok", "none of an earlier crash"),
    ("recorded first", record_first, "other evidence/pstore, order", "ok", "recorded before the capture kernel starts"),
    (
        "notifiers first",
        put(sys__module__kernel__parameters__crash_kexec_post_notifiers="Y"),
        "panic/crash_kexec_post_notifiers",
        "ok",
        "on: notifiers and kmsg dumpers run before",
    ),
    (
        "pstore not mounted",
        put(sys__module__pstore__parameters__backend="erst"),
        "other evidence/pstore, records",
        "warning",
        "not mounted",
    ),
    ("netconsole", set_up_netconsole, "other evidence/netconsole", "ok", "the log goes to 192.0.2.9:6666 by eth0"),
    (
        "early console",
        lambda tree: tree.edit("proc/cmdline", "console=", "earlycon=uart8250,io,0x3f8 console="),
        "other evidence/early console",
        "ok",
        "earlycon=uart8250,io,0x3f8",
    ),
    (
        "screens only",
        lambda tree: (
            tree.put("proc/consoles", "tty0   -WU (EC  p  )    4:1"),
            tree.edit("proc/cmdline", "console=ttyS0", "console=tty0"),
        ),
        "other evidence/consoles",
        "ok",
        "no serial one",
    ),
    (
        "no console at all",
        lambda tree: (tree.put("proc/consoles", ""), tree.edit("proc/cmdline", "console=ttyS0", "")),
        "other evidence/consoles",
        "warning",
        "a panic is printed nowhere",
    ),
    ("watchdog at rest", run_watchdog("iTCO_wdt", state="inactive"), "watchdogs/watchdog0", "ok", "iTCO_wdt: inactive"),
    (
        "watchdog of software",
        run_watchdog("Software Watchdog", state="active", timeout=60),
        "watchdogs/watchdog0",
        "ok",
        "it dies with this kernel",
    ),
    (
        "watchdog fed",
        run_watchdog("built in", state="active", timeout=60),
        "watchdogs/watchdog0",
        "ok",
        "the saver feeds it",
    ),
    ("watchdog without sysfs", run_watchdog("old"), "watchdogs/watchdog0", "unknown", "cannot be seen"),
    (
        "systemd's watchdog",
        put(**{"etc/systemd/system.conf": "[Manager]\nRuntimeWatchdogSec=30s\n"}),
        "watchdogs/systemd",
        "ok",
        "RuntimeWatchdogSec=30s",
    ),
    ("no KASLR", lambda tree: tree.edit("proc/cmdline", "console=", "nokaslr console="), "analysis/KASLR", "ok", "off"),
    ("VMCOREINFO", lambda _: None, "analysis/VMCOREINFO", "ok", "at 0x1234000"),
    (
        "sysrq",
        put(proc__sys__kernel__sysrq=1),
        "panic/kernel.sysrq",
        "ok",
        "the keyboard and serial BREAK may crash it",
    ),
    (
        "panic_print",
        put(proc__sys__kernel__panic_print=0x41),
        "panic/kernel.panic_print",
        "ok",
        "65: a panic prints tasks, all processors before",
    ),
    ("out of memory", put(proc__sys__vm__panic_on_oom=2), "panic/vm.panic_on_oom", "ok", "also within a control group"),
    ("reboots at once", put(proc__sys__kernel__panic=-1), "panic/kernel.panic", "ok", "ends in a reboot at once"),
    (
        "panic_sys_info",
        put(proc__sys__kernel__panic_sys_info="tasks,mem"),
        "panic/kernel.panic_sys_info",
        "ok",
        "tasks,mem: what a panic prints",
    ),
    (
        "on the command line",
        lambda tree: tree.edit("proc/cmdline", "console=", "oops=panic console="),
        "panic/command line",
        "ok",
        "oops=panic at boot",
    ),
    (
        "ranges",
        lambda tree: tree.edit("proc/cmdline", "=256M", "=1G-4G:160M,4G-:256M"),
        "reservation/command line",
        "failing",
        "nothing is reserved",
    ),
    (
        "high and low",
        lambda tree: tree.edit("proc/cmdline", "=256M", "=256M,high crashkernel=72M,low"),
        "reservation/command line",
        "ok",
        "crashkernel=256M,high crashkernel=72M,low: 256.0 MiB above 4 GiB",
    ),
]


@pytest.mark.parametrize(
    ("step", "where", "state", "found"), [row[1:] for row in STATES], ids=[row[0] for row in STATES]
)
def test_each_state_is_said(tmp_path: Path, step: Step, where: str, state: str, found: str) -> None:
    tree = arm_machine(tmp_path)
    step(tree)
    check = tree.check(*where.split("/", 1))
    assert check.state == state
    assert found in check.found
    assert check.evidence


def test_an_image_that_the_kernel_cannot_unpack(tmp_path: Path) -> None:
    packed = zstandard.compress(b"070701" + bytes(range(256)) * 30)
    tree = arm_machine(tmp_path, LoadedHost(initrd=packed))
    assert tree.check("image", "compression").found == "the capture kernel can unpack it (CONFIG_RD_ZSTD)"
    tree.edit(f"boot/config-{RELEASE}", "CONFIG_RD_ZSTD=y", "# CONFIG_RD_ZSTD is not set")
    check = tree.check("image", "compression")
    assert check.state == "failing"
    assert check.evidence[0].source == f"/boot/config-{RELEASE}"
    assert "image_compression" in check.mend
