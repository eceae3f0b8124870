from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from postpanic.capture.host import Host, IoMemory, MemoryRange
from postpanic.errors import NotReadyError

IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
  00000000-00000000 : PCI Bus 0000:00
00100000-3ffd9fff : System RAM
  1e000000-1ee02617 : Kernel code
  2f000000-3effffff : Crash kernel
100000000-23fffffff : System RAM
  200000000-20fffffff : Crash kernel
240000000-2ffffffff : System RAM (kmem)
fd00000000-ffffffffff : Reserved
"""


def put(root: Path, **files: str | bytes) -> Host:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Host(root, "x86_64", "6.1.0")


def test_io_memory() -> None:
    found = IoMemory.parse(IOMEM)
    assert [(entry.start, entry.end) for entry in found.system_ram] == [
        *((0x1000, 0x9FC00), (0x100000, 0x3FFDA000), (0x100000000, 0x240000000), (0x240000000, 0x300000000))
    ]
    assert found.crash_kernel == (
        MemoryRange(0x2F000000, 0x3F000000, "Crash kernel"),
        MemoryRange(0x200000000, 0x210000000, "Crash kernel"),
    )
    assert found.crash_kernel[0].size_bytes == 256 << 20


def test_memory_that_is_lent_until_the_crash(tmp_path: Path) -> None:
    host = put(tmp_path, proc__iomem=IOMEM, sys__kernel__kexec_crash_cma_ranges="33000000-36ffffff\n")
    found = host.read_io_memory()
    assert found.lent == (MemoryRange(0x33000000, 0x37000000, "Crash kernel CMA"),)
    assert found.for_capture == (*found.crash_kernel, *found.lent)
    (tmp_path / "sys/kernel/kexec_crash_cma_ranges").write_text("")
    assert host.read_io_memory() == IoMemory.parse(IOMEM)


def test_hidden_addresses_are_no_addresses() -> None:
    found = IoMemory.parse("00000000-00000000 : System RAM\n  00000000-00000000 : Crash kernel\n")
    assert found == IoMemory((), (), is_hidden=True)
    assert not IoMemory.parse("").is_hidden


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    host = Host(tmp_path, "x86_64", "6.1.0")
    assert host.read_crash_size_bytes() is None
    assert host.read_crash_loaded() is None
    assert host.read_core_header_size_bytes() is None
    assert host.read_load_disabled() is None
    assert host.read_loads_left() is None
    assert host.read_lockdown() is None
    assert host.read_secure_boot() is None
    assert host.read_vmcoreinfo_place() is None
    assert host.read_kernel_config() is None
    assert host.read_crash_hotplug() is False
    assert host.read_command_line() == ""
    assert host.read_io_memory() == IoMemory((), (), is_hidden=False)


def test_facts_of_sysfs(tmp_path: Path) -> None:
    host = put(
        tmp_path,
        sys__kernel__kexec_crash_loaded="1\n",
        sys__kernel__crash_elfcorehdr_size="8192\n",
        sys__kernel__security__lockdown="none [integrity] confidentiality\n",
        sys__kernel__vmcoreinfo="11e8000 1024\n",
        sys__devices__system__cpu__crash_hotplug="1\n",
        proc__sys__kernel__kexec_load_limit_panic="-1\n",
        **{"sys__firmware__efi__efivars__SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": b"\x06\0\0\0\x01"},
    )
    assert host.read_crash_loaded() is True
    assert host.read_core_header_size_bytes() == 8192
    assert host.read_lockdown() == "integrity"
    assert host.read_vmcoreinfo_place() == (0x11E8000, 0x1024)
    assert host.read_crash_hotplug()
    assert host.read_loads_left() == -1
    assert host.read_secure_boot() is True


@pytest.mark.parametrize("text", ["", "x\n", "0 0\n", "11e8000\n"])
def test_no_place_of_vmcoreinfo(text: str, tmp_path: Path) -> None:
    assert put(tmp_path, sys__kernel__vmcoreinfo=text).read_vmcoreinfo_place() is None


def test_configuration_of_a_kernel(tmp_path: Path) -> None:
    text = 'CONFIG_KEXEC=y\n# CONFIG_SMP is not set\nCONFIG_LSM="lockdown,yama"\n# a comment\n'
    expected = {"CONFIG_KEXEC": "y", "CONFIG_SMP": "n", "CONFIG_LSM": '"lockdown,yama"'}
    assert put(tmp_path / "boot", **{"boot__config-6.1.0": text}).read_kernel_config() == expected
    host = put(tmp_path / "proc", **{"proc__config.gz": gzip.compress(text.encode())})
    assert host.read_kernel_config() == expected
    assert host.read_kernel_config("6.12.0") is None, "it is the running kernel's"
    assert put(tmp_path / "bad", **{"proc__config.gz": b"\x1f\x8b cut"}).read_kernel_config() is None


@pytest.mark.parametrize("place", ["boot__vmlinuz-6.1.0", "lib__modules__6.1.0__vmlinuz", "boot__Image-6.1.0"])
def test_image_and_modules(place: str, tmp_path: Path) -> None:
    host = put(tmp_path, **{place: b"", "usr__lib__modules__6.1.0__modules.dep": b""})
    assert host.find_kernel_image() == tmp_path / place.replace("__", "/")
    assert host.find_modules_dir().is_dir()
    for find in (host.find_kernel_image, host.find_modules_dir):
        with pytest.raises(NotReadyError, match=r"5\.10\.0") as caught:
            find("5.10.0")
        assert caught.value.hint


def test_processor_that_the_host_booted_on(tmp_path: Path) -> None:
    text = "processor\t: 0\napicid\t\t: 4\ninitial apicid\t: 4\n\nprocessor\t: 1\ninitial apicid\t: 6\n"
    assert put(tmp_path / "x86", proc__cpuinfo=text).read_boot_apic_id() == 4
    assert put(tmp_path / "arm", proc__cpuinfo="processor\t: 0\nBogoMIPS\t: 50\n").read_boot_apic_id() is None


def test_the_running_host() -> None:
    host = Host.running()
    assert host.machine
    assert host.read_io_memory().system_ram or host.read_io_memory().is_hidden
