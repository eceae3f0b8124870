"""
From a fresh host to a dump on its disk: installed, reserved, armed by its services, rebooted, crashed, collected.

The host has a disk of its own, and GRUB in the first sectors of that disk boots
it (all but the one like Fedora's): what postpanic has written into GRUB's files is read by GRUB.
Debian is Debian; how real the others are stands in :mod:`tests.vm.system_variants`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from postpanic.cli.app import main
from postpanic.errors import FactAbsentError, ProcessError
from postpanic.rehearse.machine import MachineError
from tests.vm.hosts import CommandResult
from tests.vm.lab import Lab
from tests.vm.system_debian import fetch_system, read_tree
from tests.vm.system_host import CRASH, POWER_OFF, REBOOT, Boot, SystemHost, read_boot_source, read_entry_source
from tests.vm.system_packages import copy_source
from tests.vm.system_variants import FEDORA, GENTOO, SUSE, fetch_variant

RESERVED = "192M"
HOOKS = "-x zz-postpanic -x 95-postpanic.install"
"""The services' own, for kernel packages: there until the services are disabled."""
TELL = "#!/bin/sh\ncat >>/root/told; echo >>/root/told\n"
TARGET_LAUNCHER = '#!/bin/sh\nPYTHONPATH=/opt/postpanic/lib exec /usr/bin/python3 -m postpanic "$@"\n'
VENV_LAUNCHER = "#!/opt/venv/bin/python3\nimport sys\nfrom postpanic.__main__ import main\nsys.exit(main())\n"
FINISH_INSTALL = (
    "install -m 755 /opt/steps/launcher /usr/local/bin/postpanic && install -m 755 /opt/steps/tell /usr/local/bin/tell"
)
INSTALL_TARGET = "cp -r /opt/steps/postpanic /opt/postpanic/lib/ && " + FINISH_INSTALL
"""As ``pip install --target`` leaves it."""
INSTALL_VENV = (
    "python3 -m venv --without-pip /opt/venv && cd /opt/venv/lib/python3*/site-packages && "
    "mv /opt/postpanic/lib/* . && cp -r /opt/steps/postpanic . && " + FINISH_INSTALL
)
"""As pip leaves it in a virtual environment."""
SNAPSHOT = (
    "ls -lARc --time-style=full-iso /etc /boot /var/lib/postpanic /var/crash /root /usr/local /opt/[!s]* 2>&1; "
    "cut -d ' ' -f 1 /proc/modules; cat /proc/mounts /proc/swaps; ls /sys/block; "
    "cd /proc/sys; grep -s . kernel/panic* kernel/oops* kernel/kexec* kernel/*lock* kernel/hung* vm/panic*"
)
"""What must not be changed by looking at it; below ``/opt/steps`` the command's own output grows."""
LOOK = f"({SNAPSHOT}) >/run/before; postpanic status --json; s=$?; ({SNAPSHOT}) | diff /run/before - >&2 && exit $s"
SYSTEMD_SETTLE = (
    "while systemctl show -P ActiveState postpanic postpanic-tell | grep -q activating || "
    "systemctl list-jobs --no-legend postpanic.service postpanic-tell.service | grep -q .; do sleep 1; done; "
)
"""The machine is up before it is armed: no boot waits for an image that has to be built, nor for a search of causes."""
SYSTEMD_SHOW = "systemctl show -p ActiveState,Result,ExecMainStatus {0}; journalctl -b -o cat --no-pager -u {0}"


