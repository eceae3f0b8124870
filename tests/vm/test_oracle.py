"""The oracle holds: with nothing but the dump, drgn's commands say what they say with real debug information."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import drgn
import pytest
from drgn.helpers.linux.pid import for_each_task

from postpanic.analysis.crash_commands import load_plugins
from postpanic.analysis.debug_files import DebugKind, DebugPolicy
from postpanic.analysis.program import OpenedProgram, open_program
from tests.vm.lab import Crash
from tests.vm.oracle import COMMANDS, EXCEPTIONS, addresses, normalise, open_real, run

KERNELS = ("6.1", "6.12")
FILES = ("filtered", "raw")


def module_symbols(prog: drgn.Program, module: drgn.Module) -> list[drgn.Symbol]:
    ranges = module.address_ranges or ()
    return [symbol for symbol in prog.symbols() if any(start <= symbol.address < end for start, end in ranges)]


PAIRS = [
    # One raw dump is enough of a difference for the half hour that the default tests take.
    pytest.param(f"{kernel}-{file}", marks=pytest.mark.matrix)
    if (kernel, file) == ("6.12", "raw")
    else f"{kernel}-{file}"
    for kernel in KERNELS
    for file in FILES
]


@pytest.fixture(scope="module", params=PAIRS)
def both(
    request: pytest.FixtureRequest, crashed: Callable[..., Crash], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[drgn.Program, OpenedProgram]]:
    kernel, _, file = request.param.partition("-")
    crash = crashed(kernel)
    dump: Path = getattr(crash, file)
    assert crash.vmlinux is not None
    assert crash.debug_modules_dir is not None
    real = open_real(dump, crash.vmlinux, sorted(crash.debug_modules_dir.rglob("*.ko*")))
    cache = tmp_path_factory.mktemp("cache")
    with open_program([dump], policy=DebugPolicy.SYNTHESIZED, cache_directory=cache) as opened:
        load_plugins()
        yield real, opened


def test_everything_is_synthesized(both: tuple[drgn.Program, OpenedProgram]) -> None:
    _, opened = both
    kinds = {source.module: source.kind for source in opened.sources}
    assert kinds.pop("kernel") is DebugKind.SYNTHESIZED
    assert set(kinds.values()) == {DebugKind.SYNTHESIZED}
    assert len(kinds) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_command_says_the_same(both: tuple[drgn.Program, OpenedProgram], command: str) -> None:
    real, opened = both
    line = command.format(**addresses(real))
    expected = normalise(line, run(real, line))
    found = normalise(line, run(opened.prog, line))
    assert expected.strip(), "the oracle itself must have an answer"
    if command in EXCEPTIONS:
        assert found.strip()
        assert not found.startswith("error"), EXCEPTIONS[command]
    else:
        assert found == expected


def test_every_command_of_the_namespace_is_compared(both: tuple[drgn.Program, OpenedProgram]) -> None:
    real, _ = both
    listed = run(real, "help").partition("Commands:\n")[2].partition("\n\n")[0].split()
    asked = {line.split()[0] for line in COMMANDS}
    assert set(listed) - asked <= {"q", "exit", "drgn", "*", "search"}


def test_search_finds_a_word_where_it_is(both: tuple[drgn.Program, OpenedProgram]) -> None:
    real, opened = both
    # libkdumpfile fails on the way of a search, so the word itself is the judge.
    vaddr = addresses(real)["init_tasks"]
    word = real.read_u64(vaddr)
    found = run(opened.prog, f"search -s {vaddr - 64:x} -l 128 {word:x}")
    assert f"{vaddr:x}: {word:x}" in found


def test_symbols_are_those_of_vmlinux(both: tuple[drgn.Program, OpenedProgram]) -> None:
    real, opened = both
    listed = [set(run(prog, "sym -l").splitlines()) for prog in (real, opened.prog)]
    theirs, ours = ({" ".join(line.split()[:3]) for line in lines} for lines in listed)
    assert len(ours) > 80_000
    assert len(ours - theirs) / len(ours) < 0.005, sorted(ours - theirs)[:20]


def test_module_functions_are_where_they_are(both: tuple[drgn.Program, OpenedProgram]) -> None:
    real, opened = both
    compared = 0
    for module in real.modules():
        if module.name == "kernel" or module.debug_file_status != drgn.ModuleFileStatus.HAVE:
            continue
        found = module_symbols(opened.prog, opened.prog.module(module.name))
        # A live module has given its init text back: only DWARF remembers it.
        for symbol in [symbol for symbol in found if symbol.kind == drgn.SymbolKind.FUNC][::10]:
            assert symbol.name in {other.name for other in real.symbols(symbol.address)}
            compared += 1
    assert compared > 500


@pytest.mark.parametrize("structure", ["btrfs_fs_info", "dm_table", "virtnet_info", "loop_device", "fuse_conn"])
def test_structure_of_a_module_is_the_same(both: tuple[drgn.Program, OpenedProgram], structure: str) -> None:
    real, opened = both
    expected = run(real, f"struct {structure}")
    assert not expected.startswith("error")
    assert normalise("struct", run(opened.prog, f"struct {structure}")) == normalise("struct", expected)


def test_every_task_unwinds_as_with_dwarf(both: tuple[drgn.Program, OpenedProgram]) -> None:
    real, opened = both
    tasks = [task.value_() for task in for_each_task(real)]
    assert len(tasks) > 200
    different = []
    for task in tasks:
        expected, found = (normalise("bt", run(prog, f"bt {task:x}")) for prog in (real, opened.prog))
        if expected != found:
            different.append(found)
    assert len(different) <= 0.01 * len(tasks), "\n".join(different[:3])
