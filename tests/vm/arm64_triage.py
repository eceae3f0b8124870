"""
Small crashes on arm64: the scenarios of ``scenarios/triage``, on emulated machines.

::

    python -m tests.vm.arm64_triage KERNEL [SCENARIO...]    make dumps, say where they are

No other kernel takes over there: QEMU writes the memory when the panic is over.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.rehearse.kernels import Kernel, KernelStore
from postpanic.rehearse.machine import MachineConfig
from postpanic.rehearse.packages import Archive
from postpanic.rehearse.store import Bundle, PackageStore
from tests.vm import arm64, guest, triage_lab
from tests.vm.lab import FAILURE
from tests.vm.triage_lab import BASE_DIR, MEMORY_MIB, MODULES, TriageDump, TriageLab, build_program, make_base_image
from tests.vm.triage_machine import KeptMachine
from tests.vm.triage_truth import Truth

__all__ = ["KERNELS", "NOT_THERE", "PROGRAMS", "Arm64TriageLab", "is_there"]

OWN_VICTIMS = frozenset({"slab-leak", "page-leak", "vmalloc-leak"})
"""Scenarios in which memory runs out there before another process asks for it: nobody else suffers."""
PROGRAMS = ("qemu-system-aarch64", "aarch64-linux-gnu-gcc", "make")
NOT_THERE = {"divide-field": "a division by zero gives zero"}
"""Scenarios that are no crash on arm64."""
_UNCOUNTED = {"atomic-sleep": "preemption is not counted, so nobody notices"}
NOT_IN = {
    "6.1": {
        **_UNCOUNTED,
        "neighbour-slab": "small objects have 128 bytes, so that what is written behind them meets nobody",
        "freed-timer": "all small objects share a cache, so that it is chance who gets what was freed",
    },
    "6.12": _UNCOUNTED,
    "newest": {"double-free": "nobody notices, and it is chance which two get the object"},
}
"""Scenarios that are none with some kernels: up to 6.4 no object of kmalloc() is smaller than a line of the cache."""
WITHOUT_DATA_SYMBOLS = frozenset({"6.1"})
"""Kernels without ``CONFIG_KALLSYMS_ALL``: the names of modules' variables are not in memory."""
NOTICED_AT_ONCE = {"newest": {"leaked-spinlock": "paging-request"}}
"""Scenarios that crash earlier where preemption is counted, before another suffers, and what is reported then."""
KINDS = {"general-protection-fault": "paging-request"}
"""What is reported there instead: there are no addresses that are none by their form."""

KERNELS = {key: arm64.KERNELS[key] for key in ("6.1", "6.12", "newest")}
COMMAND_LINE = "console=ttyAMA0"
MACHINE, CPU = "virt,gic-version=3", "max,pauth-impdef=on"
PANICKED = r"end Kernel panic - not syncing"
_VARIABLE = re.compile(
    r"\b(?:DEFINE_\w+|DECLARE_\w+|LIST_HEAD)\(\s*(\w+)|^static [^(;]*?(\w+)(?:\[[^;]*)?(?: =|;)", re.MULTILINE
)
_LOADS_CAPTURE = re.compile(r"^crash load .*\n", re.MULTILINE)


class Arm64TriageLab(TriageLab):
    """Makes the dumps of scenarios on arm64, or finds them in the cache."""

    architecture = "arm64"

    def has(self, truth: Truth, key: str) -> bool:
        return is_there(truth, key)

    def fetch_kernel(self, key: str) -> Kernel:
        if key not in self._kernels:
            self._kernels[key] = KernelStore(self.cache_dir).fetch(KERNELS[key])
        return self._kernels[key]

    @property
    def _kernels(self) -> dict[str, Kernel]:
        kernels: dict[str, Kernel] = self.__dict__.setdefault("_fetched_kernels", {})
        return kernels

    def crash(self, truth: Truth, key: str) -> TriageDump:
        return self._adapt(super().crash(truth, key))

    def find(self, truth: Truth, key: str) -> TriageDump | None:
        found = super().find(truth, key) if self.has(truth, key) else None
        return self._adapt(found) if found is not None else None

    @staticmethod
    def _adapt(dump: TriageDump) -> TriageDump:
        """Say what is true there."""
        truth = dump.truth
        says, subject = truth.says, truth.subject
        if dump.kernel in WITHOUT_DATA_SYMBOLS:
            unknown = {name for source in truth.module_sources for name in _find_variables(source)}
            says = tuple(group for group in says if not unknown.issuperset(group))
            subject = {word: value for word, value in subject.items() if value not in unknown}
        kinds = tuple(dict.fromkeys((*truth.kinds, *(KINDS[kind] for kind in truth.kinds if kind in KINDS))))
        earlier = NOTICED_AT_ONCE.get(dump.kernel, {}).get(truth.name, "")
        kinds += (earlier,) if earlier else ()
        victims = () if earlier or truth.name in OWN_VICTIMS else truth.victims
        return replace(dump, truth=replace(truth, says=says, subject=subject, kinds=kinds, victims=victims))

    def choose_suites(self, key: str) -> tuple[str, ...]:
        return KERNELS[key].suites

    def describe_machine(self) -> list[object]:
        return [*super().describe_machine(), COMMAND_LINE, MACHINE, CPU]

    def make_image(self, kernel: Kernel) -> ImageTree:
        store = PackageStore(self.cache_dir, "unpacked", self.architecture)
        _, busybox = store.fetch(("bookworm",), "busybox-static", _resolve)
        act = build_program(self.cache_dir, BASE_DIR / "act.c", self.architecture)
        load = build_program(self.cache_dir, guest.SCENARIOS_DIR / "load.c", self.architecture)
        image = make_base_image(kernel, None, act, ("qemu_fw_cfg", *MODULES))
        image.add_file("bin/busybox", busybox / "bin/busybox", 0o755)
        image.add_file("bin/load", load, 0o755)
        image.add_bytes("init", _LOADS_CAPTURE.sub("", (BASE_DIR / "init.sh").read_text()).encode(), 0o755)
        return image

    def start_machine(self, config: MachineConfig, directory: Path) -> KeptMachine:
        return KeptMachine(config, directory, watch=self.lab.watch, accelerator="tcg")

    def make_config(self, kernel: Kernel, boot: str, directory: Path, more: tuple[str, ...]) -> MachineConfig:
        return MachineConfig(
            kernel=kernel.image,
            initrd=directory / "initrd",
            command_line=f"{COMMAND_LINE} {boot}".strip(),
            memory_mib=MEMORY_MIB,
            machine=MACHINE,
            cpu=CPU,
            network=True,
            extra=more,
            program="qemu-system-aarch64",
        )

    def take_memory(self, machine: KeptMachine, timeout_s: float, vmcore: Path) -> None:
        machine.wait_for(PANICKED, timeout_s=timeout_s, failure=FAILURE)
        machine.dump_memory(vmcore)


def is_there(truth: Truth, key: str) -> bool:
    """Tell whether a scenario is a crash on arm64, with a kernel of :data:`KERNELS`."""
    return not truth.recipe and truth.name not in NOT_THERE and truth.name not in NOT_IN.get(key, {})


def _find_variables(source: Path) -> set[str]:
    return {name for names in _VARIABLE.findall(source.read_text()) for name in names if name}


def _resolve(archive: Archive, wanted: str) -> Bundle:
    package = archive.find(wanted)[-1]
    return Bundle(package, (package,))


if __name__ == "__main__":
    sys.exit(triage_lab.main(kernels=sorted(KERNELS), make=Arm64TriageLab))
