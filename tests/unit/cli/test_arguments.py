"""Which file is what."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.cli.arguments import InputKind, detect_input_kind, sort_files
from postpanic.errors import FileFaultError, UsageError
from tests.builders.elfcore import Segment, build_elf_core
from tests.builders.kdump import KdumpSpec, build_kdump

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3


def write_elf(path: Path, kind: int, byte_order: str = "little") -> Path:
    path.write_bytes(build_elf_core([Segment(0x1000, bytes(64))], kind=kind, byte_order=byte_order).raw)
    return path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(ET_EXEC, InputKind.KERNEL), (ET_DYN, InputKind.KERNEL), (ET_REL, InputKind.MODULE), (4, InputKind.DUMP)],
)
@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_elf_files_go_by_their_type(kind: int, expected: InputKind, byte_order: str, tmp_path: Path) -> None:
    assert detect_input_kind(write_elf(tmp_path / "file", kind, byte_order)) is expected


def test_kdump_file_is_a_dump(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(build_kdump(KdumpSpec(pages={1: bytes(4096)})).raw)
    assert detect_input_kind(path) is InputKind.DUMP


@pytest.mark.parametrize("name", ["x.ko.xz", "x.ko.zst", "x.ko.gz", "x.ko"])
def test_compressed_module_goes_by_its_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xfd7zXZ\0")
    assert detect_input_kind(path) is InputKind.MODULE


def test_vmlinux_and_dump_come_in_either_order(tmp_path: Path) -> None:
    vmlinux = write_elf(tmp_path / "a", ET_EXEC)
    dump = write_elf(tmp_path / "b", 4)
    module = write_elf(tmp_path / "c", ET_REL)
    assert sort_files([vmlinux, dump, module]) == sort_files([dump, module, vmlinux])
    found = sort_files([dump, vmlinux, module])
    assert (found.dump_paths, found.vmlinux, found.modules) == ((dump,), vmlinux, (module,))


def test_several_dumps_are_parts_of_one(tmp_path: Path) -> None:
    parts = [write_elf(tmp_path / name, 4) for name in "ab"]
    assert sort_files(parts).dump_paths == tuple(parts)


def test_two_kernels_are_wrong_usage(tmp_path: Path) -> None:
    files = [write_elf(tmp_path / "a", ET_EXEC), write_elf(tmp_path / "b", 4)]
    with pytest.raises(UsageError, match="more than one kernel image"):
        sort_files(files, vmlinux=write_elf(tmp_path / "c", ET_EXEC))


def test_missing_file_is_the_files_fault(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match="no such file"):
        sort_files([tmp_path / "missing"])
