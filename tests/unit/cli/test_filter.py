"""The command line of filter, split, join and convert on small files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from postpanic.cli.filter_options import parse_levels
from postpanic.dumps.open import open_dump
from postpanic.errors import UsageError
from tests.builders.elfcore import EM_X86_64, Segment, build_elf_core
from tests.unit.cli.conftest import Outcome
from tests.unit.dumps.pages import PAGE, make_page

FRAMES = 64
Run = Callable[..., Outcome]


@pytest.fixture
def vmcore(tmp_path: Path) -> Path:
    path = tmp_path / "vmcore"
    pages = b"".join(make_page(pfn) if pfn % 4 else bytes(PAGE) for pfn in range(FRAMES))
    path.write_bytes(build_elf_core([Segment(0, pages)], machine=EM_X86_64).raw)
    return path


def check_pages(*paths: Path) -> None:
    with open_dump(paths) as dump:
        pages, states = dump.read_pages(np.arange(FRAMES, dtype=np.uint64))
        assert not dump.description.incomplete
    assert not states.any()
    assert [page.tobytes() for page in pages] == [make_page(pfn) if pfn % 4 else bytes(PAGE) for pfn in range(FRAMES)]


@pytest.mark.parametrize("words", [(), ("-c",), ("-l",), ("-p",), ("-z",), ("--uncompressed",), ("-E",), ("-F",)])
def test_every_format_holds_every_page(run_cli: Run, vmcore: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    finished = run_cli("filter", *words, vmcore, out)
    assert finished.status == 0
    # Nothing in this file is a kernel.
    assert "all pages are kept, as the kernel in the dump cannot be found" in finished.err
    assert "64 of 64 pages kept (16 of them zero)" in finished.out
    check_pages(out)
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["pages"]["zero"] == 16


def test_from_format_to_format(run_cli: Run, vmcore: Path, tmp_path: Path) -> None:
    flat, lzo, elf, again = (tmp_path / name for name in ("flat", "lzo", "elf", "again"))
    assert run_cli("convert", "-F", vmcore, flat).status == 0
    assert run_cli("convert", "--compression", "lzo", flat, lzo).status == 0
    assert run_cli("convert", "--to", "elf", lzo, elf).status == 0
    parts = [tmp_path / f"part{number}" for number in range(3)]
    assert run_cli("split", elf, *parts).status == 0
    finished = run_cli("join", *reversed(parts), again)
    assert finished.status == 0
    assert not finished.err
    for paths in ([flat], [lzo], [elf], parts, [again]):
        check_pages(*paths)


def test_a_missing_part_is_said(run_cli: Run, vmcore: Path, tmp_path: Path) -> None:
    parts = [tmp_path / f"part{number}" for number in range(3)]
    assert run_cli("split", vmcore, *parts).status == 0
    finished = run_cli("join", parts[0], parts[2], tmp_path / "out")
    assert finished.status == 3
    assert "error[page-absent]: " in finished.err
    assert "pages could not be read" in finished.err


def test_dry_run_tells_the_size_and_writes_nothing(run_cli: Run, vmcore: Path, tmp_path: Path) -> None:
    finished = run_cli("filter", "--dry-run", "-l", vmcore, tmp_path / "out")
    assert finished.status == 0
    assert "would be" in finished.out
    assert {path.name for path in tmp_path.iterdir()} == {"vmcore"}
    assert run_cli("filter", "-l", vmcore, tmp_path / "out").status == 0
    report = json.loads(run_cli("filter", "--json", "--dry-run", "-l", vmcore).out)
    assert report["output_bytes"] == (tmp_path / "out").stat().st_size


def test_an_output_that_is_there_is_left_alone(run_cli: Run, vmcore: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    finished = run_cli("filter", vmcore, out)
    assert finished.status == 1
    assert finished.err.splitlines()[-2:] == [f"error[output]: {out}: exists already", "  hint: -f overwrites"]
    assert out.read_text() == "precious"
    assert run_cli("filter", "-f", vmcore, out).status == 0
    check_pages(out)


def test_a_manifest_of_an_earlier_file_does_not_stay(run_cli: Run, vmcore: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "out.manifest.json"
    assert run_cli("filter", vmcore, tmp_path / "out").status == 0
    assert manifest.exists()
    assert run_cli("filter", "-f", "-l", "--no-manifest", vmcore, tmp_path / "out").status == 0
    assert not manifest.exists()


def test_a_manifest_that_cannot_be_written_is_said(run_cli: Run, vmcore: Path, tmp_path: Path) -> None:
    finished = run_cli("filter", "--manifest", tmp_path / "nowhere" / "m", vmcore, tmp_path / "out")
    assert finished.status == 0
    assert "warning: the manifest cannot be written: " in finished.err
    check_pages(tmp_path / "out")


def test_a_codec_that_is_missing_leaves_no_file(
    run_cli: Run, vmcore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cramjam", None)
    finished = run_cli("filter", "-p", vmcore, tmp_path / "out")
    assert finished.status == 2
    assert "error[unsupported]: " in finished.err
    assert "cramjam" in finished.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no VMCORE was named"),
        (("VMCORE",), "no OUT was named"),
        (("VMCORE", "a", "b"), "2 OUT files; several go with --split only"),
        (("--split", "VMCORE", "a"), "--split needs two OUT files or more, 1 named"),
        (("--split", "-F", "VMCORE", "a", "b"), "--split excludes -F"),
        (("--split", "-E", "VMCORE", "a", "b"), "-E excludes --split"),
        (("-c", "-l", "VMCORE", "a"), "-c and -l exclude each other"),
        (("-E", "-z", "VMCORE", "a"), "-E excludes -z"),
        (("-d", "32", "VMCORE", "a"), "-d 32: must be a number from 0 to 31"),
        (("-d", "1,x", "VMCORE", "a"), "-d 1,x: must be a number from 0 to 31"),
        (("-d", "-1", "VMCORE", "a"), "-d -1: must be a number from 0 to 31"),
        (("-L", "big", "VMCORE", "a"), "-L: 'big' is not a size"),
        (("--memory", "1K", "VMCORE", "a"), "--memory 1.0 KiB: at least 1.0 MiB are needed"),
        (("-l", "--compression-level", "3", "VMCORE", "a"), "--compression-level: lzo has no levels"),
        (("-c", "--compression-level", "11", "VMCORE", "a"), "must be from 1 to 9 for zlib"),
        (("VMCORE", "-"), "a dump cannot be written to a pipe as it is"),
        (("--no-manifest", "--manifest", "m", "VMCORE", "a"), "--manifest excludes --no-manifest"),
        (("-R", "--dump-dmesg", "VMCORE"), "--dump-dmesg and -R exclude each other"),
        (("-g", "x"), "-g needs -x VMLINUX"),
        (("--erase", "key.payload", "VMCORE", "a"), "nothing can be erased from a dump in which no kernel is found"),
    ],
)
def test_wrong_usage_is_one_line(
    run_cli: Run, vmcore: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    named = [str(vmcore) if word == "VMCORE" else str(tmp_path / word) if word in "abmx" else word for word in words]
    finished = run_cli("filter", *named)
    assert finished.status == 64
    errors = [line for line in finished.err.splitlines() if line.startswith("error[")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not finished.out


def test_options_are_looked_at_without_files(run_cli: Run) -> None:
    assert run_cli("filter", "--check-params", "-l", "-d", "31", "/proc/vmcore", "/var/crash/dump").status == 0
    assert run_cli("filter", "--check-params", "-l", "-p", "/proc/vmcore", "/var/crash/dump").status == 64


def test_levels() -> None:
    assert parse_levels("31") == (31,)
    assert parse_levels("0,17,31") == (0, 17, 31)
    for text in ("", "a", "31,", "3 1", "٣"):
        with pytest.raises(UsageError):
            parse_levels(text)
