"""
What the kernel has loaded for a crash: the pieces and their places, from its own memory.

``kexec_crash_image`` points to a ``struct kimage`` (``include/linux/kexec.h``)
with the segments that were copied into the reserved memory. Its address comes
from ``/proc/kallsyms``, the layout from the kernel's BTF. Without it the
reservation would have to be searched, where what an earlier load has left
looks as good as the last one's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from postpanic.capture.host import Host, IoMemory, MemoryRange
from postpanic.dumps.memory import Dump
from postpanic.errors import CorruptError, FactAbsentError, PostpanicError
from postpanic.kernel.btf.peek import PeekedStruct, peek_struct
from postpanic.kernel.kallsyms.lookup import find_symbols
from postpanic.kernel.memory import KernelMemory, open_kernel_memory

__all__ = ["Segment", "read_segments"]

_NAME = "kexec_crash_image"
_SYMBOL = re.compile(rf"^([0-9a-f]+) \w {_NAME}$", re.MULTILINE)
_KALLSYMS_LIMIT_BYTES = 64 << 20
_BTF = "sys/kernel/btf/vmlinux"
_SEGMENT_LIMIT = 64
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class Segment:
    """
    A piece in the reserved memory.

    Attributes
    ----------
    paddr : int
        Where it is.
    content_bytes, size_bytes : int
        How much was copied, and how much room it has; the rest is zeros.
    """

    paddr: int
    content_bytes: int
    size_bytes: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.paddr + self.size_bytes


def read_segments(host: Host, kcore: Dump) -> tuple[Segment, ...] | None:
    """
    Read the segments of the capture kernel that is loaded.

    Returns
    -------
    tuple of Segment, or None
        None when none is loaded.

    Raises
    ------
    FactAbsentError
        If the kernel does not say where to look: hidden symbols, no BTF.
    CorruptError
        If what is there makes no sense.
    """
    kimage, segment = _read_layouts(host)
    memory = open_kernel_memory(kcore)
    pointer = memory.read_u64(_find_symbol(host, memory))
    if pointer == 0:
        return None
    count = memory.read_u64(pointer + kimage.offsets["nr_segments"])
    if not 0 < count <= _SEGMENT_LIMIT:
        raise CorruptError(f"{count} segments, 1 to {_SEGMENT_LIMIT} are possible", where="kexec_crash_image")
    segments = []
    for number in range(count):
        at = pointer + kimage.offsets["segment"] + number * segment.size_bytes
        sizes = [memory.read_u64(at + segment.offsets[name]) for name in ("mem", "bufsz", "memsz")]
        segments.append(Segment(*sizes))
    return tuple(segments)


def _find_symbol(host: Host, memory: KernelMemory) -> int:
    try:
        with host.path("proc/kallsyms").open("rb") as stream:
            # The kernel's own symbols come first, modules after them.
            found = _SYMBOL.search(stream.read(_KALLSYMS_LIMIT_BYTES).decode(errors="replace"))
    except OSError as exc:
        raise FactAbsentError(f"cannot read symbols: {exc.strerror}", where="/proc/kallsyms") from exc
    if found is not None and int(found[1], 16) != 0:
        return int(found[1], 16)
    # With kernel.kptr_restrict=2 all addresses are 0 there, though not in the table that they come from.
    try:
        vaddr = find_symbols(memory, [_NAME]).get(_NAME)
    except PostpanicError:
        vaddr = None
    if vaddr is None:
        hint = "kernel.kptr_restrict is 2" if found else "the kernel was built without CONFIG_KALLSYMS_ALL"
        raise FactAbsentError(f"the address of {_NAME} is hidden", where="/proc/kallsyms", hint=hint)
    return vaddr


def _read_layouts(host: Host) -> tuple[PeekedStruct, PeekedStruct]:
    try:
        btf = host.path(_BTF).read_bytes()
    except OSError as exc:
        raise FactAbsentError(f"no type information: {exc.strerror}", where=f"/{_BTF}") from exc
    wanted = {"kimage": ("nr_segments", "segment"), "kexec_segment": ("bufsz", "mem", "memsz")}
    layouts = []
    for name, members in wanted.items():
        found = peek_struct(btf, name, members)
        if found is None or set(members) - set(found.offsets):
            raise FactAbsentError(f"no struct {name} as it is known here", where=f"/{_BTF}")
        layouts.append(found)
    return layouts[0], layouts[1]


def find_outside(segments: tuple[Segment, ...], memory: IoMemory) -> list[Segment]:
    """Return the segments that are not in the reserved memory."""

    def is_inside(segment: Segment, reserved: MemoryRange) -> bool:
        return reserved.start <= segment.paddr and segment.end <= reserved.end

    return [
        segment for segment in segments if not any(is_inside(segment, reserved) for reserved in memory.crash_kernel)
    ]
