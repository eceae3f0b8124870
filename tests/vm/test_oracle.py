"""The oracle holds: with nothing but the dump, drgn's commands say what they say with real debug information."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import drgn
import pytest

from postpanic.analysis.crash_commands import load_plugins
from postpanic.analysis.debug_files import DebugKind, DebugPolicy
from postpanic.analysis.program import OpenedProgram, open_program
from tests.vm.lab import Crash
from tests.vm.oracle import COMMANDS, EXCEPTIONS, addresses, normalise, open_real, run

KERNELS = ("6.1", "6.12")
FILES = ("filtered", "raw")


@pytest.fixture(scope="module", params=[f"{kernel}-{file}" for kernel in KERNELS for file in FILES])
def both(
    request: pytest.FixtureRequest, crashed: Callable[..., Crash], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[drgn.Program, OpenedProgram]]:
    kernel, _, file = request.param.partition("-")
    crash = crashed(kernel)
    dump: Path = getattr(crash, file)
    real = open_real(dump, crash.vmlinux, crash.debug_modules_dir)
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
        assert found != expected, f"no exception any more: {EXCEPTIONS[command]}"
    else:
        assert found == expected


def test_every_command_of_the_namespace_is_compared(both: tuple[drgn.Program, OpenedProgram]) -> None:
    real, _ = both
    listed = run(real, "help").partition("Commands:\n")[2].partition("\n\n")[0].split()
    asked = {line.split()[0] for line in COMMANDS}
    assert set(listed) - asked <= {"q", "exit", "drgn", "*"}


def test_module_functions_and_structures_are_the_same(both: tuple[drgn.Program, OpenedProgram]) -> None:
    real, opened = both
    compared = 0
    for module in real.modules():
        if module.name == "kernel" or module.debug_file_status != drgn.ModuleFileStatus.HAVE:
            continue
        for name in module_names(real, module):
            line = f"sym {name}"
            assert normalise(line, run(opened.prog, line)) == normalise(line, run(real, line))
            compared += 1
    assert compared > 100
