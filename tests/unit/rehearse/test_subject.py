"""What cannot be rehearsed is refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.capture.config import decode_config
from postpanic.capture.host import Host
from postpanic.errors import NotReadyError, UsageError
from postpanic.rehearse.subject import find_reservation, read_subject


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match="a machine of riscv64 cannot be rehearsed yet"):
        read_subject(decode_config(b"", "x"), Host(tmp_path, "riscv64", "6.1.0"))
    assert list(tmp_path.iterdir()) == []


def test_images_of_the_distribution_are_refused(tmp_path: Path) -> None:
    config = decode_config(b'[capture]\nimage = "dracut"\n', "x")
    with pytest.raises(NotReadyError, match="an image of dracut cannot be rehearsed"):
        read_subject(config, Host(tmp_path, "x86_64", "6.1.0"))


@pytest.mark.parametrize("option", ["--crashkernel", "--cmdline"])
@pytest.mark.parametrize(
    ("word", "memory_bytes", "said"),
    [
        ("256MB", 0, "256MB"),
        ("64M,low", 0, "64M,low"),
        ("abc", 0, "abc"),
        ("0", 0, "a size of 0"),
        ("8M", 0, r"8\.0 MiB, at least 16M"),
        ("512K", 0, r"512\.0 KiB, at least 16M"),
        ("1G-2G:64M", 4 << 30, "1G-2G:64M"),
        ("4G", 2 << 30, r"4\.0 GiB of 2\.0 GiB of memory"),
        ("2G-4G:128M,4G-:256M", 0, "depends on the host's memory"),
    ],
)
def test_a_reservation_that_is_void_is_refused_whatever_the_host_has(
    tmp_path: Path, option: str, word: str, memory_bytes: int, said: str
) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/kexec_crash_size").write_text(f"{128 << 20}\n")
    host = Host(tmp_path, "x86_64", "6.1.0")
    crashkernel, words = (word, "") if option == "--crashkernel" else ("", f"quiet crashkernel={word}")
    with pytest.raises(UsageError, match=said) as caught:
        find_reservation(host, crashkernel=crashkernel, command_line=words, memory_bytes=memory_bytes)
    assert caught.value.message.startswith(f"{option} ")


@pytest.mark.parametrize(("memory_bytes", "size_mib"), [(2 << 30, 128), (8 << 30, 256)])
def test_ranges_are_those_of_the_hosts_memory(tmp_path: Path, memory_bytes: int, size_mib: int) -> None:
    host = Host(tmp_path, "aarch64", "6.1.0")
    words = "quiet crashkernel=2G-4G:128M,4G-:256M"
    assert find_reservation(host, command_line=words, memory_bytes=memory_bytes) == (size_mib << 20, "--cmdline")


def test_ranges_of_a_tree_that_does_not_say_its_memory_are_not_guessed(tmp_path: Path) -> None:
    host = Host(tmp_path, "x86_64", "6.1.0")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("quiet crashkernel=2G-4G:128M,4G-:256M\n")
    with pytest.raises(UsageError, match="the host's crashkernel=2G-4G:128M,4G-:256M: which of its ranges"):
        find_reservation(host)
    assert find_reservation(host, memory_bytes=2 << 30) == (128 << 20, "the kernel's command line")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8000000 kB\n")
    assert find_reservation(host)[0] == 256 << 20
