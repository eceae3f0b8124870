"""The capture image as the only user space of a small machine: Python as PID 1, and what memory it leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.capture.initramfs.image import BuiltImage, ImageRequest, build_image
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Machine, MachineConfig
from postpanic.saver.plan import FilePlan, SavePlan
from tests.vm.lab import Lab, hold_machine
from tests.vm.python_root import fetch_python_root

pytestmark = pytest.mark.vm

PLAN = SavePlan(targets=(FilePlan(name="there"),), after_failure="poweroff", node="guest")
MODULES = {"virtio_pci": "", "virtio_blk": "", "ext4": ""}
COMMAND_LINE = (
    "console=ttyS0 no_timer_check PYTHONHASHSEED=0 panic=1 cgroup_disable=memory numa=off transparent_hugepage=never"
)
BOOT_TIMEOUT_S = 90.0
PROBE = b"""#!/usr/bin/python3.11 -BOOPSsXutf8
import time
begun = time.monotonic()
import postpanic_start
import numpy as np
assert np.unique(np.arange(1000, dtype=np.uint64) % np.uint64(7)).tolist() == [0, 1, 2, 3, 4, 5, 6]
with_numpy = time.monotonic()
import zstandard
pages = [bytes(4096), bytes(range(256)) * 16]
compressor = zstandard.ZstdCompressor(level=1)
assert [zstandard.decompress(compressor.compress(page)) for page in pages] == pages
import postpanic.saver.init, postpanic.saver.session
with_saver = time.monotonic()
import ctypes, json, os, sys
ctypes.CDLL(None).mount(b"proc", b"/proc", b"proc", 0, None)
memory = dict(line.split(":") for line in open("/proc/meminfo"))
print("probe:", json.dumps({
    "pid": os.getpid(), "begun": begun, "numpy": with_numpy - begun, "saver": with_saver - with_numpy,
    "available_kib": int(memory["MemAvailable"].split()[0]), "files_kib": int(memory["Shmem"].split()[0]),
    "own_kib": int(memory["AnonPages"].split()[0]), "hash_seed": os.environ.get("PYTHONHASHSEED"),
    "encoding": sys.getfilesystemencoding(), "path": sys.path,
}), flush=True)
time.sleep(5)
"""


def boot(kernel: Kernel, image: BuiltImage, directory: Path, *words: str, memory_mib: int) -> Machine:
    (directory / "initrd").write_bytes(image.data)
    config = MachineConfig(
        kernel=kernel.image,
        initrd=directory / "initrd",
        command_line=" ".join((COMMAND_LINE, *words)),
        memory_mib=memory_mib,
        cpus=1,
        cpu="max,la57=off",
    )
    return Machine(config, directory)


@pytest.mark.parametrize("root", ["debian", "running"])
@pytest.mark.parametrize("key", ["6.1", pytest.param("6.12", marks=pytest.mark.matrix)])
def test_python_is_pid_1_in_little_memory(
    crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path: Path, root: str, key: str
) -> None:
    kernel = fetch_kernel(key)
    tree = fetch_python_root(crash_lab) if root == "debian" else Path("/")
    request = ImageRequest(
        plan=PLAN,
        modules_dir=kernel.modules_dir,
        modules=MODULES,
        root=tree,
        boot_dir=kernel.image.parent,
        files={"/probe": PROBE},
    )
    with (
        hold_machine(crash_lab.cache_dir),
        boot(kernel, build_image(request), tmp_path, "rdinit=/probe", memory_mib=128) as machine,
    ):
        said = machine.wait_for(r"^probe: (\{.*\})\s*$", timeout_s=BOOT_TIMEOUT_S, failure="end Kernel panic.*")
    facts = json.loads(said[1])
    print(facts)  # noqa: T201
    assert (facts["pid"], facts["hash_seed"], facts["encoding"], facts["path"]) == (1, "0", "utf-8", [])
    assert facts["files_kib"] < (28 << 10 if root == "running" else 20 << 10)
    assert facts["own_kib"] < 14 << 10
    assert facts["available_kib"] > 24 << 10


def test_saver_starts_by_itself_and_reads_its_plan(
    crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], tmp_path: Path
) -> None:
    kernel = fetch_kernel("6.1")
    image = build_image(
        ImageRequest(
            plan=PLAN,
            modules_dir=kernel.modules_dir,
            root=fetch_python_root(crash_lab),
            compression="gzip",
        )
    )
    with (
        hold_machine(crash_lab.cache_dir),
        boot(kernel, image, tmp_path, memory_mib=192) as machine,
    ):
        machine.wait_for(r"^postpanic: no /proc/vmcore", timeout_s=BOOT_TIMEOUT_S, failure="end Kernel panic.*")
        machine.wait_for(r"^postpanic: powering off", timeout_s=BOOT_TIMEOUT_S)
        machine.wait_exit(timeout_s=BOOT_TIMEOUT_S)
        assert not re.search(r"Traceback|internal error", machine.read_console())
