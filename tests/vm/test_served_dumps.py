"""Dumps that drgn cannot open, or reads wrongly, are served to it: the same analysis from every form of a dump."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import drgn
import numpy as np
import pytest

from postpanic.analysis.crash_commands import capture_crash_command, load_plugins
from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.program import open_program
from postpanic.dumps.memory import PageState
from postpanic.dumps.open import open_dump
from postpanic.kernel.memory import open_kernel_memory
from tests.vm.lab import Crash
from tests.vm.recipes import MemoryDumps

KERNEL = "6.1"


def analyse(paths: list[Path], cache: Path) -> str:
    with open_program(paths, policy=DebugPolicy.SYNTHESIZED, cache_directory=cache) as opened:
        load_plugins()
        return "\n".join(capture_crash_command(opened.prog, line) for line in ("bt", "ps", "mod", "runq"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("variant", ["raw-d0", "zlib", "elf", "flattened", "flattened-elf", "split"])
def test_every_form_gives_the_same_analysis(crashed: Callable[..., Crash], cache: Path, variant: str) -> None:
    crash = crashed(KERNEL)
    made = crash.make_variant(variant)
    assert analyse(list(made.paths), cache) == analyse([crash.raw], cache)


@pytest.mark.parametrize("form", ["elf", "kdump"])
def test_dump_of_the_hypervisor_is_analysed(
    memory_dumped: Callable[[str], MemoryDumps], cache: Path, form: str
) -> None:
    path = getattr(memory_dumped(KERNEL), form)
    text = analyse([path], cache)
    assert "panic" in text
    assert "virtio_net" in text


def test_cut_dump_is_analysed_as_far_as_it_goes(crashed: Callable[..., Crash], cache: Path, tmp_path: Path) -> None:
    crash = crashed(KERNEL)
    whole = crash.filtered.read_bytes()
    with open_dump(crash.filtered) as dump:
        memory = open_kernel_memory(dump)
        paddr = memory.translate(memory.vmcoreinfo.symbol("init_uts_ns"))
    cut = tmp_path / "cut"
    cut.write_bytes(whole[: len(whole) * 95 // 100])
    with open_dump(cut) as dump:
        # Its pages come as they lie in memory, and the kernel may lie anywhere.
        if dump.page_states(np.array([paddr >> 12], dtype=np.uint64))[0] != PageState.PRESENT:
            pytest.skip("the kernel lies in what is cut off")
    with open_program([cut], policy=DebugPolicy.SYNTHESIZED, cache_directory=cache) as opened:
        assert opened.dump.description.incomplete
        assert opened.prog["init_uts_ns"].name.release.string_().decode() == crash.release


def test_page_that_an_elf_dump_leaves_out_is_an_error_not_zeroes(crashed: Callable[..., Crash], cache: Path) -> None:
    crash = crashed(KERNEL)
    (path,) = crash.make_variant("elf").paths
    with open_program([path], policy=DebugPolicy.SYNTHESIZED, cache_directory=cache) as opened:
        assert opened.dump.description.has_holes
        missing = next(
            start
            for first, end in opened.dump.ram_ranges.tolist()
            for start in range(first, end, 1 << 20)
            if opened.dump.page_states(np.array([start >> 12], dtype=np.uint64))[0]
        )
        with pytest.raises(drgn.FaultError, match="left out"):
            opened.prog.read(missing, 8, physical=True)
    with open_program([path], policy=DebugPolicy.SYNTHESIZED, cache_directory=cache, zero_excluded=True) as opened:
        assert opened.prog.read(missing, 8, physical=True) == bytes(8)
