"""Which machines are crashed, and how: the recipes of the lab."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from postpanic.rehearse.kernels import Kernel, KernelChoice

__all__ = [
    "BEST_LEVEL",
    "KERNELS",
    "SETTINGS",
    "SPLIT_PARTS",
    "VARIANTS",
    "MemoryDumps",
    "Recipe",
    "Setting",
    "Variant",
    "select_dump_level",
]

KERNELS = {
    "5.10": KernelChoice(("bullseye", "bullseye-security"), r"linux-image-5\.10\.[^-]*-[0-9]+-cloud-amd64"),
    "6.1": KernelChoice(("bookworm", "bookworm-security"), r"linux-image-cloud-amd64"),
    "6.1-generic": KernelChoice(("bookworm", "bookworm-security"), r"linux-image-amd64"),
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
class Setting:
    """
    What a scenario needs of its machine, and brings into it on a disk of its own (``/dev/vde``).

    Attributes
    ----------
    memory_mib : int
        The machine's memory.
    options : str
        More words for the kernel's command line.
    programs : tuple of str
        C sources of ``scenarios/``, compiled statically.
    modules : tuple of str
        Kernel modules, where the kernel has them.
    built_modules : tuple of str
        Modules of our own: C sources of ``scenarios/``, built for the kernel.
    images : tuple of str
        Files that are file systems: ``journal`` (ext4, blocks of 1 KiB), ``xfs``.
    files_mib : int
        How much of the host's files to bring along.
    balloon : bool
        Whether the host can take memory away from the guest.
    crash_timeout_s, save_timeout_s : float
        How long it takes on an idle machine until the crash, and until the dump is saved.
    """

    memory_mib: int = 1024
    options: str = ""
    programs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    built_modules: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    files_mib: int = 0
    balloon: bool = False
    crash_timeout_s: float = 30.0
    save_timeout_s: float = 90.0


# Of scenarios that an ordinary machine is not enough for.
SETTINGS: dict[str, Setting] = {
    "locked": Setting(built_modules=("locked",)),
    # For benchmarks: as much in memory as a small server has. Takes ten minutes, so no test asks for it.
    "filter-load": Setting(
        memory_mib=6144, programs=("heap",), files_mib=1400, crash_timeout_s=240.0, save_timeout_s=300.0
    ),
    "memory-kinds": Setting(
        memory_mib=2560,
        # A page of 1 GiB can only be had at boot. Of a huge page's struct pages most are one page, mapped many times.
        options="hugepagesz=1G hugepages=1 hugetlb_free_vmemmap=on secretmem.enable=1",
        programs=("heap", "kinds"),
        modules=("virtio_balloon", "lzo_rle", "zram"),
        images=("journal", "xfs"),
        balloon=True,
        crash_timeout_s=90.0,
        save_timeout_s=150.0,
    ),
    # For benchmarks: 10,000 threads take half a gigabyte, most of it their stacks and page tables.
    "many-tasks": Setting(memory_mib=1536, programs=("many",), crash_timeout_s=180.0, save_timeout_s=180.0),
    "views": Setting(programs=("views",), crash_timeout_s=120.0),
}


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

    @classmethod
    def choose(cls, kernel: str, scenario: str = "sysrq-c", *, cpu: str = "max,la57=off", options: str = "") -> Self:
        """Return the recipe of a scenario, with the memory and the options that it needs."""
        setting = SETTINGS.get(scenario, Setting())
        words = " ".join(word for word in (setting.options, options) if word)
        return cls(kernel, scenario, cpu=cpu, memory_mib=setting.memory_mib, options=words)

    @property
    def setting(self) -> Setting:
        """What the scenario needs beyond what a recipe names."""
        return SETTINGS.get(self.scenario, Setting())


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
