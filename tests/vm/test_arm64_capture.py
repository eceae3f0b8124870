"""The whole way on arm64: loaded by our own code, panic, capture by our image, reboot; opened on this machine."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postpanic.analysis.page.evidence import run_line
from postpanic.analysis.program import open_program
from postpanic.analysis.workspace import Workspace
from postpanic.capture.kexec.images import unpack
from postpanic.cli.app import main
from postpanic.errors import ProcessError
from postpanic.kernel.printk import read_log
from postpanic.rehearse.kernels import KernelStore
from postpanic.report.text import render_text
from tests.vm.arm64 import KERNELS, LARGE_PAGES, fetch_kernel
from tests.vm.arm64_captures import SWAP, Arm64Capture, captured_on_arm64, fetch_python_root
from tests.vm.arm64_host import crash_arm64_host
from tests.vm.arm64_kernel import build_kernel
from tests.vm.captures import find_dumps, read_files
from tests.vm.lab import Lab

pytestmark = pytest.mark.matrix

UNPACKED_LIMIT_BYTES = 20 << 20
"""As on x86-64, where the same image takes 18.5 MiB."""


@pytest.fixture(scope="module", autouse=True)
def qemu(installed: Callable[[str], str]) -> str:
    return installed("qemu-system-aarch64")


@pytest.fixture(scope="module", params=["6.1", "6.12", "6.12-16k", "newest"], ids=lambda key: f"arm64-{key}")
def capture(
    request: pytest.FixtureRequest, crash_lab: Lab, tmp_path_factory: pytest.TempPathFactory, qemu: str
) -> Iterator[Arm64Capture]:
    assert qemu
    kernel = KernelStore(crash_lab.cache_dir).fetch(KERNELS[request.param])
    with captured_on_arm64(crash_lab, kernel, tmp_path_factory.mktemp("arm64")) as capture:
        yield capture


def test_load_is_verified_before_the_crash(capture: Arm64Capture) -> None:
    # Debian's kernels for arm64 have no kexec_file_load.
    assert "loaded legacy" in capture.armed
    assert "verified good" in capture.armed
    # Debian 12's kernel neither says where its segments are, nor maps them; Debian 13's does both.
    is_old = "kernel 6.1." in "\n".join(capture.armed)
    assert any(line.startswith("contents: as the kernel was given them") for line in capture.armed) == is_old


def test_everything_is_saved_and_tested(capture: Arm64Capture) -> None:
    said = "\n".join(capture.said)
    assert "self-test passed" in said
    assert "rebooting" in capture.said
    manifest = json.loads((capture.saved / "vmcore.manifest.json").read_text())
    assert manifest["self_test"]["passed"] is True
    assert main(["verify", str(capture.saved / "vmcore")]) == 0


def test_image_is_no_larger_than_on_x86(capture: Arm64Capture) -> None:
    assert capture.image.unpacked_bytes <= UNPACKED_LIMIT_BYTES
    # Compiled here, for there.
    assert not capture.image.remarks


def test_dump_opens_with_the_whole_log_and_the_right_task(capture: Arm64Capture) -> None:
    with open_program([capture.saved / "vmcore"]) as opened:
        log = [line for record in read_log(opened.memory) for line in record.text.decode().splitlines()]
        workspace = Workspace(opened)
        text = "\n".join(render_text(run_line(workspace, "bt")))
        tasks = run_line(workspace, "ps").table.records()
    assert any("Booting Linux on physical CPU" in line for line in log)
    # Written after the panic, the last thing that the kernel said.
    assert any("Starting crashdump kernel" in line for line in log[-3:])
    saved = (capture.saved / "vmcore-dmesg.txt").read_text()
    assert "Kernel panic - not syncing: sysrq triggered crash" in saved
    assert log[-1] in saved
    names = re.findall(r"^ ?#\d+ \[[0-9a-f]{16}\] (\S+) at", text, re.MULTILINE)
    assert {"panic", "sysrq_handle_crash", "el0t_64_sync"} <= set(names)
    assert [row["pid"] for row in tasks if row["active"] == ">" and row["comm"] == "init"] == [1]


def test_addresses_were_random(capture: Arm64Capture) -> None:
    info = dict(
        line.split("=", 1) for line in (capture.saved / "vmcoreinfo.txt").read_text().splitlines() if "=" in line
    )
    assert int(info["KERNELOFFSET"], 16) != 0


def test_triage_knows_it(capture: Arm64Capture, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triage", "--json", str(capture.saved / "vmcore")]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert (verdict["kind"], verdict["confidence"]) == ("sysrq-crash", "proven")


def test_host_arms_itself_and_captures_its_crash(crash_lab: Lab, tmp_path: Path) -> None:
    kernel = KernelStore(crash_lab.cache_dir).fetch(KERNELS["6.1"])
    with crash_arm64_host(crash_lab, kernel, tmp_path) as host:
        assert host.said.count("arm ended with 0") == 2
        assert "loaded by kexec_load: the image is new" in re.sub(" +", " ", host.said)
        assert "contents: as the kernel was given them" in host.said
        # The second time nothing is built or loaded.
        assert "already, by kexec_load" in host.said
        # Nor can it be looked at.
        unseen = "so these are not verified: kernel, initramfs, command line, core header, notes, memory"
        assert unseen in re.sub(r"\s+(?:host: )?", " ", host.said)
        (name,) = find_dumps(host.disk, "/var/crash")
        saved = read_files(host.disk, name, tmp_path / "saved")
    assert name.startswith("/var/crash/host-")
    assert main(["verify", str(saved / "vmcore")]) == 0


def test_whole_directory_is_listed(capture: Arm64Capture) -> None:
    names = {path.name for path in Path(capture.saved).iterdir()}
    assert {"vmcore", "vmcore.manifest.json", "vmcore-dmesg.txt", "vmcoreinfo.txt", "saver.log"} <= names


def test_machine_with_uefi_and_acpi(crash_lab: Lab, tmp_path: Path) -> None:
    """Its device tree has nothing but what leads to the firmware's tables."""
    kernel = KernelStore(crash_lab.cache_dir).fetch(KERNELS["6.12"])
    with captured_on_arm64(crash_lab, kernel, tmp_path, is_efi=True) as capture:
        assert "verified good" in capture.armed
        assert json.loads((capture.saved / "vmcore.manifest.json").read_text())["self_test"]["passed"] is True
        assert capture.console.count("ACPI: Early table checksum verification") == 2


