"""Whole machines: not armed, seen by a user, armed by another tool, copied, and full of nonsense."""

from __future__ import annotations

import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from postpanic.capture.host import Host
from postpanic.capture.resolve import FoundNetwork
from postpanic.capture.status.examine import GROUPS, examine
from postpanic.capture.status.model import STATES
from postpanic.capture.status.subject import Room, Subject
from postpanic.saver.plan import NetworkPlan
from tests.unit.capture.kexec.loaded_host import LoadedHost
from tests.unit.capture.status.machines import RELEASE, WANTS, StatusTree, arm_debian, arm_machine, make_machine

FEDORA_CONFIG = """\
# Where to put it:
nfs vault.example.org:/export/crash   # the old server is gone
path /kdump
core_collector makedumpfile -l --message-level 7 -d 17
failure_action reboot
"""
SUSE_CONFIG = """\
## Path: System/Kernel/Kdump
KDUMP_SAVEDIR="ssh://kdump:hidden@vault.example.org/dumps"
KDUMP_DUMPLEVEL="31"
KDUMP_SMTP_PASSWORD="secret"
KEXEC_OPTIONS=""
"""


def test_an_unarmed_machine_is_told_what_to_do(tmp_path: Path) -> None:
    tree = make_machine(tmp_path, LoadedHost())
    tree.put("sys/kernel/kexec_crash_loaded", 0)
    report = tree.examine()
    assert not report.is_ready
    assert report.armed_by == ""
    assert [(check.group, check.name) for check in report.select("failing")] == [("capture kernel", "loaded")]
    assert report.find("capture kernel", "loaded").mend == "postpanic arm"
    assert report.find("image", "image").state == "not applicable"
    assert report.verdict == "not ready: no capture kernel (capture kernel, loaded)"


def test_what_something_else_has_loaded_is_verified_too(tmp_path: Path) -> None:
    report = make_machine(tmp_path, LoadedHost()).examine()
    assert report.is_ready
    assert report.find("capture kernel", "loaded by").found == "neither postpanic nor a tool that is known"
    assert report.find("capture kernel", "memory").state == "ok"


def test_a_user_is_told_what_could_not_be_seen() -> None:
    # Directories of pytest are closed to others.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        see_as_user(arm_machine(Path(name)))


def see_as_user(tree: StatusTree) -> None:
    tree.put("proc/iomem", "00000000-00000000 : System RAM\n  00000000-00000000 : Crash kernel")
    for name in ("var/lib/postpanic", "proc/kcore", "dev/vda1"):
        (tree.root / name).chmod(0)
    tree.as_user()
    with being_nobody():
        report = tree.examine()
    (tree.root / "var/lib/postpanic").chmod(0o700)
    assert report.is_ready
    assert report.verdict.startswith("ready as far as can be seen without root (")
    unseen = {(check.group, check.name) for check in report.select("unknown") if check.needs_root}
    assert {
        ("reservation", "place"),
        ("capture kernel", "loaded by"),
        ("image", "image"),
        ("targets", "file /var/crash"),
        ("rehearsal", "last"),
    } <= unseen
    assert report.select("failing") == []


