"""``ps``, ``files``, ``vm`` and their kin, cell by cell against crash."""

from __future__ import annotations

import re
from typing import Any

import pytest
from drgn import Object

from tests.compat.crash_text.code import parse_log
from tests.compat.crash_text.system import parse_mount
from tests.compat.crash_text.tasks import (
    Process,
    parse_files,
    parse_last_run,
    parse_ps,
    parse_related,
    parse_state_counts,
    parse_times,
    parse_vm,
)
from tests.compat.judged import Judged, differences, inner, records

pytestmark = pytest.mark.compat


def process(row: dict[str, Any], address: str = "task") -> Process:
    numbers = (row["pid"], row["ppid"], row["cpu"], row[address] or 0)
    percent = round(row["mem_percent"], 1)
    return Process(
        row["active"] == ">", *numbers, row["state"], percent, row["vsz_kib"], row["rss_kib"], row["command"]
    )


@pytest.mark.parametrize("line", ["ps", "ps -k", "ps -u", "ps -G", "ps -A"])
def test_ps_has_crashs_rows(judged: Judged, line: str) -> None:
    ours = [process(row) for row in records(judged.run(line).table)]
    theirs = judged.parsed(line, parse_ps)
    for mine, other in zip(ours, theirs, strict=True):
        if mine != other:
            # crash takes a negative counter for zero before it adds what the threads have not yet
            # accounted; the page tables say who is right.
            assert mine._replace(rss_kib=0, memory_percent=0.0) == other._replace(rss_kib=0, memory_percent=0.0)
            assert judged.kernel == "6.1", "since 6.2 there is one counter for all threads"
            assert mine.rss_kib == count_resident_kib(judged, mine.pid) < other.rss_kib


def count_resident_kib(judged: Judged, pid: int) -> int:
    """Count the pages that the page tables of a process map, which no counter has a part in."""
    areas = inner(records(judged.run(f"vm -p {pid}").table)[0]["areas"])
    return sum(4 for area in areas for page in inner(area["pages"]) if isinstance(page["paddr"], int))


def header(row: dict[str, Any]) -> tuple[int, int, int, str]:
    return row["pid"], row["task"], row["cpu"], row["comm"]


def test_ps_l_orders_by_last_arrival(judged: Judged) -> None:
    ours = [(str(row["last_run_ns"]), row["state"], header(row)) for row in records(judged.run("ps -l").table)]
    assert differences(ours, judged.parsed("ps -l", parse_last_run)) == []


def test_ps_t_gives_times(judged: Judged) -> None:
    rows = records(judged.run("ps -t").table)
    ours = [(header(row), row["start_time_ns"], row["utime_ns"], row["stime_ns"]) for row in rows]
    theirs = [(one.header, one.start_time, one.utime, one.stime) for one in judged.parsed("ps -t", parse_times)]
    assert differences(ours, theirs) == []


def test_ps_t_counts_the_run_time_from_the_last_message(judged: Judged) -> None:
    """On 6.12 crash gives everything minutes that the guest did not live: the last message tells how long it did."""
    last_s = (judged.parsed("log", parse_log)[-1].time_us or 0) // 1_000_000
    init = next(row for row in records(judged.run("ps -t").table) if row["pid"] == 1)
    assert init["run_time_s"] in range(last_s - 1, last_s + 2)
    theirs = {one.header.pid: one.run_time for one in judged.parsed("ps -t", parse_times)}[1]
    hours, minutes, seconds = map(int, theirs.rpartition(" ")[2].split(":"))
    is_alike = abs(hours * 3600 + minutes * 60 + seconds - init["run_time_s"]) <= 30
    assert is_alike == (judged.kernel == "6.1"), (theirs, init["run_time"])


def test_ps_capital_s_counts_states(judged: Judged) -> None:
    ours = {row["state"]: row["count"] for row in records(judged.run("ps -S").table)}
    assert ours == judged.parsed("ps -S", parse_state_counts)


