"""What is special about arm64: no kexec_file_load in Debian's kernels, no ORC, memory above 4 GiB and below."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.capture.kexec.loaded_host import LoadedHost
from tests.unit.capture.status.machines import StatusTree, make_machine

IOMEM = """\
40000000-7fffffff : System RAM
  78000000-7fffffff : Crash kernel
100000000-33fffffff : System RAM
  300000000-30fffffff : Crash kernel
"""


@pytest.fixture
def tree(tmp_path: Path) -> StatusTree:
    found = make_machine(tmp_path, LoadedHost())
    found.host = replace(found.host, machine="aarch64")
    config = f"boot/config-{found.host.release}"
    found.edit(config, "CONFIG_KEXEC_FILE=y", "# CONFIG_KEXEC_FILE is not set")
    return found


def test_kernel_without_kexec_file_load_will_do(tree: StatusTree) -> None:
    report = tree.examine()
    assert report.find("kernel", "CONFIG_KEXEC").state == "ok"
    assert report.find("kernel", "CONFIG_KEXEC_FILE").state == "warning"
    assert report.find("kernel", "CONFIG_UNWINDER_ORC").state == "not applicable"


def test_reservation_in_two_places(tree: StatusTree) -> None:
    tree.edit("proc/cmdline", "crashkernel=256M", "crashkernel=256M,high crashkernel=128M,low")
    tree.put("proc/iomem", IOMEM)
    assert "0x300000000-0x30fffffff" in tree.check("reservation", "place").found
    assert "above 4 GiB and 128.0 MiB below" in tree.check("reservation", "command line").found


@pytest.mark.parametrize(
    ("host", "name", "why"),
    [
        # Debian 12's; up to 6.3 the reservation is not mapped, either.
        (LoadedHost(files={"proc/kallsyms": "ffff800080010000 T _stext\n"}), "segments", "without CONFIG_KALLSYMS_ALL"),
        (LoadedHost(blank=True), "contents", "the kernel keeps it unmapped"),
    ],
)
def test_what_the_kernel_does_not_show_is_named_and_not_said_to_be_good(
    host: LoadedHost, name: str, why: str, tmp_path: Path
) -> None:
    report = make_machine(tmp_path, host).examine()
    check = report.find("capture kernel", name)
    assert check.state == "unknown"
    assert why in check.found
    assert check.found.endswith("not verified: kernel, initramfs, command line, core header, notes, memory")
    found = {one.name for one in report.checks if one.group == "capture kernel"}
    assert not found & {"kernel", "initramfs", "command line", "core header", "notes", "memory"}
