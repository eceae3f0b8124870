"""
Why the kernel does not take a capture kernel: every reason in words, most of them before it is asked.

To ask is not free: both system calls let go of the capture kernel that is
loaded before they look at the new one (``kernel/kexec_file.c``,
``kernel/kexec.c``), so a load that fails leaves none at all.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from postpanic.capture.host import Host
from postpanic.capture.kexec.images import KernelImage
from postpanic.errors import NotReadyError
from postpanic.units import format_size

__all__ = ["LoadRefusedError", "check_before", "check_request", "explain_errno", "measure_load"]

CORE_HEADER_WORDS_BYTES = 30
"""Of ``elfcorehdr=0x…``, which is added (``MAX_ELFCOREHDR_STR_LEN``, ``arch/x86/kernel/kexec-bzimage64.c``)."""
COMMAND_LINE_LIMIT_BYTES = 2047
OVERHEAD_BYTES = 1 << 20
"""Purgatory, boot parameters, core header and page tables: less than this on all machines."""


class LoadRefusedError(NotReadyError):
    """
    The kernel would not take the capture kernel, or has not taken it.

    Attributes
    ----------
    errno : int
        What it said; 0 where it was not asked.
    """

    code = "load-refused"

    def __init__(self, message: str, *, errno: int = 0, where: str = "", hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.errno = errno


def check_before(host: Host, *, legacy: bool = False) -> None:
    """
    Find reasons that lie in the host, whatever is to be loaded.

    Parameters
    ----------
    legacy : bool
        Whether the older system call is to be used, which a locked down kernel never allows.

    Raises
    ------
    LoadRefusedError
        With the first reason.
    """
    if not host.is_root:
        raise LoadRefusedError("only root may load a capture kernel", hint="run it as root")
    crash_size = host.read_crash_size_bytes()
    if crash_size is None:
        config = host.read_kernel_config() or {}
        lacking = [name for name in ("CONFIG_KEXEC_CORE", "CONFIG_CRASH_DUMP") if config.get(name, "n") != "y"]
        built = f": {' and '.join(lacking)} not set" if config and lacking else ""
        raise LoadRefusedError(
            f"kernel {host.release} cannot have a capture kernel{built}",
            hint="use a kernel built with CONFIG_KEXEC_FILE (or CONFIG_KEXEC) and CONFIG_CRASH_DUMP",
        )
    if host.read_load_disabled():
        raise LoadRefusedError(
            "loading is switched off until the next boot: kernel.kexec_load_disabled is 1",
            hint="see what sets it (sysctl.d), arm before that, and reboot",
        )
    if host.read_loads_left() == 0:
        raise LoadRefusedError("no loads are left: kernel.kexec_load_limit_panic is 0", hint="reboot")
    if crash_size == 0:
        asked = [word for word in host.read_command_line().split() if word.startswith("crashkernel=")]
        found = f"{asked[-1]} reserved nothing" if asked else "the kernel's command line has no crashkernel="
        hint = (
            "postpanic crashkernel says what the kernel makes of it; see dmesg for crashkernel, too"
            if asked
            else "postpanic crashkernel set asks the boot loader for it; reboot then"
        )
        raise LoadRefusedError(f"no memory is reserved for a capture kernel: {found}", hint=hint)
    lockdown = host.read_lockdown()
    if legacy and lockdown in ("integrity", "confidentiality"):
        raise LoadRefusedError(
            f"the kernel is locked down (lockdown={lockdown}): kexec_load is forbidden",
            hint='capture.kexec = "file" with a signed kernel works',
        )


def check_request(host: Host, image: KernelImage, kernel: Path, initrd_bytes: int, command_line: str) -> None:
    """
    Find reasons that lie in what is to be loaded.

    Raises
    ------
    LoadRefusedError
        With the first reason.
    """
    if host.machine and image.machine and image.machine != host.machine:
        raise LoadRefusedError(
            f"a kernel for {image.machine}, this machine is {host.machine}",
            where=str(kernel),
            hint="name the right one",
        )
    limit = image.command_line_limit or COMMAND_LINE_LIMIT_BYTES
    length = len(command_line.encode(errors="surrogateescape"))
    if "\0" in command_line or "\n" in command_line:
        raise LoadRefusedError("the capture kernel's command line has a line break or a NUL in it")
    if length + CORE_HEADER_WORDS_BYTES > limit:
        raise LoadRefusedError(
            f"a command line of {length} bytes, {limit - CORE_HEADER_WORDS_BYTES} fit",
            hint="remove words that the capture kernel does not need: command_line_remove",
        )
    crash_size = host.read_crash_size_bytes() or 0
    if crash_size and measure_load(image, initrd_bytes) > crash_size:
        raise _too_large(image, initrd_bytes, crash_size)


def measure_load(image: KernelImage, initrd_bytes: int) -> int:
    """Tell how many bytes kernel and image take while they are loaded; the kernel refuses to load into less."""
    return max(image.memory_bytes, len(image.payload)) + initrd_bytes + OVERHEAD_BYTES


def _too_large(image: KernelImage, initrd_bytes: int, crash_size: int) -> LoadRefusedError:
    kernel = format_size(max(image.memory_bytes, len(image.payload)))
    return LoadRefusedError(
        f"kernel ({kernel}) and initramfs ({format_size(initrd_bytes)}) do not fit into the {format_size(crash_size)}"
        " that are reserved",
        hint="reserve more: postpanic crashkernel set, then reboot",
    )


def explain_errno(
    code: int, host: Host, *, image: KernelImage | None = None, kernel: Path | None = None, initrd_bytes: int = 0
) -> LoadRefusedError:
    """
    Say what the kernel's answer to a load means.

    Parameters
    ----------
    code : int
        The errno.
    """
    where = str(kernel) if kernel else ""
    lockdown = host.read_lockdown()
    if code == errno.EPERM:
        return _explain_eperm(host, lockdown, where)
    if code in (errno.EADDRNOTAVAIL, errno.ENOMEM) and image is not None:
        reason = _too_large(image, initrd_bytes, host.read_crash_size_bytes() or 0)
        return LoadRefusedError(reason.message, errno=code, where=where, hint=reason.hint)
    locked = f" (lockdown={lockdown})" if lockdown in ("integrity", "confidentiality") else ""
    message, hint = _ANSWERS.get(code, (os.strerror(code).lower(), "see the end of dmesg"))
    return LoadRefusedError(f"the kernel refuses it: {message}{locked}", errno=code, where=where, hint=hint)


def _explain_eperm(host: Host, lockdown: str | None, where: str) -> LoadRefusedError:
    if host.read_load_disabled():
        message, hint = "kernel.kexec_load_disabled is 1", "reboot, and arm before it is set"
    elif lockdown in ("integrity", "confidentiality"):
        message = f"it is locked down (lockdown={lockdown}) and does not trust this kernel's signature"
        hint = "use the distribution's signed kernel, or enrol the key that signed it (mokutil)"
    else:
        message = "permission denied, though we are root"
        hint = "CAP_SYS_BOOT is missing: a container or a sandbox took it away"
    return LoadRefusedError(f"the kernel refuses it: {message}", errno=errno.EPERM, where=where, hint=hint)


_SIGN_HINT = "use the distribution's signed kernel, or enrol the key that signed it (mokutil)"
_ANSWERS = {
    errno.ENOSYS: (
        "it has no such system call (built without CONFIG_KEXEC_FILE)",
        'capture.kexec = "legacy" needs CONFIG_KEXEC and the kexec program',
    ),
    errno.EKEYREJECTED: ("the signature of the capture kernel is not accepted", _SIGN_HINT),
    errno.ENOKEY: ("it does not have the key that signed the capture kernel", _SIGN_HINT),
    errno.ENODATA: ("the capture kernel is not signed", _SIGN_HINT),
    errno.ENOPKG: ("it cannot check the kind of signature that the capture kernel has", _SIGN_HINT),
    errno.EBADMSG: ("the signature of the capture kernel is damaged", "install the kernel's package again"),
    errno.ELIBBAD: ("the signature of the capture kernel is damaged", "install the kernel's package again"),
    errno.EACCES: ("a security policy (IMA, SELinux) forbids to load this file", "sign it, or change the policy"),
    errno.ENOEXEC: (
        "not a kernel image that it can load",
        "x86-64 needs a 64-bit bzImage, arm64 an unpacked Image",
    ),
    errno.EINVAL: ("the image or its command line is not acceptable", "see the end of dmesg"),
    errno.EADDRNOTAVAIL: ("no room in the reserved memory", "reserve more: crashkernel="),
    errno.ENOMEM: ("out of memory", "the kernel needs the images' size once more while it loads them"),
    errno.EBUSY: ("another load is going on", "try again"),
    errno.EFBIG: ("the file is too large", ""),
    errno.EOPNOTSUPP: ("not on this platform (see dmesg: TDX or another technology forbids it)", "see dmesg"),
}
