"""Machines with nothing wrong: armed by postpanic, or by a distribution's tool; every file can be changed after."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from postpanic.capture.arming.prepare import prepare
from postpanic.capture.arming.state import ArmedState, StatePaths, identify_file, write_state
from postpanic.capture.config import CONFIG_PATH, read_config
from postpanic.capture.host import Host
from postpanic.capture.rehearsals import REHEARSAL_NAME, Rehearsal, take_fingerprint, write_rehearsal
from postpanic.capture.status.examine import examine
from postpanic.capture.status.model import Check, StatusReport
from postpanic.capture.status.subject import Room, Subject
from postpanic.capture.status.targets import describe_targets
from tests.unit.capture.kexec.loaded_host import HEADER_AT, LoadedHost
from tests.unit.capture.resolve.machine import EXT4_UUID, MachineTree, make_virtio_machine

RELEASE = "6.1.0-test"
BOOT_ID = "3f0d7a55-9b0e-4c6e-8f3e-6f2f0a3a9a11"
ALIASES = """\
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias virtio:d00000002v* virtio_blk
"""
CONFIG = """\
CONFIG_KEXEC=y
CONFIG_KEXEC_FILE=y
CONFIG_KEXEC_SIG=y
CONFIG_CRASH_DUMP=y
CONFIG_PROC_VMCORE=y
CONFIG_PROC_KCORE=y
CONFIG_RELOCATABLE=y
CONFIG_RANDOMIZE_BASE=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_DEVTMPFS=y
CONFIG_DEBUG_INFO_BTF=y
CONFIG_KALLSYMS=y
CONFIG_KALLSYMS_ALL=y
CONFIG_UNWINDER_ORC=y
CONFIG_MAGIC_SYSRQ=y
CONFIG_PSTORE=y
CONFIG_RD_ZSTD=y
"""
SYSCTLS = {
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/panic_on_warn": 0,
    "kernel/softlockup_panic": 0,
    "kernel/hardlockup_panic": 0,
    "kernel/hung_task_panic": 0,
    "kernel/hung_task_timeout_secs": 120,
    "kernel/panic_on_rcu_stall": 0,
    "kernel/panic_on_io_nmi": 0,
    "kernel/panic_on_unrecovered_nmi": 0,
    "kernel/unknown_nmi_panic": 0,
    "kernel/panic_print": 0,
    "kernel/nmi_watchdog": 1,
    "kernel/watchdog_thresh": 10,
    "kernel/sysrq": 438,
    "vm/panic_on_oom": 0,
    "kernel/kexec_load_disabled": 0,
}
MEMINFO = """\
MemTotal:        1000000 kB
MemFree:          500000 kB
MemAvailable:     800000 kB
Buffers:           20000 kB
Cached:           200000 kB
SwapCached:            0 kB
AnonPages:         80000 kB
HugePages_Total:       0
Hugetlb:               0 kB
"""
GRUB_CFG = f"""\
### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian' --class debian {{
\tlinux /boot/vmlinuz-{RELEASE} root=UUID={EXT4_UUID} ro console=ttyS0 crashkernel=256M
\tinitrd /boot/initrd.img-{RELEASE}
}}
menuentry 'Debian (recovery mode)' --class debian {{
\tlinux /boot/vmlinuz-{RELEASE} root=UUID={EXT4_UUID} ro single console=ttyS0
\tinitrd /boot/initrd.img-{RELEASE}
}}
### END /etc/grub.d/10_linux ###
"""
WANTS = "etc/systemd/system/multi-user.target.wants"


@dataclass
class StatusTree:
    """
    A machine's files, and what is asked of the world outside of them.

    Attributes
    ----------
    room : Room
        What each file system says of itself.
    answers : dict
        Server: what keeps from connecting to it; empty: nothing.
    """

    root: Path
    host: Host
    machine: MachineTree
    room: Room = field(default_factory=lambda: Room(20 << 30, 40 << 30))
    answers: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, content: str | bytes | int) -> None:
        place = self.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())

    def drop(self, name: str) -> None:
        place = self.root / name
        if place.is_symlink() or place.is_file():
            place.unlink()
        else:
            for inner in place.iterdir():
                self.drop(str(inner.relative_to(self.root)))
            place.rmdir()

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new))

    def subject(self) -> Subject:
        return Subject.find(self.host, room=lambda _: self.room, connect=lambda server, _: self.answers[server])

    def examine(self) -> StatusReport:
        return examine(self.subject())

    def check(self, group: str, name: str) -> Check:
        return self.examine().find(group, name)

    def as_user(self) -> None:
        """From now on seen by somebody who is not root: what the kernel hides is hidden."""
        self.host = replace(self.host, is_root=False)


def make_machine(root: Path, loaded: LoadedHost) -> StatusTree:
    """Make a machine with a disk, and something loaded."""
    machine = make_virtio_machine(root)
    loaded.files |= {
        "sys/kernel/kexec_crash_size": "268435456\n",
        "proc/cmdline": f"BOOT_IMAGE=/boot/vmlinuz-{RELEASE} root=/dev/vda1 console=ttyS0 crashkernel=256M\n",
        "proc/meminfo": MEMINFO,
        "proc/consoles": "ttyS0                -W- (EC   a)    4:64\n",
        "proc/version": f"Linux version {RELEASE}\n",
        "proc/sys/kernel/printk": "7\t4\t1\t7\n",
        "proc/sys/kernel/random/boot_id": BOOT_ID + "\n",
        "proc/sys/kernel/osrelease": RELEASE + "\n",
        "proc/sys/kernel/arch": "x86_64\n",
        "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
        "sys/module/kernel/parameters/crash_kexec_post_notifiers": "N\n",
        "sys/module/pstore/parameters/backend": "(null)\n",
        f"boot/config-{RELEASE}": CONFIG,
        "boot/grub/grub.cfg": GRUB_CFG,
        "etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="crashkernel=256M"\n',
        f"lib/modules/{RELEASE}/modules.alias": ALIASES,
        f"lib/modules/{RELEASE}/modules.dep": "virtio_pci.ko:\nvirtio_blk.ko:\n",
        f"lib/modules/{RELEASE}/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
    } | {f"proc/sys/{name}": f"{value}\n" for name, value in SYSCTLS.items()}
    host = loaded.build(root)
    return StatusTree(root, host, machine)


def arm_machine(root: Path, loaded: LoadedHost | None = None, *, config: str = "") -> StatusTree:
    """Make a machine that postpanic has armed, that arms itself at each boot, and has been rehearsed."""
    loaded = loaded or LoadedHost()
    tree = make_machine(root, loaded)
    if config:
        tree.put("etc/postpanic.toml", config)
    host, paths = tree.host, StatePaths.of(tree.host)
    settings = read_config(host.path(str(CONFIG_PATH)))
    prepared = prepare(settings, host)
    loaded.line = f"elfcorehdr={HEADER_AT:#x} {prepared.command_line.text}"
    loaded.build(root)
    prepared = prepare(settings, host)
    tree.put("var/lib/postpanic/capture.img", loaded.initrd)
    kernel = prepared.kernel.image
    state = ArmedState(
        fingerprint=prepared.fingerprint,
        inputs={str(kernel): identify_file(kernel)},
        image=identify_file(paths.image),
        kernel=str(kernel),
        kernel_identity=identify_file(kernel),
        command_line=prepared.command_line.text,
        boot_id=BOOT_ID,
        method="file",
    )
    write_state(paths.state, state)
    (root / WANTS).mkdir(parents=True)
    (root / WANTS / "postpanic.service").symlink_to("/etc/systemd/system/postpanic.service")
    targets = describe_targets(tree.subject())
    now = take_fingerprint(kernel, paths.image, state.command_line, targets, 256 << 20)
    write_rehearsal(
        paths.directory / REHEARSAL_NAME,
        Rehearsal(when="2026-11-20T10:00:00Z", verdict="proven", kinds=("sysrq",), fingerprint=now, seconds=21.5),
    )
    return tree


KEXEC_COMMAND = (
    '/sbin/kexec -p --command-line="root=/dev/vda1 console=ttyS0 reset_devices '
    'systemd.unit=kdump-tools-dump.service nr_cpus=1 irqpoll usbcore.nousb" '
    "--initrd=/var/lib/kdump/initrd.img /var/lib/kdump/vmlinuz"
)
DEBIAN_CONFIG = """\
# kdump-tools configuration
USE_KDUMP=1
KDUMP_KERNEL=/var/lib/kdump/vmlinuz
KDUMP_INITRD=/var/lib/kdump/initrd.img
KDUMP_COREDIR="/var/crash"
#MAKEDUMP_ARGS="-c -d 31"
"""


def arm_debian(root: Path, loaded: LoadedHost | None = None) -> StatusTree:
    """Make a machine that kdump-tools has armed."""
    loaded = loaded or LoadedHost()
    tree = make_machine(root, loaded)
    tree.put("etc/default/kdump-tools", DEBIAN_CONFIG)
    tree.put(f"var/lib/kdump/initrd.img-{RELEASE}", loaded.initrd)
    (root / "var/lib/kdump/initrd.img").symlink_to(f"/var/lib/kdump/initrd.img-{RELEASE}")
    (root / "var/lib/kdump/vmlinuz").symlink_to(f"/boot/vmlinuz-{RELEASE}")
    tree.put("var/crash/kexec_cmd", KEXEC_COMMAND)
    (root / WANTS).mkdir(parents=True)
    (root / WANTS / "kdump-tools.service").symlink_to("/lib/systemd/system/kdump-tools.service")
    return tree