def test_reservation_above_and_below_4_gib(crash_lab: Lab, tmp_path: Path) -> None:
    """Of 4 GiB the last begins there; what is loaded is above, and devices have the low part."""
    kernel = KernelStore(crash_lab.cache_dir).fetch(KERNELS["6.12"])
    words = "256M,high crashkernel=64M,low"
    with captured_on_arm64(crash_lab, kernel, tmp_path, crashkernel=words, memory_mib=4096) as capture:
        assert "verified good" in capture.armed
        log = (capture.saved / "vmcore-dmesg.txt").read_text()
        manifest = json.loads((capture.saved / "vmcore.manifest.json").read_text())
        assert main(["verify", str(capture.saved / "vmcore")]) == 0
    (high,) = re.findall(r"crashkernel reserved: 0x([0-9a-f]+) - 0x[0-9a-f]+ \(256 MB\)", log)
    (low,) = re.findall(r"crashkernel low memory reserved: 0x([0-9a-f]+) - 0x[0-9a-f]+ \(64 MB\)", log)
    assert int(low, 16) < 1 << 32 <= int(high, 16)
    assert manifest["self_test"]["passed"] is True


def test_kexec_file_load_where_the_kernel_has_it(crash_lab: Lab, tmp_path: Path) -> None:
    """None of Debian's has: this one is built from its source."""
    try:
        kernel = build_kernel(crash_lab)
    except ProcessError as exc:
        pytest.skip(str(exc))
    with captured_on_arm64(crash_lab, kernel, tmp_path) as capture:
        assert "loaded file" in capture.armed
        # It has no types, by which the segments would be found.
        assert any(line.startswith("verified unverified; segments: not verified") for line in capture.armed)
        assert json.loads((capture.saved / "vmcore.manifest.json").read_text())["self_test"]["passed"] is True
        assert "sysrq triggered crash" in (capture.saved / "vmcore-dmesg.txt").read_text()


@pytest.mark.parametrize("key", [LARGE_PAGES], ids=lambda key: f"arm64-{key}")
def test_pages_of_64_kib_and_a_swap_device(crash_lab: Lab, tmp_path: Path, key: str) -> None:
    """Debian has no such kernel: this one is built from its source, too, with types and without ext4."""
    try:
        kernel = fetch_kernel(crash_lab, key)
    except ProcessError as exc:
        pytest.skip(str(exc))
    with captured_on_arm64(crash_lab, kernel, tmp_path, crashkernel="256M", target=SWAP) as capture:
        assert {"loaded file", "verified good"} <= set(capture.armed)
        dump = capture.saved / "vmcore"
        assert main(["verify", str(dump)]) == 0
        with open_program([dump]) as opened:
            assert opened.memory.page_size_bytes == 1 << 16
            text = "\n".join(render_text(run_line(Workspace(opened), "bt")))
    assert {"panic", "sysrq_handle_crash", "el0t_64_sync"} <= set(
        re.findall(r"^ ?#\d+ \[\w+\] (\S+)", text, re.MULTILINE)
    )


def test_image_for_a_tree_of_arm64_is_built_anywhere(
    crash_lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the tree is for decides on the words of the command line, not the machine that this runs on."""
    kernel = KernelStore(crash_lab.cache_dir).fetch(KERNELS["6.1"])
    root = tmp_path / "root"
    shutil.copytree(fetch_python_root(crash_lab), root, symlinks=True)
    shutil.copytree(kernel.modules_dir, root / "usr/lib/modules" / kernel.release, symlinks=True)
    (root / "boot").mkdir(exist_ok=True)
    for path in kernel.image.parent.iterdir():
        shutil.copy(path, root / "boot")
    config = tmp_path / "postpanic.toml"
    target = ("kind = 'file'", "path = '/crash'", "device = 'UUID=6f0cb1c4-6a39-4d8e-9d29-5a6f63bfa1d7'")
    config.write_text("\n".join(("[[target]]", *target, "filesystem = 'ext4'", "")))
    words = ["arm", "--root", str(root), "--config", str(config), "--build", str(tmp_path / "capture.img"), "--json"]
    capsys.readouterr()
    assert main(words) == 0
    line = json.loads(capsys.readouterr().out)["command_line"]
    assert "swiotlb=noforce" in line
    assert "mce=off" not in line
    content = unpack((tmp_path / "capture.img").read_bytes())
    assert b"lib/ld-linux-aarch64.so.1" in content
