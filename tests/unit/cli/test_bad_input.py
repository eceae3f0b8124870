"""Files that cannot be opened: each ends in exactly one clear error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.elfcore import Segment, build_elf_core, build_note
from tests.unit.cli.conftest import Outcome

NT_PRPSINFO = 3
ET_EXEC = 2

VERBS = ("info", "dmesg", "open")


def _empty(path: Path) -> None:
    path.touch()


def _text(path: Path) -> None:
    path.write_text("Kernel panic - not syncing: this is a text about it\n")


def _user_core(path: Path) -> None:
    notes = build_note(b"CORE", 1, bytes(336)) + build_note(b"CORE", NT_PRPSINFO, bytes(136))
    path.write_bytes(build_elf_core([Segment(0, bytes(4096), vaddr=0x400000)], notes=notes).raw)


def _directory(path: Path) -> None:
    path.mkdir()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _missing(_: Path) -> None: ...


def _cut_header(path: Path) -> None:
    path.write_bytes(build_elf_core([Segment(0x1000, bytes(4096))]).raw[:80])


def _gzip(path: Path) -> None:
    path.write_bytes(b"\x1f\x8b\x08" + bytes(100))


MAKERS = [_empty, _text, _user_core, _directory, _fifo, _missing, _cut_header, _gzip]


def _one_error(outcome: Outcome, path: Path) -> str:
    lines = [line for line in outcome.err.splitlines() if not line.startswith("  hint: ")]
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error[")
    assert str(path) in lines[0]
    assert outcome.out == ""
    return lines[0]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.strip("_"))
def test_bad_dump_is_one_error_and_status_2(
    verb: str, make: Callable[[Path], None], run_cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    path = tmp_path / "vmcore"
    make(path)
    outcome = run_cli(verb, path)
    _one_error(outcome, path)
    assert outcome.status == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("verb", VERBS)
def test_unreadable_dump_is_one_error_and_status_2(verb: str, run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(build_elf_core([Segment(0x1000, bytes(4096))]).raw)
    path.chmod(0)
    outcome = run_cli(verb, path)
    assert "permission denied" in _one_error(outcome, path)
    assert outcome.status == 2


@pytest.mark.parametrize("verb", ["info", "dmesg"])
def test_vmlinux_in_place_of_a_dump_says_so(verb: str, run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(build_elf_core([Segment(0x1000, bytes(4096))], kind=ET_EXEC, notes=b"").raw)
    outcome = run_cli(verb, path)
    assert "vmlinux" in _one_error(outcome, path)
    assert outcome.status == 2


def test_open_with_a_vmlinux_and_no_dump_says_so(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(build_elf_core([Segment(0x1000, bytes(4096))], kind=ET_EXEC, notes=b"").raw)
    outcome = run_cli("open", path)
    assert "there is no dump beside it" in _one_error(outcome, path)
    assert outcome.status == 2


def test_dmesg_of_a_dump_without_a_kernel_is_status_3(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(build_elf_core([Segment(0x1000, bytes(4096))], notes=b"").raw)
    outcome = run_cli("dmesg", path)
    assert outcome.status == 3
    assert outcome.err.startswith("error[fact-absent]: no VMCOREINFO")


def test_missing_file_of_commands_is_one_error(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    dump = tmp_path / "vmcore"
    dump.write_bytes(build_elf_core([Segment(0x1000, bytes(4096))]).raw)
    outcome = run_cli("open", "-i", tmp_path / "commands", dump)
    _one_error(outcome, tmp_path / "commands")
    assert outcome.status == 2
