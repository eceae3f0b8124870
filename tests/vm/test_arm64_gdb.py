"""gdb for several machines on dumps of real arm64 kernels, with nothing but the dump."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest

from postpanic.analysis.gdbserver.threads import FIRST_IDLE_ID
from tests.vm.arm64 import fetch_dump
from tests.vm.gdb_session import Debugged, compare_backtraces, parse_threads
from tests.vm.lab import Lab

QUESTIONS = (
    "info threads",
    "thread apply all -s bt",
    "bt",
    "info registers pc sp x29",
    "frame apply -1 -q info registers pc sp",
    "x/3i panic",
    "p init_task.comm",
    "info symbol panic",
    "monitor kmem -i",
)


@pytest.fixture(
    scope="module", params=["6.1", *(pytest.param(key, marks=pytest.mark.matrix) for key in ("6.12", "newest"))]
)
def each(
    request: pytest.FixtureRequest,
    crash_lab: Lab,
    installed: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Debugged]:
    installed("qemu-system-aarch64")
    installed("gdb-multiarch")
    home = tmp_path_factory.mktemp("home")
    keep = {key: value for key, value in os.environ.items() if key in {"PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH"}}
    environment = {**keep, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TERM": "dumb", "COLUMNS": "120"}
    dump = fetch_dump(crash_lab, request.param).path
    debugged = Debugged(dump, environment, questions=QUESTIONS)
    with debugged.ours:
        yield debugged


def test_threads_are_what_ps_lists(each: Debugged) -> None:
    rows = each.ours.run("ps").tables[0].records()
    expected = [(row["pid"] or FIRST_IDLE_ID + row["cpu"], row["comm"], row["state"]) for row in rows]
    threads = parse_threads(each["info threads"])
    assert sorted((thread.id, thread.name, thread.state) for thread in threads) == sorted(expected)
    assert threads[0].id == 1


def test_every_backtrace_is_ours(each: Debugged) -> None:
    # gdb follows nobody through code that it cannot read: the first idle task began in what was given back after boot.
    compare_backtraces(each, each["thread apply all -s bt"], cut={FIRST_IDLE_ID}, least=300)


def test_registers_are_those_of_the_moment_and_of_the_user(each: Debugged) -> None:
    trace = each.traces[1]
    assert trace.registers is not None
    known = dict(re.findall(r"^(\w+) +(0x\w+)", each["info registers pc sp x29"], re.MULTILINE))
    assert {name: int(value, 16) for name, value in known.items()} == {
        name: trace.registers[name] for name in ("pc", "sp", "x29")
    }
    saved = trace.frames[-1].saved
    assert saved is not None
    assert saved.user
    known = dict(re.findall(r"^(\w+) +(0x\w+)", each["frame apply -1 -q info registers pc sp"], re.MULTILINE))
    assert {name: int(value, 16) for name, value in known.items()} == {
        name: saved.registers[name] for name in ("pc", "sp")
    }


def test_code_data_and_our_commands(each: Debugged) -> None:
    vaddr = each.ours.prog.symbol("panic").address
    assert f"{vaddr:#x} <panic>:" in each["x/3i panic"]
    assert "paciasp" in each["x/3i panic"]
    assert each["info symbol panic"].startswith("panic in section .text")
    assert '"swapper/0' in each["p init_task.comm"]
    assert "TOTAL MEM" in each["monitor kmem -i"]
