"""
What stands in for the targets, and the plan by which the machine's saver finds it.

A local target gets a disk, a server one of its own kind within the machine's
network. What has no stand-in is left out, and said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from postpanic.capture.initramfs.python_tree import find_python
from postpanic.capture.initramfs.root import RootTree
from postpanic.capture.resolve.watchdogs import find_watchdogs
from postpanic.errors import NotReadyError, PostpanicError
from postpanic.process import find_program, run
from postpanic.rehearse.faults import Fault, FaultKind, plan_kill
from postpanic.rehearse.network import CARDS, Card, choose_card, list_places, stage_network
from postpanic.rehearse.overlays import make_overlay, measure_image
from postpanic.rehearse.servers.stand_ins import (
    ServerPlan,
    ServerStandIn,
    make_http_server,
    make_nfs_server,
    make_ssh_server,
)
from postpanic.rehearse.stand_ins import CONTROLLERS, Controller, StandIn, choose_controller, make_stand_in
from postpanic.rehearse.subject import Subject
from postpanic.saver.plan import BlockPlan, DevicePlan, FilePlan, HttpPlan, RawPlan, SavePlan, SshPlan, TargetPlan

__all__ = ["Request", "Staging", "stage_targets"]

_DEFAULT_SIZE_BYTES = 8 << 30
_SERIAL_CHARACTERS = 20
_LEFT_OUT_S = 5.0
_LENT_WORDS = "driver: the machine has"


@dataclass(frozen=True, kw_only=True)
class Request:
    """
    How the targets are to be staged.

    Attributes
    ----------
    disks : mapping
        Images to use in place of those that would be made, by number of the target.
    free_bytes : mapping
        Room of the targets, by number, instead of what the host has.
    unreachable : frozenset of int
        Servers that nobody answers for.
    faults : tuple of Fault
    """

    disks: Mapping[int, Path] = field(default_factory=dict)
    free_bytes: Mapping[int, int] = field(default_factory=dict)
    unreachable: frozenset[int] = frozenset()
    faults: tuple[Fault, ...] = ()


@dataclass(kw_only=True)
class Staging:
    """
    What stands in.

    Attributes
    ----------
    plan : SavePlan
        For the machine's saver.
    controller : Controller
        Of the disks.
    card : Card or None
        Of the network, if there is one.
    disks : dict
        Stand-ins of local targets, by number.
    servers : dict
        Of servers, by number.
    reasons : dict
        Why a target has none, by number.
    lent : list of str
        Modules that the image does not have, for what QEMU has in place of the host's own.
    files : dict
        More files for the image.
    words : list of str
        For QEMU: the network.
    free_bytes : dict
        How much room disks are to have, by number.
    unproven : list of str
        What is otherwise than on the host.
    """

    plan: SavePlan
    controller: Controller
    card: Card | None = None
    disks: dict[int, StandIn] = field(default_factory=dict)
    servers: dict[int, ServerStandIn] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    lent: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    free_bytes: dict[int, int] = field(default_factory=dict)
    unproven: list[str] = field(default_factory=list)

    @property
    def rehearsed(self) -> frozenset[int]:
        """Numbers of the targets that have a stand-in."""
        return frozenset(self.disks) | frozenset(self.servers)


def stage_targets(subject: Subject, directory: Path, saved: Path, request: Request) -> Staging:
    """
    Make stand-ins.

    Parameters
    ----------
    directory : Path
        For disks and what servers need.
    saved : Path
        Where servers put what they get, in a directory for each target, by its number.

    Raises
    ------
    NotReadyError
        If a disk cannot be made or used.
    """
    drivers = [*subject.prepared.resolved.modules, *subject.image_modules]
    controller = choose_controller(drivers)
    staging = Staging(plan=subject.plan, controller=controller or CONTROLLERS["virtio_blk"])
    targets = list(subject.targets)
    for number, target in enumerate(targets):
        if isinstance(target, FilePlan | RawPlan):
            targets[number] = _stage_disk(staging, subject, directory, number, target, request)
        else:
            targets[number] = _stage_server(staging, subject, directory, saved, number, target, request)
    count = len(subject.plan.targets)
    staging.plan = replace(staging.plan, targets=tuple(targets[:count]), fallbacks=tuple(targets[count:]))
    if staging.servers:
        _stage_network(staging, drivers, request)
    if not staging.servers:
        # Nobody is to wait for a network that is not there.
        staging.plan = replace(staging.plan, network=None)
    _stage_devices(staging, subject, is_lent=controller is None and bool(staging.disks))
    if subject.plan.feed_watchdogs and find_watchdogs(subject.host.path("sys")):
        staging.unproven.append("the watchdog: none runs in the machine")
    if any(fault.kind == "saver-killed" for fault in request.faults):
        interpreter = find_python(RootTree(subject.host.root)).interpreter
        staging.plan, files = plan_kill(staging.plan, interpreter)
        staging.files |= files
    return staging


def faults_of(request: Request, number: int) -> list[FaultKind]:
    """List the faults of a target's disk."""
    return [fault.kind for fault in request.faults if fault.target == number]


