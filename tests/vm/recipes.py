"""Which machines are crashed, and how: the recipes of the lab."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from postpanic.rehearse.kernels import Kernel, KernelChoice

__all__ = ["BEST_LEVEL", "KERNELS", "SPLIT_PARTS", "VARIANTS", "MemoryDumps", "Recipe", "Variant", "select_dump_level"]

KERNELS = {
    "5.10": KernelChoice(("bullseye", "bullseye-security"), r"linux-image-5\.10\.[^-]*-[0-9]+-cloud-amd64"),
    "6.1": KernelChoice(("bookworm", "bookworm-security"), r"linux-image-cloud-amd64"),
    "6.12": KernelChoice(("trixie", "trixie-security"), r"linux-image-6\.12\.[^-]*-cloud-amd64"),
    "newest": KernelChoice(("sid",), r"linux-image-cloud-amd64"),
}

# As much as the makedumpfile at hand leaves out of a kernel's dump without harm: see select_dump_level().
BEST_LEVEL = "best"
# What makedumpfile makes of a raw dump; several files where it splits.
VARIANTS: dict[str, tuple[str, ...]] = {
    "raw-d0": ("-d", "0"),
    "zlib": ("-c", "-d", BEST_LEVEL),
    "lzo": ("-l", "-d", BEST_LEVEL),
    "zstd": ("-z", "-d", BEST_LEVEL),
    "elf": ("-E", "-d", BEST_LEVEL),
    "flattened": ("-F", "-c", "-d", BEST_LEVEL),
    "flattened-elf": ("-F", "-E", "-d", BEST_LEVEL),
    "split": ("--split", "-c", "-d", BEST_LEVEL),
}
SPLIT_PARTS = 3
NOTES_LIMIT_BYTES = 1 << 16


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
    """A dump that makedumpfile made of a raw one, with what it said."""

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


def select_dump_level(raw: Path) -> str:
    """
    Return the number for makedumpfile's ``-d`` that leaves a raw dump's kernel data alone.

    Since 7.0 a page has ``compound_info`` where ``compound_head`` was. Without
    the latter makedumpfile up to 1.7.8 takes the second and later pages of a
    slab for a process's data (8).
    """
    with raw.open("rb") as stream:
        notes = stream.read(NOTES_LIMIT_BYTES)
    return "31" if b"OFFSET(page.compound_head)=" in notes else "23"
