"""A machine with nothing wrong is ready; of each single thing that is made wrong it is told, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from postpanic.capture.status.subject import Room
from tests.unit.capture.kexec.loaded_host import HEADER_AT, KERNEL_AT, LoadedHost
from tests.unit.capture.resolve.machine import EXT4_UUID, make_ext4
from tests.unit.capture.status.machines import RELEASE, WANTS, StatusTree, arm_machine

SSH = '[[target]]\nkind = "ssh"\nserver = "vault.example.org"\n'
MODULES = f"lib/modules/{RELEASE}"


@dataclass(frozen=True)
class Fault:
    """
    One thing that is wrong.

    Attributes
    ----------
    spoil : callable
        Makes it wrong, of a machine that is ready.
    where, state, found, mend : str
        What is said: ``group/name``, parts of the phrase and of what mends it.
    loaded : dict
        What is to be loaded otherwise.
    """

    name: str
    spoil: Callable[[StatusTree], object]
    where: str
    state: str
    found: str
    mend: str
    loaded: dict[str, object] | None = None


def nothing(_: StatusTree) -> None:
    """Leave it: what is loaded is wrong."""


def put(name: str, content: str | int) -> Callable[[StatusTree], None]:
    return lambda tree: tree.put(name, content)


def drop(name: str) -> Callable[[StatusTree], None]:
    return lambda tree: tree.drop(name)


def edit(name: str, old: str, new: str) -> Callable[[StatusTree], None]:
    return lambda tree: tree.edit(name, old, new)


def unset(option: str) -> Callable[[StatusTree], None]:
    return edit(f"boot/config-{RELEASE}", f"CONFIG_{option}=y\n", f"# CONFIG_{option} is not set\n")


def sysctl(name: str, value: int) -> Callable[[StatusTree], None]:
    return put(f"proc/sys/{name.replace('.', '/')}", value)


def room(free_bytes: int, *, is_read_only: bool = False) -> Callable[[StatusTree], None]:
    return lambda tree: setattr(tree, "room", Room(free_bytes, 40 << 30, is_read_only))


def all_of(*steps: Callable[[StatusTree], object]) -> Callable[[StatusTree], None]:
    def spoil(tree: StatusTree) -> None:
        for step in steps:
            step(tree)

    return spoil


def other_disk(tree: StatusTree) -> None:
    """Make the file system again: its UUID is another one."""
    (tree.root / "dev/vda1").unlink()
    image = make_ext4(tree.root / "again.img", "aaaaaaaa-6a39-4d8e-9d29-5a6f63bfa1d7")
    (tree.root / "dev/vda1").hardlink_to(image)


def add_watchdog(identity: str, timeout_s: int, driver: str = "") -> Callable[[StatusTree], None]:
    def spoil(tree: StatusTree) -> None:
        place = "sys/class/watchdog/watchdog0"
        tree.put(f"{place}/identity", identity)
        tree.put(f"{place}/state", "active")
        tree.put(f"{place}/timeout", timeout_s)
        if driver:
            (tree.root / f"{place}/device/driver").mkdir(parents=True)
            tree.put(f"sys/module/{driver}/refcnt", 1)
            (tree.root / f"{place}/device/driver/module").symlink_to(tree.root / "sys/module" / driver)

    return spoil


def add_pstore(tree: StatusTree) -> None:
    tree.put("sys/module/pstore/parameters/backend", "efi_pstore")
    (tree.root / "sys/fs/pstore").mkdir(parents=True)
    tree.machine.mount("0:20 pstore", "/sys/fs/pstore", "pstore")


def encrypt(tree: StatusTree) -> None:
    """Put the root on a volume of LUKS."""
    tree.machine.add_block(
        "virtual/block/dm-0", tree.root / "vda1.img", dm__uuid="CRYPT-LUKS2-1234-root", dm__name="root"
    )
    tree.machine.mount("dm-0", "/", "ext4")


def forget_rehearsal(tree: StatusTree) -> None:
    tree.drop("var/lib/postpanic/rehearsal.json")


REHEARSAL = "var/lib/postpanic/rehearsal.json"

FAULTS = [
    # The reservation.
    Fault(
        "no crashkernel=",
        edit("proc/cmdline", " crashkernel=256M", ""),
        "reservation/command line",
        "failing",
        "no crashkernel=",
        "postpanic crashkernel",
    ),
    Fault(
        "nothing reserved",
        all_of(put("sys/kernel/kexec_crash_size", 0), put("sys/kernel/kexec_crash_loaded", 0)),
        "reservation/size",
        "failing",
        "256.0 MiB asked for, nothing reserved",
        "dmesg | grep -i crashkernel",
    ),
    Fault(
        "too small",
        put("sys/kernel/kexec_crash_size", 16 << 20),
        "reservation/enough",
        "failing",
        "too little: estimated need",
        "postpanic crashkernel",
    ),
    Fault(
        "perhaps too small",
        put("sys/kernel/kexec_crash_size", 24 << 20),
        "reservation/enough",
        "warning",
        "perhaps too little: estimated need",
        "postpanic crashkernel",
    ),
    Fault(
        "measured as too small",
        edit(REHEARSAL, '"needed_bytes": 0', '"needed_bytes": 402653184'),
        "reservation/enough",
        "failing",
        "measured need 384.0 MiB of 256.0 MiB",
        "postpanic crashkernel set 384M",
    ),
    # What is loaded.
    Fault(
        "nothing loaded",
        put("sys/kernel/kexec_crash_loaded", 0),
        "capture kernel/loaded",
        "failing",
        "no capture kernel",
        "postpanic arm",
    ),
    Fault(
        "a kernel without kexec",
        all_of(drop("sys/kernel/kexec_crash_loaded"), drop("sys/kernel/kexec_crash_size")),
        "capture kernel/loaded",
        "failing",
        "this kernel cannot have one",
        "CONFIG_KEXEC_FILE=y",
    ),
    Fault(
        "loaded kernel overwritten",
        nothing,
        "capture kernel/kernel",
        "failing",
        "overwritten at 0x",
        "postpanic arm",
        {"damage": {KERNEL_AT + 5000: b"\0" * 64}},
    ),
    Fault(
        "wrong image loaded",
        lambda tree: tree.put("var/lib/postpanic/capture.img", b"070701" + b"other" * 900),
        "capture kernel/initramfs",
        "failing",
        "bytes are loaded",
        "postpanic arm",
    ),
    Fault(
        "no core header",
        nothing,
        "capture kernel/core header",
        "failing",
        "",
        "postpanic arm",
        {"header": b"nothing" * 20},
    ),
    Fault(
        "memory has grown",
        edit("proc/iomem", "00100000-2fffffff : System RAM", "00100000-3fffffff : System RAM"),
        "capture kernel/memory",
        "failing",
        "not in the dump",
        "postpanic arm",
    ),
    Fault(
        "a processor has come",
        put("sys/devices/system/cpu/cpu2/crash_notes", "9999000"),
        "capture kernel/notes",
        "failing",
        "no registers of processor 2",
        "postpanic arm",
    ),
    Fault(
        "it would overwrite memory",
        nothing,
        "capture kernel/usable memory",
        "failing",
        "not reserved for it",
        "postpanic arm",
        {"usable": [(0x100000, 0x30000000)]},
    ),
    # The image.
    Fault(
        "image is gone",
        drop("var/lib/postpanic/capture.img"),
        "image/image",
        "failing",
        "there is none",
        "postpanic arm",
    ),
    Fault(
        "modules updated",
        put(f"{MODULES}/modules.dep", "virtio_pci.ko:\nvirtio_blk.ko: x.ko\n"),
        "image/fresh",
        "warning",
        "its modules changed",
        "postpanic arm",
    ),
    Fault(
        "kernel updated",
        lambda tree: tree.put(f"boot/vmlinuz-{RELEASE}", (tree.root / f"boot/vmlinuz-{RELEASE}").read_bytes()),
        "image/fresh",
        "warning",
        "the kernel changed",
        "postpanic arm",
    ),
    Fault(
        "configuration changed",
        put("etc/postpanic.toml", "[dump]\nlevel = 0\n"),
        "image/fresh",
        "failing",
        "what is to be saved where changed",
        "postpanic arm",
    ),
    Fault(
        "file system made again",
        other_disk,
        "image/fresh",
        "failing",
        "what is to be saved where changed",
        "postpanic arm",
    ),
    # Targets.
    Fault(
        "no such device",
        put("etc/postpanic.toml", '[[target]]\nkind = "file"\ndevice = "UUID=beef"\n'),
        "targets/file /var/crash of UUID=beef",
        "failing",
        "UUID=beef",
        "",
    ),
    Fault(
        "a file system in memory",
        lambda tree: tree.machine.mount("0:30 tmpfs", "/var", "tmpfs"),
        "targets/file /var/crash",
        "failing",
        "no block device",
        "",
    ),
    Fault("full disk", room(10 << 20), "targets/room file /var/crash", "failing", "does not fit", "make room"),
    Fault("nearly full disk", room(40 << 20), "targets/room file /var/crash", "warning", "hardly fits", "make room"),
    Fault(
        "read-only disk",
        room(20 << 30, is_read_only=True),
        "targets/room file /var/crash",
        "warning",
        "mounted read-only",
        "remount,rw",
    ),
    Fault(
        "a limit below the dump",
        put("etc/postpanic.toml", '[[target]]\nkind = "file"\nlimit = "8 MiB"\n'),
        "targets/room file /var/crash",
        "failing",
        "limit = 8.0 MiB",
        "raise limit",
    ),
    Fault(
        "broken configuration",
        put("etc/postpanic.toml", "[dump]\nlevle = 1\n"),
        "targets/configuration",
        "failing",
        "dump.levle is not known",
        "did you mean level?",
    ),
    Fault("on LUKS", encrypt, "targets/file /var/crash", "failing", "root is an encrypted volume", ""),
    Fault(
        "LUKS below the target",
        encrypt,
        "encryption/targets",
        "warning",
        "root is an encrypted volume",
        "not encrypted",
    ),
    # What forbids to load.
    Fault(
        "loading switched off",
        all_of(sysctl("kernel.kexec_load_disabled", 1), put("sys/kernel/kexec_crash_loaded", 0)),
        "security/loading",
        "failing",
        "kernel.kexec_load_disabled is 1",
        "sysctl.d",
    ),
    Fault(
        "no loads left",
        all_of(sysctl("kernel.kexec_load_limit_panic", 0), put("sys/kernel/kexec_crash_loaded", 0)),
        "security/loading",
        "failing",
        "kernel.kexec_load_limit_panic is 0",
        "reboot",
    ),
    Fault(
        "lockdown and kexec_load",
        all_of(
            put("sys/kernel/security/lockdown", "none [integrity] confidentiality"),
            put("etc/postpanic.toml", '[capture]\nkexec = "legacy"\n'),
        ),
        "security/lockdown",
        "failing",
        "kexec_load is forbidden",
        'kexec = "auto"',
    ),
    Fault(
        "lockdown, no signatures",
        all_of(
            put("sys/kernel/security/lockdown", "none [integrity] confidentiality"),
            unset("KEXEC_SIG"),
            put("sys/kernel/kexec_crash_loaded", 0),
        ),
        "security/lockdown",
        "failing",
        "cannot check signatures",
        "signed kernel",
    ),
    # Options of the kernel.
    *(
        Fault(f"no {option}", unset(option), f"kernel/CONFIG_{option}{suffix}", state, "not set", f"CONFIG_{option}=y")
        for option, suffix, state in (
            ("PROC_VMCORE", " (capture)", "failing"),
            ("RELOCATABLE", " (capture)", "failing"),
            ("CRASH_DUMP", "", "failing"),
            ("KEXEC_FILE", "", "warning"),
            ("DEBUG_INFO_BTF", "", "warning"),
            ("KALLSYMS_ALL", "", "warning"),
        )
    ),
    # What is a panic.
    Fault(
        "an oops is none",
        sysctl("kernel.panic_on_oops", 0),
        "panic/kernel.panic_on_oops",
        "warning",
        "the default configuration asks for 1",
        "postpanic arm",
    ),
    Fault(
        "stands still",
        sysctl("kernel.panic", 0),
        "panic/kernel.panic",
        "warning",
        "stands still",
        "sysctl -w kernel.panic=10",
    ),
    Fault(
        "warnings panic",
        sysctl("kernel.panic_on_warn", 1),
        "panic/kernel.panic_on_warn",
        "warning",
        "every warning",
        "kernel.panic_on_warn=0",
    ),
    Fault(
        "hard lockups are not looked for",
        all_of(sysctl("kernel.hardlockup_panic", 1), sysctl("kernel.nmi_watchdog", 0)),
        "panic/kernel.hardlockup_panic",
        "warning",
        "kernel.nmi_watchdog is 0",
        "kernel.nmi_watchdog=1",
    ),
    Fault(
        "soft lockups are not looked for",
        all_of(sysctl("kernel.softlockup_panic", 1), sysctl("kernel.watchdog_thresh", 0)),
        "panic/kernel.softlockup_panic",
        "warning",
        "kernel.watchdog_thresh is 0",
        "kernel.watchdog_thresh=10",
    ),
    Fault(
        "hung tasks are not looked for",
        all_of(sysctl("kernel.hung_task_panic", 1), sysctl("kernel.hung_task_timeout_secs", 0)),
        "panic/kernel.hung_task_panic",
        "warning",
        "timeout_secs is 0",
        "hung_task_timeout_secs=120",
    ),
    # The rest of the machine.
    Fault(
        "watchdog without its driver",
        add_watchdog("iTCO_wdt", 60, "iTCO_wdt"),
        "watchdogs/watchdog0",
        "warning",
        "resets the machine after 60 s; its driver iTCO_wdt is not in the image",
        'modules = ["iTCO_wdt"]',
    ),
    Fault(
        "short watchdog",
        add_watchdog("iTCO_wdt", 10, "iTCO_wdt"),
        "watchdogs/watchdog0",
        "failing",
        "after 10 s",
        'modules = ["iTCO_wdt"]',
    ),
    Fault(
        "watchdog not fed",
        all_of(add_watchdog("pcwd", 60), put("etc/postpanic.toml", "[limits]\nwatchdog = false\n")),
        "watchdogs/watchdog0",
        "warning",
        "nobody feeds it",
        "watchdog = true",
    ),
    Fault(
        "cluster",
        put("etc/corosync/corosync.conf", "totem {}"),
        "watchdogs/cluster",
        "warning",
        "cut the power",
        "fence_kdump",
    ),
    Fault(
        "pstore gets nothing",
        add_pstore,
        "other evidence/pstore, order",
        "warning",
        "if it fails, nothing is left",
        "crash_kexec_post_notifiers",
    ),
    Fault(
        "old records",
        all_of(add_pstore, put("sys/fs/pstore/dmesg-efi_pstore-1-1", "x")),
        "other evidence/pstore, records",
        "warning",
        "1 of an earlier crash",
        "postpanic pstore",
    ),
    Fault(
        "no such console",
        edit("proc/cmdline", "console=ttyS0", "console=ttyS1,115200"),
        "other evidence/consoles",
        "warning",
        "console=ttyS1 is asked for, and is none",
        "take console=ttyS1 off",
    ),
    Fault(
        "nothing printed",
        put("proc/sys/kernel/printk", "0\t4\t1\t7"),
        "other evidence/console level",
        "warning",
        "below level 0",
        "dmesg -n",
    ),
    Fault(
        "netconsole not enabled",
        all_of(put("sys/kernel/config/netconsole/box/enabled", 0)),
        "other evidence/netconsole",
        "warning",
        "box is set up, and not enabled",
        "echo 1 >/sys/kernel/config",
    ),
    Fault(
        "masked",
        lambda tree: (tree.root / "etc/systemd/system/postpanic.service").symlink_to("/dev/null"),
        "boot/service",
        "warning",
        "nothing arms",
        "postpanic service --enable",
    ),
    Fault(
        "another tool at boot",
        all_of(
            drop(f"{WANTS}/postpanic.service"),
            lambda tree: (tree.root / WANTS / "kdump.service").symlink_to("/usr/lib/systemd/system/kdump.service"),
        ),
        "boot/service",
        "warning",
        "kdump.service loads another capture kernel at the next boot",
        "systemctl disable kdump.service",
    ),
    Fault(
        "two tools at boot",
        all_of(
            put("etc/default/kdump-tools", "USE_KDUMP=1"),
            lambda tree: (tree.root / WANTS / "kdump-tools.service").symlink_to("/lib/systemd/system/x.service"),
        ),
        "boot/service",
        "warning",
        "postpanic.service and kdump-tools.service both load",
        "systemctl disable kdump-tools.service",
    ),
    Fault(
        "not asked for at the next boot",
        edit("boot/grub/grub.cfg", " crashkernel=256M", ""),
        "boot/crashkernel",
        "warning",
        "not asked for by Debian",
        "postpanic crashkernel set",
    ),
    Fault(
        "not at boot",
        drop(f"{WANTS}/postpanic.service"),
        "boot/service",
        "warning",
        "nothing arms",
        "postpanic service --enable",
    ),
    Fault("never rehearsed", forget_rehearsal, "rehearsal/last", "warning", "never rehearsed", "postpanic rehearse"),
    Fault(
        "rehearsed otherwise",
        put("sys/kernel/kexec_crash_size", 128 << 20),
        "rehearsal/last",
        "warning",
        "the reservation changed since 2026-11-20",
        "postpanic rehearse",
    ),
    Fault(
        "rehearsal failed",
        edit(REHEARSAL, '"verdict": "proven"', '"verdict": "broken"'),
        "rehearsal/last",
        "failing",
        "the last one failed",
        "postpanic rehearse",
    ),
]


def test_a_machine_with_nothing_wrong_is_ready(tmp_path: Path) -> None:
    report = arm_machine(tmp_path).examine()
    assert report.select("warning", "failing", "unknown") == []
    assert report.is_ready
    assert report.verdict == "ready: a crash will be captured"
    assert report.armed_by == "postpanic"
    assert EXT4_UUID in report.find("targets", "file /var/crash").found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_told_with_what_mends_it(tmp_path: Path, fault: Fault) -> None:
    tree = arm_machine(tmp_path, LoadedHost(**(fault.loaded or {})))  # type: ignore[arg-type]
    fault.spoil(tree)
    report = tree.examine()
    group, _, name = fault.where.partition("/")
    check = report.find(group, name)
    assert (check.state, check.found) == (fault.state, check.found)
    assert fault.found in check.found
    assert fault.mend in check.mend
    if fault.mend:
        assert check.evidence
        assert all(fact.source for fact in check.evidence)
    if fault.state == "failing":
        assert not report.is_ready
        assert report.verdict.startswith("not ready: ")
    elif not report.select("failing"):
        assert report.is_ready


def test_the_core_header_is_found_where_it_should_be(tmp_path: Path) -> None:
    assert f"at {HEADER_AT:#x}" in arm_machine(tmp_path).check("capture kernel", "core header").found