def _stage_disk(
    staging: Staging, subject: Subject, directory: Path, number: int, target: FilePlan | RawPlan, request: Request
) -> TargetPlan:
    """Make a disk, or take the one that is given; return the target as it is found there."""
    path = directory / f"target{number}.img"
    device, given = target.device, request.disks.get(number)
    if given is not None:
        stand_in = _take_disk(given, target, path)
        if not device.partition and not (device.uuid or device.label or device.part_uuid or device.part_label):
            device = replace(device, partition=_number_of_partition(device.name))
    else:
        space = subject.spaces.get(number)
        stand_in = make_stand_in(target, (space.size_bytes if space else 0) or _DEFAULT_SIZE_BYTES, path)
        if space and space.free_bytes is not None:
            staging.free_bytes[number] = space.free_bytes
    if number in request.free_bytes:
        staging.free_bytes[number] = request.free_bytes[number]
    if faults_of(request, number):
        staging.free_bytes.pop(number, None)
    staging.disks[number] = stand_in
    return replace(target, device=_find_in_machine(device, stand_in, staging.unproven))


def _take_disk(given: Path, target: FilePlan | RawPlan, path: Path) -> StandIn:
    """Use an image of the caller's, which stays as it is."""
    serial = "".join(target.device.serial.split())[:_SERIAL_CHARACTERS] or f"rehearsal-{path.stem}"[:_SERIAL_CHARACTERS]
    if isinstance(target, FilePlan):
        return StandIn(make_overlay(given, path.with_suffix(".qcow2")), serial, "qcow2")
    # What is on a raw device is read from outside, where only a plain image can be.
    measure_image(given)
    run([find_program("cp"), "--sparse=always", "--reflink=auto", given, path])
    return StandIn(path, serial)


def _number_of_partition(name: str) -> int:
    """
    Tell which partition a name is of: ``vda1``, ``nvme0n1p2``; 0 is none.

    >>> _number_of_partition("/dev/nvme0n1p2"), _number_of_partition("sdb"), _number_of_partition("sda3")
    (2, 0, 3)
    """
    stem = name.rsplit("/", 1)[-1]
    digits = stem[len(stem.rstrip("0123456789")) :]
    rest = stem[: len(stem) - len(digits)]
    is_numbered_disk = stem.startswith(("nvme", "mmcblk", "loop"))
    if not digits or (is_numbered_disk and not rest.endswith("p")):
        return 0
    return int(digits)