@contextmanager
def being_nobody() -> Iterator[None]:
    """Be somebody who may read only what everybody may; those who are not root are that already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_machine_of_kdump_tools(tmp_path: Path) -> None:
    tree = arm_debian(tmp_path)
    report = tree.examine()
    assert report.is_ready
    assert report.armed_by == "kdump-tools"
    assert report.find("capture kernel", "loaded by").found == "kdump-tools, by its kernel and image"
    assert f"-> /boot/vmlinuz-{RELEASE}" in report.find("image", "kernel").found
    assert f"-> /var/lib/kdump/initrd.img-{RELEASE}" in report.find("image", "image").found
    assert report.find("targets", "file /var/crash").found == "/var/crash of the ext4 on /dev/vda1"
    settings = report.find("image", "configuration").evidence
    assert next(fact.says for fact in settings if fact.source == "kexec_cmd").startswith("kexec command /sbin/kexec -p")
    assert report.find("boot", "service").state == "ok"
    assert [check.name for check in report.select("failing", "unknown")] == []


@pytest.mark.parametrize(
    ("spoil", "where", "state", "found", "mend"),
    [
        (
            lambda tree: tree.put("sys/kernel/kexec_crash_loaded", 0),
            "capture kernel/loaded",
            "failing",
            "no capture kernel",
            "kdump-config load",
        ),
        (
            lambda tree: tree.put(f"var/lib/kdump/initrd.img-{RELEASE}", b"070701" + b"newer" * 1000),
            "capture kernel/initramfs",
            "warning",
            "bytes are loaded",
            "kdump-config unload; kdump-config load",
        ),
        (
            lambda tree: tree.drop(f"var/lib/kdump/initrd.img-{RELEASE}"),
            "image/image",
            "warning",
            "/var/lib/kdump/initrd.img is not there",
            f"/etc/kernel/postinst.d/kdump-tools {RELEASE}",
        ),
        (
            lambda tree: os.utime(tree.root / f"var/lib/kdump/initrd.img-{RELEASE}", (1, 1)),
            "image/fresh",
            "warning",
            "is newer than the image",
            "kdump-config load",
        ),
        (
            lambda tree: tree.machine.mount("0:30 tmpfs", "/var/crash", "tmpfs"),
            "targets/file /var/crash",
            "failing",
            "nothing of it survives",
            "/etc/default/kdump-tools",
        ),
        (
            lambda tree: setattr(tree, "room", Room(1 << 20, 1 << 30)),
            "targets/room file /var/crash",
            "failing",
            "does not fit",
            "make room",
        ),
        (
            lambda tree: tree.drop(f"{WANTS}/kdump-tools.service"),
            "boot/service",
            "warning",
            "nothing arms",
            "systemctl enable kdump-tools.service",
        ),
    ],
)
def test_faults_of_kdump_tools(
    tmp_path: Path, spoil: Callable[[StatusTree], object], where: str, state: str, found: str, mend: str
) -> None:
    tree = arm_debian(tmp_path)
    spoil(tree)
    check = tree.check(*where.split("/", 1))
    assert check.state == state
    assert found in check.found
    assert mend in check.mend


def test_what_kdump_tools_has_of_another_kernel(tmp_path: Path) -> None:
    tree = arm_debian(tmp_path)
    tree.put("boot/vmlinuz-5.10.0", b"old")
    (tmp_path / "var/lib/kdump/vmlinuz").unlink()
    (tmp_path / "var/lib/kdump/vmlinuz").symlink_to("/boot/vmlinuz-5.10.0")
    check = tree.check("image", "fresh")
    assert check.state == "warning"
    assert f"it is of kernel 5.10.0, {RELEASE} runs" in check.found


def test_debian_servers_are_asked(tmp_path: Path) -> None:
    tree = arm_debian(tmp_path)
    tree.put("etc/default/kdump-tools", 'USE_KDUMP=1\nSSH="kdump@vault.example.org"\nNFS="store:/crash"\nFTP=f.example')
    tree.answers = {"vault.example.org": "", "store": "no answer within 3 s", "f.example": "connection refused"}
    report = tree.examine()
    assert report.find("targets", "reach ssh kdump@vault.example.org:/var/crash").state == "ok"
    nfs = report.find("targets", "reach nfs store:/crash")
    assert (nfs.state, nfs.found) == ("warning", "store: no answer within 3 s"), "one that answers is enough"
    assert report.find("targets", "reach ftp f.example:/").state == "warning"
    assert report.is_ready
    tree.answers["vault.example.org"] = "connection refused"
    assert tree.check("targets", "reach nfs store:/crash").state == "failing"


def test_a_machine_of_fedora(tmp_path: Path) -> None:
    loaded = LoadedHost()
    tree = make_machine(tmp_path, loaded)
    tree.put("etc/kdump.conf", FEDORA_CONFIG)
    tree.put("etc/sysconfig/kdump", 'KDUMP_KERNELVER=""\nKDUMP_IMG="vmlinuz"\nKEXEC_ARGS="-s"\n')
    tree.put(f"boot/initramfs-{RELEASE}kdump.img", loaded.initrd)
    (tmp_path / WANTS).mkdir(parents=True)
    (tmp_path / WANTS / "kdump.service").symlink_to("/usr/lib/systemd/system/kdump.service")
    tree.answers = {"vault.example.org": ""}
    report = tree.examine()
    assert report.armed_by == "kdump-utils"
    assert report.is_ready
    assert report.find("capture kernel", "loaded by").found == "kdump-utils, by its kernel and image"
    assert report.find("targets", "nfs vault.example.org:/export/crash").state == "ok"
    assert report.find("targets", "dump size").found.startswith("at level 17 about ")
    assert [f.says for f in report.find("image", "configuration").evidence][:2] == [
        "nfs vault.example.org:/export/crash",
        "path /kdump",
    ]
    tree.put("sys/kernel/kexec_crash_loaded", 0)
    assert tree.check("capture kernel", "loaded").mend == "kdumpctl restart"


def test_a_machine_without_systemd_is_known_by_what_is_loaded(tmp_path: Path) -> None:
    loaded = LoadedHost()
    tree = make_machine(tmp_path, loaded)
    tree.put("etc/kdump.conf", "path /var/crash\n")
    tree.put(f"boot/initramfs-{RELEASE}kdump.img", loaded.initrd)
    assert tree.examine().armed_by == "kdump-utils"


def test_a_machine_of_opensuse_keeps_its_passwords(tmp_path: Path) -> None:
    loaded = LoadedHost()
    tree = make_machine(tmp_path, loaded)
    tree.put("etc/sysconfig/kdump", SUSE_CONFIG)
    tree.put(f"boot/initrd-{RELEASE}-kdump", loaded.initrd)
    tree.put("var/lib/kdump/initrd", loaded.initrd)
    (tmp_path / "var/lib/kdump/kernel").symlink_to(f"/boot/vmlinuz-{RELEASE}")
    (tmp_path / WANTS).mkdir(parents=True)
    (tmp_path / WANTS / "kdump.service").symlink_to("/usr/lib/systemd/system/kdump.service")
    tree.answers = {"vault.example.org": ""}
    report = tree.examine()
    assert report.armed_by == "kdump (openSUSE)"
    assert report.is_ready
    assert report.find("capture kernel", "loaded by").found.endswith("by its kernel and image")
    assert report.find("targets", "ssh kdump@vault.example.org:/dumps").state == "ok"
    assert "hidden" not in repr(report)
    assert "secret" not in repr(report)


def test_who_follows_memory_and_processors(tmp_path: Path) -> None:
    tree = arm_machine(tmp_path)
    assert "must be loaded again (postpanic arm)" in tree.check("capture kernel", "hotplug").found
    tree.put("lib/udev/rules.d/50-kdump-tools.rules", "")
    assert "must be loaded again" in tree.check("capture kernel", "hotplug").found, "it loads what is not ours"
    tree.put("lib/udev/rules.d/90-postpanic.rules", "")
    assert tree.check("capture kernel", "hotplug").evidence[-1].source == "/lib/udev/rules.d/90-postpanic.rules"
    for kind in ("cpu", "memory"):
        tree.put(f"sys/devices/system/{kind}/crash_hotplug", 1)
    assert tree.check("capture kernel", "hotplug").found.startswith("the kernel follows")


def test_the_firmware_of_power_machines_keeps_the_memory(tmp_path: Path) -> None:
    tree = arm_machine(tmp_path)
    tree.put("sys/kernel/fadump/enabled", 1)
    tree.put("sys/kernel/fadump/registered", 0)
    check = tree.check("capture kernel", "fadump")
    assert check.state == "failing"
    assert check.mend == "echo 1 >/sys/kernel/fadump/registered"
    tree.put("sys/kernel/fadump/registered", 1)
    tree.put("sys/kernel/fadump/mem_reserved", 512 << 20)
    tree.put("sys/kernel/kexec_crash_loaded", 0)
    tree.put("sys/kernel/kexec_crash_size", 0)
    tree.edit("proc/cmdline", "crashkernel=256M", "fadump=on")
    report = tree.examine()
    assert report.find("capture kernel", "fadump").state == "ok"
    assert report.find("reservation", "size").found == "512.0 MiB for the firmware's dump"
    assert report.select("failing") == []
    assert report.is_ready


def test_a_server_needs_a_network_and_an_answer(tmp_path: Path) -> None:
    tree = arm_machine(tmp_path)
    tree.put("etc/postpanic.toml", '[[target]]\nkind = "nfs"\nserver = "192.0.2.9"\nexport = "/crash"\n')
    tree.answers = {"192.0.2.9": "no route to host"}

    def find_network(*_: object) -> FoundNetwork:
        return FoundNetwork(NetworkPlan(), evidence=("eth0",))

    subject = Subject.find(tree.host, find_network=find_network, connect=lambda server, _: tree.answers[server])
    report = examine(subject)
    assert report.find("targets", "nfs 192.0.2.9:/crash").state == "ok"
    reach = report.find("targets", "reach nfs 192.0.2.9:/crash")
    assert (reach.state, reach.found) == ("failing", "192.0.2.9: no route to host")
    assert reach.evidence[0].source == "connect 192.0.2.9:2049"
    assert "ip route get 192.0.2.9" in reach.mend
    assert not report.is_ready


def test_each_target_has_its_own_level_and_name(tmp_path: Path) -> None:
    tree = arm_machine(tmp_path)
    one = '[[target]]\nkind = "file"\npath = "/var/crash"\n'
    tree.put("etc/postpanic.toml", f"{one}level = 0\n{one}")
    tree.room = Room(80 << 20, 40 << 30)
    report = tree.examine()
    assert report.find("targets", "room file /var/crash").state == "warning", "all of memory hardly fits"
    assert report.find("targets", "room file /var/crash (2)").state == "ok"
    assert report.find("targets", "file /var/crash (2)").state == "ok"


def test_keys_for_the_capture_kernel_open_an_encrypted_disk(tmp_path: Path) -> None:
    tree = arm_machine(tmp_path)
    tree.machine.add_block("virtual/block/dm-0", dm__uuid="CRYPT-LUKS2-1234-root", dm__name="root")
    tree.machine.mount("dm-0", "/", "ext4")
    tree.put("sys/kernel/config/crash_dm_crypt_keys/count", 2)
    check = tree.check("encryption", "targets")
    assert (check.state, check.found) == ("ok", "2 keys are kept for the capture kernel")


def test_options_show_by_what_they_make_where_there_is_no_configuration(tmp_path: Path) -> None:
    tree = arm_machine(tmp_path)
    tree.drop(f"boot/config-{RELEASE}")
    report = tree.examine()
    assert report.find("kernel", "CONFIG_CRASH_DUMP").state == "ok"
    assert report.find("kernel", "CONFIG_DEBUG_INFO_BTF").evidence[1].source == "/sys/kernel/btf"
    assert report.find("kernel", "CONFIG_PROC_VMCORE (capture)").state == "unknown"
    assert report.is_ready
    tree.drop("sys/kernel/kexec_crash_size")
    assert tree.check("kernel", "CONFIG_CRASH_DUMP").state == "failing"


def test_the_options_are_those_of_the_kernel_that_saves(tmp_path: Path) -> None:
    tree = arm_machine(tmp_path)
    tree.put("etc/postpanic.toml", '[capture]\nkernel = "5.10.0"\n')
    tree.put("boot/config-5.10.0", "CONFIG_CRASH_DUMP=y\n# CONFIG_PROC_VMCORE is not set\n")
    check = tree.check("kernel", "CONFIG_PROC_VMCORE (capture)")
    assert check.state == "failing"
    assert check.found.endswith("not set of 5.10.0")
    assert check.evidence[0].source == "/boot/config-5.10.0"


def test_a_copy_without_the_kernels_files_is_not_known_to_be_ready(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text("copied\n")
    report = examine(Subject.find(Host(tmp_path, "x86_64", "6.1.0")))
    assert report.node == "copied"
    assert not report.is_ready
    assert report.select("failing") == []
    assert report.verdict.startswith("not known to be ready")
    # Of a machine that is not running nothing is known but what its own files say.
    groups = {check.group for check in report.checks if check.state == "not applicable"}
    assert groups <= {"image"}


def test_nothing_is_changed(tmp_path: Path) -> None:
    tree = arm_machine(tmp_path)
    before = take_snapshot(tmp_path)
    tree.examine()
    assert take_snapshot(tmp_path) == before


def take_snapshot(root: Path) -> dict[str, tuple[int, int, int, int]]:
    found = {}
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        found[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [arm_machine, arm_debian])
def test_nonsense_in_every_file_is_survived(tmp_path: Path, make: Callable[[Path], StatusTree], seed: int) -> None:
    """Spoil a third of all small files; whatever they hold, there is an answer, and it is sound."""
    tree = make(tmp_path)
    choose = random.Random(seed)
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 16 and choose.random() < 0.34:
            path.write_bytes(spoil(choose, path.read_bytes()))
    report = tree.examine()
    assert {check.group for check in report.checks} == set(GROUPS)
    assert all(check.state in STATES and check.found for check in report.checks)
    assert len({(check.group, check.name) for check in report.checks}) == len(report.checks)


def spoil(choose: random.Random, content: bytes) -> bytes:
    match choose.randrange(4):
        case 0:
            return b""
        case 1:
            return content[: choose.randrange(len(content) + 1)]
        case 2:
            return choose.randbytes(200)
        case _:
            return b"9" * 400 + b"\n" + content


def test_a_long_file_takes_no_longer_than_it_is_long(tmp_path: Path) -> None:
    """A megabyte of what looks like the beginning of something: with a quadratic pattern this would take hours."""
    tree = arm_debian(tmp_path)
    tree.answers = defaultdict(str)
    megabyte = 1 << 20
    for name, piece in (
        ("proc/consoles", "a b (\n"),
        ("proc/meminfo", "MemTotal: "),
        ("etc/systemd/system.conf", "\n \n"),
        ("etc/default/kdump-tools", 'A="\\"\\'),
        ("etc/kdump.conf", "nfs a:/ "),
        ("etc/sysconfig/kdump", "KDUMP_SAVEDIR=://a:"),
        ("proc/cmdline", 'console="" '),
    ):
        tree.put(name, piece * (megabyte // len(piece)))
    assert tree.examine().select("unknown")
