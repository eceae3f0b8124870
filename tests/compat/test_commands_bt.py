"""``bt`` and ``args`` against drgn with the kernel's real DWARF, and on stacks that are damaged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import drgn
import pytest
from drgn.helpers.linux.pid import find_task

from postpanic import open_dump
from postpanic.analysis.open_dump import OpenDump
from postpanic.errors import UsageError
from postpanic.findings.absent import Absent
from postpanic.report.text import render_text
from tests.compat.judged import Judged, inner, records
from tests.vm.lab import Crash

pytestmark = pytest.mark.compat

KERNEL_HALF = 1 << 63


@pytest.fixture
def dump(judged: Judged) -> OpenDump:
    """Give the dump with nothing but what it holds itself."""
    return judged.dump


@pytest.fixture(scope="module")
def with_dwarf(judged: Judged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenDump]:
    """Give the dump with the kernel's own debug information."""
    made = tmp_path_factory.mktemp("dwarf")
    with open_dump(judged.crash.filtered, vmlinux=judged.vmlinux, cache_directory=made) as dump:
        yield dump


def rows_of(dump: OpenDump, line: str) -> list[dict[str, Any]]:
    """Return the rows of ``foreach``, those of all tasks one after the other."""
    return [
        row
        for task in records(dump.run(f"foreach {line}").table)
        for answer in inner(task["answers"])
        for row in inner(answer["rows"])
    ]


def frames_of(row: dict[str, Any], kind: str = "frame") -> list[dict[str, Any]]:
    if isinstance(row["frames"], Absent):
        return []
    return [frame for frame in inner(row["frames"]) if frame["kind"] == kind]


def trace(prog: drgn.Program, task: int) -> list[drgn.StackFrame]:
    """Return drgn's frames of a task in the kernel."""
    frames = list(prog.stack_trace(drgn.Object(prog, "struct task_struct *", task)))
    return [frame for frame in frames if frame.sp >= KERNEL_HALF]


def asleep(dump: OpenDump) -> list[dict[str, Any]]:
    """Choose those that were switched out; one that runs may have been stopped within ``__schedule()``."""
    running = {row["task"] for row in records(dump.run("bt -a").table)}
    rows = [row for row in rows_of(dump, "bt") if frames_of(row) and row["task"] not in running]
    return [row for row in rows if frames_of(row)[0]["function"] == "__schedule"]


def test_frames_of_sleeping_tasks_are_those_that_dwarf_unwinds(dump: OpenDump, with_dwarf: OpenDump) -> None:
    rows = asleep(dump)
    assert len(rows) > 200
    for row in rows:
        theirs = [frame for frame in trace(with_dwarf.prog, row["task"]) if not frame.is_inline]
        ours = [(frame["pc"], frame["sp"] + 8) for frame in frames_of(row)]
        assert ours == [(frame.pc, frame.sp) for frame in theirs], row["comm"]
        assert all(frame["reliable"] for frame in frames_of(row))
        assert row["problem"] is None


def test_inlined_functions_and_lines_are_drgns(with_dwarf: OpenDump) -> None:
    row = next(row for row in records(with_dwarf.run("bt -l 1").table))
    ours = [(frame["function"], frame["file"], frame["line"]) for frame in inner(row["frames"])]
    theirs = [(frame.name, *frame.source()[:2]) for frame in trace(with_dwarf.prog, row["task"])]
    # Code in assembly has a name in the symbol table only.
    assert ours[:-1] == theirs[:-1]
    assert next(frame["function"] for frame in frames_of(row, "inline")) == "context_switch"
    text = "\n".join(render_text(with_dwarf.run("bt -l 1")))
    assert re.search(r"^    context_switch \(inline\)\n    kernel/sched/core.c: \d+$", text, re.MULTILINE)


def test_lines_are_missed_where_there_is_no_dwarf(dump: OpenDump) -> None:
    answer = dump.run("bt -l 1")
    assert [problem.what for problem in answer.problems] == ["no source lines: the debug information has none"]
    assert frames_of(records(answer.table)[0])


def dwarf_value(frame: drgn.StackFrame, name: str) -> int | None:
    """Return what DWARF says a parameter is, without a sign, if it does."""
    try:
        found = frame[name]
        value = None if found.absent_ else found.value_()
    except (KeyError, drgn.FaultError, LookupError):
        return None
    return value % (1 << 8 * drgn.sizeof(found)) if isinstance(value, int) else None


