"""QEMU itself, then whole crashes of whole machines."""

from __future__ import annotations

import array
import os
import re
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import postpanic.rehearse.machine
from postpanic.capture.initramfs.archive import ImageTree
from postpanic.errors import FactAbsentError
from postpanic.process import find_program, run
from postpanic.rehearse.accelerators import detect_accelerator
from postpanic.rehearse.disks import make_ext4_disk, read_ext4_file
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Machine, MachineConfig, MachineError
from tests.vm.guest import SCENARIOS_DIR
from tests.vm.lab import VARIANTS, Crash, MemoryDumps

pytestmark = pytest.mark.vm

ELF_MAGIC = b"\x7fELF"
KDUMP_MAGIC = b"KDUMP   "
FLATTENED_MAGIC = b"makedumpfile\0"
KERNEL_KEYS = ("5.10", "6.1", "6.12", "newest")


@pytest.fixture(scope="module")
def hello(fetch_kernel: Callable[[str], Kernel], tmp_path_factory: pytest.TempPathFactory) -> MachineConfig:
    """Give the smallest guest: it says hello, then waits for its end."""
    kernel = fetch_kernel("6.1")
    image = ImageTree()
    image.add_program("bin/busybox", find_program("busybox"))
    image.add_device("dev/console", 5, 1)
    image.add_bytes("init", b"#!/bin/busybox sh\necho guest: hello\nexec /bin/busybox sleep 1000\n", 0o755)
    initrd = tmp_path_factory.mktemp("hello") / "initrd"
    initrd.write_bytes(image.encode())
    return MachineConfig(kernel.image, initrd, "console=ttyS0 no_timer_check", memory_mib=256, cpus=1)


