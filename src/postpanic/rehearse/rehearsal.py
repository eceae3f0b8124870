"""
Rehearse: boot the subject in a machine of its own, crash it, let it save onto stand-ins, and look at what came out.

Nothing of the host is changed, and nothing is reached from inside: the disks
are new files, the network has nothing but the servers that stand in.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from postpanic.process import find_program, start
from postpanic.rehearse.accelerators import detect_accelerator
from postpanic.rehearse.boards import Board, find_board, read_device_tree
from postpanic.rehearse.debugger import strike
from postpanic.rehearse.disks import make_empty_disk
from postpanic.rehearse.faults import Fault, excuse, spell_drive
from postpanic.rehearse.initramfs import build_initramfs, needs_strike
from postpanic.rehearse.job import COLLECT_WORD, NMI, PREFIX, SHELL_WORD, STRIKE_LINE
from postpanic.rehearse.judge import judge_dumps
from postpanic.rehearse.links import Link, find_unused, judge_console
from postpanic.rehearse.machine import (
    Disk,
    Machine,
    MachineConfig,
    MachineError,
    build_console_command,
)
from postpanic.rehearse.servers.stand_ins import gather_objects
from postpanic.rehearse.staging import Request, Staging, faults_of, stage_targets
from postpanic.rehearse.stand_ins import spell_disks
from postpanic.rehearse.subject import Subject
from postpanic.rehearse.tarballs import unpack_files
from postpanic.saver.plan import FilePlan, RawPlan
from postpanic.saver.recovery import find_raw_dumps, recover_raw_dump

__all__ = ["Rehearsal", "RehearsalOptions", "RehearsalOutcome", "rehearse"]

_COLLECT_BYTES = 16 << 30
_BOOT_TIMEOUT_S = 60.0
_COLLECT_TIMEOUT_S = 120.0
_HOST_MIB = 896
"""Of the machine besides the reservation: its initramfs, and room to unpack a kernel."""
_PANIC_WORDS = "panic=10"
_ENDED = r"postpanic: (rebooting|powering off|halting)"
_ENDS = rf"{_ENDED}|^{PREFIX}failed: .*|end Kernel panic - not syncing.*"


@dataclass(frozen=True, kw_only=True)
class RehearsalOptions:
    """
    How it is rehearsed.

    Attributes
    ----------
    crash : str
        A key of :data:`postpanic.capture.crashing.KINDS`, or of :mod:`postpanic.rehearse.job`.
    memory_mib : int
        Of the machine; 0: what the reservation needs beside a host of its own.
    reserved_bytes : int
        Instead of the subject's reservation; 0: that.
    free_bytes : mapping
        Room of the targets, by number, instead of what the host has.
    disks : mapping
        Images to use as disks of the targets, by number; they stay as they are.
    unreachable : frozenset of int
        Targets whose servers do not answer.
    faults : tuple of Fault
        What goes wrong on purpose.
    command_line : str
        More words for the kernel that crashes; ``crashkernel=`` is none of them.
    dtb : Path, optional
        The machine's device tree.
    timeout_s : float
        From the panic to the end, on an idle machine.
    watch : callable, optional
        Gets each line of the console.
    """

    crash: str = "sysrq"
    memory_mib: int = 0
    reserved_bytes: int = 0
    free_bytes: Mapping[int, int] = field(default_factory=dict)
    disks: Mapping[int, Path] = field(default_factory=dict)
    unreachable: frozenset[int] = frozenset()
    faults: tuple[Fault, ...] = ()
    command_line: str = ""
    dtb: Path | None = None
    timeout_s: float = 120.0
    watch: Callable[[str], object] | None = None


@dataclass(frozen=True, kw_only=True)
class RehearsalOutcome:
    """
    What came of it.

    Attributes
    ----------
    links : tuple of Link
        In the order of the chain.
    unproven : tuple of str
        What the machine could not show.
    seconds : float
        From the panic to the dump on its target; 0: it did not get there.
    start_seconds : float
        Of that, until the saver started.
    peak_bytes : int
        Of the capture kernel's memory in use, an estimate; 0: not known.
    dump_bytes : int
        Of the largest dump.
    kept_bytes : int
        Of memory that is in it, before compression; 0: not known.
    memory_bytes : int
        Of the machine.
    reserved_bytes : int
        For the capture kernel.
    console : str
        All that was printed.
    """

    links: tuple[Link, ...]
    unproven: tuple[str, ...] = ()
    seconds: float = 0.0
    start_seconds: float = 0.0
    peak_bytes: int = 0
    dump_bytes: int = 0
    kept_bytes: int = 0
    memory_bytes: int = 0
    reserved_bytes: int = 0
    console: str = ""

    @property
    def broken(self) -> Link | None:
        """The first link that broke, or, of targets that were all left out, the first; None: it is proven."""
        broken = next((link for link in self.links if link.state == "broken"), None)
        targets = [link for link in self.links if link.name.startswith("target ")]
        if broken is None and not any(link.state == "held" for link in targets):
            return targets[0] if targets else None
        return broken


def rehearse(subject: Subject, directory: Path, options: RehearsalOptions) -> RehearsalOutcome:
    """
    Rehearse once.

    Parameters
    ----------
    directory : Path
        Empty; disks, console and what was saved are left there.

    Raises
    ------
    NotReadyError
        If the machine cannot be made: a program or room is missing.
    MachineError
        If QEMU itself fails.
    """
    return Rehearsal.build(subject, directory, options).run()


class _Clock:
    """Takes the time between the panic and the dump."""

    def __init__(self, watch: Callable[[str], object] | None) -> None:
        self._watch = watch
        self._panic_s = 0.0
        self.start_seconds = 0.0
        self.seconds = 0.0

    def see(self, line: str) -> None:
        """Look at a line of the console, as it comes."""
        if self._watch is not None:
            self._watch(line)
        if line.startswith(f"{PREFIX}crash "):
            self._panic_s = time.monotonic()
        elif self._panic_s and "postpanic: saver started" in line:
            self.start_seconds = time.monotonic() - self._panic_s
        elif self._panic_s and re.search(r"postpanic: .*: saved, level ", line):
            self.seconds = time.monotonic() - self._panic_s


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """
    The machine's parts, on disk.

    Attributes
    ----------
    directory : Path
        Of disks, consoles and what was saved.
    """

    directory: Path
    subject: Subject
    options: RehearsalOptions
    board: Board
    staging: Staging
    request: Request
    config: MachineConfig
    memory_mib: int
    reserved_bytes: int

    @classmethod
    def build(cls, subject: Subject, directory: Path, options: RehearsalOptions) -> Rehearsal:
        """
        Make disks, servers and the machine's image.

        Raises
        ------
        NotReadyError
            If one of them cannot be made.
        """
        board = find_board(subject.host.machine, options.dtb)
        board.check_kernel(subject.kernel)
        reserved = options.reserved_bytes or subject.reserved_bytes
        memory_mib = options.memory_mib or _HOST_MIB + (reserved >> 20)
        request = Request(
            disks=options.disks,
            free_bytes=options.free_bytes,
            unreachable=options.unreachable,
            faults=options.faults,
        )
        (directory / "saved").mkdir()
        staging = stage_targets(subject, directory, directory / "saved", request)
        collected = make_empty_disk(directory / "collected.img", _COLLECT_BYTES)
        initrd = directory / "initrd"
        initrd.write_bytes(build_initramfs(subject, staging, board, options.crash))
        config = MachineConfig(
            kernel=subject.kernel,
            initrd=initrd,
            command_line="",
            # The collecting disk is virtio whatever the targets are; it is the first.
            disks=(Disk(collected),),
            memory_mib=memory_mib,
            cpu=board.cpu,
            machine=board.machine,
            program=board.program,
            dtb=_stage_device_tree(options.dtb, directory),
        )
        return cls(
            directory=directory,
            subject=subject,
            options=options,
            board=board,
            staging=staging,
            request=request,
            config=config,
            memory_mib=memory_mib,
            reserved_bytes=reserved,
        )

    def run(self) -> RehearsalOutcome:
        """
        Crash it, and judge what came out.

        Raises
        ------
        MachineError
            If QEMU itself fails.
        """
        subject, staging = self.subject, self.staging
        clock = _Clock(self.options.watch)
        console = self._crash(clock)
        reasons = staging.reasons | find_unused(console, subject.plan)
        rehearsed = staging.rehearsed - frozenset(reasons)
        links = judge_console(console, subject.targets, rehearsed=rehearsed, reasons=reasons)
        dump_bytes = kept_bytes = 0
        held = {link.name for link in links if link.state == "held"}
        reached = frozenset(number for number in rehearsed if f"target {subject.targets[number].name}" in held)
        if reached:
            saved = self._collect()
            found, dump_bytes, kept_bytes = judge_dumps(saved, subject.targets, reached, self.options.crash)
            links += found
        links += [Link(f"dump {subject.targets[number].name}", "not reached") for number in sorted(rehearsed - reached)]
        return RehearsalOutcome(
            links=tuple(excuse(links, self.options.faults, subject.targets)),
            unproven=tuple(staging.unproven),
            seconds=clock.seconds,
            start_seconds=clock.start_seconds,
            peak_bytes=_find_peak(console, self.reserved_bytes),
            dump_bytes=dump_bytes,
            kept_bytes=kept_bytes,
            memory_bytes=self.memory_mib << 20,
            reserved_bytes=self.reserved_bytes,
            console=console,
        )

    def show_around(self) -> None:
        """
        Boot the machine once more, with its disks, and its console on the terminal; returns when it is off.

        Raises
        ------
        ProcessError
            If QEMU cannot be started.
        """
        accelerator = detect_accelerator(self.config.architecture)
        words = build_console_command(self._spell(f"{self.board.command_line} quiet {SHELL_WORD}"), accelerator)
        start([find_program(words[0]), *words[1:]], stdin=None).wait()

    def _spell(self, command_line: str, *, has_faults: bool = False, has_network: bool = False) -> MachineConfig:
        staging = self.staging
        drives = [
            spell_drive(disk.path, disk.form, faults_of(self.request, number) if has_faults else ())
            for number, disk in staging.disks.items()
        ]
        words = spell_disks(staging.controller, list(staging.disks.values()), 1, drives)
        words += staging.words if has_network else []
        # The host has a card in any case; where nothing is to be reached it ends in the machine.
        return replace(
            self.config, command_line=command_line, network=has_network and not staging.words, extra=tuple(words)
        )

    def _crash(self, clock: _Clock) -> str:
        """Boot, crash, wait for the capture to end; return the console."""
        place = self.directory / "crash"
        place.mkdir()
        line = f"{self.board.command_line} {_PANIC_WORDS} crashkernel={self.reserved_bytes >> 20}M"
        # How much is reserved is the rehearsal's to say: it looks for the least that works.
        more = [word for word in self.options.command_line.split() if not word.startswith("crashkernel=")]
        # Where a board has a screen its own words end with that; the machine is watched by its serial port.
        more.append(f"console={self.board.console}")
        config = self._spell(" ".join((line, *more)), has_faults=True, has_network=True)
        with contextlib.ExitStack() as stack:
            stub = None
            if needs_strike(self.subject, self.options.crash):
                stub = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postpanic-"))) / "stub"
                config = replace(config, extra=(*config.extra, "-gdb", f"unix:{stub},server=on,wait=off"))
            machine = stack.enter_context(Machine(config, place, watch=clock.see))
            with contextlib.suppress(MachineError):
                machine.wait_for(rf"^{PREFIX}(crash|failed)", timeout_s=_BOOT_TIMEOUT_S, failure=r"end Kernel panic")
                if self.options.crash == NMI:
                    machine.inject_nmi()
                elif stub is not None:
                    machine.wait_for(rf"^{PREFIX}{STRIKE_LINE}", timeout_s=_BOOT_TIMEOUT_S)
                    strike(stub, self.options.crash)
                found = machine.wait_for(_ENDS, timeout_s=self.options.timeout_s)
                if re.search(_ENDED, found[0]):
                    machine.wait_exit(timeout_s=20.0)
            return machine.read_console()

    def _collect(self) -> Path:
        """Bring out what lies on the targets; disks with file systems are read by the machine itself."""
        target = self.directory / "saved"
        plans = {number: self.subject.targets[number] for number in self.staging.disks}
        if any(isinstance(plan, FilePlan) for plan in plans.values()):
            self._read_file_systems(target)
        for number, plan in plans.items():
            if isinstance(plan, RawPlan):
                for dump in find_raw_dumps([self.staging.disks[number].path]):
                    recover_raw_dump(dump, target / str(number))
        for number, server in self.staging.servers.items():
            gather_objects(server, self.directory / f"server{number}")
        return target

    def _read_file_systems(self, target: Path) -> None:
        place = self.directory / "collect"
        place.mkdir()
        config = self._spell(f"{self.board.command_line} {_PANIC_WORDS} {COLLECT_WORD}")
        with Machine(config, place) as machine:
            machine.wait_for(
                rf"^{PREFIX}collected", timeout_s=_COLLECT_TIMEOUT_S, failure=rf"^{PREFIX}failed: .*|end Kernel panic"
            )
            machine.wait_exit(timeout_s=20.0)
        with self.config.disks[0].path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            unpack_files(archive, target)


def _stage_device_tree(given: Path | None, directory: Path) -> Path | None:
    """Lay a board's device tree out as QEMU can take it."""
    if given is None:
        return None
    staged = directory / "board.dtb"
    staged.write_bytes(read_device_tree(given))
    return staged


def _find_peak(console: str, reserved_bytes: int) -> int:
    found = re.search(r"postpanic: (\d+) MiB of memory were free at the least", console)
    return max(reserved_bytes - (int(found[1]) << 20), 0) if found else 0
