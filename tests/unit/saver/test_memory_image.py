"""How much memory a save takes, by what is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.dumps.open import open_dump
from postpanic.pages.checks import Outcome
from postpanic.saver import memory_image
from postpanic.saver.memory_image import MemoryImage, choose_buffer_bytes, choose_select_bytes
from postpanic.units import MIB
from tests.builders.elfcore import Segment, build_elf_core, build_vmcoreinfo_note
from tests.unit.pages.whole_kernel import build_whole_kernel


def free(tmp_path: Path, mib: int) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal:  {mib << 11} kB\nMemFree:  1 kB\nMemAvailable:  {mib << 10} kB\n")
    return path


@pytest.mark.parametrize(("available", "buffers", "choosing"), [(4, 2, 1.5), (16, 3, 4), (64, 24, 16), (4096, 24, 64)])
def test_what_is_taken_follows_what_is_free(tmp_path: Path, available: int, buffers: float, choosing: float) -> None:
    meminfo = free(tmp_path, available)
    assert choose_buffer_bytes(1, meminfo) == buffers * MIB
    assert choose_select_bytes(meminfo) == choosing * MIB


def test_where_nobody_tells_something_usual_is_taken(tmp_path: Path) -> None:
    assert choose_buffer_bytes(1, tmp_path / "none") == 24 * MIB
    assert choose_select_bytes(tmp_path / "none") == 64 * MIB


@pytest.fixture(name="saved", scope="module")
def _saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a dump of a kernel whose kallsyms has functions only."""
    dump = build_whole_kernel(has_data_symbols=False).dump
    notes = dump.description.notes + build_vmcoreinfo_note(dump.description.vmcoreinfo)
    pages = sorted(dump.pages.items())
    path = tmp_path_factory.mktemp("saved") / "vmcore"
    path.write_bytes(
        build_elf_core([Segment(pfn * dump.page_size_bytes, bytes(page)) for pfn, page in pages], notes=notes).raw
    )
    return path


@pytest.mark.parametrize(("available", "btf"), [(95, Outcome.NOT_APPLICABLE), (96, Outcome.OK), (None, Outcome.OK)])
def test_self_test_searches_only_where_there_is_memory_for_it(
    saved: Path, available: int | None, btf: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_image, "measure_available", lambda: available and available * MIB)
    said: list[str] = []
    with open_dump(saved) as dump:
        test = MemoryImage(dump, said.append).test(str(saved))
    assert test is not None
    assert (test.passed, said) == (True, [])
    (found,) = (result for result in test.results if result.name == "BTF")
    assert found.outcome is btf


def test_self_test_is_left_out_where_there_is_no_memory_for_any(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_image, "measure_available", lambda: 23 * MIB)
    said: list[str] = []
    with open_dump(saved) as dump:
        assert MemoryImage(dump, said.append).test(str(saved)) is None
    assert said == ["no self-test: 23 MiB of memory are free, 24 are needed"]
