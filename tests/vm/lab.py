"""
Real kernels, crashed for real: the dumps that the tests, the demo and the benchmarks read.

::

    python -m tests.vm.lab crash KERNEL     crash a kernel (5.10, 6.1, 6.12, newest), print where its dump is
    python -m tests.vm.lab memory KERNEL    the guest's memory as QEMU writes it
    python -m tests.vm.lab debug KERNEL     the kernel's own debug information
    python -m tests.vm.lab prune            remove what nobody has used for two weeks

A dump is kept under the digest of its recipe: kernel, guest, machine and load.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.errors import PostpanicError
from postpanic.process import find_program, run
from postpanic.rehearse.accelerators import Accelerator
from postpanic.rehearse.cache import (
    build_once,
    digest_file,
    digest_recipe,
    hold_all_slots,
    hold_lock,
    hold_slot,
    prune,
    remove_entry,
)
from postpanic.rehearse.console import join_lines
from postpanic.rehearse.disks import read_ext4_file
from postpanic.rehearse.kernels import DebugInfo, Kernel, KernelStore
from postpanic.rehearse.machine import Disk, Machine, MachineConfig
from postpanic.rehearse.programs import ProgramStore, UnpackedProgram
from tests.vm import extras, guest
from tests.vm.gdbstub import poke
from tests.vm.recipes import (
    BEST_LEVEL,
    KERNELS,
    SPLIT_PARTS,
    VARIANTS,
    MemoryDumps,
    Recipe,
    Setting,
    Variant,
    select_dump_level,
)

__all__ = [
    "KERNELS",
    "VARIANTS",
    "Crash",
    "CrashWithDebugInfo",
    "Lab",
    "MemoryDumps",
    "Recipe",
    "Variant",
    "crashed_with_debuginfo",
    "default_cache_dir",
    "filter_load",
    "find_missing_programs",
    "hold_machine",
    "newest_makedumpfile",
]

PROGRAMS = (
    *("qemu-system-x86_64", "gcc", "busybox", "makedumpfile", "mke2fs", "debugfs"),
    *("apt-get", "apt-cache", "dpkg", "dpkg-deb"),
)
COMMAND_LINE = "console=ttyS0 no_timer_check crashkernel=256M"
FAILURE = r"^lab: failed:.*|end Kernel panic - not syncing: No working init.*"
# Some crashes print nothing before the capture kernel does.
CRASHED = r"Kernel panic|Oops|BUG:|^lab: capture kernel \d"
LOADED_TIMEOUT_S = 60.0
PANIC_TIMEOUT_S = 30.0
ENDED_TIMEOUT_S = 10.0
MOST_MACHINES = 4
UNUSED_S = 14 * 24 * 3600.0
CACHES = (
    "captures",
    "crashes",
    "dumps",
    "variants",
    "debug",
    "kernels",
    "programs",
    "unpacked",
    "hosts",
    "oracle",
    "evidence",
    "triage",
    "triage-modules",
    "triage-states",
)


@dataclass(frozen=True)
class Crash:
    """A dump in the cache, and all that belongs to it."""

    lab: Lab
    recipe: Recipe
    kernel: Kernel
    directory: Path

    @property
    def raw(self) -> Path:
        """``/proc/vmcore`` as it was, an ELF file."""
        return self.directory / "vmcore"

    @property
    def saved(self) -> Path:
        """What the host's ``makedumpfile -l -d 31`` wrote in the capture kernel, which it may be too old for."""
        return self.directory / "dump.kdump"

    @cached_property
    def filtered(self) -> Path:
        """What the newest makedumpfile makes of the raw dump: nothing of the kernel's own data is left out."""
        return self.make_variant("lzo").path

    @property
    def console(self) -> Path:
        """The serial console, of both kernels."""
        return self.directory / "console.log"

    def read_console(self) -> str:
        """Read it, each line in one piece."""
        return join_lines(self.console.read_text(errors="replace").replace("\r\n", "\n"))

    @property
    def page_flags(self) -> Path:
        """``/proc/kpageflags`` right before the crash, a word of 64 bits a page; of scenario ``memory-kinds``."""
        return self.directory / "page-flags"

    @property
    def views(self) -> Path:
        """What files of ``/proc`` and ``/sys`` said right before the crash, by name; of scenario ``views``."""
        return self.directory / "views"

    @property
    def release(self) -> str:
        return self.kernel.release

    @cached_property
    def debug_info(self) -> DebugInfo | None:
        """The kernel's own debug information, fetched when first asked for; None where it cannot be had."""
        with contextlib.suppress(PostpanicError):
            return self.lab.fetch_debug_info(self.recipe.kernel, self.kernel)
        return None

    @property
    def vmlinux(self) -> Path | None:
        return self.debug_info.vmlinux if self.debug_info else None

    @property
    def debug_modules_dir(self) -> Path | None:
        return self.debug_info.modules_dir if self.debug_info else None

    def make_variant(self, name: str) -> Variant:
        """Return the raw dump as one of :data:`VARIANTS`, made by the newest makedumpfile when first asked for."""
        return self.lab.make_variant(self, name)


