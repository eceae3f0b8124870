"""
Whether what is loaded is what was meant to be, and can work.

``kexec_crash_loaded`` is 1 after every load, whatever was loaded. Here the
reserved memory itself is read through ``/proc/kcore`` and taken apart as the
capture kernel will: boot data, command line, initramfs, core header. What cannot
be read is said to be unverified, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from postpanic.capture.host import Host, IoMemory
from postpanic.capture.kexec.arm64_segments import Piece
from postpanic.capture.kexec.boot_data import (
    BOOT_PARAMS_BYTES,
    BootData,
    decode_boot_params,
    decode_device_tree,
    is_boot_params,
    is_device_tree,
)
from postpanic.capture.kexec.core_header import CoreHeader, Range, compare_coverage, decode_core_header, subtract
from postpanic.capture.kexec.images import read_image
from postpanic.capture.kexec.live_image import Segment, find_outside, read_segments
from postpanic.capture.kexec.own_header import read_crash_notes
from postpanic.dumps.kcore import KCORE_PATH, open_kcore
from postpanic.dumps.memory import Dump
from postpanic.errors import PageAbsentError, PostpanicError
from postpanic.units import PhysAddr, format_size

__all__ = ["Check", "Expected", "Outcome", "Verification", "verify"]

Outcome = Literal["good", "bad", "unverified"]

COMPARE_BYTES = 1 << 20
CORE_HEADER_LIMIT_BYTES = 4 << 20
DEVICE_TREE_LIMIT_BYTES = 4 << 20
SHOWN_RANGES = 3
LOW_END = 1 << 20
_NOT_SHOWN = ("segments", "contents")
"""Checks that fail for want of a look at the memory."""
_BEHIND = ("kernel", "initramfs", "command line", "core header", "notes", "memory")
"""Checks that need such a look."""


@dataclass(frozen=True)
class Expected:
    """
    What should be loaded; what is None is not compared.

    Attributes
    ----------
    kernel : Path or None
        Its image.
    initrd : Path, bytes or None
        The initramfs.
    command_line : str or None
        Without what the loader adds.
    """

    kernel: Path | None = None
    initrd: Path | bytes | None = None
    command_line: str | None = None


@dataclass(frozen=True)
class Check:
    """
    One thing that was looked at.

    Attributes
    ----------
    name : str
        ``loaded``, ``segments``, ``kernel``, ``initramfs``, ``command line``, ``core header``, ``notes``, ``memory``.
    outcome : str
        ``good``, ``bad``, or ``unverified``: it could not be looked at.
    evidence : str
        What was found, or why it could not be.
    """

    name: str
    outcome: Outcome
    evidence: str


@dataclass(frozen=True)
class Verification:
    """All checks, in order."""

    checks: tuple[Check, ...] = field(default=())

    @property
    def outcome(self) -> Outcome:
        """``bad`` if one is, ``good`` if all are, else ``unverified``."""
        outcomes = {check.outcome for check in self.checks}
        if "bad" in outcomes:
            return "bad"
        return "good" if outcomes == {"good"} else "unverified"

    @property
    def reasons(self) -> list[str]:
        """What is not good, a phrase each, the bad first."""
        order = sorted((check for check in self.checks if check.outcome != "good"), key=lambda check: check.outcome)
        return [
            f"{check.name}: {'not verified: ' if check.outcome == 'unverified' else ''}{check.evidence}"
            for check in order
        ]


def verify(host: Host, expected: Expected | None = None, *, handed: Sequence[Piece] = ()) -> Verification:
    """
    Look at what is loaded for a crash.

    Nothing that the host's state causes is raised: it is the evidence of a check.

    Parameters
    ----------
    handed : sequence of Piece
        What the kernel was given just now. It is looked at instead where the kernel does not show what it has.
    """
    expected = expected or Expected()
    loaded = host.read_crash_loaded()
    if not loaded:
        found = "this kernel cannot have one" if loaded is None else "no capture kernel is loaded"
        return Verification((Check("loaded", "bad", found),))
    checks = [Check("loaded", "good", f"{format_size(host.read_crash_size_bytes() or 0)} reserved")]
    memory = host.read_io_memory()
    if not memory.crash_kernel:
        why = "the kernel hides addresses in /proc/iomem" if memory.is_hidden else "/proc/iomem has no crash kernel"
        return Verification((*checks, _name_unseen(Check("segments", "unverified", f"{why}: run it as root"))))
    try:
        with open_kcore(host.path(str(KCORE_PATH)), lockdown_path=host.path("sys/kernel/security/lockdown")) as kcore:
            seen = list(_inspect_memory(host, kcore, memory, expected))
    except PostpanicError as exc:
        seen = [Check("segments", "unverified", f"{exc}{f' ({exc.hint})' if exc.hint else ''}")]
    if seen[-1].outcome == "unverified" and seen[-1].name in _NOT_SHOWN:
        if handed:
            seen = list(_inspect_pieces(host, handed, memory, expected, seen[-1].evidence))
        else:
            seen[-1] = _name_unseen(seen[-1])
    return Verification((*checks, *seen))


def _name_unseen(check: Check) -> Check:
    """Say what cannot be looked at, either."""
    return replace(check, evidence=f"{check.evidence}; so these are not verified: {', '.join(_BEHIND)}")


def _inspect_memory(host: Host, kcore: Dump, memory: IoMemory, expected: Expected) -> Iterator[Check]:
    try:
        segments = read_segments(host, kcore)
    except PostpanicError as exc:
        yield Check("segments", "unverified", f"{exc}{f' ({exc.hint})' if exc.hint else ''}")
        return
    if segments is None:
        yield Check("segments", "bad", "the kernel has no image to start")
        return

    def read(paddr: int, size_bytes: int) -> bytes:
        return kcore.read(PhysAddr(paddr), size_bytes)

    yield from _Inspection(host, read, memory, expected).run(segments)


def _inspect_pieces(
    host: Host, handed: Sequence[Piece], memory: IoMemory, expected: Expected, why: str
) -> Iterator[Check]:
    """Look at what the kernel was given: it has copied that, or the call had failed."""
    yield Check("contents", "good", f"as the kernel was given them; they cannot be read back: {why}")

    def read(paddr: int, size_bytes: int) -> bytes:
        for piece in handed:
            if piece.paddr <= paddr and paddr + size_bytes <= piece.paddr + piece.size_bytes:
                at = paddr - piece.paddr
                return piece.content[at : at + size_bytes].ljust(size_bytes, b"\0")
        raise PageAbsentError(f"nothing was loaded at {paddr:#x}", paddr=paddr)

    segments = [Segment(piece.paddr, len(piece.content), piece.size_bytes) for piece in handed]
    yield from _Inspection(host, read, memory, expected).run(segments)


class _Inspection:
    """The checks that read the reserved memory, each on what the ones before have found."""

    def __init__(self, host: Host, read: Callable[[int, int], bytes], memory: IoMemory, expected: Expected) -> None:
        self._host = host
        self._read = read
        self._memory = memory
        self._expected = expected

    def run(self, segments: Sequence[Segment]) -> Iterator[Check]:
        yield self._check_segments(segments)
        if self._is_blank(segments):
            yield Check(
                "contents",
                "unverified",
                "the reserved memory reads as zeros: the kernel keeps it unmapped (arm64 before 6.4)",
            )
            return
        yield from self._attempt("kernel", lambda: self._check_kernel(segments))
        boot = self._find_boot_data(segments)
        if boot is None:
            yield Check("boot data", "bad", "neither boot parameters nor a device tree among the segments")
            return
        yield from self._attempt("initramfs", lambda: self._check_initrd(boot, segments))
        yield self._check_command_line(boot)
        yield self._check_usable_memory(boot)
        header = self._read_core_header(boot, segments)
        if isinstance(header, Check):
            yield header
            return
        loads = sum(end - start for start, end in header.loads)
        yield Check(
            "core header", "good", f"at {boot.core_header:#x}, {len(header.loads)} loads, {format_size(loads)} in all"
        )
        yield self._check_notes(header)
        yield self._check_coverage(header)

    def _attempt(self, name: str, check: Callable[[], Check]) -> Iterator[Check]:
        try:
            yield check()
        except PostpanicError as exc:
            yield Check(name, "unverified", str(exc))

    def _check_segments(self, segments: Sequence[Segment]) -> Check:
        outside = find_outside(tuple(segments), self._memory)
        if outside:
            places = _spell_ranges([(segment.paddr, segment.end) for segment in outside])
            return Check(
                "segments", "bad", f"{len(outside)} of {len(segments)} are not in the reserved memory: {places}"
            )
        used = sum(segment.size_bytes for segment in segments)
        reserved = _spell_ranges([(entry.start, entry.end) for entry in self._memory.crash_kernel])
        return Check("segments", "good", f"{len(segments)}, {format_size(used)}, in the reserved {reserved}")

    def _is_blank(self, segments: Sequence[Segment]) -> bool:
        try:
            return not any(any(self._read(segment.paddr, min(segment.content_bytes, 4096))) for segment in segments)
        except PostpanicError:
            return True

    def _check_kernel(self, segments: Sequence[Segment]) -> Check:
        if self._expected.kernel is None:
            largest = max(segments, key=lambda segment: segment.size_bytes)
            return Check("kernel", "good", f"{format_size(largest.size_bytes)} at {largest.paddr:#x}, not compared")
        image = read_image(self._expected.kernel)
        for segment in segments:
            if segment.content_bytes >= len(image.payload) > 0 and self._begins_like(segment.paddr, image.payload):
                differs = self._find_difference(segment.paddr, image.payload)
                if differs is not None:
                    return Check(
                        "kernel",
                        "bad",
                        f"overwritten at {segment.paddr + differs:#x}: not what {self._expected.kernel} has",
                    )
                return Check(
                    "kernel",
                    "good",
                    f"{self._expected.kernel}, {format_size(len(image.payload))} at {segment.paddr:#x}, equal",
                )
        return Check("kernel", "bad", f"{self._expected.kernel} is in none of the segments")

    def _begins_like(self, paddr: int, content: bytes) -> bool:
        return self._read(paddr, min(len(content), 4096)) == content[:4096]

    def _find_difference(self, paddr: int, content: bytes) -> int | None:
        """Return the offset of the first block that is not the same."""
        for at in range(0, len(content), COMPARE_BYTES):
            part = content[at : at + COMPARE_BYTES]
            if self._read(paddr + at, len(part)) != part:
                return at
        return None

    def _find_boot_data(self, segments: Sequence[Segment]) -> BootData | None:
        for segment in segments:
            try:
                page = self._read(segment.paddr, min(BOOT_PARAMS_BYTES, segment.size_bytes))
                if is_boot_params(page):
                    return decode_boot_params(page, self._read)
                if is_device_tree(page):
                    return decode_device_tree(
                        self._read(segment.paddr, min(segment.size_bytes, DEVICE_TREE_LIMIT_BYTES))
                    )
            except PostpanicError:
                continue
        return None

    def _check_initrd(self, boot: BootData, segments: Sequence[Segment]) -> Check:
        wanted = self._expected.initrd
        if boot.initrd is None:
            return Check("initramfs", "good" if wanted is None else "bad", "none is loaded")
        paddr, size = boot.initrd
        if not any(segment.paddr <= paddr and paddr + size <= segment.end for segment in segments):
            return Check("initramfs", "bad", f"{format_size(size)} at {paddr:#x}, where nothing was loaded")
        if wanted is None:
            return Check("initramfs", "good", f"{format_size(size)} at {paddr:#x}, not compared")
        try:
            content = wanted.read_bytes() if isinstance(wanted, Path) else wanted
        except OSError as exc:
            return Check("initramfs", "unverified", f"{wanted!s}: {exc.strerror}")
        name = str(wanted) if isinstance(wanted, Path) else "the image"
        if len(content) != size:
            return Check("initramfs", "bad", f"{size} bytes are loaded, {name} has {len(content)}")
        differs = self._find_difference(paddr, content)
        if differs is not None:
            return Check("initramfs", "bad", f"overwritten at {paddr + differs:#x}: not what {name} has")
        return Check("initramfs", "good", f"{name}, {format_size(size)} at {paddr:#x}, equal")

    def _check_command_line(self, boot: BootData) -> Check:
        wanted = self._expected.command_line
        shown = boot.command_line if len(boot.command_line) <= 240 else boot.command_line[:240] + "…"
        if wanted is not None and wanted not in boot.command_line:
            return Check("command line", "bad", f"not what was asked for: {shown!r}")
        if not boot.core_header:
            return Check("command line", "bad", f"no elfcorehdr=, so there will be no /proc/vmcore: {shown!r}")
        return Check("command line", "good", shown)

    def _check_usable_memory(self, boot: BootData) -> Check:
        """Look at the memory that the capture kernel may use: the old kernel's would be overwritten."""
        low = [(0, LOW_END)] if boot.kind == "boot parameters" else []
        reserved = [(entry.start, entry.end) for entry in self._memory.for_capture]
        stolen = subtract(subtract(boot.memory, low), reserved)
        usable = sum(end - start for start, end in boot.memory)
        if "memmap=exactmap" in boot.command_line.split():
            return Check("usable memory", "good", "by memmap= on the command line, not compared")
        if stolen:
            return Check("usable memory", "bad", f"it may use what is not reserved for it: {_spell_ranges(stolen)}")
        if not boot.memory:
            return Check("usable memory", "bad", f"the {boot.kind} name none")
        return Check("usable memory", "good", f"{format_size(usable)}, none of it the old kernel's")

    def _read_core_header(self, boot: BootData, segments: Sequence[Segment]) -> CoreHeader | Check:
        paddr = boot.core_header
        if not paddr:
            return Check("core header", "bad", "the capture kernel is not told where one is")
        owner = next((segment for segment in segments if segment.paddr <= paddr < segment.end), None)
        if owner is None:
            return Check("core header", "bad", f"at {paddr:#x}, where nothing was loaded")
        try:
            raw = self._read(paddr, min(owner.end - paddr, CORE_HEADER_LIMIT_BYTES))
            return decode_core_header(raw, where=f"{paddr:#x}")
        except PostpanicError as exc:
            return Check("core header", "bad", str(exc))

    def _check_notes(self, header: CoreHeader) -> Check:
        place = self._host.read_vmcoreinfo_place()
        addresses = {paddr for paddr, _ in header.notes}
        if place is not None and place[0] not in addresses:
            return Check("notes", "bad", f"no VMCOREINFO: none of {len(header.notes)} notes is at {place[0]:#x}")
        wanted = read_crash_notes(self._host)
        missing = [number for number, (paddr, _) in wanted.items() if paddr not in addresses]
        if missing:
            return Check("notes", "bad", f"no registers of processor {missing[0]} ({len(missing)} are missing)")
        if place is None or not wanted:
            return Check(
                "notes", "unverified", f"{len(header.notes)} notes; the kernel does not tell where they should be"
            )
        return Check("notes", "good", f"{len(wanted)} processors and VMCOREINFO at {place[0]:#x}")

    def _check_coverage(self, header: CoreHeader) -> Check:
        fault = compare_coverage(header, self._memory)
        ram = sum(entry.size_bytes for entry in self._memory.system_ram)
        if not fault:
            return Check("memory", "good", f"the loads are the {format_size(ram)} of System RAM less the reservation")
        parts = (
            ("not in the dump", fault.missing),
            ("no memory of the host's", fault.foreign),
            ("twice", fault.repeated),
        )
        return Check("memory", "bad", "; ".join(f"{what}: {_spell_ranges(spans)}" for what, spans in parts if spans))


def _spell_ranges(spans: Sequence[Range]) -> str:
    shown = ", ".join(f"{start:#x}-{end - 1:#x}" for start, end in spans[:SHOWN_RANGES])
    return shown if len(spans) <= SHOWN_RANGES else f"{shown} and {len(spans) - SHOWN_RANGES} more"
