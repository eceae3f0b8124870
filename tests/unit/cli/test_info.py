"""``postpanic info`` on files built from the specification."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.cli.info import describe_level
from tests.builders.elfcore import Segment, build_elf_core, build_note
from tests.builders.kdump import ZSTD, KdumpSpec, build_kdump
from tests.unit.cli.conftest import Outcome

NT_PRSTATUS = 1
PAGE = bytes(range(256)) * 16


def _value(outcome: Outcome, key: str) -> str:
    for line in outcome.out.splitlines():
        if line.startswith(f"{key}: "):
            return line.partition(":")[2].strip()
    raise AssertionError(f"no {key} in {outcome.out}")


def _write_kdump(path: Path, **spec: object) -> None:
    fields: dict[str, object] = {"pages": {2: PAGE, 5: PAGE}, "ram": range(1, 9), "compression": ZSTD, "dump_level": 31}
    path.write_bytes(build_kdump(KdumpSpec(**(fields | spec))).raw)  # type: ignore[arg-type]


def test_info_tells_format_level_and_compression(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "dump"
    _write_kdump(path)
    outcome = run_cli("info", path)
    assert outcome.status == 0
    assert _value(outcome, "format") == "kdump-compressed v6"
    assert _value(outcome, "compression") == "zstd"
    assert _value(outcome, "dump level").startswith("31 (left out: zero pages, page cache,")
    assert _value(outcome, "complete") == "yes"


def test_info_counts_present_and_excluded_pages(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "dump"
    _write_kdump(path)
    assert _value(run_cli("info", path), "pages") == "2 present, 6 excluded"
    assert json.loads(run_cli("info", "--json", path).out)["memory"]["pages"]["excluded"] == 6


def test_info_of_a_dump_without_kernel_says_why(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "dump"
    _write_kdump(path)
    outcome = run_cli("info", path)
    assert _value(outcome, "kernel").startswith("(unavailable: no VMCOREINFO")
    assert outcome.status == 0


def test_info_counts_cpus_with_registers(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    notes = build_note(b"CORE", NT_PRSTATUS, bytes(336)) * 3 + build_note(b"VMCOREINFO", 0, b"OSRELEASE=1\n")
    path.write_bytes(build_elf_core([Segment(0x1000, PAGE)], notes=notes).raw)
    assert _value(run_cli("info", path), "CPUs") == "registers of 3 in the notes"


def test_info_names_a_cut_dump_incomplete(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    raw = build_elf_core([Segment(0x1000, PAGE * 4)]).raw
    path.write_bytes(raw[:-4096])
    outcome = run_cli("info", path)
    assert outcome.status == 0
    assert _value(outcome, "complete").startswith("no: ")
    assert json.loads(run_cli("info", "--json", path).out)["dump"]["complete"] is False


def test_info_prints_ranges_when_asked(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(build_elf_core([Segment(0x1000, PAGE), Segment(0x8000, PAGE * 2)]).raw)
    assert "0x0000000000008000-0x0000000000009fff  8.0 KiB" in run_cli("info", "--ranges", path).out


@pytest.mark.parametrize(
    ("level", "text"),
    [(0, "0 (nothing left out)"), (1, "1 (left out: zero pages)"), (17, "17 (left out: zero pages, free pages)")],
)
def test_dump_level_is_spelled_out(level: int, text: str) -> None:
    assert describe_level(level) == text
