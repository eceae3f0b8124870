"""
How much memory the capture kernel needs: by a rehearsal where there was one, else put together.

The sum is held by the sizes that were found by trying (``docs/concepts/capture.md``):
with Debian 12's cloud kernel 92 MiB do and this says 95, with its generic
kernel 108 do and this says 108; on arm64, in the order of the table there, 72, 84, 96 and 92
do and this says 79, 85, 95 and 104. What devices take is an allowance, and said to be one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from postpanic.units import GIB, MIB, format_size

__all__ = ["CaptureNeeds", "Estimate", "MeasuredNeed", "Part", "estimate", "spell_request"]

RUNNING_BYTES = 24 * MIB
"""Slabs, stacks, page tables and per-CPU data of a kernel that only saves, and the saver's own memory."""
CPU_BYTES = 2 * MIB
"""Each processor besides the first: per-CPU data, stacks, queues of devices."""
COMFORT_BYTES = 24 * MIB
"""Larger buffers, and the self-test of the dump, which is left out with less."""
BITMAP_BYTES_PER_TIB = 64 * MIB
"""Two bits for each page of the machine: which exist, which are kept."""
WORTH_BYTES_PER_TIB = 128 * MIB
"""Half a byte for each page: the order in which they are saved."""
NETWORK_BYTES = 32 * MIB
BORROWED_BYTES = 64 * MIB
"""The distribution's own init and udev, in an image that is theirs."""
LARGE_PAGE_BYTES = {16 << 10: 8 * MIB, 64 << 10: 100 * MIB}
"""By the size of a page; that of 64 KiB was not tried."""
ARM64_SHARE = (5, 12)
"""
Of the kernel: slabs and tables grow with it. ``init_size`` of an x86 image has room to unpack itself, which does for
them; ``image_size`` of an arm64 one has none.
"""
ENCRYPTION_BYTES = 64 * MIB
STRUCT_PAGE_SHARE = 64
"""struct page: 64 bytes for each 4096."""
HIGH_FROM_BYTES = 768 * MIB
"""From here on a place below 4 GiB may not be found."""

_DRIVER_BYTES = {
    **dict.fromkeys(("mlx5_core",), 150 * MIB),
    **dict.fromkeys(("lpfc", "qla2xxx", "mpt3sas", "megaraid_sas", "smartpqi", "hpsa", "aacraid"), 32 * MIB),
    **dict.fromkeys(("bnxt_en", "ice", "i40e", "qede", "bnx2x", "cxgb4", "mlx4_core"), 32 * MIB),
}
"""Rings and firmware areas of cards that are known for taking much, one queue each."""


@dataclass(frozen=True)
class CaptureNeeds:
    """
    What an estimate is made of.

    Attributes
    ----------
    kernel_bytes : int
        What the kernel needs to start, by its own word.
    image_bytes, unpacked_bytes : int
        Of the initramfs.
    kernel_evidence, image_evidence : str
        Where these are from.
    modules : sequence of str
        Drivers in it.
    host_memory_bytes : int
        Of the machine that crashes.
    nr_cpus : int
        Of the capture kernel.
    page_bytes : int
        The size of its pages.
    core_header_bytes : int
        Room for the core header of a kernel that keeps it up to date by itself.
    has_network, is_borrowed, is_encrypted : bool
        Whether servers are saved to; whether the image is the distribution's; whether memory is encrypted (SME).
    machine : str
    remarks : sequence of str
        What could not be found out, and what was taken instead.
    """

    kernel_bytes: int
    image_bytes: int
    unpacked_bytes: int
    modules: Sequence[str] = ()
    host_memory_bytes: int = 0
    nr_cpus: int = 1
    page_bytes: int = 4096
    core_header_bytes: int = 0
    has_network: bool = False
    is_borrowed: bool = False
    is_encrypted: bool = False
    machine: str = "x86_64"
    release: str = ""
    remarks: Sequence[str] = ()
    kernel_evidence: str = "what its image says it needs to start"
    image_evidence: str = "the initramfs unpacked"


@dataclass(frozen=True)
class MeasuredNeed:
    """
    What a rehearsal found.

    Attributes
    ----------
    smallest_bytes : int
        The smallest reservation with which a whole dump was saved; 0: not looked for.
    peak_bytes : int
        The most that was in use.
    release : str
        The capture kernel.
    when : str
        The day, for people.
    """

    smallest_bytes: int = 0
    peak_bytes: int = 0
    release: str = ""
    when: str = ""


@dataclass(frozen=True)
class Part:
    """One summand, and where it is from."""

    name: str
    size_bytes: int
    evidence: str


@dataclass(frozen=True)
class Estimate:
    """
    How much to reserve.

    Attributes
    ----------
    parts : tuple of Part
        Of the least.
    least_bytes : int
        With less, a whole dump is not to be expected.
    recommended_bytes : int
        With room for the self-test, order of worth, and error.
    words : tuple of str
        The ``crashkernel=`` to set.
    alternatives : tuple of (str, str)
        Other spellings, and what each is for.
    is_measured : bool
        Whether a rehearsal says so.
    """

    parts: tuple[Part, ...]
    least_bytes: int
    recommended_bytes: int
    words: tuple[str, ...]
    alternatives: tuple[tuple[str, str], ...]
    is_measured: bool
    remarks: tuple[str, ...]