def test_arguments_are_those_of_dwarf(dump: OpenDump, with_dwarf: OpenDump) -> None:
    """Nothing that is proven may be wrong; more is known than DWARF knows."""
    counts: Counter[str] = Counter()
    for row in rows_of(dump, "args"):
        if isinstance(row["frames"], Absent):
            continue
        task = drgn.Object(with_dwarf.prog, "struct task_struct *", row["task"])
        try:
            theirs = {(frame.pc, frame.sp): frame for frame in with_dwarf.prog.stack_trace(task) if not frame.is_inline}
        except ValueError:
            continue
        for frame in inner(row["frames"]):
            real = theirs.get((frame["pc"], frame["sp"] + 8))
            for argument in inner(frame["arguments"]):
                known = isinstance(argument["value"], int)
                counts[str(argument["certainty"])] += 1
                value = dwarf_value(real, argument["name"]) if real is not None and argument["type"] else None
                if value is None:
                    counts["ours only"] += known
                elif not known:
                    counts["theirs only"] += 1
                else:
                    counts[f"{argument['certainty']} {'right' if value == argument['value'] else 'wrong'}"] += 1
    assert counts["proven wrong"] == 0
    assert counts["proven right"] > 600
    assert counts["likely right"] >= 20 * counts["likely wrong"]
    assert counts["proven right"] + counts["likely right"] > 6 * counts["theirs only"]
    assert counts["ours only"] > 100


def test_arguments_of_one_frame_with_reasons(dump: OpenDump) -> None:
    whole = records(dump.run("args 1").table)[0]
    number = next(frame["number"] for frame in inner(whole["frames"]) if frame["function"] == "do_wait")
    (frame,) = inner(records(dump.run(f"args -v -n {number} 1").table)[0]["frames"])
    (argument,) = inner(frame["arguments"])
    assert argument["declaration"] == "struct wait_opts *wo"
    assert argument["certainty"] == "proven"
    assert argument["register"] == "rdi"
    task = drgn.Object(dump.prog, "struct task_struct *", whole["task"])
    area = range(int(task.stack), int(task.stack) + 0x4000)
    assert argument["value"] in area
    assert argument["why"] == argument["reason"]


def test_options_choose_tasks(dump: OpenDump) -> None:
    everything = {row["pid"] for row in rows_of(dump, "bt")}
    waiting = rows_of(dump, "bt -R do_wait")
    assert 0 < len(waiting) < len(everything)
    assert all("do_wait" in [frame["function"] for frame in frames_of(row)] for row in waiting)
    address = next(frame["pc"] for frame in frames_of(waiting[0]) if frame["function"] == "do_wait")
    assert [row["task"] for row in rows_of(dump, f"bt -R {address:x}")] == [row["task"] for row in waiting]
    running = records(dump.run("bt -a").table)
    assert [row["cpu"] for row in running] == [0, 1]
    assert [row["task"] for row in records(dump.run("bt -c 1").table)] == [running[1]["task"]]
    panicked = records(dump.run("bt -p").table)
    assert [frame["function"] for frame in frames_of(panicked[0])][:2] == ["machine_kexec", "__crash_kexec"]
    assert panicked[0]["task"] in {row["task"] for row in running}
    threads = records(dump.run("bt -g db-writer/0").table)
    task = find_task(dump.prog, threads[0]["pid"])
    assert all(find_task(dump.prog, row["pid"]).tgid == task.tgid for row in threads)
    assert threads[0]["pid"] == int(task.tgid)


def test_idle_tasks_are_left_out_of_nothing_but_their_frames(dump: OpenDump) -> None:
    rows = rows_of(dump, "bt -n idle")
    assert [row["frames"] for row in rows if row["pid"] == 0] == [None, None]
    assert all(row["frames"] is not None for row in rows if row["pid"])
    with pytest.raises(UsageError, match="only idle"):
        dump.run("bt -n busy")


def test_a_trace_begins_where_it_is_told_to(dump: OpenDump) -> None:
    frames = frames_of(records(dump.run("bt 1").table)[0])
    third = frames[2]
    begun = frames_of(records(dump.run(f"bt -S {third['sp']:x} 1").table)[0])
    assert [(frame["pc"], frame["sp"]) for frame in begun] == [(frame["pc"], frame["sp"]) for frame in frames[2:]]
    inside = frames_of(records(dump.run(f"bt -I {third['pc']:x} -S {third['sp'] + 8:x} 1").table)[0])
    assert [frame["pc"] for frame in inside] == [frame["pc"] for frame in frames[2:]]
    first = frames_of(records(dump.run(f"bt -I {frames[0]['pc']:x} 1").table)[0])
    assert [frame["pc"] for frame in first] == [frame["pc"] for frame in frames]
    with pytest.raises(UsageError, match="multiple of 8"):
        dump.run(f"bt -S {third['sp'] + 1:x} 1")