@dataclass(frozen=True)
class CrashWithDebugInfo:
    """A dump and the kernel's own debug information."""

    raw: Path
    filtered: Path
    vmlinux: Path
    modules_dir: Path


@dataclass(frozen=True)
class Lab:
    """
    Crashes machines and keeps their dumps.

    Attributes
    ----------
    cache_dir : Path
        Shared by tests, demo and benchmarks.
    say : callable
        Gets a line of progress now and then.
    watch : callable, optional
        Gets every line of the guest's console.
    """

    cache_dir: Path
    say: Callable[[str], None] = field(default=lambda _: None, compare=False)
    watch: Callable[[str], None] | None = field(default=None, compare=False)
    _fetched: dict[str, Kernel] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def kernels(self) -> KernelStore:
        return KernelStore(self.cache_dir)

    def fetch_kernel(self, key: str) -> Kernel:
        """Return a kernel; what "newest" means is asked once, so that a session keeps to one."""
        if key not in self._fetched:
            self._fetched[key] = self.kernels.fetch(KERNELS[key])
        return self._fetched[key]

    @cached_property
    def makedumpfile(self) -> UnpackedProgram:
        """Debian's newest makedumpfile: an older one leaves pages out that kernels newer than it need."""
        return ProgramStore(self.cache_dir).fetch("makedumpfile", "usr/bin/makedumpfile")

    def fetch_debug_info(self, key: str, kernel: Kernel) -> DebugInfo:
        modules = guest.select_load_modules(ModuleTree(kernel.modules_dir))
        return self.kernels.fetch_debug_info(
            KERNELS[key], kernel, [*modules, *guest.BOOT_MODULES, "virtio", "virtio_ring"]
        )

    def crash(self, recipe: Recipe) -> Crash:
        """Return the dump of a recipe, from the cache or by crashing a machine now."""
        kernel = self.fetch_kernel(recipe.kernel)

        def build(target: Path) -> None:
            self._crash_now(recipe, kernel, target)

        directory = build_once(self.cache_dir / "dumps", self.name(recipe, kernel, "vmcore"), build)
        return Crash(self, recipe, kernel, directory)

    def keep_newest(self, name: str, build: Callable[[Path], None]) -> Path:
        """Build a directory now, and keep it apart, in place of the last one of that *name*."""
        root = self.cache_dir / "crashes"
        with hold_lock(root / f".{name}.lock"):
            # Finished ones, and what a process left that was killed.
            earlier = [*root.glob(f"{name}-[0-9]*"), *root.glob(f".{name}-[0-9]*")]
            directory = build_once(root, f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}", build)
            for entry in earlier:
                remove_entry(entry)
        return directory

    def dump_memory(self, recipe: Recipe) -> MemoryDumps:
        """Return QEMU's own dumps of a machine that has panicked and has no capture kernel."""
        kernel = self.fetch_kernel(recipe.kernel)

        def build(target: Path) -> None:
            with self.crashing_machine(recipe, kernel, target, load_capture=False) as (machine, _):
                self.say(f"{kernel.release}: panicked, QEMU writes the memory")
                machine.dump_memory(target / "memory.elf", form="elf")
                machine.dump_memory(target / "memory.kdump", form="kdump-zlib")
            run([find_program("fallocate"), "--dig-holes", target / "memory.elf"])
            for path in target.glob("memory.*"):
                path.chmod(0o644)

        entry = build_once(self.cache_dir / "dumps", self.name(recipe, kernel, "memory"), build)
        return MemoryDumps(entry / "memory.elf", entry / "memory.kdump", entry / "console.log", kernel)

    def make_variant(self, crash: Crash, name: str) -> Variant:
        """See :meth:`Crash.make_variant`."""
        level = select_dump_level(crash.raw)
        options = tuple(level if word == BEST_LEVEL else word for word in VARIANTS[name])
        makedumpfile = self.makedumpfile

        def build(target: Path) -> None:
            outputs = [target / f"part{number}" for number in range(SPLIT_PARTS)]
            command: list[str | Path] = [*makedumpfile.command, "--message-level", "31", *options, crash.raw]
            if "-F" in options:
                with outputs[0].open("wb") as stream:
                    finished = run(command, stdout=stream)
            else:
                finished = run([*command, *(outputs if "--split" in options else outputs[:1])])
            (target / "messages").write_bytes((finished.stdout or b"") + finished.stderr)

        recipe = {"dump": crash.directory.name, "options": options, "program": digest_file(makedumpfile.path)}
        entry = build_once(self.cache_dir / "variants", f"{name}-{digest_recipe(recipe)}", build)
        return Variant(tuple(sorted(entry.glob("part*"))), (entry / "messages").read_text(errors="replace"))

    @contextlib.contextmanager
    def crashing_machine(
        self,
        recipe: Recipe,
        kernel: Kernel,
        directory: Path,
        *,
        load_capture: bool = True,
        capture: guest.CaptureImage | None = None,
        more_disks: Sequence[Disk] = (),
        more_words: Sequence[str] = (),
        is_isolated: bool = True,
    ) -> Iterator[tuple[Machine, guest.GuestDisks]]:
        """
        Boot, load and crash a machine; yield it right after its panic, with its disks.

        Parameters
        ----------
        directory : Path
            Gets the console; the disks are in it until the end.
        capture : CaptureImage, optional
            An image of the caller's own to be loaded for the panic.
        more_disks : sequence of Disk
            After the lab's own: ``/dev/vde`` and so on; they stay.
        more_words : sequence of str
            For QEMU's command.
        is_isolated : bool
            Whether the guest's network ends at its card.
        """
        initrd = directory / "initrd"
        initrd.write_bytes(self._make_initramfs(kernel).encode())
        disks = guest.make_disks(
            directory, kernel, initrd, recipe.scenario, memory_mib=recipe.memory_mib, capture=capture
        )
        extra = extras.make_extra_disk(directory, kernel, KERNELS[recipe.kernel].suites, recipe.setting, self.cache_dir)
        own = (*disks.attach(), *([Disk(extra)] if extra else []))
        # A socket's path is limited to 107 bytes, a cache directory's is not.
        stub = Path(tempfile.gettempdir()) / f"lab-{os.getpid()}-{time.monotonic_ns():x}.gdb"
        config = _describe_machine(
            recipe,
            kernel.image,
            initrd,
            (*own, *more_disks),
            more_words=("-gdb", f"unix:{stub},server=on,wait=off", *more_words),
            options="" if load_capture else "LAB_CAPTURE=0",
            is_isolated=is_isolated,
        )
        with hold_machine(self.cache_dir):
            self.say(f"{kernel.release}: booting")
            # Not every processor that KVM runs on has 5-level paging.
            accelerator: Accelerator | None = "tcg" if "la57=on" in recipe.cpu else None
            with (
                _removing(stub),
                self._keeping_console(directory),
                Machine(config, directory, accelerator=accelerator, watch=self.watch) as machine,
            ):
                machine.wait_for(r"^lab: loaded", timeout_s=LOADED_TIMEOUT_S, failure=FAILURE)
                self.say(f"{kernel.release}: loaded, crashing")
                _do_as_asked(machine, stub, recipe.setting.crash_timeout_s)
                machine.wait_for(CRASHED, timeout_s=recipe.setting.crash_timeout_s, failure=FAILURE)
                if not load_capture:
                    machine.wait_for(r"end Kernel panic", timeout_s=PANIC_TIMEOUT_S)
                yield machine, disks
        for path in (*(disk.path for disk in own), initrd, directory / "qemu.log"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _keeping_console(self, directory: Path) -> Iterator[None]:
        """Keep the console of a guest that failed: what is built for the cache goes away on failure."""
        try:
            yield
        except PostpanicError as exc:
            kept = self.cache_dir / "failed-console.log"
            with contextlib.suppress(OSError):
                shutil.copy(directory / "console.log", kept)
                exc.add_note(f"the whole console: {kept}")
            raise

    def _crash_now(self, recipe: Recipe, kernel: Kernel, target: Path) -> None:
        started = time.monotonic()
        with self.crashing_machine(recipe, kernel, target) as (machine, disks):
            machine.wait_for(r"^lab: capture kernel \d", timeout_s=PANIC_TIMEOUT_S, failure=FAILURE)
            self.say(f"{kernel.release}: capture kernel is up, saving")
            machine.wait_for(r"^lab: done", timeout_s=recipe.setting.save_timeout_s, failure=FAILURE)
            machine.wait_exit(timeout_s=ENDED_TIMEOUT_S)
            saved = machine.wait_for(r"^crash: saved (\d+) bytes", timeout_s=1.0)
            # The disk is the dump: zeros were never written, so it is as sparse as it can be.
            os.truncate(disks.raw, int(saved[1]))
            disks.raw.rename(target / "vmcore")
            read_ext4_file(disks.output, "/dump.kdump", target / "dump.kdump")
            if "kinds" in recipe.setting.programs:
                read_ext4_file(disks.output, "/page-flags", target / "page-flags")
            if "views" in recipe.setting.programs:
                read_ext4_file(disks.output, "/views", target / "views")
        self.say(f"{kernel.release}: dump saved after {time.monotonic() - started:.0f} s")

    def _make_initramfs(self, kernel: Kernel) -> ImageTree:
        return guest.make_initramfs(kernel, guest.build_programs(self.cache_dir))

    def name(self, recipe: Recipe, kernel: Kernel, kind: str) -> str:
        """Return the name of a dump in the cache; *kind* is ``vmcore`` or ``memory``."""
        scenarios = [guest.SCENARIOS_DIR / name for name in (*guest.SOURCES, f"{recipe.scenario}.sh")]
        files = [*scenarios, *extras.find_sources(recipe.setting)]
        machine = asdict(recipe)
        # The package's version says more than the key.
        del machine["kernel"]
        everything = {
            "kind": kind,
            "kernel": [kernel.package, kernel.version],
            "machine": machine,
            "command_line": COMMAND_LINE,
            "initramfs": self._make_initramfs(kernel).digest(),
            "disks": guest.describe_disks(),
            "files": [[path.name, digest_file(path)] for path in files],
        }
        if recipe.setting != Setting():
            # How long it may take does not change what comes out.
            setting = asdict(recipe.setting).items()
            everything["setting"] = {
                name: value for name, value in setting if value and not name.endswith("_timeout_s")
            }
        return f"{kernel.release}-{recipe.scenario}-{kind}-{digest_recipe(everything)}"


@contextlib.contextmanager
def _removing(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def hold_machine(cache_dir: Path, *, alone: bool = False) -> Iterator[None]:
    """Wait until a guest may run: one for each processor at a time, or, where it is timed, no other."""
    count = min(os.cpu_count() or 1, MOST_MACHINES)
    with hold_all_slots(cache_dir, "machine", count) if alone else hold_slot(cache_dir, "machine", count):
        yield


def _describe_machine(
    recipe: Recipe,
    image: Path,
    initrd: Path,
    disks: Sequence[Disk],
    *,
    more_words: Sequence[str],
    options: str,
    is_isolated: bool,
) -> MachineConfig:
    balloon = ("-device", "virtio-balloon-pci") if recipe.setting.balloon else ()
    return MachineConfig(
        kernel=image,
        initrd=initrd,
        command_line=" ".join(word for word in (COMMAND_LINE, recipe.options, options) if word),
        disks=tuple(disks),
        memory_mib=recipe.memory_mib,
        cpus=recipe.cpus,
        cpu=recipe.cpu,
        network=True,
        is_isolated=is_isolated,
        extra=(*balloon, *more_words),
    )


def _do_as_asked(machine: Machine, stub: Path, timeout_s: float) -> None:
    """Do what a scenario cannot do from within: it asks on the console."""
    asked = machine.wait_for(rf"^lab: please (.*)$|{CRASHED}", timeout_s=timeout_s, failure=FAILURE)
    words = (asked[1] or "").split()
    if words[:1] == ["nmi"]:
        machine.inject_nmi()
    elif words[:1] == ["poke"]:
        poke(stub, int(words[1], 16), bytes.fromhex(words[2]))
    elif words[:1] == ["balloon"]:
        machine.resize_memory((machine.config.memory_mib - int(words[1])) << 20)


def find_missing_programs() -> list[str]:
    """Return what has to be installed before the lab can work."""
    return [
        name for name in PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]


def default_cache_dir() -> Path:
    """Return where the lab keeps kernels and dumps: ``$XDG_CACHE_HOME/postpanic/lab``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "postpanic" / "lab"


def crashed_with_debuginfo(kernel: str) -> CrashWithDebugInfo:
    """Return the dump of one of :data:`KERNELS` with its vmlinux, both from the cache or made and fetched now."""
    lab = _make_lab()
    crash = lab.crash(Recipe(kernel))
    debug_info = lab.fetch_debug_info(kernel, crash.kernel)
    return CrashWithDebugInfo(crash.raw, crash.filtered, debug_info.vmlinux, debug_info.modules_dir)


def filter_load() -> Path:
    """Return the raw dump of a machine with much in its memory, from the cache or made now."""
    return _make_lab().crash(Recipe.choose("6.1", "filter-load")).raw


def newest_makedumpfile() -> tuple[str, ...]:
    """Return the command of Debian's newest makedumpfile."""
    return _make_lab().makedumpfile.command


def _make_lab() -> Lab:
    return Lab(default_cache_dir(), say=lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.vm.lab", description="crash real kernels in QEMU")
    parser.add_argument("verb", choices=["crash", "memory", "debug", "prune"])
    parser.add_argument("kernel", nargs="?", default="6.1", choices=sorted(KERNELS))
    parser.add_argument("--scenario", default=Recipe.scenario)
    parser.add_argument("--cpu", default=Recipe.cpu)
    chosen = parser.parse_args(words)
    lab = _make_lab()
    recipe = Recipe.choose(chosen.kernel, chosen.scenario, cpu=chosen.cpu)
    try:
        if chosen.verb == "prune":
            lines = [name for kind in CACHES for name in prune(lab.cache_dir / kind, UNUSED_S)]
        elif chosen.verb == "memory":
            dumps = lab.dump_memory(recipe)
            lines = [f"elf: {dumps.elf}", f"kdump: {dumps.kdump}", f"console: {dumps.console}"]
        elif chosen.verb == "debug":
            found = lab.fetch_debug_info(chosen.kernel, lab.fetch_kernel(chosen.kernel))
            lines = [f"vmlinux: {found.vmlinux}", f"modules: {found.modules_dir}"]
        else:
            crash = lab.crash(recipe)
            lines = [f"raw: {crash.raw}", f"filtered: {crash.filtered}", f"console: {crash.console}"]
    except PostpanicError as exc:
        print(f"error[{exc.code}]: {exc}", *getattr(exc, "__notes__", ()), sep="\n", file=sys.stderr)  # noqa: T201
        return exc.exit_status
    print("\n".join(lines))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