def test_ps_c_lists_children(judged: Judged) -> None:
    ours = [(header(row), tuple(map(header, inner(row["children"])))) for row in records(judged.run("ps -c").table)]
    theirs = parse_related(judged.said("ps -c"), "no children")
    # crash goes by the parent, and swapper/0 is its own; it is on no list of children.
    first, children = theirs[0]
    assert children.pop(0) == first
    assert differences(ours, [(task, tuple(below)) for task, below in theirs]) == []


def test_ps_g_lists_threads(judged: Judged) -> None:
    ours = [(header(row), tuple(map(header, inner(row["threads"])))) for row in records(judged.run("ps -g").table)]
    theirs = {tuple(task): tuple(below) for task, below in parse_related(judged.said("ps -g"), "no threads")}
    # To crash the idle tasks are one process, by their PID; each was copied without CLONE_THREAD, and leads itself.
    idle = [task for task, _ in ours if task[0] == 0]
    for _, address, *_ in idle:
        task = Object(judged.dump.prog, "struct task_struct *", address)
        assert task.group_leader == task
    theirs.update(dict.fromkeys(idle, ()))
    assert dict(ours) == theirs


def as_crash(path: object) -> object:
    """
    Spell a path as crash does.

    Ours is what ``/proc/PID/fd`` and ``/proc/PID/maps`` of the guest say. crash knows the name of the
    dentry only, says nothing of pipes and of areas without a file, and not that a file was deleted.
    """
    if not isinstance(path, str) or re.fullmatch(r"(pipe|socket):\[\d+\]|\[(heap|stack|vvar|vvar_vclock|vdso)\]", path):
        return ""
    # Of the kernel's own mounts /proc shows the root, crash does not.
    own = re.fullmatch(r"/(anon_hugepage|SYSV\w+|memfd:\w+) \(deleted\)", path)
    return own[1] if own else path.removeprefix("anon_inode:").removesuffix(" (deleted)")


def test_files_of_all_tasks(judged: Judged) -> None:
    ours = []
    for row in judged.run_each("files"):
        files = tuple(
            (one["fd"], one["file"], one["dentry"], one["inode"], one["type"], as_crash(one["path"]))
            for one in inner(row["files"])
        )
        # A task that has ended has neither.
        ours.append((header(row), row["root"] or "", row["cwd"] or "", files))
    # Of a socket crash names the protocol, we the number that /proc has, and net the protocol.
    theirs = [
        (*one[:3], tuple((*file[:5], file.path if file.type != "SOCK" else "") for file in one.files))
        for one in judged.parsed("foreach files", parse_files)
    ]
    assert differences(ours, theirs) == []


def test_files_c_counts_pages(judged: Judged) -> None:
    ours = []
    for row in judged.run_each("files -c"):
        files = ((one["fd"], one["inode"], one["mapping"], one["pages"]) for one in inner(row["files"]))
        ours.append((header(row), tuple(files)))
    theirs = [
        (one.header, tuple(file[:4] for file in one.files)) for one in judged.parsed("foreach files -c", parse_files)
    ]
    assert differences(ours, theirs) == []


def test_vm_of_all_tasks(judged: Judged) -> None:
    ours = []
    for row in judged.run_each("vm"):
        areas = tuple(
            (one["vma"], one["start"], one["end"], one["flags"], as_crash(one["file"]))
            for one in (inner(row["areas"]) if row["areas"] is not None else ())
        )
        # The resident size is compared with ps.
        ours.append((header(row), row["mm"], row["pgd"], row["total_vm"], areas))
    theirs = [
        (one.header, one.mm, one.pgd, one.total_kib, tuple(map(tuple, one.areas)))
        for one in judged.parsed("foreach vm", parse_vm)
    ]
    assert differences(ours, theirs) == []
    assert sum(len(areas) for *_, areas in ours) > 1000


def test_vm_and_ps_agree_on_the_resident_size(judged: Judged) -> None:
    sizes = {row["task"]: row["rss_kib"] for row in records(judged.run("ps").table)}
    assert {row["task"]: row["rss"] for row in judged.run_each("vm")} == sizes


def test_mount_lists_crashs_mounts(judged: Judged) -> None:
    rows = records(judged.run("mount").table)
    ours = [(row["mount"], row["superblock"], row["type"], row["device"], row["directory"]) for row in rows]
    assert differences(ours, judged.parsed("mount", parse_mount)) == []
