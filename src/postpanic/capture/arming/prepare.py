"""What is to be built and loaded: kernel, plan, command line; nothing is changed here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic import version
from postpanic.capture.arming.state import identify_file
from postpanic.capture.config import Config
from postpanic.capture.hooks.borrowed_image import keep_boot_words
from postpanic.capture.host import Host
from postpanic.capture.kexec.command_line import CaptureCommandLine, CommandLineChanges, build_command_line
from postpanic.capture.kexec.images import find_release, read_image
from postpanic.capture.resolve import FoundNetwork, NetworkFinder, Resolved, resolve
from postpanic.errors import FileFaultError, NotReadyError
from postpanic.saver.plan_json import encode_plan

__all__ = ["CaptureKernel", "Prepared", "ask_network", "choose_kernel", "prepare", "read_release"]

# Beside these, what is in the image is watched file by file.
_SOURCE_DIR = Path(version.__file__).parent


@dataclass(frozen=True)
class CaptureKernel:
    """
    The kernel that saves.

    Attributes
    ----------
    image : Path
        Its bootable file.
    release : str
        As ``uname -r`` would have it.
    modules_dir : Path
        Its modules.
    is_running : bool
        Whether it is the one that runs now; never of another root tree.
    """

    image: Path
    release: str
    modules_dir: Path
    is_running: bool


@dataclass(frozen=True)
class Prepared:
    """
    Everything that is known before something is built.

    Attributes
    ----------
    fingerprint : dict
        A digest of each thing on which the image depends, by its name in messages.
    """

    kernel: CaptureKernel
    resolved: Resolved
    command_line: CaptureCommandLine
    fingerprint: dict[str, str]


def prepare(config: Config, host: Host, *, kernel: str = "", find_network: NetworkFinder | None = None) -> Prepared:
    """
    Find out all that can be found out.

    Parameters
    ----------
    kernel : str
        Release or path, instead of the configuration's.

    Raises
    ------
    NotReadyError
        If a kernel, a device or a file is not there.
    UsageError
        If the configuration asks for what there is not.
    """
    chosen = choose_kernel(kernel or config.capture.kernel, host)
    resolved = resolve(
        config,
        chosen.modules_dir,
        root=host.root,
        same_kernel=chosen.is_running,
        find_network=find_network or (ask_network if host.root == Path("/") else None),
    )
    # Words of its own by which a distribution's image finds its disks; those of the configuration come last, and win.
    kept = keep_boot_words(host.read_command_line()) if config.capture.image != "own" else []
    extra = ["rd.shell=0", "rd.emergency=reboot"] if config.capture.image == "dracut" else []
    changes = CommandLineChanges(
        replace=" ".join(config.capture.command_line) if config.capture.command_line is not None else None,
        append=" ".join((*kept, *extra, *config.capture.command_line_append)),
        remove=config.capture.command_line_remove,
        cpus=config.capture.nr_cpus,
        save_memory=config.capture.save_memory,
    )
    line = build_command_line(host.read_command_line(), host.machine, changes, boot_apic_id=host.read_boot_apic_id())
    return Prepared(chosen, resolved, line, _take_fingerprint(config, chosen, resolved))


def choose_kernel(wanted: str, host: Host) -> CaptureKernel:
    """
    Find the kernel that is to save.

    Parameters
    ----------
    wanted : str
        ``same``, a release, or the path of an image.

    Raises
    ------
    NotReadyError
        If its image or its modules are not there.
    """
    is_here = host.root == Path("/")
    if not wanted.startswith("/"):
        release = host.release if wanted == "same" else wanted
        return CaptureKernel(
            host.find_kernel_image(release),
            release,
            host.find_modules_dir(release),
            is_here and release == host.release,
        )
    image = host.find(wanted)
    if not image.is_file():
        raise NotReadyError("there is no such kernel", where=wanted)
    release = read_release(image)
    if not release:
        raise NotReadyError(
            "cannot tell which kernel this is",
            where=wanted,
            hint="name it vmlinuz-RELEASE, or give the release instead",
        )
    return CaptureKernel(image, release, host.find_modules_dir(release), is_here and release == host.release)


def read_release(image: Path) -> str:
    """Tell the release of a kernel by its file: by what is in it, or else by the name; empty if neither says."""
    try:
        release = find_release(read_image(image))
    except FileFaultError:
        release = ""
    if release:
        return release
    match = re.fullmatch(r"(?:vmlinu[xz]|Image|kernel)-(\d.*?)(?:\.gz|\.efi)?", image.name)
    if match:
        return match[1]
    return image.parent.name if re.match(r"\d+\.\d+", image.parent.name) else ""


def digest_tree(directory: Path) -> str:
    """Give a digest of all Python files below a directory."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*.py")):
        digest.update(f"{path.relative_to(directory)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def ask_network(config: Config, servers: Sequence[str]) -> FoundNetwork:
    """Ask this machine how it reaches the servers."""
    from postpanic.capture.network import plan_network

    found = plan_network(servers, nameservers=config.network.nameservers, wait_s=config.network.wait_s)
    return FoundNetwork(found.plan, found.modules, found.sysfs_paths, found.evidence, found.devices)


def _take_fingerprint(config: Config, kernel: CaptureKernel, resolved: Resolved) -> dict[str, str]:
    needs = resolved.needs
    plan = [encode_plan(resolved.plan).decode(), *sorted(resolved.modules), *needs.programs]
    plan += [f"{name} {words}" for name, words in sorted(resolved.module_options.items())]
    plan += [f"{one.path} {one.source}" for one in needs.files]
    capture = config.capture
    plan += [*capture.include, *capture.firmware, capture.image, capture.image_compression]
    return {
        "what is to be saved where": _digest(plan),
        "the kernel": _digest([kernel.release, str(kernel.image), identify_file(kernel.image)]),
        "its modules": _digest([identify_file(kernel.modules_dir / name) for name in ("modules.dep", "modules.alias")]),
        "postpanic": _digest([version.__version__, digest_tree(_SOURCE_DIR)]),
        "files of the targets": _digest([f"{one.source} {identify_file(one.source)}" for one in needs.files]),
    }


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()