def read_start(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(size)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_console_is_read_while_the_guest_runs_and_qemu_is_reaped(hello: MachineConfig, tmp_path: Path) -> None:
    with Machine(hello, tmp_path) as machine:
        assert machine.wait_for(r"^guest: (\w+)", timeout_s=60)[1] == "hello"
        assert machine._process is not None
        pid = machine._process.pid
        assert is_running(pid)
    assert not is_running(pid)


def test_qemu_is_reaped_when_the_body_raises(hello: MachineConfig, tmp_path: Path) -> None:
    pids = []

    def fail_inside() -> None:
        with Machine(hello, tmp_path) as machine:
            assert machine._process is not None
            pids.append(machine._process.pid)
            raise RuntimeError("of ours")

    with pytest.raises(RuntimeError, match="of ours"):
        fail_inside()
    assert not is_running(pids[0])


def test_reset_ends_the_machine(hello: MachineConfig, tmp_path: Path) -> None:
    with Machine(hello, tmp_path) as machine:
        machine.reset()
        machine.wait_exit(timeout_s=10)


def test_failure_pattern_ends_the_wait_at_once(hello: MachineConfig, tmp_path: Path) -> None:
    with Machine(hello, tmp_path) as machine:
        started = time.monotonic()
        with pytest.raises(MachineError, match="the guest reports: guest: hello") as failure:
            machine.wait_for("never printed", timeout_s=300, failure="guest: hello")
        assert time.monotonic() - started < 300
    assert failure.value.command.startswith("qemu-system-x86_64 -M pc")
    assert "guest: hello" in failure.value.console_tail


def test_machine_that_ends_early_is_an_error_with_its_console(hello: MachineConfig, tmp_path: Path) -> None:
    image = ImageTree()
    image.add_bytes("nothing", b"")
    initrd = tmp_path / "empty"
    initrd.write_bytes(image.encode())
    config = MachineConfig(hello.kernel, initrd, "console=ttyS0 no_timer_check panic=-1", memory_mib=256, cpus=1)
    with Machine(config, tmp_path) as machine, pytest.raises(MachineError, match="ended before") as failure:
        machine.wait_for("guest: hello", timeout_s=120)
    assert "Kernel panic" in failure.value.console_tail


def test_guest_that_falls_silent_while_it_boots_is_started_again(
    hello: MachineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Machine(hello, tmp_path, accelerator="tcg") as machine:
        machine.wait_for(r"^\[ +0\.\d+\] ", timeout_s=60)
        first = machine.pid
        machine.pause()
        monkeypatch.setattr(postpanic.rehearse.machine, "STUCK_S", 0.5)
        machine.wait_for("guest: hello", timeout_s=60)
        assert machine.pid != first
        assert machine.read_console().count("Linux version") == 1
        monkeypatch.setattr(postpanic.rehearse.machine, "scale_timeout", float)
        with pytest.raises(MachineError, match="not on the console"):
            machine.wait_for("never printed", timeout_s=3)


def test_qemu_that_does_not_start_says_why(hello: MachineConfig, tmp_path: Path) -> None:
    config = MachineConfig(hello.kernel, hello.initrd, "", cpu="no-such-cpu")
    with pytest.raises(MachineError, match=r"does not start.*no-such-cpu"), Machine(config, tmp_path):
        pass


def test_accelerator_that_is_reported_boots(hello: MachineConfig, tmp_path: Path) -> None:
    accelerator = detect_accelerator()
    with Machine(hello, tmp_path, accelerator=accelerator) as machine:
        machine.wait_for("guest: hello", timeout_s=60)


def test_file_survives_an_ext4_disk_unchanged(tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.mkdir()
    data = os.urandom(300_000)
    (content / "file").write_bytes(data)
    disk = make_ext4_disk(tmp_path / "disk.img", 16 << 20, content=content)
    assert disk.stat().st_blocks * 512 < 4 << 20
    assert read_ext4_file(disk, "/file", tmp_path / "copy").read_bytes() == data
    with pytest.raises(FactAbsentError, match="no file /other"):
        read_ext4_file(disk, "/other", tmp_path / "copy")


@pytest.mark.parametrize("key", KERNEL_KEYS)
def test_crash_leaves_a_raw_dump_a_filtered_dump_and_the_console(key: str, crashed: Callable[..., Crash]) -> None:
    crash = crashed(key)
    with crash.raw.open("rb") as stream:
        header = stream.read(64)
        assert header[:4] == ELF_MAGIC
        offset, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        stream.seek(offset)
        segments = [struct.unpack("<IIQQQQQQ", stream.read(size)) for _ in range(count)]
    loads = [segment for segment in segments if segment[0] == 1]
    # All but the memory that was set aside for the capture kernel, and the file ends where the last segment does.
    assert sum(segment[6] for segment in loads) > (1024 - 256 - 32) << 20
    assert max(segment[2] + segment[5] for segment in loads) == crash.raw.stat().st_size
    assert crash.raw.stat().st_blocks * 512 < crash.raw.stat().st_size * 0.9
    for dump in (crash.saved, crash.filtered):
        assert read_start(dump, 8) == KDUMP_MAGIC
        assert dump.stat().st_size < crash.raw.stat().st_size / 4
    console = crash.read_console()
    assert re.search(r"Comm: panic-maker .*" + re.escape(crash.release), console)
    assert f"lab: capture kernel {crash.release}" in console
    assert "lab: failed" not in console
    assert "insmod" not in console


@pytest.mark.parametrize("key", KERNEL_KEYS)
def test_the_machine_is_loaded(key: str, crashed: Callable[..., Crash]) -> None:
    console = crashed(key).read_console()
    processes = re.search(r"lab: loaded, (\d+) processes", console)
    assert processes
    assert int(processes[1]) > 200


def test_addresses_are_randomised(crashed: Callable[..., Crash]) -> None:
    offsets: set[int] = set()
    for key in KERNEL_KEYS:
        with crashed(key).raw.open("rb") as stream:
            found = re.search(rb"KERNELOFFSET=([0-9a-f]+)\n", stream.read(1 << 16))
        assert found
        offsets.add(int(found[1], 16))
    # One of them may be 0: there are some 500 places.
    assert len(offsets) > 1


def test_five_level_paging_is_on_when_asked_for(crashed: Callable[..., Crash]) -> None:
    with crashed("6.12", cpu="max,la57=on").raw.open("rb") as stream:
        assert b"NUMBER(pgtable_l5_enabled)=1\n" in stream.read(1 << 16)
    with crashed("6.12").raw.open("rb") as stream:
        assert b"NUMBER(pgtable_l5_enabled)=0\n" in stream.read(1 << 16)


def test_qemu_writes_the_memory_of_a_panicked_machine(memory_dumped: Callable[[str], MemoryDumps]) -> None:
    dumps = memory_dumped("6.1")
    with dumps.elf.open("rb") as stream:
        start = stream.read(1 << 16)
    assert start[:4] == ELF_MAGIC
    assert b"KERNELOFFSET=" in start
    assert dumps.elf.stat().st_size > 1024 << 20
    # QEMU writes the kdump format into a stream, which only the flattened form allows.
    assert read_start(dumps.kdump, 16).startswith(FLATTENED_MAGIC)
    assert "Comm: panic-maker" in dumps.console.read_text(errors="replace")


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_are_of_the_format_they_are_named_after(name: str, crashed: Callable[..., Crash]) -> None:
    variant = crashed("6.1").make_variant(name)
    magics = [read_start(path, 16) for path in variant.paths]
    expected = FLATTENED_MAGIC if "flattened" in name else ELF_MAGIC if "elf" in name else KDUMP_MAGIC
    assert all(magic.startswith(expected) for magic in magics)
    assert len(variant.paths) == (3 if name == "split" else 1)


@pytest.mark.parametrize("key", ["6.12", "newest"])
def test_filter_leaves_out_nothing_of_the_kernels_own(key: str, crashed: Callable[..., Crash]) -> None:
    crash = crashed(key)
    # From a dump that is not filtered the commands have the same to say.
    words = ["open", "--debuginfo", "synth", "-s", "-e", "ps; mount; files; kmem -s"]
    whole, filtered = (run([sys.executable, "-m", "postpanic", *words, path]) for path in (crash.raw, crash.filtered))
    assert len(filtered.stdout.splitlines()) > 300
    assert filtered.stdout == whole.stdout


@pytest.mark.parametrize("key", ["6.1", "newest"])
def test_debug_information_belongs_to_the_kernel(key: str, crashed: Callable[..., Crash]) -> None:
    crash = crashed(key)
    if crash.vmlinux is None or crash.debug_modules_dir is None:
        pytest.skip("debug information is neither in the cache nor to be fetched")
    with crash.raw.open("rb") as stream:
        found = re.search(rb"BUILD-ID=([0-9a-f]{40})\n", stream.read(1 << 16))
    if found:
        with crash.vmlinux.open("rb") as stream:
            assert bytes.fromhex(found[1].decode()) in stream.read(64 << 20)
    assert any("virtio_blk" in path.name for path in crash.debug_modules_dir.rglob("*.ko*"))


# What the kernel logs of each; of some nothing reaches the console before the capture kernel runs.
SCENARIOS = {
    "hung-task": r"INFO: task frozen-writer:\d+ blocked(.|\n)*Kernel panic - not syncing: hung_task",
    "init-exit": r"Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
    "irq-null": r"BUG: kernel NULL pointer dereference(.|\n)*RIP: 0010:skb_recv_done\+0x2/0x[0-9a-f]+ \[virtio_net\]",
    "module-call": r"Comm: packet-sender(.|\n)*RIP: 0010:0x0",
    "module-null": r"Comm: packet-sender(.|\n)*RIP: 0010:dummy_xmit\+0x2/0x[0-9a-f]+ \[dummy\]",
    "module-recursion": r"stack(.|\n)*Comm: packet-sender(.|\n)*RIP: 0010:dummy_xmit\+0x0/0x[0-9a-f]+ \[dummy\]",
    "module-spin": r"soft lockup - CPU#\d+ stuck for \d+s! \[packet-sender:\d+\](.|\n)*softlockup: hung tasks",
    "nmi": r"NMI: Not continuing",
    "out-of-memory": r"memory-leaker invoked oom-killer(.|\n)*compulsory panic_on_oom",
}


@pytest.mark.matrix
@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_scenario_crashes_as_it_says(scenario: str, crashed: Callable[..., Crash]) -> None:
    crash = crashed("6.1", scenario=scenario)
    log = run([sys.executable, "-m", "postpanic", "dmesg", crash.filtered]).stdout.decode(errors="replace")
    assert re.search(SCENARIOS[scenario], log), log[-4000:]


def test_every_scenario_is_tested() -> None:
    # The last is for benchmarks: gigabytes of ordinary content.
    elsewhere = {"init", "machine", "sysrq-c", "memory-kinds", "filter-load", "views", "locked", "many-tasks"}
    scripts = {path.stem for path in SCENARIOS_DIR.glob("*.sh")} - elsewhere
    assert scripts == set(SCENARIOS)


KINDS = {
    *("anonymous", "buddy", "cache", "dirty", "gigantic", "huge", "huge-zero", "kernel-compound", "ksm", "large-cache"),
    *("lazily-free", "lru", "mlocked", "no-page", "offline", "offline-block", "packet-ring", "page-table"),
    *("private-cache", "reserved", "secret", "shmem", "slab", "swap-cache", "thp-anonymous", "thp-shmem"),
    *("unevictable", "zero-page", "zsmalloc"),
}
POISONED = {"hwpoison"}
KINDS_OF_KERNEL = {
    # Debian's cloud kernels have CONFIG_MEMORY_FAILURE since 6.12.
    "6.1": KINDS,
    "6.12": KINDS | POISONED,
    # /proc/kpageflags leaves out offline blocks instead of saying that there is no page.
    "newest": KINDS - {"no-page"} | POISONED,
}
FLAG_BUDDY = 1 << 10


@pytest.mark.parametrize("key", ["6.1", "6.12", pytest.param("newest", marks=pytest.mark.matrix)])
def test_memory_kinds_are_all_there(key: str, crashed: Callable[..., Crash]) -> None:
    crash = crashed(key, scenario="memory-kinds")
    console = crash.read_console()
    found = {name: int(pages) for name, pages in re.findall(r"^lab: kind (\S+) (\d+)", console, re.MULTILINE)}
    absent = re.findall(r"^lab: no .*", console, re.MULTILINE)
    # A gigabyte in one piece is not to be had in every boot.
    expected = KINDS_OF_KERNEL[key] - ({"gigantic"} if any("no gigantic: Cannot" in line for line in absent) else set())
    assert {name for name, pages in found.items() if pages} == expected, absent
    assert found.get("gigantic", 0) == (1 << 18 if "gigantic" in expected else 0)
    assert found["offline"] == (64 << 20) // 4096
    assert found["offline-block"] == (128 << 20) // 4096
    assert found["slab"] > 10_000
    flags = array.array("Q", crash.page_flags.read_bytes())
    assert sum(1 for word in flags if word & FLAG_BUDDY) == found["buddy"]
    assert len(flags) == (2560 << 20) // 4096
