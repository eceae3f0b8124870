"""A kernel that has no host: what is found in its file, and the tree that is laid out around it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from postpanic.capture.arming.prepare import choose_kernel
from postpanic.capture.config import CONFIG_PATH, FileTarget, read_config
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.errors import CorruptError, FileFaultError, NotReadyError, OutputError, UsageError
from postpanic.rehearse.bare_host import BareKernel, fetch_programs, find_architecture, make_bare_host
from tests.builders.boot_images import build_arm64_image, build_bzimage
from tests.builders.elfcore import EM_AARCH64, Segment, build_elf_core
from tests.builders.kernel_module import make_module

BANNER = b"%s version %s (%s) %s\n\0Linux version 6.12.7-board+ (build@er) (gcc) #1 SMP\n\0"

VMLINUX = build_elf_core([Segment(0x40080000, BANNER)], notes=b"", kind=2, machine=EM_AARCH64).raw


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "Image"
    path.write_bytes(build_arm64_image(bytes(4096) + BANNER))
    return path


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    root = tmp_path / "programs"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/python3").write_bytes(b"\x7fELF")
    (root / "usr/lib").mkdir()
    (root / "lib").symlink_to("usr/lib")
    return root


def test_names_of_architectures() -> None:
    assert [find_architecture(name) for name in ("arm64", "aarch64", "amd64", "x86_64")] == [
        "aarch64",
        "aarch64",
        "x86_64",
        "x86_64",
    ]
    with pytest.raises(UsageError, match="--arch riscv64: must be one of aarch64, amd64, arm64, x86_64"):
        find_architecture("riscv64")


def test_kernel_says_its_release(image: Path) -> None:
    kernel = BareKernel.read("arm64", image, command_line="quiet")
    assert (kernel.machine, kernel.release, kernel.command_line) == ("aarch64", "6.12.7-board+", "quiet")
    assert kernel.content == image.read_bytes()


@pytest.mark.parametrize(
    ("content", "architecture", "error", "said"),
    [
        (build_arm64_image(bytes(64)), "arm64", NotReadyError, "does not say which release"),
        (build_arm64_image(b"Linux version 6.1/../../x (a"), "arm64", NotReadyError, "does not say which release"),
        (build_arm64_image(BANNER), "x86_64", NotReadyError, "is a kernel of aarch64, not of x86_64"),
        (build_bzimage(bytes(512)), "arm64", NotReadyError, "is a kernel of x86_64, not of aarch64"),
        (VMLINUX, "arm64", NotReadyError, "is no Image of arm64"),
        (b"#!/bin/sh\n", "arm64", FileFaultError, "not a kernel"),
        (b"", "arm64", CorruptError, "empty"),
    ],
)
def test_what_is_no_kernel_of_the_board(
    tmp_path: Path, content: bytes, architecture: str, error: type[Exception], said: str
) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(content)
    with pytest.raises(error, match=said):
        BareKernel.read(architecture, path)


def test_tree_of_a_kernel_that_has_everything_built_in(image: Path, programs: Path, tmp_path: Path) -> None:
    kernel = BareKernel.read("arm64", image, command_line="console=ttyAMA0 crashkernel=192M")
    host = make_bare_host(kernel, programs, tmp_path / "root")
    assert (host.machine, host.release) == ("aarch64", "6.12.7-board+")
    assert host.read_command_line() == "console=ttyAMA0 crashkernel=192M"
    chosen = choose_kernel("same", host)
    assert chosen.image.read_bytes() == image.read_bytes()
    config = read_config(host.find(str(CONFIG_PATH)), must_exist=True)
    (target,) = config.targets
    assert isinstance(target, FileTarget)
    assert target.filesystem == "ext4"
    assert config.capture.modules == ()
    assert {"virtio_blk", "ext4"} <= ModuleTree(chosen.modules_dir).built_in


@pytest.mark.parametrize(
    ("modules", "built_in", "chosen"),
    [
        (("virtio_pci", "virtio_blk", "nvme"), (), ("virtio_pci", "virtio_blk")),
        (("virtio_blk",), ("virtio_pci",), ("virtio_blk",)),
        (("nvme", "ext4"), ("virtio_pci",), ("nvme",)),
        (("ext4",), (), ()),
    ],
)
def test_tree_saves_to_a_disk_that_the_kernel_can_drive(
    image: Path,
    programs: Path,
    tmp_path: Path,
    modules: tuple[str, ...],
    built_in: tuple[str, ...],
    chosen: tuple[str, ...],
) -> None:
    directory = tmp_path / "modules"
    directory.mkdir()
    for name in modules:
        (directory / f"{name}.ko").write_bytes(b"")
    (directory / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in built_in))
    host = make_bare_host(BareKernel.read("arm64", image, modules_dir=directory), programs, tmp_path / "root")
    assert read_config(host.find(str(CONFIG_PATH))).capture.modules == chosen
    assert (host.find_modules_dir() / "modules.builtin").read_text() == (directory / "modules.builtin").read_text()


def test_modules_of_another_kernel_are_named(image: Path, tmp_path: Path) -> None:
    directory = tmp_path / "modules"
    directory.mkdir()
    (directory / "a.ko").write_bytes(make_module())
    (directory / "b.ko").write_bytes(make_module("vermagic=6.12.7-board+ SMP"))
    assert BareKernel.read("arm64", image, modules_dir=directory).modules_dir == directory
    (directory / "b.ko").write_bytes(make_module("vermagic=6.12.8-board+ SMP"))
    with pytest.raises(NotReadyError, match=r"its modules are of 6\.12\.8-board\+, the kernel is 6\.12\.7-board\+"):
        BareKernel.read("arm64", image, modules_dir=directory)


def test_many_files_that_cannot_be_copied_are_one_line(image: Path, programs: Path, tmp_path: Path) -> None:
    directory = tmp_path / "modules"
    directory.mkdir()
    for number in range(300):
        os.mkfifo(directory / f"pipe{number}")
    with pytest.raises(OutputError, match=r"the tree cannot be made: .*is a named pipe") as caught:
        make_bare_host(BareKernel.read("arm64", image, modules_dir=directory), programs, tmp_path / "root")
    assert len(str(caught.value)) < 400


def test_tree_that_cannot_be_made(image: Path, programs: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(OutputError, match="the tree cannot be made"):
        make_bare_host(BareKernel.read("arm64", image), programs, tmp_path / "root")


def test_programs_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotReadyError, match="Debian's Python for arm64 cannot be fetched") as caught:
        fetch_programs("aarch64", tmp_path / "cache")
    assert "--root TREE" in caught.value.hint
