"""
Rehearse: boot the subject in a machine of its own, crash it, let it save onto stand-ins, and look at what came out.

Nothing of the host is changed, and nothing is reached from inside: the disks
are new files, the network ends in the machine.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from postpanic.capture.crashing import KINDS, LKDTM_TRIGGER
from postpanic.capture.hooks.borrowed_image import append_archive
from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.image import MODULES_DIR, ImageRequest, build_image
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.errors import NotReadyError, PostpanicError
from postpanic.rehearse.disks import make_empty_disk
from postpanic.rehearse.job import (
    COLLECT_WORD,
    IMAGE_PATH,
    JOB_PATH,
    KERNEL_PATH,
    NMI,
    OUT_OF_MEMORY,
    PREFIX,
    GuestJob,
    encode_job,
)
from postpanic.rehearse.judge import judge_dumps
from postpanic.rehearse.links import Link, judge_console
from postpanic.rehearse.machine import Disk, Machine, MachineConfig, MachineError
from postpanic.rehearse.stand_ins import CONTROLLERS, Controller, StandIn, choose_controller, make_stand_in, spell_disks
from postpanic.rehearse.subject import Subject
from postpanic.saver.plan import PLAN_PATH, BlockPlan, DevicePlan, FilePlan, RawPlan, SavePlan
from postpanic.saver.plan_json import encode_plan
from postpanic.saver.recovery import find_raw_dumps, recover_raw_dump

__all__ = ["RehearsalOptions", "RehearsalOutcome", "rehearse"]

_ENTRY = "postpanic.rehearse.guest"
_KEEP = ("postpanic.capture", "postpanic.rehearse", "tarfile", "bz2", "_bz2", "lzma", "_lzma")
_DEFAULT_SIZE_BYTES = 8 << 30
_COLLECT_BYTES = 16 << 30
_BOOT_TIMEOUT_S = 60.0
_COLLECT_TIMEOUT_S = 120.0
_HOST_MIB = 896
"""Of the machine besides the reservation: its initramfs, and room to unpack a kernel."""
# A kernel that looks whether its timer ticks panics where the machine is emulated on a busy host.
_HOST_WORDS = "console=ttyS0 no_timer_check panic=10"
_CAPTURE_WORDS = "console=ttyS0 no_timer_check"
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
    timeout_s : float
        From the panic to the end, on an idle machine.
    watch : callable, optional
        Gets each line of the console.
    """

    crash: str = "sysrq"
    memory_mib: int = 0
    reserved_bytes: int = 0
    free_bytes: Mapping[int, int] = field(default_factory=dict)
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
    peak_bytes : int
        Of the capture kernel's memory in use, an estimate; 0: not known.
    dump_bytes : int
        Of the largest dump.
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
    peak_bytes: int = 0
    dump_bytes: int = 0
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
    stage = _Stage.build(subject, directory, options)
    clock = _Clock(options.watch)
    console = stage.crash(clock)
    links = judge_console(console, subject.targets, rehearsed=frozenset(stage.stand_ins))
    dump_bytes = 0
    if "postpanic: saver started" in console:
        saved = stage.collect()
        found, dump_bytes = judge_dumps(saved, subject.targets, frozenset(stage.stand_ins), options.crash)
        links += found
    return RehearsalOutcome(
        links=tuple(links),
        unproven=stage.unproven,
        seconds=clock.seconds,
        peak_bytes=_find_peak(console, stage.reserved_bytes),
        dump_bytes=dump_bytes,
        memory_bytes=stage.memory_mib << 20,
        reserved_bytes=stage.reserved_bytes,
        console=console,
    )


def _find_peak(console: str, reserved_bytes: int) -> int:
    found = re.search(r"postpanic: (\d+) MiB of memory were free at the least", console)
    return max(reserved_bytes - (int(found[1]) << 20), 0) if found else 0