def _find_in_machine(device: BlockPlan, stand_in: StandIn, unproven: list[str]) -> BlockPlan:
    """Say how the stand-in is found: as the original, but for what only the host's own hardware has."""
    kept = replace(device, sysfs_path="", name="")
    if device.serial and device.serial != stand_in.serial:
        kept = replace(kept, serial=stand_in.serial)
    if kept == BlockPlan(partition=kept.partition):
        unproven.append("the disk is found by its place or name on the host: in the machine by a serial number")
        kept = replace(kept, serial=stand_in.serial)
    return kept


def _stage_server(
    staging: Staging,
    subject: Subject,
    directory: Path,
    saved: Path,
    number: int,
    target: ServerPlan,
    request: Request,
) -> TargetPlan:
    """Make a server, if there is a stand-in for one; return the target as it is reached there."""
    try:
        server = _make_server(
            subject, target, directory / f"server{number}", saved / str(number), request.free_bytes.get(number)
        )
        if subject.plan.network is None:
            raise NotReadyError("how it is reached is not known")
        if list_places(subject.plan.network, [server]) & list_places(subject.plan.network, staging.servers.values()):
            raise NotReadyError("what stands in for another target is at its server's address and port")
    except NotReadyError as exc:
        staging.reasons[number] = exc.message
        staging.unproven.append(f"{target.name}: {exc.message}")
        return replace(target, attempts=1, timeout_s=_LEFT_OUT_S)
    staging.servers[number] = server
    staging.files |= server.files
    staging.unproven += server.unproven
    return server.plan


def _make_server(
    subject: Subject, target: ServerPlan, directory: Path, received: Path, room_bytes: int | None
) -> ServerStandIn:
    if isinstance(target, HttpPlan):
        return make_http_server(target, directory, received, room_bytes)
    if isinstance(target, SshPlan):
        source = next((one.source for one in subject.prepared.resolved.needs.files if one.path == target.key), None)
        if source is None:
            raise NotReadyError("its key is not known")
        try:
            key = source.read_bytes()
        except OSError as exc:
            raise NotReadyError(f"its key cannot be read: {(exc.strerror or str(exc)).lower()}") from exc
        return make_ssh_server(target, key, directory, received, room_bytes)
    return make_nfs_server(target, directory, received, room_bytes)


def _stage_network(staging: Staging, drivers: list[str], request: Request) -> None:
    network = staging.plan.network
    if network is None:
        return
    found = choose_card(drivers)
    staging.card = found or CARDS["virtio_net"]
    there = [server for number, server in staging.servers.items() if number not in request.unreachable]
    gone = [server for number, server in staging.servers.items() if number in request.unreachable]
    try:
        stage = stage_network(network, staging.card, there, gone)
    except PostpanicError as exc:
        for number, server in list(staging.servers.items()):
            staging.reasons[number] = exc.message
            staging.unproven.append(f"{server.plan.name}: {exc.message}")
        staging.servers.clear()
        return
    staging.plan = replace(staging.plan, network=stage.plan)
    staging.words += stage.words
    staging.unproven += stage.unproven
    if found is None:
        staging.lent += staging.card.modules
        staging.unproven.append(f"the network card's {_LENT_WORDS} {staging.card.driver}")


def _stage_devices(staging: Staging, subject: Subject, *, is_lent: bool) -> None:
    """Let the machine's devices have drivers: those of the host's own must be in the image, others are lent."""
    devices = staging.plan.devices
    if is_lent:
        staging.lent += staging.controller.modules
        staging.unproven.append(f"the disk controller's {_LENT_WORDS} {staging.controller.driver}")
    if not subject.host.path("sys/class/block").is_dir():
        # Of a tree the modules are named by the user, who may have forgotten one.
        staging.lent.clear()
        staging.unproven[:] = [text for text in staging.unproven if _LENT_WORDS not in text]
    if not devices.bind_all:
        staging.unproven.append("the place of the devices on their buses: in the machine every device gets a driver")
        staging.plan = replace(staging.plan, devices=DevicePlan(bind_all=True, wait_s=devices.wait_s))
    staging.lent = [name for name in dict.fromkeys(staging.lent) if name not in subject.image_modules]
