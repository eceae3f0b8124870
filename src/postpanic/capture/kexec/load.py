"""
Load a capture kernel, replace it, take it away.

There is one place for a capture kernel, the reserved memory, so the kernel
lets go of the old one before it reads the new one: a replacement is as short a
gap as the kernel makes it, never made longer by unloading first, and all that
can be checked is checked before. A load that fails within leaves none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from postpanic.capture.host import Host
from postpanic.capture.kexec import system_calls
from postpanic.capture.kexec.arm64_segments import Piece, arrange
from postpanic.capture.kexec.device_tree import DeviceTree, decode_tree, read_unfolded_tree
from postpanic.capture.kexec.images import KernelImage, read_image
from postpanic.capture.kexec.legacy import LegacyOptions, LegacyRefusedError, legacy_load
from postpanic.capture.kexec.own_header import make_core_header
from postpanic.capture.kexec.refusals import LoadRefusedError, check_before, check_request, explain_errno
from postpanic.errors import FileFaultError

__all__ = ["LoadMethod", "LoadOutcome", "LoadRequest", "load", "unload"]

LoadMethod = Literal["auto", "file", "legacy"]

_ONLY_LEGACY = (errno.ENOSYS, errno.ENOEXEC)
"""Answers of the newer system call after which the older one may do better."""
_WITHOUT_PROGRAM = frozenset({"aarch64"})
"""Where the older system call gets what is put together here, and the kexec program is not needed."""
_FLAT_TREE = "sys/firmware/fdt"
_UNFOLDED_TREE = "sys/firmware/devicetree/base"


@dataclass(frozen=True)
class LoadRequest:
    """
    What is to be loaded.

    Attributes
    ----------
    kernel : Path
        bzImage, Image or vmlinux; packed ones are unpacked first.
    initrd : Path, bytes or None
        The initramfs, as a file or as it is.
    command_line : str
        All of it, but for what the loader itself adds (``elfcorehdr=``).
    method : str
        ``file``: by the kernel, which checks signatures; ``legacy``: by the older system call, for which the kexec
        program puts things together, or on arm64 we do; ``auto``: by the older one only where the kernel has no other.
    legacy : LegacyOptions
        For the program.
    """

    kernel: Path
    initrd: Path | bytes | None
    command_line: str
    method: LoadMethod = "auto"
    legacy: LegacyOptions = field(default_factory=LegacyOptions)


@dataclass(frozen=True)
class LoadOutcome:
    """
    What was done.

    Attributes
    ----------
    method : str
        ``file`` or ``legacy``.
    image : KernelImage
        The kernel, as it was handed over.
    replaced : bool
        Whether another capture kernel was loaded before.
    remarks : tuple of str
        What is worth knowing though it went well, one phrase each.
    handed : tuple of Piece
        What the kernel was given, where that was put together here.
    """

    method: Literal["file", "legacy"]
    image: KernelImage
    replaced: bool
    remarks: tuple[str, ...] = ()
    handed: tuple[Piece, ...] = ()


def load(host: Host, request: LoadRequest) -> LoadOutcome:
    """
    Load a capture kernel, in place of one that is loaded.

    That the kernel has taken it proves little: see :mod:`postpanic.capture.kexec.verify`.

    Raises
    ------
    LoadRefusedError
        If it cannot be loaded, with the reason.
    FileFaultError
        If kernel or initramfs cannot be read.
    ProcessError
        If the kexec program is needed and not there.
    """
    check_before(host, legacy=request.method == "legacy")
    image = read_image(request.kernel)
    check_request(host, image, request.kernel, _measure_initrd(request.initrd), request.command_line)
    before = bool(host.read_crash_loaded())
    try:
        if request.method == "legacy":
            return _load_legacy(host, request, image, before)
        try:
            _load_file(host, request, image)
        except LoadRefusedError as refusal:
            if request.method == "file" or refusal.errno not in _ONLY_LEGACY:
                raise
            check_before(host, legacy=True)
            return _load_legacy(host, request, image, before, (f"kexec_file_load: {refusal.message}",))
    except LoadRefusedError as refusal:
        if before and not host.read_crash_loaded():
            refusal.message += "; the capture kernel that was loaded before is gone"
        raise
    packed = (f"unpacked ({image.packing}) before loading",) if image.packing else ()
    return LoadOutcome("file", image, before, packed)


def unload(host: Host) -> bool:
    """
    Take the capture kernel away, however it was loaded.

    Returns
    -------
    bool
        Whether there was one.

    Raises
    ------
    LoadRefusedError
        If the kernel keeps it.
    """
    if not host.is_root:
        raise LoadRefusedError("only root may unload a capture kernel", hint="run it as root")
    if not host.read_crash_loaded():
        return False
    if host.read_load_disabled():
        raise LoadRefusedError(
            "the capture kernel stays until the next boot: kernel.kexec_load_disabled is 1", hint="reboot"
        )
    try:
        system_calls.file_unload(host.machine)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise explain_errno(exc.errno or 0, host) from exc
        try:
            system_calls.legacy_unload(host.machine)
        except OSError as second:
            raise explain_errno(second.errno or 0, host) from second
    if host.read_crash_loaded():
        raise LoadRefusedError("the kernel says that the capture kernel is gone, and still has it")
    return True


def _load_file(host: Host, request: LoadRequest, image: KernelImage) -> None:
    kernel: Path | bytes = image.content if image.packing else request.kernel
    with _opened(kernel, "kernel") as kernel_fd, _opened(request.initrd, "initrd") as initrd_fd:
        try:
            line = request.command_line.encode(errors="surrogateescape")
            system_calls.file_load(host.machine, -1 if kernel_fd is None else kernel_fd, initrd_fd, line)
        except OSError as exc:
            size = _measure_initrd(request.initrd)
            raise explain_errno(exc.errno or 0, host, image=image, kernel=request.kernel, initrd_bytes=size) from exc


def _load_legacy(
    host: Host, request: LoadRequest, image: KernelImage, before: bool, remarks: tuple[str, ...] = ()
) -> LoadOutcome:
    if host.machine in _WITHOUT_PROGRAM:
        return _load_pieces(host, request, image, before, remarks)
    # The program reads gzip and xz at most, and only if it was built so.
    kernel: Path | bytes = image.content if image.packing else request.kernel
    if image.packing:
        remarks = (*remarks, f"unpacked ({image.packing}) before loading")
    try:
        said = legacy_load(kernel, request.initrd, request.command_line, request.legacy)
    except LegacyRefusedError as exc:
        size = _measure_initrd(request.initrd)
        reason = explain_errno(exc.errno, host, image=image, kernel=request.kernel, initrd_bytes=size)
        reason.add_note(f"kexec: {exc.message}")
        if exc.errno == errno.EINVAL:
            reason.message = f"kexec: {exc.message[:300]}"
        raise reason from exc
    if said:
        remarks = (*remarks, f"kexec says: {said.splitlines()[0]}")
    return LoadOutcome("legacy", image, before, remarks)


def _load_pieces(
    host: Host, request: LoadRequest, image: KernelImage, before: bool, remarks: tuple[str, ...]
) -> LoadOutcome:
    """Put everything together, and look at it, before the kernel lets go of what is loaded."""
    initrd = _read_initrd(request.initrd)
    reserved = host.read_io_memory().crash_kernel
    header = make_core_header(host)
    arrangement = arrange(image, initrd, request.command_line, read_device_tree(host), reserved, header)
    segments = [(piece.paddr, piece.content, piece.size_bytes) for piece in arrangement.pieces]
    try:
        system_calls.legacy_load(host.machine, arrangement.entry, segments)
    except OSError as exc:
        size = len(initrd or b"")
        raise explain_errno(exc.errno or 0, host, image=image, kernel=request.kernel, initrd_bytes=size) from exc
    if image.packing:
        remarks = (*remarks, f"unpacked ({image.packing}) before loading")
    if request.legacy != LegacyOptions():
        remarks = (*remarks, "options of the program kexec do not count: it is not used")
    return LoadOutcome("legacy", image, before, remarks, arrangement.pieces)


def read_device_tree(host: Host) -> DeviceTree:
    """
    Read the device tree that the host was booted with.

    Raises
    ------
    AbsentError
        If the kernel does not show it.
    CorruptError
        If it makes no sense.
    """
    try:
        return decode_tree(host.path(_FLAT_TREE).read_bytes())
    except OSError:
        return read_unfolded_tree(host.path(_UNFOLDED_TREE))


def _read_initrd(initrd: Path | bytes | None) -> bytes | None:
    try:
        return initrd.read_bytes() if isinstance(initrd, Path) else initrd
    except OSError as exc:
        raise FileFaultError(f"cannot read the initramfs: {exc.strerror}", where=str(initrd)) from exc


def _measure_initrd(initrd: Path | bytes | None) -> int:
    if initrd is None:
        return 0
    try:
        size = initrd.stat().st_size if isinstance(initrd, Path) else len(initrd)
    except OSError as exc:
        raise FileFaultError(f"cannot read the initramfs: {exc.strerror}", where=str(initrd)) from exc
    if size == 0:
        raise FileFaultError("the initramfs is empty", where=str(initrd) if isinstance(initrd, Path) else "")
    return size


@contextmanager
def _opened(content: Path | bytes | None, name: str) -> Iterator[int | None]:
    """Open a file, or a nameless one in memory; the kernel reads both."""
    if content is None:
        yield None
        return
    try:
        if isinstance(content, Path):
            fd = os.open(content, os.O_RDONLY | os.O_CLOEXEC)
        else:
            fd = os.memfd_create(f"postpanic-{name}", os.MFD_CLOEXEC)
    except OSError as exc:
        raise FileFaultError(f"cannot open the {name}: {exc.strerror}", where=str(content)[:80]) from exc
    try:
        if isinstance(content, bytes):
            left = memoryview(content)
            while left:
                left = left[os.write(fd, left) :]
        yield fd
    finally:
        os.close(fd)