class _Clock:
    """Takes the time between the panic and the dump."""

    def __init__(self, watch: Callable[[str], object] | None) -> None:
        self._watch = watch
        self._panic_s = 0.0
        self.seconds = 0.0

    def see(self, line: str) -> None:
        """Look at a line of the console, as it comes."""
        if self._watch is not None:
            self._watch(line)
        if line.startswith(f"{PREFIX}crash "):
            self._panic_s = time.monotonic()
        elif self._panic_s and re.search(r"postpanic: .*: saved, level ", line):
            self.seconds = time.monotonic() - self._panic_s


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """The machine's parts, on disk."""

    directory: Path
    config: MachineConfig
    host_line: str
    stand_ins: Mapping[int, StandIn]
    collected: Path
    memory_mib: int
    reserved_bytes: int
    raw: tuple[int, ...]
    """Numbers of the targets without a file system."""
    is_nmi: bool
    timeout_s: float
    unproven: tuple[str, ...]

    @classmethod
    def build(cls, subject: Subject, directory: Path, options: RehearsalOptions) -> _Stage:
        """Make disks and initramfs."""
        reserved = options.reserved_bytes or subject.reserved_bytes
        memory_mib = options.memory_mib or _HOST_MIB + (reserved >> 20)
        plan, stand_ins, controller, unproven = _stage_targets(subject, directory)
        extra = [name for name in controller.modules if name not in subject.image_modules]
        # The driver of the host's own controller must be in the image: only where QEMU has none is one lent.
        lent = extra if choose_controller(_list_drivers(subject)) is None else []
        if lent and not subject.prepared.resolved.plan.devices.bind_all:
            unproven.append(f"the disk controller's driver: the machine has {controller.driver}")
        else:
            lent = []
        collected = make_empty_disk(directory / "collected.img", _COLLECT_BYTES)
        initrd = directory / "initrd"
        initrd.write_bytes(_build_initramfs(subject, plan, controller, options, _append_plan(subject, plan, lent)))
        # The collecting disk is virtio whatever the targets are; it is the first.
        words = spell_disks(controller, list(stand_ins.values()), 1)
        config = MachineConfig(
            kernel=subject.kernel,
            initrd=initrd,
            command_line="",
            disks=(Disk(collected),),
            memory_mib=memory_mib,
            network=True,
            extra=tuple(words),
        )
        return cls(
            directory=directory,
            config=config,
            host_line=f"{_HOST_WORDS} crashkernel={reserved >> 20}M",
            stand_ins=stand_ins,
            collected=collected,
            memory_mib=memory_mib,
            reserved_bytes=reserved,
            raw=tuple(number for number in stand_ins if isinstance(subject.targets[number], RawPlan)),
            is_nmi=options.crash == NMI,
            timeout_s=options.timeout_s,
            unproven=tuple(unproven),
        )

    def crash(self, clock: _Clock) -> str:
        """Boot, crash, wait for the capture to end; return the console."""
        place = self.directory / "crash"
        place.mkdir()
        config = replace(self.config, command_line=self.host_line)
        with Machine(config, place, watch=clock.see) as machine:
            with contextlib.suppress(MachineError):
                machine.wait_for(rf"^{PREFIX}(crash|failed)", timeout_s=_BOOT_TIMEOUT_S, failure=r"end Kernel panic")
                if self.is_nmi:
                    machine.inject_nmi()
                found = machine.wait_for(_ENDS, timeout_s=self.timeout_s)
                if re.search(_ENDED, found[0]):
                    machine.wait_exit(timeout_s=20.0)
            return machine.read_console()

    def collect(self) -> Path:
        """Boot again, and bring out what lies on the targets."""
        place = self.directory / "collect"
        place.mkdir()
        target = self.directory / "saved"
        target.mkdir()
        config = replace(self.config, command_line=f"{_HOST_WORDS} {COLLECT_WORD}")
        with Machine(config, place) as machine:
            machine.wait_for(
                rf"^{PREFIX}collected", timeout_s=_COLLECT_TIMEOUT_S, failure=rf"^{PREFIX}failed: .*|end Kernel panic"
            )
            machine.wait_exit(timeout_s=20.0)
        with self.collected.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(target, filter="data")
        for number in self.raw:
            for dump in find_raw_dumps([self.stand_ins[number].path]):
                recover_raw_dump(dump, target / str(number))
        return target


def _stage_targets(subject: Subject, directory: Path) -> tuple[SavePlan, dict[int, StandIn], Controller, list[str]]:
    """Make stand-ins for the local targets, and the plan by which they are found in the machine."""
    unproven: list[str] = []
    controller = choose_controller(_list_drivers(subject)) or CONTROLLERS["virtio_blk"]
    stand_ins: dict[int, StandIn] = {}
    targets = list(subject.targets)
    for number, target in enumerate(targets):
        if not isinstance(target, FilePlan | RawPlan):
            unproven.append(f"{target.name}: a server has no stand-in")
            continue
        size = subject.spaces[number].size_bytes if number in subject.spaces else 0
        path = directory / f"target{number}.img"
        stand_ins[number] = make_stand_in(target, size or _DEFAULT_SIZE_BYTES, path)
        targets[number] = replace(target, device=_find_in_machine(target.device, stand_ins[number], unproven))
    count = len(subject.plan.targets)
    devices = subject.plan.devices
    if not devices.bind_all:
        unproven.append("the place of the devices on their buses: in the machine every device gets a driver")
        devices = DevicePlan(bind_all=True, wait_s=devices.wait_s)
    plan = replace(subject.plan, targets=tuple(targets[:count]), fallbacks=tuple(targets[count:]), devices=devices)
    return plan, stand_ins, controller, unproven


