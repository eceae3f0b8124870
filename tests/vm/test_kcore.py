"""The memory of a running machine: /proc/kcore of a guest, as its kernel gives it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.dumps.kcore import open_kcore
from postpanic.dumps.memory import Dump
from postpanic.kernel.memory import open_kernel_memory
from postpanic.kernel.uts import read_utsname
from postpanic.pages.usage import count_usage
from postpanic.process import find_program, run
from postpanic.rehearse.disks import make_empty_disk
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk, Machine, MachineConfig
from tests.vm.guest import SCENARIOS_DIR

MEMORY_MIB = 256
TABLE_ENTRIES = 256
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t tmpfs tmpfs /tmp
for module in $(/bin/busybox cat /lib/boot-modules); do /bin/busybox insmod "/lib/$module"; done
/bin/busybox dd if=/dev/zero of=/tmp/cached bs=1M count=24 2>/dev/null
/bin/busybox cat /proc/meminfo
/bin/kcore /proc/kcore /dev/vda || echo "kcore: failed"
/bin/busybox poweroff -f
"""


def _build_initramfs(kernel: Kernel, directory: Path) -> Path:
    program = directory / "kcore"
    run(
        [find_program("gcc"), "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SCENARIOS_DIR / "kcore.c"]
    )
    image = ImageTree()
    image.add_bytes("init", INIT.encode(), 0o755)
    image.add_directory("dev")
    image.add_device("dev/console", 5, 1)
    image.add_program("bin/busybox", find_program("busybox"))
    image.add_file("bin/kcore", program, 0o755)
    modules = ModuleTree(kernel.modules_dir)
    order = modules.sort_by_dependency(("virtio_pci", "virtio_blk"))
    for name in order:
        image.add_bytes(f"lib/{name}.ko", modules.read(name))
    image.add_bytes("lib/boot-modules", "".join(f"{name}.ko\n" for name in order).encode())
    path = directory / "initrd"
    path.write_bytes(image.encode())
    return path


def _spread(disk: Path, target: Path) -> None:
    """Put the copy where the guest's kcore had it: a file with gaps, many terabytes in size."""
    with disk.open("rb") as source, target.open("wb") as kcore:
        table = np.frombuffer(source.read(TABLE_ENTRIES * 24), dtype="<u8").reshape(-1, 3)
        size, *_ = table[0].tolist()
        kcore.truncate(size)
        for number, (offset, at, length) in enumerate(table.tolist()):
            if not length:
                break
            source.seek(at)
            kcore.seek(0 if number == 0 else offset)
            for start in range(0, length, 1 << 20):
                kcore.write(source.read(min(1 << 20, length - start)))


@pytest.fixture(scope="module", params=["6.1", "6.12", "newest"])
def live(request: pytest.FixtureRequest, fetch_kernel: Callable[[str], Kernel]) -> Iterator[tuple[Dump, Kernel, str]]:
    kernel = fetch_kernel(request.param)
    # Only a file in memory may be as large as an address space.
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="kcore-") as name:
        directory = Path(name)
        disk = make_empty_disk(directory / "disk", 1 << 30)
        config = MachineConfig(
            kernel=kernel.image,
            initrd=_build_initramfs(kernel, directory),
            command_line="console=ttyS0 no_timer_check panic=-1",
            disks=(Disk(disk),),
            memory_mib=MEMORY_MIB,
            cpus=1,
        )
        with Machine(config, directory) as machine:
            machine.wait_for(r"^kcore: \d+ segments", timeout_s=90.0, failure=r"^kcore: failed|Kernel panic")
            machine.wait_exit(timeout_s=20.0)
        _spread(disk, directory / "kcore.elf")
        disk.unlink()
        with open_kcore(directory / "kcore.elf") as dump:
            yield dump, kernel, machine.read_console()


def test_running_kernel_is_found_in_kcore(live: tuple[Dump, Kernel, str]) -> None:
    dump, kernel, _ = live
    memory = open_kernel_memory(dump)
    assert read_utsname(memory).release == kernel.release
    assert memory.vmcoreinfo.crash_time_s is None
    assert memory.read(memory.vmcoreinfo.symbol("_stext"), 16) != bytes(16)
    assert not dump.description.incomplete
    ram = int((dump.ram_ranges[:, 1] - dump.ram_ranges[:, 0]).sum())
    assert (MEMORY_MIB - 24) << 20 < ram <= MEMORY_MIB << 20


def test_usage_is_what_the_kernel_itself_said(live: tuple[Dump, Kernel, str]) -> None:
    dump, _, console = live
    said = {line.split(":")[0]: int(line.split()[1]) for line in console.splitlines() if line.endswith(" kB")}
    usage = count_usage(dump, open_kernel_memory(dump))
    pages = {row.type: row.pages for row in usage.rows}
    assert sum(pages.values()) == usage.total_pages
    free, cached = said["MemFree"] // 4, said["Cached"] // 4
    # The kernel went on while the memory was copied.
    assert abs(pages["FREE"] - free) < 2500
    # Shared memory counts as cache, with and without private data.
    assert abs(pages["NON_PRI_CACHE"] + pages["PRI_CACHE"] - cached) < 1500
    assert cached > 6000
