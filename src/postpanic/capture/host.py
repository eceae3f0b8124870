"""
Facts of the running host that decide whether and how a crash can be captured.

Everything is read below a root directory, so that a copy of another machine's
files does as well. Nothing here changes the host, and what a kernel does not
have is None, not an error.

Sources: the kernel's ``Documentation/ABI/testing/sysfs-kernel-kexec-kdump``,
``Documentation/admin-guide/kdump/kdump.rst``, ``kernel/kexec_core.c``,
``kernel/resource.c`` (``/proc/iomem``), ``security/lockdown/lockdown.c``.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, cast

from postpanic.capture.root_paths import follow_below
from postpanic.errors import NotReadyError

__all__ = ["Host", "IoMemory", "Lockdown", "MemoryRange"]

Lockdown = Literal["none", "integrity", "confidentiality"]

_TEXT_LIMIT_BYTES = 1 << 20
"""A sysctl that is read by more than KMALLOC_MAX_SIZE (4 MiB) at once is ENOMEM: proc_sys_call_handler()."""
_CONFIG_LIMIT_BYTES = 4 << 20
_IOMEM_LINE = re.compile(r"^( *)([0-9a-f]+)-([0-9a-f]+) : (.*)$", re.MULTILINE)
_CMA_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+)$", re.MULTILINE)
_CONFIG_LINE = re.compile(r"^(?:(CONFIG_\w+)=(.*)|# (CONFIG_\w+) is not set)$", re.MULTILINE)
# Of the first processor of /proc/cpuinfo, which is number 0.
_BOOT_APIC_ID = re.compile(r"\Aprocessor\s*: 0$.*?^initial apicid\s*: (\d+)$", re.MULTILINE | re.DOTALL)
_CHOSEN = re.compile(r"\[(\w+)\]")
_SECURE_BOOT = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_IMAGE_PLACES = (
    "boot/vmlinuz-{}",
    "lib/modules/{}/vmlinuz",
    "usr/lib/modules/{}/vmlinuz",
    "boot/vmlinux-{}",
    "boot/Image-{}",
)
_CONFIG_PLACES = ("boot/config-{}", "lib/modules/{}/config", "usr/lib/modules/{}/config")
_MODULE_PLACES = ("lib/modules/{}", "usr/lib/modules/{}")


@dataclass(frozen=True)
class MemoryRange:
    """Physical memory, ``[start, end)``, with what ``/proc/iomem`` calls it."""

    start: int
    end: int
    name: str

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.end - self.start


@dataclass(frozen=True)
class IoMemory:
    """
    ``/proc/iomem``.

    Attributes
    ----------
    system_ram : tuple of MemoryRange
        All of it, what drivers have added (``System RAM (kmem)``) included.
    crash_kernel : tuple of MemoryRange
        What is reserved, within the system RAM; two ranges where there is a low one.
    is_hidden : bool
        Whether the kernel kept the addresses to itself: it shows zeros to all but root.
    lent : tuple of MemoryRange
        What processes use until a crash, and the capture kernel then: ``crashkernel=…,cma`` (6.17). It is in no dump.
    """

    system_ram: tuple[MemoryRange, ...]
    crash_kernel: tuple[MemoryRange, ...]
    is_hidden: bool
    lent: tuple[MemoryRange, ...] = ()

    @property
    def for_capture(self) -> tuple[MemoryRange, ...]:
        """All that the capture kernel has: what is reserved, and what is lent."""
        return self.crash_kernel + self.lent

    @classmethod
    def parse(cls, text: str) -> Self:
        """Decode the file's text; lines of another form are passed over."""
        ram: list[MemoryRange] = []
        crash: list[MemoryRange] = []
        hidden = False
        for indent, first, last, name in _IOMEM_LINE.findall(text):
            found = MemoryRange(int(first, 16), int(last, 16) + 1, name.strip())
            if found.end == 1:
                hidden = True
                continue
            if not indent and (name == "System RAM" or name.startswith("System RAM (")):
                ram.append(found)
            elif name == "Crash kernel":
                crash.append(found)
        return cls(tuple(sorted(ram, key=_start)), tuple(sorted(crash, key=_start)), hidden)


def _start(entry: MemoryRange) -> int:
    return entry.start


