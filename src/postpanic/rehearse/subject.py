"""
What is rehearsed: a host's own kernel, image, command line, reservation and targets, or those of a root tree.

Everything is found by the code that arms. The image is the one that is armed,
if it is what would be built now; else the one that would be built, and where
one is armed all the same it is stale, which is a finding of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.arming.arm import find_stale, policy_of
from postpanic.capture.arming.image import build
from postpanic.capture.arming.prepare import Prepared, prepare
from postpanic.capture.arming.state import StatePaths, read_state
from postpanic.capture.config import Config, FileTarget
from postpanic.capture.crashkernel.parse import ParsedRequest, parse_command_line
from postpanic.capture.crashkernel.reservation import read_memory
from postpanic.capture.host import Host
from postpanic.errors import NotReadyError, UsageError
from postpanic.rehearse.boards import find_board
from postpanic.saver.plan import SavePlan, TargetPlan
from postpanic.units import format_size

__all__ = ["Space", "Subject", "find_reservation", "read_subject"]

_MINIMUM_MIB = 16
_EXAMPLE = "192M"
_UNKNOWN_BYTES = 1 << 40
"""More than any size that is asked for."""


@dataclass(frozen=True)
class Space:
    """
    How large a target is; 0 is not known.

    Attributes
    ----------
    size_bytes : int
        Of the file system or device.
    free_bytes : int or None
        Of it.
    """

    size_bytes: int = 0
    free_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """
    What is rehearsed.

    Attributes
    ----------
    host : Host
    prepared : Prepared
        What the configuration means there.
    kernel, modules_dir : Path
        Of the kernel that is to crash.
    image : bytes
        Of the capture kernel.
    plan : SavePlan
        As it is in the image.
    image_modules : tuple of str
        Names of the modules in the image.
    is_armed : bool
        Whether the image is the one that is armed.
    stale : tuple of str
        Why an image that is armed would be built anew; empty: it need not, or there is none.
    reserved_bytes : int
        For the capture kernel.
    reserved_by : str
        Where that is from.
    spaces : mapping
        Of the local targets, by their number in the plan.
    settings : mapping
        Sysctls of the panic policy.
    """

    host: Host
    prepared: Prepared
    kernel: Path
    modules_dir: Path
    image: bytes
    plan: SavePlan
    image_modules: tuple[str, ...]
    is_armed: bool
    stale: tuple[str, ...]
    reserved_bytes: int
    reserved_by: str
    spaces: Mapping[int, Space]
    settings: Mapping[str, int]

    @property
    def targets(self) -> tuple[TargetPlan, ...]:
        """Targets and fallbacks, in the order of their numbers."""
        return (*self.plan.targets, *self.plan.fallbacks)


def read_subject(
    config: Config,
    host: Host,
    *,
    kernel: str = "",
    crashkernel: str = "",
    command_line: str = "",
    memory_bytes: int = 0,
) -> Subject:
    """
    Find out what there is to rehearse. Nothing is changed.

    Parameters
    ----------
    kernel : str
        Release or path of the capture kernel, instead of the configuration's.
    crashkernel : str
        ``192M``, instead of what the host has reserved.
    command_line : str
        More words for the kernel that crashes; ``crashkernel=`` among them is instead of the host's, too.
    memory_bytes : int
        Of the host, where its tree does not say: ranges of ``crashkernel=`` depend on it.

    Raises
    ------
    NotReadyError
        If a kernel, a device, a program is not there, nothing is reserved, or the architecture has no machine here.
    UsageError
        If the configuration, *crashkernel* or *command_line* asks for what there is not.
    """
    find_board(host.machine)
    if config.capture.image != "own":
        raise NotReadyError(
            f"an image of {config.capture.image} cannot be rehearsed: its disks are stacks that have no stand-in",
            where="capture.image",
            hint="postpanic crash-test proves it on the machine itself",
        )
    reserved, source = find_reservation(
        host, crashkernel=crashkernel, command_line=command_line, memory_bytes=memory_bytes
    )
    prepared = prepare(config, host, kernel=kernel)
    built = build(config, prepared, host)
    paths = StatePaths.of(host)
    armed = _read_image(host.find(str(paths.image.relative_to(host.root))))
    stale: tuple[str, ...] = ()
    if armed is not None and armed != built.content:
        reasons = find_stale(prepared, read_state(paths.state), paths.image)
        stale = tuple(reasons) or ("it is not what would be built now",)
    crashing = host.find_kernel_image(host.release)
    return Subject(
        host=host,
        prepared=prepared,
        kernel=crashing,
        modules_dir=host.find_modules_dir(host.release),
        image=built.content,
        plan=built.plan,
        image_modules=built.modules,
        is_armed=armed is not None and not stale,
        stale=stale,
        reserved_bytes=reserved,
        reserved_by=source,
        spaces=_measure(config, host),
        settings=policy_of(config.panic),
    )


def find_reservation(
    host: Host, *, crashkernel: str = "", command_line: str = "", memory_bytes: int = 0
) -> tuple[int, str]:
    """
    Find how much memory the capture kernel is to have, and who says so.

    Parameters
    ----------
    crashkernel, command_line, memory_bytes
        As :func:`read_subject` has them.

    Returns
    -------
    int
        Bytes.
    str
        An option, a file, or what else it is from.

    Raises
    ------
    NotReadyError
        If nothing is reserved.
    UsageError
        If what is asked for is void, or less than any kernel needs.
    """
    total = memory_bytes or read_memory(host).total_bytes
    if crashkernel:
        return _read_request(f"crashkernel={crashkernel}", f"--crashkernel {crashkernel}", total), "--crashkernel"
    if "crashkernel=" in command_line:
        return _read_request(command_line, f"--cmdline {command_line.strip()}", total), "--cmdline"
    reserved = host.read_number("sys/kernel/kexec_crash_size") or 0
    if reserved:
        return reserved, "/sys/kernel/kexec_crash_size"
    request = parse_command_line(host.read_command_line(), total or _UNKNOWN_BYTES)
    if request.size_bytes:
        _check_ranges(request, f"the host's crashkernel={request.used}", total)
        return request.size_bytes, "the kernel's command line"
    raise NotReadyError(
        "no memory is reserved for a capture kernel",
        hint="postpanic crashkernel set, or rehearse a size by --crashkernel 192M",
    )


def _read_image(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise NotReadyError(
            f"the image that is armed cannot be read: {(exc.strerror or str(exc)).lower()}",
            where=str(path),
            hint="run it as root",
        ) from exc


def _read_request(words: str, where: str, total_bytes: int) -> int:
    """Read how much somebody asks for who is here to be told what is wrong with it."""
    request = parse_command_line(words, total_bytes or _UNKNOWN_BYTES)
    _check_ranges(request, where, total_bytes)
    if request.size_bytes < _MINIMUM_MIB << 20:
        problem = request.problem or f"{format_size(request.size_bytes)}, at least {_MINIMUM_MIB}M"
        raise UsageError(f"{where}: {problem}", hint=f"a size, as crashkernel={_EXAMPLE}")
    return request.size_bytes


def _check_ranges(request: ParsedRequest, where: str, total_bytes: int) -> None:
    if request.ranges and not total_bytes:
        raise UsageError(
            f"{where}: which of its ranges is meant depends on the host's memory", hint="--host-memory SIZE says it"
        )


def _measure(config: Config, host: Host) -> dict[int, Space]:
    """Ask the file systems how large they are; those of another tree are not mounted here."""
    found: dict[int, Space] = {}
    for number, target in enumerate((*config.targets, *config.fallbacks)):
        if isinstance(target, FileTarget) and target.device is None and host.root == Path("/"):
            place = Path(target.path)
            while not place.exists():
                place = place.parent
            numbers = os.statvfs(place)
            unit = numbers.f_frsize
            found[number] = Space(numbers.f_blocks * unit, numbers.f_bavail * unit)
    return found