def _list_drivers(subject: Subject) -> list[str]:
    """List the drivers that the host needs, also those that are built into its kernel."""
    return [*subject.prepared.resolved.modules, *subject.image_modules]


def _find_in_machine(device: BlockPlan, stand_in: StandIn, unproven: list[str]) -> BlockPlan:
    """Say how the stand-in is found: as the original, but for what only the host's own hardware has."""
    kept = replace(device, sysfs_path="", name="")
    if device.serial and "".join(device.serial.split())[:20] != stand_in.serial:  # pragma: no cover - same rule
        kept = replace(kept, serial=stand_in.serial)
    if kept == BlockPlan(partition=kept.partition):
        unproven.append("the disk is found by its place or name on the host: in the machine by a serial number")
        kept = replace(kept, serial=stand_in.serial)
    return kept


def _append_plan(subject: Subject, plan: SavePlan, lent: list[str]) -> bytes:
    """Return the subject's image, with the plan for the machine behind it: files that come later win."""
    tree = ImageTree()
    lines = list(plan.modules)
    modules = ModuleTree(subject.prepared.kernel.modules_dir)
    for name in modules.sort_by_dependency([one for one in lent if one in modules]):
        path = f"{MODULES_DIR}/{name}.ko"
        if path not in [line.split(" ", 1)[0] for line in lines]:
            tree.add_bytes(path, modules.read(name))
            lines.append(path)
    tree.add_bytes(str(PLAN_PATH), encode_plan(replace(plan, modules=tuple(lines))), 0o600)
    return append_archive(subject.image, tree.encode())


def _build_initramfs(
    subject: Subject, plan: SavePlan, controller: Controller, options: RehearsalOptions, image: bytes
) -> bytes:
    free = {number: space.free_bytes for number, space in subject.spaces.items() if space.free_bytes is not None}
    free |= dict(options.free_bytes)
    tree = ModuleTree(subject.modules_dir)
    wanted = [*controller.modules, "virtio_pci", "virtio_blk"]
    wanted += [target.filesystem for target in plan.targets if isinstance(target, FilePlan)]
    modules = [name for name in dict.fromkeys(wanted) if name in tree]
    if options.crash in KINDS and KINDS[options.crash].trigger == LKDTM_TRIGGER:
        if "lkdtm" not in tree:
            raise NotReadyError(
                f"kernel {subject.host.release} has no module lkdtm, by which to crash like this: {options.crash}",
                hint=f"without it: sysrq, {NMI}, {OUT_OF_MEMORY}",
            )
        modules.append("lkdtm")
    order = tree.resolve(modules)
    prepared = subject.prepared
    job = GuestJob(
        machine=subject.host.machine,
        command_line=f"{prepared.command_line.text} {_CAPTURE_WORDS}",
        modules=tuple(f"{MODULES_DIR}/{name}.ko" for name in order),
        crash=options.crash,
        settings=_settings_of(subject, options.crash),
        free_bytes={str(number): room for number, room in free.items()},
        out_device="/dev/vda",
    )
    files = {KERNEL_PATH: prepared.kernel.image.read_bytes(), IMAGE_PATH: image, str(JOB_PATH): encode_job(job)}
    try:
        built = build_image(
            ImageRequest(
                plan=plan,
                modules_dir=subject.modules_dir,
                modules=dict.fromkeys(modules, ""),
                root=subject.host.root,
                compression="none",
                files=files,
                entry=_ENTRY,
                keep=_KEEP,
            )
        )
    except PostpanicError as exc:
        raise NotReadyError(f"the machine's own image: {exc.message}", where=exc.where, hint=exc.hint) from exc
    return built.data


def _settings_of(subject: Subject, crash: str) -> dict[str, int]:
    """Give the sysctls for the crash: the subject's policy, and that which makes a panic of it."""
    settings = dict(subject.settings)
    needed = {
        "bug": {"kernel.panic_on_oops": 1},
        "null": {"kernel.panic_on_oops": 1},
        "softlockup": {"kernel.softlockup_panic": 1, "kernel.watchdog_thresh": 2},
        "hardlockup": {"kernel.hardlockup_panic": 1, "kernel.watchdog_thresh": 2},
        "hung-task": {"kernel.hung_task_panic": 1, "kernel.hung_task_timeout_secs": 5},
        NMI: {"kernel.unknown_nmi_panic": 1},
        OUT_OF_MEMORY: {"vm.panic_on_oom": 2, "vm.overcommit_memory": 1},
    }
    return settings | needed.get(crash, {})
