"""``locks`` and ``wq`` on machines whose threads wait for each other (scenario ``locked``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import drgn
import pytest

from postpanic import open_dump
from postpanic.analysis.locks import read_locks
from postpanic.analysis.locks.waiting import WaitFinder
from postpanic.analysis.open_dump import OpenDump
from postpanic.findings.table import Answer, Table
from postpanic.report.text import render_text
from tests.vm.lab import Crash

KERNELS = ("6.1", "6.12", "newest")


@pytest.fixture(
    scope="module",
    params=[key if key == "6.12" else pytest.param(key, marks=pytest.mark.matrix) for key in KERNELS],
)
def dump(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Iterator[OpenDump]:
    with open_dump(crashed(request.param, scenario="locked").filtered, debuginfo="synth") as opened:
        yield opened


def _inner(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    table = row[name]
    assert isinstance(table, Table), table
    return table.records()


@pytest.fixture(scope="module")
def answer(dump: OpenDump) -> Answer:
    found = dump.run("locks")
    assert found.problems == ()
    return found


@pytest.fixture(scope="module")
def by_name(answer: Answer) -> dict[str, dict[str, Any]]:
    """Give the locks of our module by their names; the others have none."""
    return {str(row["name"]): row for row in answer["locks"].records()}


def _who(row: dict[str, Any], name: str) -> list[tuple[str, str]]:
    key = "how" if name == "holders" else "role"
    return [(entry["comm"], entry[key] or "") for entry in _inner(row, name)]


def test_two_threads_that_took_two_mutexes_in_two_orders(answer: Answer) -> None:
    cycles = answer["cycles"].records()
    assert [(row["verdict"], row["task_count"]) for row in cycles] == [("DEADLOCK", 2)]
    edges = {(edge["waiter_comm"], edge["name"], edge["holder_comm"]) for edge in _inner(cycles[0], "edges")}
    assert edges == {("abba-one", "locked_right", "abba-two"), ("abba-two", "locked_left", "abba-one")}


@pytest.mark.parametrize(
    ("name", "kind", "holders", "waiters"),
    [
        ("locked_left", "mutex", [("abba-one", "owner")], [("abba-two", "")]),
        ("locked_right", "mutex", [("abba-two", "owner")], [("abba-one", "")]),
        ("locked_gate", "rwsem", [("sem-reader", "reader")], [("sem-writer", "writer"), ("sem-late", "reader")]),
        ("locked_count", "semaphore", [], [("sem-taker", "")]),
        ("locked_done", "completion", [], [("never-done", "")]),
        ("locked_pcpu", "percpu-rwsem", [], [("pcpu-writer", "writer")]),
    ],
)
def test_holders_and_waiters(
    by_name: dict[str, dict[str, Any]],
    name: str,
    kind: str,
    holders: list[tuple[str, str]],
    waiters: list[tuple[str, str]],
) -> None:
    row = by_name[name]
    assert row["kind"] == kind
    assert _who(row, "holders") == holders
    assert _who(row, "waiters") == waiters
    # All had waited for a second at least when the machine crashed.
    assert all(10**9 < entry["waits_ns"] < 10**12 for entry in _inner(row, "waiters"))


def test_states_of_locks(by_name: dict[str, dict[str, Any]]) -> None:
    assert by_name["locked_gate"]["state"] == "locked by 1 reader"
    assert by_name["locked_count"]["state"] == "count 0"
    assert by_name["locked_done"]["state"] == "done 0"
    assert by_name["locked_pcpu"]["state"] == "a writer has it or waits, 1 reader"


def test_only_a_reader_is_not_certain(answer: Answer) -> None:
    holders = [holder for row in answer["locks"].records() for holder in _inner(row, "holders")]
    assert {holder["comm"] for holder in holders if not holder["certain"]} == {"sem-reader"}


def test_flush_waits_for_the_worker(dump: OpenDump, answer: Answer) -> None:
    flushed = [row for row in answer["locks"].records() if _who(row, "waiters") == [("wq-flusher", "")]]
    assert len(flushed) == 1
    worker = dump.run("wq locked_wq")["running"].records()[0]
    assert [holder["pid"] for holder in _inner(flushed[0], "holders")] == [worker["pid"]]


def test_tasks_that_wait_for_no_lock(answer: Answer) -> None:
    blocked = {str(row["comm"]): row["function"] for row in answer["blocked"].records()}
    assert blocked["sem-reader"] == "sem_reader"
    assert blocked["pcpu-reader"] == "pcpu_reader"
    assert "stuck_work" in blocked.values()


def test_locks_of_one_task(dump: OpenDump) -> None:
    found = dump.run("locks abba-one")
    assert {row["name"] for row in found["locks"].records()} == {"locked_left", "locked_right"}


def test_only_cycles(dump: OpenDump) -> None:
    found = dump.run("locks -c")
    assert [table.shape.name for table in found.tables] == ["cycles"]
    lines = list(render_text(found))
    assert lines[0] == "DEADLOCK of 2 tasks:"
    assert any("abba-one" in line and "locked_right" in line for line in lines)


def test_graph(dump: OpenDump) -> None:
    edges = dump.run("locks -g")["edges"].records()
    pairs = {(row["waiter_comm"], row["holder_comm"]) for row in edges}
    assert {("abba-one", "abba-two"), ("abba-two", "abba-one"), ("sem-writer", "sem-reader")} <= pairs


def test_workqueue(dump: OpenDump) -> None:
    found = dump.run("wq -s 1 locked_wq -d")
    assert found.problems == ()
    running = found["running"].records()
    assert [(row["mark"], row["function"], row["state"]) for row in running] == [("STUCK", "stuck_work", "UN")]
    pending = found["pending"].records()
    assert [(row["why"], row["function"]) for row in pending] == [("max_active", "behind_work")]
    assert [row["comm"] for row in found["flushers"].records()] == ["wq-flusher"]
    delayed = found["delayed"].records()
    # An hour, at 250 ticks a second.
    assert [row["function"] for row in delayed] == ["behind_work"]
    assert 3000 * 250 < delayed[0]["jiffies_left"] <= 3600 * 250


def test_nothing_is_stuck_by_the_kernels_own_limit(dump: OpenDump) -> None:
    found = dump.run("wq -a")
    assert not any(row["mark"] for row in found["running"].records())
    queues = {str(row["queue"]): row for row in found["queues"].records()}
    assert (queues["locked_wq"]["active"], queues["locked_wq"]["held_back"]) == (1, 1)
    assert {"events", "events_unbound", "mm_percpu_wq"} <= set(queues)
    assert not any(row["mark"] for row in found["pools"].records())


def test_the_module_taints(dump: OpenDump) -> None:
    assert [(row["name"], row["taints"]) for row in dump.run("mod -t").table.records()] == [("locked", "OE")]
    taints = dump.run("sys -t").table.records()[0]
    assert taints["letters"] == "OE"
    assert [row["bit"] for row in _inner(taints, "meanings")] == [12, 13]


def test_locks_are_found_without_what_newer_kernels_note(dump: OpenDump, monkeypatch: pytest.MonkeyPatch) -> None:
    """``task_struct.blocker`` is there only where hung tasks are detected."""
    monkeypatch.setattr(WaitFinder, "_recorded", lambda *_: 0)
    names = {str(row["name"]) for row in dump.run("locks")["locks"].records()}
    assert {"locked_left", "locked_right", "locked_gate", "locked_count"} <= names


@pytest.fixture
def overwrite(dump: OpenDump) -> Iterator[Callable[[int, int], None]]:
    """Give a function that writes a word into the dump; afterwards it is what it was."""
    before: list[tuple[int, bytes]] = []

    def write(vaddr: int, value: int) -> None:
        before.append((vaddr, dump.prog.read(vaddr, 8)))
        dump.workspace.write_virtual(vaddr, value.to_bytes(8, "little"))

    yield write
    for vaddr, data in reversed(before):
        dump.workspace.write_virtual(vaddr, data)


def test_an_owner_that_is_no_task(dump: OpenDump, overwrite: Callable[[int, int], None]) -> None:
    owner = drgn.offsetof(dump.prog.type("struct mutex"), "owner")
    overwrite(dump.prog.symbol("locked_left").address + owner, 0xFFFF_8880_DEAD_B000)
    found = dump.run("locks")
    assert [problem.what for problem in found.problems if "is no task of the kernel" in problem.what]
    rows = {str(row["name"]): row for row in found["locks"].records()}
    assert _inner(rows["locked_left"], "holders") == []
    assert _who(rows["locked_left"], "waiters") == [("abba-two", "")]
    assert "cycles" not in {table.shape.name for table in found.tables}


def test_waiters_that_lead_in_a_circle(dump: OpenDump, overwrite: Callable[[int, int], None]) -> None:
    lock = next(row for row in dump.run("locks")["locks"].records() if row["name"] == "locked_gate")
    task = _inner(lock, "waiters")[0]["task"]
    waiter = next(
        wait.vaddr
        for known in read_locks(dump.workspace, []).locks
        if known.vaddr == lock["lock"]
        for wait in known.waiters
        if wait.task == task
    )
    # struct list_head is the first member: next leads back to the waiter itself.
    overwrite(waiter, waiter)
    rows = {str(row["name"]): row for row in dump.run("locks")["locks"].records()}
    assert {"locked_left", "locked_right"} <= set(rows)


def test_a_list_of_workqueues_that_is_a_circle(dump: OpenDump, overwrite: Callable[[int, int], None]) -> None:
    queue = next(row for row in dump.run("wq -a")["queues"].records() if row["queue"] == "locked_wq")
    link = queue["address"] + drgn.offsetof(dump.prog.type("struct workqueue_struct"), "list")
    overwrite(link, link)
    found = dump.run("wq -a")
    assert any("a loop" in problem.what for problem in found.problems)
    assert "locked_wq" in found["queues"].column("queue")