@dataclass(frozen=True)
class Journey:
    """
    What differs from host to host.

    Attributes
    ----------
    install : str
        Puts postpanic there.
    place : str
        The directory that it is in then.
    launcher : str
        Its program.
    loader : str
        Boot loader that is to be found.
    kept : tuple of str
        Files of the boot loader that undoing puts back.
    changed : str
        The one that has the words afterwards.
    service, collected : str
        Commands that show how the services fared.
    is_foreign : bool
        Whether another kdump is configured on this host; it is imported.
    init : str
        What runs services.
    settle : str
        Waits until the machine is armed, or failed to be.
    reboots_armed : bool
        Whether it is rebooted once more before it crashes.
    """

    install: str = INSTALL_TARGET
    place: str = "/opt/postpanic/lib"
    launcher: str = TARGET_LAUNCHER
    loader: str = "grub"
    kept: tuple[str, ...] = ("/etc/default", "/boot/grub")
    changed: str = "/etc/default/grub.d/zz-postpanic.cfg"
    service: str = SYSTEMD_SHOW.format("postpanic")
    collected: str = SYSTEMD_SHOW.format("postpanic-collect")
    is_foreign: bool = False
    init: str = "systemd"
    settle: str = SYSTEMD_SETTLE
    reboots_armed: bool = False

    @property
    def boots(self) -> tuple[Boot, ...]:
        """What is done in each of its boots."""
        keep = " && ".join(f"mkdir -p /root/before{path} && cp -aT {path} /root/before{path}" for path in self.kept)
        compare = " && ".join(f"diff -r {HOOKS} /root/before{path} {path}" for path in self.kept)
        imported = "postpanic import -o /etc/postpanic.toml" if self.is_foreign else ":"
        first = Boot(
            (
                self.install,
                "postpanic status --json",
                keep,
                f"{imported} && postpanic crashkernel set {RESERVED} && cat {self.changed}",
                "postpanic service --enable --command /usr/local/bin/tell",
                f"postpanic crashkernel --json; cat {self.changed} >/root/set",
            )
        )
        armed = Boot(
            (
                "cat /proc/cmdline",
                self.settle + self.service,
                LOOK,
                "postpanic list",
                "stat -c %y /var/lib/postpanic/capture.img; cat /sys/kernel/kexec_crash_loaded",
            ),
            REBOOT if self.reboots_armed else CRASH,
        )
        again = Boot((self.settle + armed.commands[-1], "postpanic status"), CRASH)
        last = Boot(
            (
                self.collected,
                "postpanic list --json",
                "postpanic list",
                self.settle + "postpanic status",
                "cat /root/told",
                "postpanic collect --no-devices",
                f"cmp /root/set {self.changed} && postpanic crashkernel --undo && {compare}",
                "postpanic service --disable && find /etc -name '*postpanic*' ! -name postpanic.toml",
            ),
            POWER_OFF,
        )
        return (first, armed, again, last) if self.reboots_armed else (first, armed, last)


DEBIAN_JOURNEY = Journey(reboots_armed=True)
OPENRC_SHOW = "rc-status default; cat /var/log/rc.log 2>/dev/null; ls /var/crash"
OTHERS = {
    "fedora": Journey(
        install=INSTALL_VENV,
        place="/opt/venv/lib/python3.11/site-packages",
        launcher=VENV_LAUNCHER,
        loader="bls",
        kept=("/etc/default", "/etc/kernel", "/boot/loader", "/boot/grub2"),
        changed="/etc/kernel/cmdline",
        is_foreign=True,
    ),
    "suse": Journey(kept=("/etc/default", "/boot/grub2"), changed="/etc/default/grub", is_foreign=True),
    "gentoo": Journey(
        install=INSTALL_VENV,
        place="/opt/venv/lib/python3.11/site-packages",
        launcher=VENV_LAUNCHER,
        kept=("/etc/default", "/boot/grub"),
        changed="/etc/default/grub",
        service=OPENRC_SHOW,
        collected=OPENRC_SHOW,
        init="openrc",
        settle="",
    ),
}


def travel(lab: Lab, disk: Path, journey: Journey, directory: Path) -> tuple[SystemHost, list[list[CommandResult]]]:
    """Boot a host through all that is to happen to it."""
    files: dict[str, str | Path] = {
        "postpanic": copy_source(directory / "source", journey.place),
        "launcher": journey.launcher,
        "tell": TELL,
    }
    host = SystemHost.copy(lab, disk, directory, journey.boots, files)
    results = []
    with (directory / "journey.log").open("w") as log:
        for number in range(len(journey.boots)):
            source = read_entry_source(host.disk, directory) if journey.loader == "bls" else None
            results.append(host.boot(source))
            for one in results[-1]:
                log.write(f"--- boot {number}: {one.command[:100]} = {one.status}, {one.seconds:.1f} s\n")
                log.write(one.stdout + one.stderr)
            log.flush()
    return host, results


