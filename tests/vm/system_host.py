"""
A whole host that is booted by its own boot loader, time and again.

What it is to do stands on a second disk, boot by boot; its own service runs it
when all else is up. Each boot ends as the caller says (it reboots, powers off,
panics), and as a reset ends QEMU, each boot is a machine of its own on the same
disk: what survives does so on the disk.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from postpanic.errors import FactAbsentError
from postpanic.process import find_program, run
from postpanic.rehearse.machine import Disk, Machine, MachineConfig, scale_timeout
from tests.vm.host_disk import make_disk
from tests.vm.hosts import CommandResult, read_result
from tests.vm.lab import Lab, hold_machine
from tests.vm.system_debian import read_tree

__all__ = ["CRASH", "POWER_OFF", "REBOOT", "Boot", "BootSource", "SystemHost", "read_boot_source", "read_entry_source"]

SYSTEM_DIR = Path(__file__).parent / "system"
STEPS_ROOM_BYTES = 64 << 20
REBOOT = "if [ -d /run/systemd/system ]; then systemctl reboot; else openrc-shutdown -r now; fi"
POWER_OFF = "if [ -d /run/systemd/system ]; then systemctl poweroff; else openrc-shutdown -p now; fi"
CRASH = "echo c >/proc/sysrq-trigger"
FAILURE = r"end Kernel panic - not syncing.*|^steps: failed.*|grub rescue>|error: .*no such (?:device|partition).*"
BOOT_TIMEOUT_S = 90.0
END_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Boot:
    """
    What a boot is for.

    Attributes
    ----------
    commands : tuple of str
        Run one after the other, each by a shell of its own.
    end : str
        A shell script that ends it.
    """

    commands: tuple[str, ...]
    end: str = REBOOT


@dataclass(frozen=True)
class BootSource:
    """
    Kernel, initramfs and command line that are given to QEMU where the boot loader's part is played by the test.

    Attributes
    ----------
    kernel, initrd : Path
    command_line : str
    """

    kernel: Path
    initrd: Path
    command_line: str


@dataclass
class SystemHost:
    """
    A host, and how often it has been booted.

    Attributes
    ----------
    disk : Path
        Its own copy.
    directory : Path
        Gets the consoles and the second disk.
    boots : sequence of Boot
        In order.
    files : mapping
        What is in ``/opt/steps``: content, or a file or directory of ours.
    """

    lab: Lab
    disk: Path
    directory: Path
    boots: Sequence[Boot]
    files: Mapping[str, str | Path] = field(default_factory=dict)
    command_timeout_s: float = 60.0
    memory_mib: int = 1024
    number: int = 0

    @classmethod
    def copy(
        cls, lab: Lab, base: Path, directory: Path, boots: Sequence[Boot], files: Mapping[str, str | Path]
    ) -> SystemHost:
        """Make a host of a disk that stays as it is."""
        disk = directory / "root.img"
        run([find_program("cp"), "--sparse=always", "--reflink=auto", base, disk])
        host = cls(lab, disk, directory, boots, files)
        host._write_steps()
        return host

    @property
    def steps(self) -> Path:
        """The second disk."""
        return self.directory / "steps.img"

    def read_console(self, number: int) -> str:
        """Return what a boot has printed."""
        return (self.directory / f"boot-{number}" / "console.log").read_text(errors="replace").replace("\r\n", "\n")

    def boot(self, source: BootSource | None = None) -> list[CommandResult]:
        """
        Boot it once more, from the power button to the reset, and return what the commands did.

        Parameters
        ----------
        source : BootSource, optional
            Instead of what the firmware finds on the disk.

        Raises
        ------
        MachineError
            If it does not come to its end.
        """
        number, boot = self.number, self.boots[self.number]
        directory = self.directory / f"boot-{number}"
        directory.mkdir()
        config = MachineConfig(
            kernel=source.kernel if source else None,
            initrd=source.initrd if source else None,
            command_line=source.command_line if source else "",
            disks=(Disk(self.disk), Disk(self.steps)),
            memory_mib=self.memory_mib,
        )
        with (
            hold_machine(self.lab.cache_dir),
            Machine(config, directory, watch=self.lab.watch) as machine,
        ):
            machine.wait_for(rf"^.*steps: boot {number} of ", timeout_s=BOOT_TIMEOUT_S, failure=FAILURE)
            for step in range(len(boot.commands)):
                pattern = rf"steps: boot {number} step {step:03} ended"
                machine.wait_for(pattern, timeout_s=self.command_timeout_s + 5, failure=FAILURE)
            machine.wait_for(rf"steps: boot {number} done", timeout_s=END_TIMEOUT_S, failure=FAILURE)
            machine.wait_exit(timeout_s=END_TIMEOUT_S)
        self.number += 1
        return self._read_results(number)

    def _write_steps(self) -> None:
        with tempfile.TemporaryDirectory(prefix="steps-", dir=self.directory) as name:
            content = Path(name) / "content"
            for number, boot in enumerate(self.boots):
                place = content / "boots" / str(number)
                place.mkdir(parents=True)
                for step, command in enumerate(boot.commands):
                    (place / f"{step:03}").write_text(command + "\n")
                (place / "end").write_text(boot.end + "\n")
            (content / "next").write_text("0\n")
            (content / "timeout").write_text(f"{scale_timeout(self.command_timeout_s):.0f}\n")
            shutil.copy(SYSTEM_DIR / "steps.sh", content)
            for path, what in self.files.items():
                place = content / path
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(what, str):
                    place.write_text(what)
                else:
                    (shutil.copytree if what.is_dir() else shutil.copy2)(what, place)
            used_bytes = sum(path.stat().st_size for path in content.rglob("*") if path.is_file())
            make_disk(self.steps, used_bytes + STEPS_ROOM_BYTES, content)

    def _read_results(self, number: int) -> list[CommandResult]:
        with tempfile.TemporaryDirectory(prefix="results-", dir=self.directory) as name:
            run([find_program("debugfs"), "-R", f"rdump /results/{number} {name}", self.steps])
            place = Path(name) / str(number)
            if not place.is_dir():
                raise FactAbsentError(f"boot {number} has left no results", where=str(self.steps))
            commands = self.boots[number].commands
            return [read_result(place / f"{step:03}", command) for step, command in enumerate(commands)]


def read_boot_source(disk: Path, directory: Path, *words: str) -> BootSource:
    """Read what GRUB's configuration on a disk boots first, with more words on the command line."""
    config = read_tree(disk, "/boot/grub/grub.cfg", directory / "boot-source").read_text()
    entry = re.search(r"^\s*linux\s+(\S+)\s+(.*)$", config, re.MULTILINE)
    initrd = re.search(r"^\s*initrd\s+(\S+)", config, re.MULTILINE)
    if entry is None or initrd is None:
        raise FactAbsentError("no entry with a kernel and an initramfs", where="/boot/grub/grub.cfg")
    kernel, image = (read_tree(disk, name, directory / "boot-source") for name in (entry[1], initrd[1]))
    return BootSource(kernel, image, " ".join((entry[2], *words)))


def read_entry_source(disk: Path, directory: Path) -> BootSource:
    """
    Read the newest entry of the Boot Loader Specification on a disk, as GRUB's ``blscfg`` would boot it.

    Raises
    ------
    FactAbsentError
        If there is none, or it has no kernel.
    """
    place = directory / "entries"
    shutil.rmtree(place, ignore_errors=True)
    entries = sorted(read_tree(disk, "/boot/loader/entries", place).glob("*.conf"))
    if not entries:
        raise FactAbsentError("no entry", where="/boot/loader/entries")
    fields = dict(line.split(None, 1) for line in entries[-1].read_text().splitlines() if len(line.split(None, 1)) == 2)
    if not {"linux", "initrd", "options"} <= set(fields):
        raise FactAbsentError("no kernel, initramfs or options in it", where=entries[-1].name)
    kernel, image = (read_tree(disk, fields[key].strip(), place) for key in ("linux", "initrd"))
    return BootSource(kernel, image, f"BOOT_IMAGE=(hd0,msdos1){fields['linux'].strip()} {fields['options'].strip()}")
