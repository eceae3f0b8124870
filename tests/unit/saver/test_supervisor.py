"""The ladder: what PID 1 does when a child dies, raises, hangs or comes to a good end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.saver import supervisor
from postpanic.saver.console import Console
from postpanic.saver.plan import FilePlan, SavePlan
from postpanic.saver.supervisor import RUNGS, Rung, Tally, supervise

# From 3.12 on Python warns of other threads, which those that run tests have; a saver has none.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

Tell = Callable[[dict[str, object]], None]

SAVED = {"number": 0, "state": "saved", "has_log": True, "place": "/var/crash/x"}


def run(child: Callable[[Rung, frozenset[int], Tell], None], *, timeout_s: float = 60.0) -> tuple[Tally, str, int]:
    console = Console(os.open(os.devnull, os.O_WRONLY))
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    plan = SavePlan(targets=(FilePlan(name="one"), FilePlan(name="two")), timeout_s=timeout_s)
    tally = supervise(plan, child, console, tick=tick)
    return tally, console.transcript(), ticks


def test_a_child_that_saves_is_the_only_one(tmp_path: Path) -> None:
    def child(rung: Rung, _skip: frozenset[int], tell: Tell) -> None:
        (tmp_path / rung.name).touch()
        tell(SAVED)

    tally, said, ticks = run(child)
    assert tally.complete == {0: "/var/crash/x"}
    assert tally.logs == {0}
    assert [path.name for path in tmp_path.iterdir()] == ["everything"]
    assert said == ""
    assert ticks >= 1


@pytest.mark.parametrize("end", ["kill", "raise", "exit", "memory"])
def test_a_child_that_dies_is_followed_by_leaner_ones(tmp_path: Path, end: str) -> None:
    def child(rung: Rung, _skip: frozenset[int], tell: Tell) -> None:
        (tmp_path / rung.name).touch()
        if rung.log_only:
            tell({"number": 1, "state": "saved, incomplete", "has_log": True})
            return
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "raise":
            raise ValueError("a mistake of ours")
        if end == "memory":
            raise MemoryError
        os._exit(3)

    tally, said, _ = run(child)
    assert {path.name for path in tmp_path.iterdir()} == {rung.name for rung in RUNGS}
    assert not tally.complete
    assert tally.logs == {1}
    expected = {
        "kill": "killed by signal 9",
        "raise": "ended with status 1",
        "exit": "ended with status 3",
        "memory": "ended with status 1",
    }
    assert expected[end] in said
    assert "trying again: the log only" in said


def test_what_a_dead_child_has_saved_is_not_saved_again() -> None:
    def child(rung: Rung, skip: frozenset[int], tell: Tell) -> None:
        assert rung is RUNGS[0], "one whole dump is enough"
        assert skip == frozenset()
        tell(SAVED)
        os.kill(os.getpid(), signal.SIGKILL)

    tally, said, _ = run(child)
    assert tally.complete == {0: "/var/crash/x"}
    assert "killed by signal 9" in said


def test_a_child_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor, "_SILENCE_S", 3.0)

    def child(rung: Rung, _skip: frozenset[int], tell: Tell) -> None:
        if not rung.lean:
            (tmp_path / "pid").write_text(str(os.getpid()))
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        tell(SAVED)

    started = time.monotonic()
    tally, said, ticks = run(child)
    assert tally.complete
    assert "has not said anything for 3 s" in said
    assert time.monotonic() - started < 30
    assert ticks > 2, "watchdogs are fed meanwhile"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_time_for_everything_is_kept() -> None:
    def child(_rung: Rung, _skip: frozenset[int], tell: Tell) -> None:
        while True:
            tell({"alive": True})
            time.sleep(0.1)

    started = time.monotonic()
    tally, said, _ = run(child, timeout_s=2.0)
    assert "the time is up" in said
    assert not tally.complete
    assert time.monotonic() - started < 30


def test_a_thread_that_is_stuck_does_not_keep_the_machine_from_its_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is done and does not end is what a thread inside a dead disk looks like."""
    monkeypatch.setattr(supervisor, "_KILL_WAIT_S", 0.5)

    def child(_rung: Rung, _skip: frozenset[int], tell: Tell) -> None:
        tell(SAVED)
        tell({"done": True})
        time.sleep(30)

    started = time.monotonic()
    tally, _, _ = run(child)
    assert tally.complete
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("noise", [b"no json\n", b"[1]\n", b'{"number": "x"}\n', b"{" * 5000 + b"\n", b"\xff\xfe\n"])
def test_what_is_no_message_is_passed_over(noise: bytes) -> None:
    reader, writer = os.pipe()
    tally = Tally()
    report = supervisor.ChildReport(reader, tally)
    os.write(writer, noise + b'{"number": 1, "state": "failed", "error": "no route"}\n')
    os.close(writer)
    report.read(1.0)
    os.close(reader)
    assert tally.errors == {1: "no route"}