def estimate(needs: CaptureNeeds, measured: MeasuredNeed | None = None, *, knows_cma: bool = False) -> Estimate:
    """
    Say how much to reserve.

    Parameters
    ----------
    measured : MeasuredNeed, optional
        Of a rehearsal; of another kernel it does not count.
    knows_cma : bool
        Whether the kernel that reserves knows ``,cma``.
    """
    remarks = list(needs.remarks)
    if measured is not None and measured.release not in ("", needs.release):
        remarks.append(f"the rehearsal was of kernel {measured.release}: not counted")
        measured = None
    parts = _add_up(needs)
    least = sum(part.size_bytes for part in parts)
    known = (measured.smallest_bytes or measured.peak_bytes) if measured else 0
    if measured is not None and known:
        what = "the smallest that worked" if measured.smallest_bytes else "the most that was in use"
        when = f" on {measured.when}" if measured.when else ""
        parts, least = (Part("rehearsed", known, f"{what}{when}"),), known
    # An estimate errs by more than a measurement.
    spare = least // (16 if known else 8)
    comfort = COMFORT_BYTES + needs.host_memory_bytes * WORTH_BYTES_PER_TIB // (1 << 40)
    recommended = _round_up(least + spare + comfort)
    words = spell_request(recommended, needs.machine)
    alternatives = _spell_alternatives(needs, _round_up(least), recommended, knows_cma=knows_cma)
    if recommended * 2 > needs.host_memory_bytes > 0:
        memory = format_size(needs.host_memory_bytes)
        remarks.append(f"that is much of the machine's {memory}: a smaller kernel or fewer drivers would need less")
    return Estimate(parts, least, recommended, words, alternatives, bool(known), tuple(remarks))


def spell_request(size_bytes: int, machine: str) -> tuple[str, ...]:
    """
    Spell the values of ``crashkernel=`` for a size.

    >>> spell_request(160 << 20, "x86_64"), spell_request(1 << 30, "x86_64")
    (('160M',), ('1024M,high', '256M,low'))
    """
    if size_bytes < HIGH_FROM_BYTES or machine not in ("x86_64", "aarch64"):
        return (f"{size_bytes // MIB}M",)
    low = "256M" if machine == "x86_64" else "128M"
    return f"{size_bytes // MIB}M,high", f"{low},low"


def _add_up(needs: CaptureNeeds) -> tuple[Part, ...]:
    tib = 1 << 40
    parts = [
        Part("kernel", needs.kernel_bytes, needs.kernel_evidence),
        Part("image", needs.unpacked_bytes, f"{needs.image_evidence}, {format_size(needs.image_bytes)} as a file"),
        Part("running", RUNNING_BYTES, "slabs, stacks, page tables, the saver"),
        Part(
            "processors",
            (needs.nr_cpus - 1) * CPU_BYTES,
            f"nr_cpus={needs.nr_cpus}, {format_size(CPU_BYTES)} for each more than one",
        ),
        Part(
            "bitmaps",
            needs.host_memory_bytes * BITMAP_BYTES_PER_TIB // tib,
            f"two bits for each page of {format_size(needs.host_memory_bytes)}",
        ),
        Part("core header", needs.core_header_bytes, "room for processors and memory to come"),
    ]
    if needs.has_network:
        parts.append(Part("network", NETWORK_BYTES, "allowance: buffers of the card, connections"))
    if needs.is_borrowed:
        parts.append(Part("init", BORROWED_BYTES, "allowance: the distribution's init and udev"))
    if needs.machine == "aarch64":
        share = needs.kernel_bytes * ARM64_SHARE[0] // ARM64_SHARE[1]
        parts.insert(1, Part("kernel's tables", share, "by measurement: five twelfths of the kernel, on arm64"))
    if needs.page_bytes > 4096:
        least = min((size for size in LARGE_PAGE_BYTES if size >= needs.page_bytes), default=max(LARGE_PAGE_BYTES))
        room = LARGE_PAGE_BYTES[least]
        parts.append(Part("large pages", room, f"allowance: pages of {needs.page_bytes >> 10} KiB"))
    if needs.is_encrypted:
        parts.append(Part("encryption", ENCRYPTION_BYTES, "allowance: bounce buffers of encrypted memory"))
    drivers = [name.replace("-", "_") for name in needs.modules]
    parts += [
        Part(name, _DRIVER_BYTES[name], "allowance: rings of this driver") for name in drivers if name in _DRIVER_BYTES
    ]
    so_far = sum(part.size_bytes for part in parts)
    pages = so_far // (STRUCT_PAGE_SHARE - 1) * 4096 // needs.page_bytes
    parts.insert(3, Part("struct page", pages, f"64 bytes for each page of {needs.page_bytes} bytes"))
    return tuple(part for part in parts if part.size_bytes)


def _round_up(size_bytes: int) -> int:
    step = 16 * MIB if size_bytes <= 512 * MIB else 64 * MIB
    return -(-size_bytes // step) * step


def _spell_alternatives(
    needs: CaptureNeeds, least: int, recommended: int, *, knows_cma: bool
) -> tuple[tuple[str, str], ...]:
    size = recommended // MIB
    floor = 1
    while floor * GIB < recommended * 4:
        floor *= 2
    found = [(f"crashkernel={floor}G-:{size}M", f"nothing on machines with less than {floor} GiB: one line for many")]
    high = spell_request(max(recommended, HIGH_FROM_BYTES), needs.machine)
    if len(high) == 2 and recommended < HIGH_FROM_BYTES and needs.host_memory_bytes > 5 * GIB:
        words = f"crashkernel={size}M,high crashkernel={high[1]}"
        found.append((words, "above 4 GiB, where what is below is too broken up; costs more in all"))
    if knows_cma and least < recommended:
        more = max((recommended - least) // MIB, 32)
        words = f"crashkernel={least // MIB}M crashkernel={more}M,cma"
        found.append((words, "processes use the second part until the crash; their pages in it are not in the dump"))
    return tuple(found)