def test_everything_on_the_stack_holds_what_was_unwound(dump: OpenDump) -> None:
    frames = {frame["sp"] for frame in frames_of(records(dump.run("bt 1").table)[0])}
    texts = {text["slot"]: text for text in inner(records(dump.run("bt -t 1").table)[0]["text_addresses"])}
    assert frames <= set(texts)
    assert all(texts[slot]["call"] for slot in frames)
    more = {text["slot"] for text in inner(records(dump.run("bt -T 1").table)[0]["text_addresses"])}
    assert set(texts) < more
    old = frames_of(records(dump.run("bt -o 1").table)[0])
    assert {frame["sp"] for frame in old if frame["reliable"]} == frames
    assert {frame["sp"] for frame in old} <= set(texts)
    raw = inner(records(dump.run("bt -r 1").table)[0]["raw"])
    assert len(raw) == 1024
    assert raw[0]["word0"] == 0x57AC6E9D
    symbolic = inner(records(dump.run("bt -rF 1").table)[0]["raw"])
    assert sum(str(line["text0"]).startswith("[") for line in symbolic) > 3


def test_contents_name_symbols_and_caches(dump: OpenDump) -> None:
    plain, named, both = (
        [
            line
            for frame in frames_of(records(dump.run(f"bt {option} 1").table)[0])
            if frame["contents"] is not None
            for line in inner(frame["contents"])
        ]
        for option in ("-f", "-F", "-FF")
    )
    words = [(line["word0"], name["text0"], full["text0"]) for line, name, full in zip(plain, named, both, strict=True)]
    cached = [(word, name, full) for word, name, full in words if str(name).startswith("[")]
    assert ("[task_struct]") in {name for _, name, _ in words} | {line["text1"] for line in named}
    for word, name, full in cached:
        assert full == f"[{word:016x}:{str(name)[1:]}"
    assert any(re.fullmatch(r"schedule\+\d+", str(line["text0"]) + str(line["text1"])[:0]) for line in named) or any(
        str(line["text1"]).startswith("schedule+") for line in named
    )


def test_no_stack_of_a_sound_kernel_overflows(dump: OpenDump) -> None:
    assert dump.run("bt -v").table.column("message") == ["No stack overflows detected"]


def test_exception_frames_are_found_on_the_stack(dump: OpenDump) -> None:
    found = inner(records(dump.run("bt -e 1").table)[0]["exceptions"])
    assert found[-1]["mode"] == "USER"
    last = frames_of(records(dump.run("bt 1").table)[0])[-1]
    assert inner(last["registers"]) == inner(found[-1]["registers"])
    stacks = records(dump.run("bt -E").table)
    assert {row["stack"] for row in stacks} >= {"IRQ", "NMI", "DOUBLEFAULT", "DEBUG", "MCE"}


@pytest.fixture(scope="module")
def damaged(
    crashed: Callable[..., Crash], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], OpenDump]]:
    """Return a function that opens the dump of a crash of its own kind."""
    opened: dict[str, OpenDump] = {}

    def open_scenario(scenario: str) -> OpenDump:
        if scenario not in opened:
            crash = crashed("6.1", scenario=scenario)
            made: Path = tmp_path_factory.mktemp("made")
            opened[scenario] = open_dump(crash.filtered, debuginfo="synth", cache_directory=made)
        return opened[scenario]

    yield open_scenario
    for dump in opened.values():
        dump.close()


def test_a_call_to_nowhere_is_said_and_followed(damaged: Callable[[str], OpenDump]) -> None:
    answer = damaged("module-call").run("bt")
    (row,) = records(answer.table)
    frames = frames_of(row)
    names = [frame["function"] for frame in frames]
    assert names[names.index("asm_exc_page_fault") + 1 :][:2] == ["dummy_xmit", "dev_hard_start_xmit"]
    fault = frames[names.index("asm_exc_page_fault")]
    assert inner(fault["registers"])[0]["rip"] == 0
    assert all(frame["reliable"] for frame in frames)
    assert frames[-1]["function"] == "entry_SYSCALL_64_after_hwframe"
    (problem,) = answer.problems
    assert problem.what.startswith(f"PID {row['pid']}: the unwinder is lost at 0x0")
    assert "its caller is the return address at the stack pointer" in row["problem"]
    text = "\n".join(render_text(answer))
    assert "[exception RIP: unknown or invalid address]" in text