def judge(host: SystemHost, journey: Journey, results: list[list[CommandResult]], directory: Path) -> None:
    """Hold a journey against everything that is promised."""
    judge_fresh(journey, results[0])
    judge_armed(journey, results[1])
    crash = len(results) - 2
    console = host.read_console(crash)
    assert "self-test passed" in console
    assert "postpanic: rebooting\n" in console, "by itself"
    name = judge_collected(journey, results[-1])
    judge_dump(read_tree(host.disk, name, directory / "saved"))


def judge_fresh(journey: Journey, fresh: list[CommandResult]) -> None:
    installed, status, kept, set_up, service, shown = fresh
    assert (installed.status, installed.stderr) == (0, "")
    assert status.status == 4, status.stderr
    report = json.loads(status.stdout)
    failing = {(check["group"], check["name"]) for check in report["checks"] if check["state"] == "failing"}
    assert ("reservation", "command line") in failing
    assert ("capture kernel", "loaded") in failing
    assert kept.status == 0
    assert set_up.status == 0, set_up.stderr
    assert f"+++ {journey.changed}" in set_up.stdout, "the difference is shown"
    assert f"crashkernel={RESERVED}" in set_up.stdout
    assert (service.status, service.stderr) == (0, "")
    assert service.stdout.startswith(f"enabled, for {journey.init}\n")
    loaders = json.loads(shown.stdout)["boot_loaders"]
    assert loaders[0]["name"] == journey.loader
    assert all(
        entry["crashkernel"] == [RESERVED] for entry in loaders[0]["entries"] if "recovery" not in entry["title"]
    )


def judge_armed(journey: Journey, armed: list[CommandResult]) -> None:
    line, service, status, listed, image = armed
    assert line.stdout.split().count(f"crashkernel={RESERVED}") == 1, "GRUB has read it"
    assert "crashkernel=" not in line.stdout.replace(f"crashkernel={RESERVED}", "", 1)
    judge_service(journey, service)
    assert (status.status, status.stderr) == (0, ""), "ready, and nothing was changed by looking"
    report = json.loads(status.stdout)
    assert (report["ready"], report["armed_by"]) == (True, "postpanic")
    assert not [check for check in report["checks"] if check["state"] == "failing"]
    found = {(check["group"], check["name"]): check for check in report["checks"]}
    assert found["image", "fresh"]["state"] == "ok"
    assert found["boot", "crashkernel"]["state"] == "ok"
    assert found["boot", "service"]["state"] == "ok"
    assert (listed.status, listed.stdout) == (0, "")
    assert image.stdout.split()[-1] == "1"


def judge_service(journey: Journey, shown: CommandResult) -> None:
    if journey.init == "systemd":
        assert "Result=success\n" in shown.stdout, shown.stdout
        assert "ExecMainStatus=0\n" in shown.stdout, shown.stdout
    else:
        assert re.search(r"postpanic\s+\[\s*started", shown.stdout), shown.stdout


def judge_collected(journey: Journey, last: list[CommandResult]) -> str:
    """Return the directory of the dump on the host's disk."""
    service, listed, _, status, told, again, undone, disabled = last
    judge_service(journey, service)
    assert listed.status == 0
    (row,) = json.loads(listed.stdout)["tables"][0]["rows"]
    assert (row["state"], row["verdict"]) == ("complete", "good")
    assert row["what"].startswith("sysrq crash")
    assert status.status == 0, f"ready for the next one: {status.stdout}"
    assert json.loads(told.stdout)["directory"] == row["directory"], "told once"
    assert (again.status, again.stderr) == (0, "nothing new\n")
    assert (undone.status, undone.stderr) == (0, ""), "put back byte for byte"
    assert (disabled.status, disabled.stderr) == (0, "")
    assert disabled.stdout.startswith(f"disabled, for {journey.init}\n")
    assert all(line.startswith("  ") for line in disabled.stdout.splitlines()[1:]), "nothing of it is left"
    return str(row["directory"])


