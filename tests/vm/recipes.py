"""Which machines are crashed, and how: the recipes of the lab."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from postpanic.rehearse.kernels import Kernel, KernelChoice

__all__ = ["KERNELS", "SPLIT_PARTS", "VARIANTS", "MemoryDumps", "Recipe", "Variant"]

KERNELS = {
    "5.10": KernelChoice(("bullseye", "bullseye-security"), r"linux-image-5\.10\.[^-]*-[0-9]+-cloud-amd64"),
    "6.1": KernelChoice(("bookworm", "bookworm-security"), r"linux-image-cloud-amd64"),
    "6.12": KernelChoice(("trixie", "trixie-security"), r"linux-image-6\.12\.[^-]*-cloud-amd64"),
    "newest": KernelChoice(("sid",), r"linux-image-cloud-amd64"),
}

# What makedumpfile of the host makes of a raw dump; several files where it splits.
VARIANTS: dict[str, tuple[str, ...]] = {
    "raw-d0": ("-d", "0"),
    "zlib": ("-c", "-d", "31"),
    "lzo": ("-l", "-d", "31"),
    "snappy": ("-p", "-d", "31"),
    "zstd": ("-z", "-d", "31"),
    "elf": ("-E", "-d", "31"),
    "flattened": ("-F", "-c", "-d", "31"),
    "flattened-elf": ("-F", "-E", "-d", "31"),
    "split": ("--split", "-c", "-d", "31"),
}
SPLIT_PARTS = 3


@dataclass(frozen=True)
class Recipe:
    """
    How a dump comes about.

    Attributes
    ----------
    kernel : str
        A key of :data:`KERNELS`.
    scenario : str
        A script of ``scenarios/``.
    options : str
        More words for the kernel's command line.
    """

    kernel: str
    scenario: str = "sysrq-c"
    cpu: str = "max,la57=off"
    memory_mib: int = 1024
    cpus: int = 2
    options: str = ""


@dataclass(frozen=True)
class Variant:
    """A dump that the host's makedumpfile made, with what it said."""

    paths: tuple[Path, ...]
    messages: str

    @property
    def path(self) -> Path:
        return self.paths[0]


@dataclass(frozen=True)
class MemoryDumps:
    """
    The memory of a machine that has panicked without a capture kernel, as QEMU writes it.

    Attributes
    ----------
    kdump : Path
        In the kdump format with zlib pages, flattened.
    """

    elf: Path
    kdump: Path
    console: Path
    kernel: Kernel
