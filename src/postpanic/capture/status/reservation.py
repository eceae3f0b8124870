"""The memory that is reserved for the capture kernel: whether there is any, and whether it is enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.kexec.images import read_image
from postpanic.capture.rehearsals import REHEARSAL_NAME, read_rehearsal
from postpanic.capture.status.model import Check, Fact
from postpanic.capture.status.subject import Subject
from postpanic.errors import PostpanicError
from postpanic.units import MIB, format_size

__all__ = ["Need", "check_reservation", "estimate_need"]

GROUP = "reservation"
_SIZE_FILE = "/sys/kernel/kexec_crash_size"
_UNPACKED_FACTOR = 3
"""An image unpacks to about three times its size (zstd, gzip and xz of programs and modules)."""
_OWN_BYTES = 24 * MIB
"""What the saver and its kernel need beside kernel and image, with a local disk and one processor: measured."""
_FOREIGN_BYTES = 64 * MIB
"""With systemd, udev and makedumpfile in the image, as ``kdumpctl estimate`` has it."""


@dataclass(frozen=True)
class Need:
    """
    What a capture needs.

    Attributes
    ----------
    size_bytes : int
        In all.
    least_bytes : int
        Without this it cannot start: kernel and image, packed and unpacked.
    parts : tuple of (str, int)
        What it is made of.
    """

    size_bytes: int
    least_bytes: int
    parts: tuple[tuple[str, int], ...]


def estimate_need(kernel: Path, image: Path, *, is_own: bool) -> Need | None:
    """
    Estimate what a capture kernel and its image need; None where they cannot be read.

    Parameters
    ----------
    is_own : bool
        Whether the image is postpanic's own, and no distribution's.
    """
    try:
        found = read_image(kernel)
        image_bytes = image.stat().st_size
    except (OSError, PostpanicError):
        return None
    kernel_bytes = max(found.memory_bytes, len(found.payload))
    unpacked = _UNPACKED_FACTOR * image_bytes
    work = _OWN_BYTES if is_own else _FOREIGN_BYTES
    parts = (("kernel", kernel_bytes), ("image", image_bytes), ("image, unpacked", unpacked), ("to work with", work))
    least = kernel_bytes + image_bytes + unpacked
    return Need(least + work, least, parts)


def check_reservation(subject: Subject) -> Iterator[Check]:
    """Look at what is asked for on the command line, at what the kernel has reserved, and at what is needed."""
    yield _check_request(subject)
    yield _check_size(subject)
    yield _check_place(subject)
    yield _check_need(subject)


def mend_reservation(size: str = "256M") -> str:
    """Name the command that reserves memory."""
    return f"postpanic crashkernel set {size}, and reboot"


def _check_request(subject: Subject) -> Check:
    reading = subject.read("proc/cmdline")
    if reading.text is None:
        return Check(GROUP, "command line", "unknown", reading.problem, (reading.fact,))
    words = subject.find_words("crashkernel")
    if not words:
        says = Fact("/proc/cmdline", "no crashkernel=")
        return Check(GROUP, "command line", "failing", "no crashkernel= on it", (says,), mend_reservation())
    return Check(GROUP, "command line", "ok", " ".join(words), (Fact("/proc/cmdline", " ".join(words)),))


def _check_size(subject: Subject) -> Check:
    size = subject.crash_size_bytes
    if size is None:
        if not subject.exists("sys/kernel"):
            return Check(GROUP, "size", "unknown", "no sysfs here", (Fact(_SIZE_FILE, "not there"),))
        mend = "use a kernel built with CONFIG_CRASH_DUMP=y"
        return Check(GROUP, "size", "failing", "this kernel reserves none", (Fact(_SIZE_FILE, "not there"),), mend)
    if size:
        return Check(GROUP, "size", "ok", format_size(size), (Fact(_SIZE_FILE, str(size)),))
    words = subject.find_words("crashkernel")
    found = f"nothing, though {words[-1]} is asked for" if words else "nothing"
    mend = f"dmesg | grep -i crashkernel; {mend_reservation()}" if words else mend_reservation()
    return Check(GROUP, "size", "failing", found, (Fact(_SIZE_FILE, "0"),), mend)


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


def _check_need(subject: Subject) -> Check:
    size = subject.crash_size_bytes
    if not size:
        return Check(GROUP, "enough", "not applicable", "nothing is reserved")
    measured = _check_measured(subject, size)
    if measured is not None:
        return measured
    expected = subject.expected
    kernel = expected.kernel if expected else None
    image = expected.initrd if expected and isinstance(expected.initrd, Path) else None
    if kernel is None or image is None:
        return Check(
            GROUP, "enough", "unknown", "which image is loaded is not known", needs_root=subject.is_state_hidden
        )
    need = estimate_need(kernel, image, is_own=subject.tool is None and subject.config.capture.image == "own")
    if need is None:
        source = Fact(subject.show(image), "cannot be read, or the kernel cannot")
        return Check(GROUP, "enough", "unknown", "kernel or image cannot be read", (source,), needs_root=True)
    parts = Fact(
        f"{subject.show(kernel)}, {subject.show(image)}",
        ", ".join(f"{name} {format_size(part)}" for name, part in need.parts),
    )
    found = f"estimated need {format_size(need.size_bytes)} of {format_size(size)}"
    wanted = mend_reservation(f"{-(-need.size_bytes // (16 * MIB)) * 16}M")
    if size < need.least_bytes:
        return Check(GROUP, "enough", "failing", f"too little: {found}", (parts,), wanted)
    if size < need.size_bytes:
        return Check(GROUP, "enough", "warning", f"perhaps too little: {found}", (parts,), wanted)
    return Check(GROUP, "enough", "ok", found, (parts,))


def _check_measured(subject: Subject, size: int) -> Check | None:
    """Judge by what a rehearsal of this very reservation's kernel and image has measured."""
    from postpanic.capture.status.rehearsal import find_rehearsed_changes

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
