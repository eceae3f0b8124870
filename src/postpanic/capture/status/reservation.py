"""The memory that is reserved for the capture kernel: whether there is any, and whether it is enough."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import zstandard

from postpanic.capture.bootloader.detect import DetectedLoader, choose_loaders, detect_loaders
from postpanic.capture.bootloader.model import BootEntry
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.config import HttpTarget, NfsTarget, SshTarget
from postpanic.capture.crashkernel.estimate import CaptureNeeds, Estimate, estimate
from postpanic.capture.crashkernel.reservation import Reservation, explain_request, read_memory, read_reservation
from postpanic.capture.kexec.images import read_image
from postpanic.capture.rehearsals import REHEARSAL_NAME, read_rehearsal
from postpanic.capture.status.distributions import DEBIAN
from postpanic.capture.status.model import Check, Fact
from postpanic.capture.status.rehearsal import find_rehearsed_changes
from postpanic.capture.status.subject import Subject
from postpanic.errors import PostpanicError
from postpanic.units import MIB, format_size

__all__ = ["check_next_reservation", "check_reservation"]

GROUP = "reservation"
_SIZE_FILE = "/sys/kernel/kexec_crash_size"
_UNPACKED_FACTOR = 3
"""An image unpacks to about three times its size (zstd, gzip and xz of programs and modules)."""
_SURELY_TOO_LITTLE = 0.9
"""An estimate errs: only below this share of it the capture is taken to fail."""
_HEAD_BYTES = 18
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC = b"\x1f\x8b"
_RESCUE = re.compile(r"recovery|rescue|memtest", re.IGNORECASE)


def check_reservation(subject: Subject) -> Iterator[Check]:
    """Look at what is asked for on the command line, at what the kernel has reserved, and at what is needed."""
    reservation = read_reservation(subject.host)
    yield _check_request(subject, reservation)
    yield _check_size(subject, reservation)
    yield _check_place(subject)
    yield _check_enough(subject)


def check_next_reservation(subject: Subject) -> Check:
    """Look at what the boot loader will ask for at the next boot."""
    group, name = "boot", "crashkernel"
    found = detect_loaders(BootTree(subject.host))
    try:
        chosen = choose_loaders(found)
    except PostpanicError as exc:
        return Check(group, name, "unknown", exc.message, tuple(map(_show_loader, found)), exc.hint)
    entries = [entry for one in chosen for entry in one.entries]
    if not entries:
        facts = tuple(map(_show_loader, chosen)) or (Fact("/boot, /etc", "no boot loader that is known"),)
        needs_root = not subject.host.is_root
        return Check(
            group, name, "unknown", "what the boot loader will ask for is not known", facts, needs_root=needs_root
        )
    facts = tuple(Fact(entry.where, " ".join(entry.values) or "no crashkernel=") for entry in entries[:4])
    lacking = [entry for entry in entries if not entry.values and not _is_for_rescue(entry)]
    if lacking:
        what = lacking[0].title or lacking[0].where
        return Check(group, name, "warning", f"not asked for by {what}", facts, mend_reservation())
    words = " ".join(dict.fromkeys(f"crashkernel={value}" for entry in entries for value in entry.values))
    return Check(group, name, "ok", f"{words} ({chosen[0].loader.name})", facts)


def _is_for_rescue(entry: BootEntry) -> bool:
    return bool(_RESCUE.search(entry.title)) or "single" in entry.command_line.split()


def _show_loader(one: DetectedLoader) -> Fact:
    return Fact(one.loader.name, "; ".join(one.evidence.reasons))


def mend_reservation(size: str = "") -> str:
    """Name the command that reserves memory."""
    return f"postpanic crashkernel set {size}".rstrip() + ", and reboot"


def _check_request(subject: Subject, reservation: Reservation) -> Check:
    name = "command line"
    reading = subject.read("proc/cmdline")
    if reading.text is None:
        return Check(GROUP, name, "unknown", reading.problem, (reading.fact,))
    request = reservation.request
    words = " ".join(f"crashkernel={value}" for value in request.words)
    if not request.words:
        says = Fact("/proc/cmdline", "no crashkernel=")
        if subject.fadump:
            return Check(GROUP, name, "ok", "no crashkernel= on it: the firmware's dump has a size of its own", (says,))
        return Check(GROUP, name, "failing", "no crashkernel= on it", (says,), mend_reservation())
    facts = (Fact("/proc/cmdline", words),)
    if request.problem:
        found = f"{words}: nothing is reserved: {request.problem}"
        return Check(GROUP, name, "failing", found, facts, mend_reservation())
    meaning = explain_request(request, subject.host.machine)
    return Check(GROUP, name, "ok", f"{words}: {meaning[0]}", facts + tuple(Fact("", line) for line in meaning[1:]))


def _check_size(subject: Subject, reservation: Reservation) -> Check:
    size = subject.crash_size_bytes
    if size is None:
        says = (Fact(_SIZE_FILE, "not there"),)
        if not subject.has_sysfs:
            return Check(GROUP, "size", "unknown", "no sysfs here", says)
        mend = "use a kernel built with CONFIG_CRASH_DUMP=y"
        return Check(GROUP, "size", "failing", "this kernel reserves none", says, mend)
    says = (Fact(_SIZE_FILE, str(size)),)
    if subject.fadump:
        reading = subject.read("sys/kernel/fadump/mem_reserved")
        kept = reading.number or 0
        found = f"{format_size(kept)} for the firmware's dump" if kept else "kept by the firmware"
        return Check(GROUP, "size", "ok", found, (reading.fact, *says))
    if size:
        # What was shrunk on purpose is no fault; whether it is enough is another question.
        rest = f" ({reservation.difference})" if reservation.difference else ""
        return Check(GROUP, "size", "ok", format_size(size) + rest, says)
    if not reservation.request.size_bytes:
        return Check(GROUP, "size", "failing", "no memory", says, mend_reservation())
    mend = f"dmesg | grep -i crashkernel; {mend_reservation()}"
    return Check(GROUP, "size", "failing", reservation.difference, says, mend)


def _check_place(subject: Subject) -> Check:
    reading = subject.read("proc/iomem")
    if reading.text is None:
        return Check(GROUP, "place", "unknown", reading.problem, (reading.fact,), needs_root=reading.is_there)
    memory = subject.io_memory
    if memory.is_hidden and not memory.crash_kernel:
        says = Fact("/proc/iomem", "its addresses are zeros")
        return Check(GROUP, "place", "unknown", "shown to root only", (says,), needs_root=True)
    if not memory.crash_kernel:
        says = Fact("/proc/iomem", "no line Crash kernel")
        return Check(GROUP, "place", "not applicable", "nothing is reserved", (says,))
    ranges = ", ".join(f"{entry.start:#x}-{entry.end - 1:#x}" for entry in memory.crash_kernel)
    low = " (with a low part, for DMA)" if len(memory.crash_kernel) > 1 else ""
    return Check(GROUP, "place", "ok", f"at {ranges}{low}", (Fact("/proc/iomem", f"{ranges} : Crash kernel"),))


def _check_enough(subject: Subject) -> Check:
    size = subject.crash_size_bytes
    if not size:
        if size is None and not subject.has_sysfs:
            return Check(GROUP, "enough", "unknown", "what is reserved is not known")
        return Check(GROUP, "enough", "not applicable", "nothing is reserved")
    measured = _check_measured(subject, size)
    if measured is not None:
        return measured
    needed = _estimate(subject)
    if isinstance(needed, Check):
        return needed
    parts = tuple(Fact(f"{part.name}, {format_size(part.size_bytes)}", part.evidence) for part in needed.parts)
    found = f"estimated need {format_size(needed.least_bytes)} of {format_size(size)}"
    mend = mend_reservation(needed.words[0] if len(needed.words) == 1 else "")
    if size < _find_bound(subject, needed):
        return Check(GROUP, "enough", "failing", f"too little: {found}", parts, mend)
    if size < needed.least_bytes:
        return Check(GROUP, "enough", "warning", f"perhaps too little: {found}", parts, mend)
    more = format_size(needed.recommended_bytes)
    rest = "" if size >= needed.recommended_bytes else f"; {more} would leave room for error"
    return Check(GROUP, "enough", "ok", found + rest, parts)


def _find_bound(subject: Subject, needed: Estimate) -> float:
    """Give what is surely too little: for images that are not ours no more is known than their size."""
    if subject.tool is None and subject.config.capture.image == "own":
        return needed.least_bytes * _SURELY_TOO_LITTLE
    return sum(part.size_bytes for part in needed.parts if part.name in {"kernel", "image"})


def _estimate(subject: Subject) -> Estimate | Check:
    unknown = partial(Check, GROUP, "enough", "unknown")
    expected = subject.expected
    kernel = expected.kernel if expected else None
    image = expected.initrd if expected and isinstance(expected.initrd, Path) else None
    if kernel is None or image is None:
        return unknown("which image is loaded is not known", needs_root=subject.is_state_hidden)
    try:
        found = read_image(kernel)
        image_bytes, unpacked_bytes = _measure_image(image)
    except (OSError, PostpanicError) as exc:
        says = Fact(f"{subject.show(kernel)}, {subject.show(image)}", str(exc))
        return unknown("kernel or image cannot be read", (says,), needs_root=not subject.host.is_root)
    host, config = subject.host, subject.config
    is_own = subject.tool is None
    targets = (*config.targets, *config.fallbacks) if is_own else ()
    needs = CaptureNeeds(
        kernel_bytes=found.memory_bytes or max(len(found.payload), len(found.content)),
        image_bytes=image_bytes,
        unpacked_bytes=unpacked_bytes,
        host_memory_bytes=read_memory(host).total_bytes,
        nr_cpus=config.capture.nr_cpus if is_own else 1,
        core_header_bytes=host.read_core_header_size_bytes() or 0,
        has_network=any(isinstance(one, NfsTarget | SshTarget | HttpTarget) for one in targets)
        or (subject.tool is not None and any(one.server for one in subject.tool.targets)),
        # Debian's image has no init of its own size: it starts the one of the machine's root.
        is_borrowed=(subject.tool.name != DEBIAN) if subject.tool is not None else config.capture.image != "own",
        machine=host.machine,
        release=host.release,
        kernel_evidence=f"what {subject.show(kernel)} says it needs to start",
        image_evidence=f"{subject.show(image)} unpacked",
    )
    return estimate(needs)


def _measure_image(image: Path) -> tuple[int, int]:
    """Tell the size of an initramfs, and of what is in it where its compression's own header or trailer says so."""
    size = image.stat().st_size
    with image.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        stream.seek(max(size - 4, 0))
        tail = stream.read(4)
    unpacked = 0
    if head.startswith(_ZSTD_MAGIC):
        unpacked = max(zstandard.frame_content_size(head), 0)
    elif head.startswith(_GZIP_MAGIC) and len(tail) == 4:
        (unpacked,) = struct.unpack("<I", tail)
    # Of several archives, one after the other, each tells of itself alone.
    return size, unpacked if size < unpacked < 16 * size else _UNPACKED_FACTOR * size


def _check_measured(subject: Subject, size: int) -> Check | None:
    """Judge by what a rehearsal of this very kernel and image has measured."""
    path = subject.state_paths.directory / REHEARSAL_NAME
    rehearsal = read_rehearsal(path)
    if rehearsal is None or not rehearsal.needed_bytes:
        return None
    if set(find_rehearsed_changes(subject, rehearsal)) - {"the reservation", "the targets"}:
        return None
    needed = rehearsal.needed_bytes
    says = Fact(subject.show(path), f"worked with {format_size(needed)}, on {rehearsal.when}")
    found = f"measured need {format_size(needed)} of {format_size(size)}"
    if needed <= size:
        return Check(GROUP, "enough", "ok", found, (says,))
    mend = mend_reservation(f"{-(-needed // MIB)}M")
    return Check(GROUP, "enough", "failing", f"too little: {found}", (says,), mend)
