"""Find out what the capture kernel of this machine will need, by preparing it as ``postpanic arm`` does."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from postpanic.capture.arming.arm import find_stale
from postpanic.capture.arming.image import build
from postpanic.capture.arming.prepare import Prepared, prepare
from postpanic.capture.arming.state import StatePaths, read_state
from postpanic.capture.config import Config
from postpanic.capture.crashkernel.estimate import CaptureNeeds, MeasuredNeed
from postpanic.capture.crashkernel.reservation import read_memory
from postpanic.capture.host import Host
from postpanic.capture.kexec.images import detect_compression, read_image, unpack
from postpanic.capture.rehearsals import REHEARSAL_NAME, read_rehearsal, take_fingerprint
from postpanic.errors import PostpanicError
from postpanic.units import MIB

__all__ = ["measure_needs", "read_measured"]

_TYPICAL_KERNEL_BYTES = 64 * MIB
_PAGE_OPTIONS = {"CONFIG_ARM64_64K_PAGES": 1 << 16, "CONFIG_ARM64_16K_PAGES": 1 << 14, "CONFIG_PPC_64K_PAGES": 1 << 16}


def measure_needs(config: Config, host: Host, *, kernel: str = "") -> CaptureNeeds:
    """
    Find out what an estimate is made of; nothing is written.

    The kernel is read. The image that is armed is taken if nothing has changed
    since it was built, else one is built in memory.

    What cannot be found out is taken to be usual, and a remark says so.

    Parameters
    ----------
    kernel : str
        Release or path, instead of the configuration's.
    """
    remarks: list[str] = []
    prepared: Prepared | None = None
    try:
        prepared = prepare(config, host, kernel=kernel)
    except PostpanicError as exc:
        remarks.append(f"the image cannot be prepared, so a usual one is counted: {exc}")
    image = _measure_image(config, prepared, host, remarks)
    kernel_bytes, kernel_evidence = _measure_kernel(prepared, host, remarks)
    capture = config.capture
    if capture.image != "own":
        remarks.append("a LUKS volume that is opened by a passphrase needs its key derivation's memory besides")
    network = prepared is not None and bool(prepared.resolved.needs.has_ssh or prepared.resolved.plan.network)
    return CaptureNeeds(
        kernel_bytes,
        image.file_bytes,
        image.unpacked_bytes,
        image.modules,
        read_memory(host).total_bytes,
        capture.nr_cpus,
        _find_page_bytes(host),
        host.read_core_header_size_bytes() or 0,
        has_network=network,
        is_borrowed=capture.image != "own",
        is_encrypted=_is_encrypted(host),
        machine=host.machine,
        release=prepared.kernel.release if prepared else host.release,
        remarks=tuple(remarks),
        kernel_evidence=kernel_evidence,
        image_evidence=image.evidence,
    )


def read_measured(host: Host, release: str) -> tuple[MeasuredNeed | None, str]:
    """
    Read what the last rehearsal found.

    Parameters
    ----------
    release : str
        Of the capture kernel.

    Returns
    -------
    tuple
        None if there was no rehearsal that counts, and if there was one, why it does not.
    """
    found = read_rehearsal(host.path(f"var/lib/postpanic/{REHEARSAL_NAME}"))
    if found is None or not (found.needed_bytes or found.peak_bytes):
        return None, ""
    if found.verdict != "proven":
        return None, f"the rehearsal of {found.when} does not count: {found.broken_link or found.verdict}"
    try:
        kernel = host.find_kernel_image(release)
    except PostpanicError as exc:
        return None, f"the rehearsal of {found.when} does not count: {exc}"
    name = "the kernel"
    if take_fingerprint(kernel, b"", "", (), 0)[name] != found.fingerprint.get(name):
        return None, f"the rehearsal of {found.when} does not count: it was of another kernel"
    return MeasuredNeed(int(found.needed_bytes), int(found.peak_bytes), release, found.when), ""


@dataclass(frozen=True)
class _Image:
    file_bytes: int
    unpacked_bytes: int
    modules: tuple[str, ...]
    evidence: str


_TYPICAL_IMAGE = _Image(8 * MIB, 24 * MIB, (), "of a usual initramfs unpacked")


def _measure_image(config: Config, prepared: Prepared | None, host: Host, remarks: list[str]) -> _Image:
    if prepared is None:
        return _TYPICAL_IMAGE
    paths = StatePaths.of(host)
    try:
        # Of an image that is several archives, one after the other, the size is not so easily told.
        if config.capture.image == "own" and not find_stale(prepared, read_state(paths.state), paths.image):
            content = paths.image.read_bytes()
            packed = bool(detect_compression(content))
            unpacked_bytes = len(unpack(content, where=str(paths.image))) if packed else len(content)
            return _Image(len(content), unpacked_bytes, prepared.resolved.modules, "the armed initramfs unpacked")
        built = build(config, prepared, host)
    except (OSError, PostpanicError) as exc:
        remarks.append(f"the image cannot be built, so a usual one is counted: {exc}")
        return _TYPICAL_IMAGE
    return _Image(len(built.content), built.unpacked_bytes, built.modules, "the initramfs unpacked")


def _measure_kernel(prepared: Prepared | None, host: Host, remarks: list[str]) -> tuple[int, str]:
    try:
        image = read_image(prepared.kernel.image if prepared else host.find_kernel_image())
    except PostpanicError as exc:
        remarks.append(f"the kernel cannot be read, so a usual one is counted: {exc}")
        return _TYPICAL_KERNEL_BYTES, "of a usual kernel"
    if image.memory_bytes:
        return image.memory_bytes, "what its image says it needs to start"
    return max(len(image.payload), len(image.content)), "the size of its image"


def _find_page_bytes(host: Host) -> int:
    config = host.read_kernel_config() or {}
    found = [size for name, size in _PAGE_OPTIONS.items() if config.get(name) == "y"]
    if found:
        return found[0]
    return 4096 if config or str(host.root) != "/" else os.sysconf("SC_PAGE_SIZE")


def _is_encrypted(host: Host) -> bool:
    flags = re.search(r"^flags\s*:.*\b(sme|sev)\b", host.read_text("proc/cpuinfo") or "", re.MULTILINE)
    config = host.read_kernel_config() or {}
    asked = "mem_encrypt=on" in host.read_command_line().split()
    return bool(flags) and (asked or config.get("CONFIG_AMD_MEM_ENCRYPT_ACTIVE_BY_DEFAULT") == "y")