def test_a_stack_that_overflowed_is_followed_to_its_end(damaged: Callable[[str], OpenDump]) -> None:
    dump = damaged("module-recursion")
    (row,) = records(dump.run("bt").table)
    frames = frames_of(row)
    assert Counter(frame["function"] for frame in frames)["dummy_xmit"] > 1500
    assert frames[-1]["function"] == "entry_SYSCALL_64_after_hwframe"
    assert {frame["stack"] for frame in frames} == {"DOUBLEFAULT", "task"}
    assert [frame["left_stack"] for frame in frames if frame["left_stack"]] == ["DOUBLEFAULT exception stack"]
    (overflow,) = records(dump.run("bt -v").table)
    assert overflow["task"] == row["task"]
    findings = [finding["finding"] for finding in inner(overflow["findings"])]
    assert any("!= STACK_END_MAGIC" in finding for finding in findings)
    assert any("at or below the end of the stack" in finding for finding in findings)


def test_arguments_of_the_function_that_crashed(damaged: Callable[[str], OpenDump]) -> None:
    (row,) = records(damaged("module-null").run("args").table)
    frames = inner(row["frames"])
    (died,) = [frame for frame in frames if frame["mark"] == "interrupted"]
    skb, device = inner(died["arguments"])
    assert (skb["declaration"], skb["certainty"]) == ("struct sk_buff *skb", "proven")
    assert skb["shown"].endswith(" [skbuff_head_cache]")
    caller = next(frame for frame in frames if frame["function"] == "dev_hard_start_xmit")
    passed = {argument["name"]: argument["value"] for argument in inner(caller["arguments"])}
    assert (passed["first"], passed["dev"]) == (skb["value"], device["value"])


def test_arguments_of_every_task_are_found_or_missed(damaged: Callable[[str], OpenDump]) -> None:
    rows = [row for row in rows_of(damaged("nmi"), "args") if not isinstance(row["frames"], Absent)]
    found = [argument for row in rows for frame in inner(row["frames"]) for argument in inner(frame["arguments"])]
    shown = {argument["declaration"]: argument["shown"] for argument in found if argument["certainty"]}
    # An enumerator is shown by its name.
    assert shown["const enum hrtimer_mode mode"] in {"HRTIMER_MODE_REL", "HRTIMER_MODE_ABS"}
    assert all((argument["shown"] == "?") == isinstance(argument["value"], Absent) for argument in found)


def test_an_nmi_has_a_stack_of_its_own(damaged: Callable[[str], OpenDump]) -> None:
    (row,) = records(damaged("nmi").run("bt -p").table)
    frames = frames_of(row)
    names = [frame["function"] for frame in frames]
    assert names[:3] == ["machine_kexec", "__crash_kexec", "panic"]
    left = next((frame for frame in frames if frame["left_stack"]), None)
    if left is None:
        # It came while the loop ran its own code.
        assert frames[-1]["function"] == "asm_exc_nmi"
        assert inner(frames[-1]["registers"])[0]["rip"] < 1 << 47
        return
    assert left["left_stack"] == "NMI exception stack"
    assert frames[left["number"] - 1]["stack"] == "NMI"
    # What was interrupted is counted where stacks change, and stands above its registers too.
    registers = inner(frames[left["number"] - 1]["registers"])[0]
    assert (registers["rip"], registers["rsp"]) == (left["pc"], left["sp"])
    assert (registers["function"], registers["offset"]) == (left["function"], left["offset"])


@pytest.mark.matrix
def test_an_interrupt_has_a_stack_of_its_own(crashed: Callable[..., Crash], tmp_path: Path) -> None:
    crash = crashed("6.12", scenario="irq-null")
    with open_dump(crash.filtered, debuginfo="synth", cache_directory=tmp_path) as dump:
        (row,) = records(dump.run("bt -p").table)
    frames = frames_of(row)
    names = [frame["function"] for frame in frames]
    assert "__common_interrupt" in names
    assert row["problem"] is None
    fault = inner(frames[names.index("asm_exc_page_fault")]["registers"])[0]
    assert fault["function"] == "skb_recv_done"
    if frames[names.index("__common_interrupt")]["stack"] == "IRQ":
        # An interrupt of user code is served on the stack of the task.
        entry = frames[names.index("asm_common_interrupt")]
        assert entry["left_stack"] == "IRQ stack"
        interrupted = inner(entry["registers"])[0]
        assert interrupted["mode"] == "kernel"
        assert frames[entry["number"] + 1]["pc"] == interrupted["rip"]
