"""
What ``kexec_load(2)`` gets on arm64: kernel, initramfs, device tree, core header, and where it begins.

The call takes pieces of memory as they are and an address to jump to with the
MMU off; all the rest is user space's to arrange (``kernel/kexec.c``,
``arch/arm64/kernel/machine_kexec.c``). The arrangement is the one that
``kexec_file_load(2)`` makes (``arch/arm64/kernel/kexec_image.c``,
``machine_kexec_file.c``, ``drivers/of/kexec.c``); what the kernel wants of it is
in ``Documentation/arch/arm64/booting.rst``. As the kernel leaves the register
of the device tree's address at 0 after this call, a few instructions of ours
come before it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from postpanic.capture.host import MemoryRange
from postpanic.capture.kexec.device_tree import DeviceTree, Node, encode_tree
from postpanic.capture.kexec.images import KernelImage
from postpanic.capture.kexec.refusals import LoadRefusedError
from postpanic.units import format_size

__all__ = ["Arrangement", "Piece", "arrange", "prepare_tree"]

ALIGNMENT = 64 << 10
"""The largest page: what is aligned to it is aligned on each kernel."""
KERNEL_ALIGNMENT = 2 << 20
TREE_LIMIT_BYTES = 2 << 20
IMAGES_SPAN_BYTES = 32 << 30
"""Kernel and initramfs must be within this, from a multiple of 1 GiB on."""
_TEXT_OFFSET_PLACE, _FLAGS_PLACE = 8, 24
_BIG_ENDIAN = 1
_SEED_BYTES, _RNG_SEED_BYTES = 8, 128
# What the firmware, or the loader before us, told the host's kernel and nobody else.
_HOST_ONLY = (
    *("linux,elfcorehdr", "linux,usable-memory-range", "linux,initrd-start", "linux,initrd-end", "bootargs"),
    *("kaslr-seed", "rng-seed", "linux,ima-kexec-buffer", "linux,kho-fdt", "linux,kho-scratch"),
)


@dataclass(frozen=True)
class Piece:
    """
    A piece of memory to be loaded.

    Attributes
    ----------
    name : str
        For messages.
    paddr : int
        Where it goes.
    content : bytes
        What goes there.
    size_bytes : int
        How much room it has, whole pages; the rest becomes zeros.
    """

    name: str
    paddr: int
    content: bytes
    size_bytes: int


@dataclass(frozen=True)
class Arrangement:
    """
    All of them.

    Attributes
    ----------
    entry : int
        The physical address to jump to.
    pieces : tuple of Piece
        By their addresses.
    """

    entry: int
    pieces: tuple[Piece, ...]


def arrange(
    image: KernelImage,
    initrd: bytes | None,
    command_line: str,
    tree: DeviceTree,
    reserved: Sequence[MemoryRange],
    core_header: bytes,
) -> Arrangement:
    """
    Put everything into its place.

    Parameters
    ----------
    tree : DeviceTree
        The running machine's; it is changed.
    reserved : sequence of MemoryRange
        For the capture kernel. Where there are two, the lower one is for devices, and nothing is loaded into it.

    Raises
    ------
    LoadRefusedError
        If the kernel is none of arm64's, or it does not all fit.
    """
    if not reserved:
        raise LoadRefusedError("no memory is reserved for a capture kernel", hint="run it as root")
    place = max(reserved, key=lambda entry: entry.start)
    offset, kernel_bytes = _read_kernel_header(image)
    kernel_at = _round_up(place.start, KERNEL_ALIGNMENT) + offset
    initrd_at = _round_up(kernel_at + kernel_bytes, ALIGNMENT)
    free_from = _round_up(initrd_at + len(initrd or b""), ALIGNMENT)
    top = place.end & -ALIGNMENT
    header_at = top - _round_up(len(core_header), ALIGNMENT)
    start_at = header_at - ALIGNMENT
    ranges = [(entry.start, entry.size_bytes) for entry in (place, *(one for one in reserved if one is not place))]
    span = (initrd_at, len(initrd)) if initrd else None
    prepare_tree(tree, command_line, span, (header_at, len(core_header)), ranges)
    encoded = encode_tree(tree)
    if len(encoded) > TREE_LIMIT_BYTES:
        raise LoadRefusedError(f"a device tree of {format_size(len(encoded))}, {format_size(TREE_LIMIT_BYTES)} fit")
    # Not across a multiple of its largest size, as the first kernels of arm64 map no more of it.
    tree_at = start_at - _round_up(len(encoded), ALIGNMENT)
    if tree_at // TREE_LIMIT_BYTES != (tree_at + len(encoded) - 1) // TREE_LIMIT_BYTES:
        tree_at = (start_at & -TREE_LIMIT_BYTES) - _round_up(len(encoded), ALIGNMENT)
    if tree_at < free_from or free_from > (kernel_at & -(1 << 30)) + IMAGES_SPAN_BYTES:
        raise _too_large(image, initrd, place)
    pieces = [_piece("kernel", kernel_at, image.payload, kernel_bytes)]
    if initrd:
        pieces.append(_piece("initramfs", initrd_at, initrd))
    pieces += [_piece("device tree", tree_at, encoded), _piece("entry", start_at, encode_entry(kernel_at, tree_at))]
    pieces.append(_piece("core header", header_at, core_header))
    return Arrangement(start_at, tuple(pieces))


def prepare_tree(
    tree: DeviceTree,
    command_line: str,
    initrd: tuple[int, int] | None,
    core_header: tuple[int, int],
    usable: Sequence[tuple[int, int]],
) -> None:
    """
    Change a device tree into what the capture kernel is to be told.

    What the host was told of its initramfs goes, its reservation included; the
    kernel's seeds are new ones, as the host's are used up.

    Parameters
    ----------
    initrd, core_header : (int, int)
        Physical address and size in bytes.
    usable : sequence of (int, int)
        The same of the memory that the capture kernel has; the one it is loaded into first.
    """
    chosen = tree.make_chosen()
    old_start, old_end = chosen.number("linux,initrd-start", 0), chosen.number("linux,initrd-end", 0)
    tree.reservations[:] = [(start, size) for start, size in tree.reservations if not old_start <= start < old_end]
    for name in _HOST_ONLY:
        chosen.properties.pop(name, None)
    if initrd is not None:
        _tell_initrd(chosen, initrd)
        tree.reservations.append(initrd)
    chosen.properties["linux,elfcorehdr"] = tree.encode_range(*core_header)
    tree.reservations.append(core_header)
    chosen.properties["linux,usable-memory-range"] = b"".join(tree.encode_range(*one) for one in usable)
    chosen.properties["bootargs"] = command_line.encode(errors="surrogateescape") + b"\0"
    chosen.properties["kaslr-seed"] = os.urandom(_SEED_BYTES)
    chosen.properties["rng-seed"] = os.urandom(_RNG_SEED_BYTES)
    chosen.properties["linux,booted-from-kexec"] = b""


def _tell_initrd(chosen: Node, initrd: tuple[int, int]) -> None:
    chosen.properties["linux,initrd-start"] = struct.pack(">Q", initrd[0])
    chosen.properties["linux,initrd-end"] = struct.pack(">Q", sum(initrd))


def encode_entry(kernel_at: int, tree_at: int) -> bytes:
    """
    Encode what is jumped to: the device tree's address into x0, 0 into x1 to x3, on to the kernel.

    The code can be anywhere; the two addresses follow it. Encodings: Arm ARM, C6.2 (LDR literal, MOV, BR).
    """
    words = (
        0x580000C4,  # ldr x4, . + 24
        0x580000E0,  # ldr x0, . + 28
        0xAA1F03E1,  # mov x1, xzr
        0xAA1F03E2,  # mov x2, xzr
        0xAA1F03E3,  # mov x3, xzr
        0xD61F0080,  # br x4
    )
    return struct.pack("<6I2Q", *words, kernel_at, tree_at)


def _read_kernel_header(image: KernelImage) -> tuple[int, int]:
    """Return where in its 2 MiB the kernel wants to be, and how much it needs: ``struct arm64_image_header``."""
    if image.format != "Image" or not image.memory_bytes:
        raise LoadRefusedError(f"a {image.format} that does not say how large it is; arm64 needs an Image since 3.17")
    offset, flags = (int.from_bytes(image.payload[at : at + 8], "little") for at in (_TEXT_OFFSET_PLACE, _FLAGS_PLACE))
    if flags & _BIG_ENDIAN:
        raise LoadRefusedError("a kernel of the other byte order")
    if offset % 4096 or offset >= KERNEL_ALIGNMENT:
        raise LoadRefusedError(f"a kernel {offset:#x} bytes behind a multiple of 2 MiB: not a whole number of pages")
    return offset, max(image.memory_bytes, len(image.payload))


def _piece(name: str, paddr: int, content: bytes, size_bytes: int = 0) -> Piece:
    return Piece(name, paddr, content, _round_up(max(size_bytes, len(content)), ALIGNMENT))


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _too_large(image: KernelImage, initrd: bytes | None, place: MemoryRange) -> LoadRefusedError:
    sizes = f"kernel ({format_size(image.memory_bytes)}) and initramfs ({format_size(len(initrd or b''))})"
    return LoadRefusedError(
        f"{sizes} do not fit into the {format_size(place.size_bytes)} that are reserved",
        hint="reserve more: postpanic crashkernel set, then reboot",
    )