def judge_dump(saved: Path) -> None:
    """Open the dump where there is no debug information."""
    assert main(["verify", str(saved / "vmcore")]) == 0
    assert "sysrq: Trigger a crash" in (saved / "vmcore-dmesg.txt").read_text()


@pytest.fixture
def made() -> Callable[[Callable[[], Path]], Path]:
    """Return a function that makes a disk, or skips the test where it cannot be made."""

    def make(build: Callable[[], Path]) -> Path:
        try:
            return build()
        except MachineError:
            # A package that cannot be fetched is one thing, a guest that fails another.
            raise
        except (ProcessError, FactAbsentError) as exc:
            if os.environ.get("CI", "").lower() in {"1", "true"}:
                raise
            pytest.skip(f"the host is neither in the cache nor to be made: {exc}")

    return make


Made = Callable[[Callable[[], Path]], Path]


SHORT = (
    Boot(
        (
            INSTALL_TARGET,
            "postpanic service --enable --command /usr/local/bin/tell",
            f"systemctl start postpanic.service; {SYSTEMD_SHOW.format('postpanic')}",
            "postpanic status --json",
        ),
        CRASH,
    ),
    Boot(
        (SYSTEMD_SETTLE + SYSTEMD_SHOW.format("postpanic-collect"), "postpanic list --json", "cat /root/told"),
        POWER_OFF,
    ),
)


@pytest.mark.matrix
def test_a_debian_host_is_armed_by_its_service_and_collects(crash_lab: Lab, made: Made, tmp_path: Path) -> None:
    disk = made(lambda: fetch_system(crash_lab))
    files: dict[str, str | Path] = {
        "postpanic": copy_source(tmp_path / "source", Journey.place),
        "launcher": TARGET_LAUNCHER,
        "tell": TELL,
    }
    host = SystemHost.copy(crash_lab, disk, tmp_path, SHORT, files)
    # As GRUB would boot it, with the memory that was asked for.
    install, enabled, armed, status = host.boot(read_boot_source(disk, tmp_path, f"crashkernel={RESERVED}"))
    assert (install.status, enabled.status) == (0, 0), install.stderr + enabled.stderr
    judge_service(DEBIAN_JOURNEY, armed)
    assert status.status == 0, status.stdout
    service, listed, told = host.boot()
    judge_service(DEBIAN_JOURNEY, service)
    (row,) = json.loads(listed.stdout)["tables"][0]["rows"]
    assert (row["state"], row["verdict"]) == ("complete", "good")
    assert json.loads(told.stdout)["directory"] == row["directory"]
    judge_dump(read_tree(host.disk, row["directory"], tmp_path / "saved"))


@pytest.mark.matrix
def test_a_debian_host_from_its_first_boot_to_its_dump(
    crash_lab: Lab, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = made(lambda: fetch_system(crash_lab))
    host, results = travel(crash_lab, disk, DEBIAN_JOURNEY, tmp_path)
    judge(host, DEBIAN_JOURNEY, results, tmp_path)
    image, status = results[2]
    assert image.stdout == results[1][-1].stdout, "armed again with the image that was there"
    assert status.status == 0
    (saved,) = (tmp_path / "saved").iterdir()
    capsys.readouterr()
    assert main(["open", str(saved / "vmcore"), "-e", "sys; bt"]) == 0
    shown = capsys.readouterr().out
    assert "PANIC: " in shown
    assert "sysrq_handle_crash" in shown


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["fedora", "suse", "gentoo"])
def test_hosts_laid_out_otherwise(crash_lab: Lab, made: Made, tmp_path: Path, name: str) -> None:
    variant = {"fedora": FEDORA, "suse": SUSE, "gentoo": GENTOO}[name]
    disk = made(lambda: fetch_variant(crash_lab, variant))
    journey = OTHERS[name]
    host, results = travel(crash_lab, disk, journey, tmp_path)
    judge(host, journey, results, tmp_path)