@dataclass(frozen=True)
class Host:
    """
    The host, or a copy of its files.

    Attributes
    ----------
    root : Path
        Below which its files are.
    machine, release : str
        As ``uname`` has them.
    is_root : bool
        Whether we may do what root may.
    """

    root: Path = Path("/")
    machine: str = ""
    release: str = ""
    is_root: bool = True

    @classmethod
    def running(cls) -> Self:
        """Return the host that this runs on."""
        names = os.uname()
        return cls(Path("/"), names.machine, names.release, os.geteuid() == 0)

    def path(self, name: str) -> Path:
        """Return the place of a file, given as from the root."""
        return self.root / name.lstrip("/")

    def find(self, name: str) -> Path:
        """Return the place of a file that is to be read: symbolic links are followed below the root."""
        return follow_below(self.root, name)

    def read_text(self, name: str) -> str | None:
        """Read a small text file, without the white space around it; None where it is not there or cannot be read."""
        try:
            with self.find(name).open("rb") as stream:
                return stream.read(_TEXT_LIMIT_BYTES).decode(errors="replace").strip()
        except OSError:
            return None

    def read_number(self, name: str) -> int | None:
        """Read a file that holds one number, decimal or with ``0x``."""
        text = self.read_text(name)
        try:
            return None if text is None else int(text, 0)
        except ValueError:
            return None

    def read_command_line(self) -> str:
        """Return the running kernel's command line; empty where it cannot be read."""
        return self.read_text("proc/cmdline") or ""

    def read_io_memory(self) -> IoMemory:
        """Return the map of physical memory."""
        found = IoMemory.parse(self.read_text_as_is("proc/iomem"))
        lines = _CMA_LINE.findall(self._read_kexec("crash_cma_ranges") or "")
        lent = tuple(MemoryRange(int(first, 16), int(last, 16) + 1, "Crash kernel CMA") for first, last in lines)
        return replace(found, lent=lent) if lent else found

    def read_text_as_is(self, name: str) -> str:
        """Read a text file with the white space around it; empty where it cannot be read."""
        try:
            with self.find(name).open("rb") as stream:
                return stream.read(_TEXT_LIMIT_BYTES).decode(errors="replace")
        except OSError:
            return ""

    def _read_kexec(self, name: str) -> str | None:
        # In a directory of their own since 6.19; the old names stay for the time being.
        found = self.read_text(f"sys/kernel/kexec/{name}")
        return found if found is not None else self.read_text(f"sys/kernel/kexec_{name}")

    def read_crash_size_bytes(self) -> int | None:
        """Return how much memory is reserved for a capture kernel; None on a kernel that cannot have one."""
        return _to_number(self._read_kexec("crash_size"))

    def read_crash_loaded(self) -> bool | None:
        """Tell whether the kernel says that a capture kernel is loaded, which proves nothing about what it is."""
        number = _to_number(self._read_kexec("crash_loaded"))
        return None if number is None else bool(number)

    def read_core_header_size_bytes(self) -> int | None:
        """Return the room that a core header needs that can follow memory and processors coming and going (6.6)."""
        found = self._read_kexec("crash_elfcorehdr_size")
        return _to_number(found if found is not None else self.read_text("sys/kernel/crash_elfcorehdr_size"))

    def read_crash_hotplug(self) -> bool:
        """Tell whether the kernel keeps a loaded core header up to date by itself (6.6)."""
        return self.read_text("sys/devices/system/cpu/crash_hotplug") == "1"

    def read_load_disabled(self) -> bool | None:
        """Tell whether loading is forbidden until the next boot."""
        number = self.read_number("proc/sys/kernel/kexec_load_disabled")
        return None if number is None else bool(number)

    def read_loads_left(self) -> int | None:
        """Return how many loads for a crash are still allowed; None or -1: no limit (6.3)."""
        return self.read_number("proc/sys/kernel/kexec_load_limit_panic")

    def read_lockdown(self) -> Lockdown | None:
        """Return the state of the kernel's lockdown; None without it, or without securityfs."""
        found = _CHOSEN.search(self.read_text("sys/kernel/security/lockdown") or "")
        if found is None or found[1] not in ("none", "integrity", "confidentiality"):
            return None
        return cast("Lockdown", found[1])

    def read_secure_boot(self) -> bool | None:
        """Tell whether the firmware checks what it boots; None without UEFI."""
        try:
            content = self.path(f"sys/{_SECURE_BOOT}").read_bytes()[:8]
        except OSError:
            return None
        # Four bytes of attributes come first.
        return content[4:5] == b"\1"

    def read_boot_apic_id(self) -> int | None:
        """Return the APIC number of the processor that the machine booted on; None where it has none (not x86)."""
        found = _BOOT_APIC_ID.search(self.read_text("proc/cpuinfo") or "")
        return int(found[1]) if found else None

    def read_vmcoreinfo_place(self) -> tuple[int, int] | None:
        """Return physical address and size in bytes of the running kernel's VMCOREINFO note, where root may know."""
        words = (self.read_text("sys/kernel/vmcoreinfo") or "").split()
        try:
            place = int(words[0], 16), int(words[1], 16)
        except (IndexError, ValueError):
            return None
        return place if place[0] else None

    def read_kernel_config(self, release: str = "") -> dict[str, str] | None:
        """
        Return a kernel's configuration: ``CONFIG_…`` and its value, ``n`` where it is said not to be set.

        Parameters
        ----------
        release : str
            By default the running kernel.
        """
        release = release or self.release
        text = next(filter(None, (self.read_text(place.format(release)) for place in _CONFIG_PLACES)), None)
        if text is None and release == self.release:
            text = self._read_own_config()
        if text is None:
            return None
        return {yes or no: value if yes else "n" for yes, value, no in _CONFIG_LINE.findall(text)}

    def _read_own_config(self) -> str | None:
        try:
            with gzip.open(self.path("proc/config.gz")) as stream:
                return stream.read(_CONFIG_LIMIT_BYTES).decode(errors="replace")
        except (OSError, EOFError, zlib.error):
            return None

    def find_kernel_image(self, release: str = "") -> Path:
        """
        Find the bootable image of a kernel, by default of the running one.

        Raises
        ------
        NotReadyError
            If it is in none of the places where distributions put it.
        """
        release = release or self.release
        places = [self.find(place.format(release)) for place in _IMAGE_PLACES]
        for place in places:
            if place.is_file():
                return place
        raise NotReadyError(
            f"no image of kernel {release}: neither {' nor '.join(map(str, places))}",
            hint="name it in the configuration, or install the kernel's package again",
        )

    def find_modules_dir(self, release: str = "") -> Path:
        """
        Find the directory of a kernel's modules, by default of the running one.

        Raises
        ------
        NotReadyError
            If there is none.
        """
        release = release or self.release
        for place in _MODULE_PLACES:
            if self.find(place.format(release)).is_dir():
                return self.find(place.format(release))
        raise NotReadyError(
            f"no modules of kernel {release}: {self.path(_MODULE_PLACES[0].format(release))} is not there",
            hint="a kernel that was updated without a reboot has lost them: reboot",
        )


def _to_number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None
