"""
Load kernel modules, in the plan's order: init_module(2), finit_module(2).

A module that fails costs its own devices only: that is noted, and the others
are loaded. Its start runs on a thread, since a driver may hang there.

Sources: init_module(2); ``kernel/module/main.c`` for what the errors mean.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.errors import PostpanicError
from postpanic.saver.deadlines import call_with_deadline

__all__ = ["ModuleResult", "load_modules"]

MODULE_TIMEOUT_S = 20.0
_LIMIT_BYTES = 64 << 20

_COMPRESSED_FILE = 4
"""MODULE_INIT_COMPRESSED_FILE of ``include/uapi/linux/module.h``, since Linux 5.17."""
_COMPRESSED = (".xz", ".gz", ".zst")

# Numbers of init_module and finit_module; the generic ones are those of arm64, riscv64 and loongarch64.
_CALLS = {"x86_64": (175, 313), "ppc64le": (128, 353), "s390x": (128, 344)}
_GENERIC_CALLS = (105, 273)

_REASONS = {
    errno.ENOENT: "needs symbols that no loaded module has",
    errno.ENOEXEC: "no module of this kernel",
    errno.EINVAL: "no module, or a parameter that it does not take",
    errno.EKEYREJECTED: "its signature is not trusted",
    errno.ENOKEY: "it is not signed by a key that the kernel has",
    errno.EPERM: "loading modules is not permitted",
    errno.ENODEV: "there is no device for it",
    errno.ENOMEM: "not enough memory",
    errno.EBUSY: "another thread is loading it, or what it registers is taken",
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True)
class ModuleResult:
    """
    What became of a module.

    Attributes
    ----------
    error : str
        Why it is not loaded, as one phrase; empty when it is.
    """

    path: str
    error: str = ""

    @property
    def is_loaded(self) -> bool:
        """Whether the kernel has it."""
        return not self.error


def load_modules(
    modules: Sequence[str],
    *,
    root: Path = Path("/"),
    timeout_s: float = MODULE_TIMEOUT_S,
    after_each: Callable[[], object] | None = None,
) -> list[ModuleResult]:
    """
    Load modules one after the other.

    Parameters
    ----------
    modules : sequence of str
        Files, each with its parameters after a space.
    root : Path
        Where the files are.
    timeout_s : float
        For each.
    after_each : callable, optional
        Called when one is loaded: the buses that it brings can be held back before the next one has devices there.

    Returns
    -------
    list of ModuleResult
        One for each; one that was loaded already counts as loaded.
    """
    results: list[ModuleResult] = []
    for line in modules:
        name, _, parameters = line.strip().partition(" ")
        results.append(ModuleResult(name, _load(root / name.lstrip("/"), parameters.strip(), timeout_s)))
        if after_each is not None:
            after_each()
    return results


def _load(path: Path, parameters: str, timeout_s: float) -> str:
    """Load one; return why it could not be, or nothing."""

    def call() -> int:
        return _insert(path, parameters.encode())

    try:
        number = call_with_deadline(call, timeout_s, doing="its start")
    except PostpanicError as exc:
        return str(exc)
    except OSError as exc:
        return (exc.strerror or str(exc)).lower()
    except ValueError as exc:
        return str(exc)
    if number in (0, errno.EEXIST):
        return ""
    return f"{_REASONS.get(number, os.strerror(number).lower())} ({errno.errorcode.get(number, number)})"


def _insert(path: Path, parameters: bytes) -> int:
    """Give a module to the kernel; return the number of the error, or 0."""
    init_module, finit_module = _CALLS.get(os.uname().machine, _GENERIC_CALLS)
    is_compressed = path.suffix in _COMPRESSED
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = _COMPRESSED_FILE if is_compressed else 0
        number = _call(finit_module, ctypes.c_long(fd), ctypes.c_char_p(parameters), ctypes.c_long(flags))
    finally:
        os.close(fd)
    if number != errno.ENOSYS and not (is_compressed and number in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOEXEC)):
        return number
    # No finit_module (seccomp, old kernels), or none that unpacks: CONFIG_MODULE_DECOMPRESS.
    image = _read_module(path)
    return _call(init_module, ctypes.c_char_p(image), ctypes.c_long(len(image)), ctypes.c_char_p(parameters))


def _call(number: int, *arguments: ctypes.c_long | ctypes.c_char_p) -> int:
    return ctypes.get_errno() if _libc.syscall(ctypes.c_long(number), *arguments) else 0


def _read_module(path: Path) -> bytes:
    """Read a module, unpacked."""
    with path.open("rb") as stream:
        data = stream.read(_LIMIT_BYTES + 1)
    if path.suffix == ".xz":
        import lzma

        try:
            data = lzma.LZMADecompressor().decompress(data, _LIMIT_BYTES + 1)
        except lzma.LZMAError as exc:
            raise ValueError(f"no xz data: {exc}") from exc
    elif path.suffix == ".gz":
        import zlib

        try:
            data = zlib.decompressobj(wbits=31).decompress(data, _LIMIT_BYTES + 1)
        except zlib.error as exc:
            raise ValueError(f"no gzip data: {exc}") from exc
    elif path.suffix == ".zst":
        import zstandard

        try:
            with zstandard.ZstdDecompressor().stream_reader(data) as reader:
                data = reader.read(_LIMIT_BYTES + 1)
        except zstandard.ZstdError as exc:
            raise ValueError(f"no zstd data: {exc}") from exc
    if len(data) > _LIMIT_BYTES:
        raise ValueError(f"larger than {_LIMIT_BYTES} bytes")
    return data
