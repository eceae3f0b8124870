"""``task set sys log mod runq sig timer foreach``, against what crash prints."""

from __future__ import annotations

import re

import pytest

from postpanic.errors import UsageError
from postpanic.report.text import render_text
from tests.compat.crash_text.code import parse_log, parse_mod
from tests.compat.crash_text.tasks import parse_members, parse_set
from tests.compat.judged import Judged, differences, inner, records

pytestmark = pytest.mark.compat


def lines(text: str) -> list[str]:
    """Split text into lines without what only aligns them."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def ours(judged: Judged, line: str) -> list[str]:
    return lines("\n".join(render_text(judged.run(line))))


@pytest.mark.parametrize(
    "line",
    [
        *("ps -p", "ps -r", "ps -m", "sys -i", "sys -t", "runq", "runq -t", "runq -T", "runq -m", "runq -g"),
        *("sig -l", "sig -s 800A000000000201", "foreach sig", "log -t"),
    ],
)
def test_text_is_crashs(judged: Judged, line: str) -> None:
    assert differences(ours(judged, line), lines(judged.said(line))) == []


def test_ps_s_gives_stack_pointers(judged: Judged) -> None:
    mine = [(text.split()[-9:-5], text.split()[-1]) for text in ours(judged, "ps -s") if "KSTACKP" not in text]
    theirs = [(text.split()[-9:-5], text.split()[-1]) for text in lines(judged.said("ps -s")) if "KSTACKP" not in text]
    # What is on a CPU has none.
    spelled = [([word.replace("--", "-") for word in words], name) for words, name in theirs]
    assert mine == spelled


def test_ps_a_says_that_the_stacks_of_processes_are_left_out(judged: Judged) -> None:
    rows = records(judged.run("ps -a").table)
    marks = {str(getattr(row["arguments"], "reason", "")) for row in rows}
    assert marks == {"excluded", "not-applicable"}
    assert judged.said("ps -a").count("COMMAND:") == len(rows)


def test_log_is_crashs_line_for_line(judged: Judged) -> None:
    mine = [
        (row["timestamp_ns"] // 1000, row["level"], row["text"].strip()) for row in records(judged.run("log").table)
    ]
    theirs = judged.parsed("log -m", parse_log)
    assert [text for _, _, text in mine] == [message.text.strip() for message in theirs]
    timed = [(entry, message) for entry, message in zip(mine, theirs, strict=True) if message.time_us is not None]
    assert all((time, level) == (message.time_us, message.level) for (time, level, _), message in timed)
    assert len(timed) > 400


def test_log_d_has_the_devices(judged: Judged) -> None:
    rows = records(judged.run("log -d").table)
    pairs = [f"{pair['key']}={pair['value']}" for row in rows if row["dictionary"] for pair in inner(row["dictionary"])]
    said = [line for line in lines(judged.said("log -d")) if re.match(r"(SUBSYSTEM|DEVICE)=", line)]
    assert pairs == said
    assert len(said) > 30


def test_log_c_has_the_callers(judged: Judged) -> None:
    callers = [row["caller"] for row in records(judged.run("log -c").table)]
    said = re.findall(r"^\[ *\d+\.\d+\] \[ *([TC]\d+)\]", judged.said("log -c"), re.MULTILINE)
    # Of a message of several lines crash gives the first line a caller.
    assert [caller for caller in dict.fromkeys(callers) if caller] == list(dict.fromkeys(said))


def test_log_of_some_levels(judged: Judged) -> None:
    everything = records(judged.run("log").table)
    chosen = records(judged.run("log -l warn+").table)
    assert [row["text"] for row in chosen] == [row["text"] for row in everything if row["level"] <= 4]
    assert 0 < len(chosen) < len(everything)


def test_modules_are_crashs(judged: Judged) -> None:
    rows = records(judged.run("mod").table)
    mine = [(row["module"], row["name"], row["base"], row["size_bytes"]) for row in rows]
    assert differences(mine, map(tuple, judged.parsed("mod", parse_mod))) == []
    assert {row["kind"] for row in rows} == {"synthesized"}
    assert judged.said("mod -t").strip() == "\n".join(render_text(judged.run("mod -t")))


def test_sections_of_modules_are_inside_them(judged: Judged) -> None:
    row = next(row for row in records(judged.run("mod -g").table) if row["name"] == "dm_mod")
    sections = {entry["section"]: entry["address"] for entry in inner(row["sections"])}
    assert sections[".text"] == row["base"]
    assert sections[".gnu.linkonce.this_module"] == row["module"]


def test_system_calls_are_crashs(judged: Judged) -> None:
    said = dict(re.findall(r"^ *(\d+)  (\S+)", judged.said("sys -c"), re.MULTILINE))
    rows = records(judged.run("sys -c").table)
    mine = {str(row["number"]): row["function"] for row in rows}
    assert set(mine) == set(said)
    # Where several functions are one place (those of calls that there are not), each has another of its names.
    places = {str(row["number"]): row["address"] for row in rows}
    for number, name in said.items():
        assert places[number] in {symbol.address for symbol in judged.dump.prog.symbols(name)}, (number, name)
    assert [row["function"] for row in records(judged.run("sys -c 257").table)] == [said["257"]]
    named = {row["function"] for row in records(judged.run("sys -c open").table)}
    assert named == {name for name in said.values() if "open" in name}


def test_summary_is_crashs_but_for_what_it_has_from_elsewhere(judged: Judged) -> None:
    said = dict(line.split(": ", 1) for line in lines(judged.said("sys")))
    mine = dict(line.split(": ", 1) for line in ours(judged, "sys"))
    different = {key for key in said if said[key] != mine.get(key)}
    # The kernel's file is ours; crash reckons the uptime by jiffies, which jump in an emulated machine.
    assert different <= {"KERNEL", "UPTIME", "DATE"}


def test_set_is_crashs(judged: Judged) -> None:
    rows = [
        row
        for task in records(judged.run("foreach set").table)
        for answer in inner(task["answers"])
        for row in inner(answer["rows"])
    ]
    mine = [
        (
            *(row["pid"], row["comm"], row["task"], row["thread_info"], row["cpu"]),
            # crash takes the kernel's TASK_DEAD for the EXIT_DEAD that had its bit before 4.14.
            row["state"].replace("EXIT_ZOMBIE|TASK_DEAD", "EXIT_DEAD|EXIT_ZOMBIE")
            + (f" ({row['mark']})" if row["mark"] else ""),
        )
        for row in rows
    ]
    assert differences(mine, map(tuple, judged.parsed("foreach set", parse_set))) == []


def test_members_of_tasks_are_crashs(judged: Judged) -> None:
    line = "foreach task -R pid,comm,stack,mm,flags"
    theirs = judged.parsed(line, parse_members)
    mine = [
        (
            (task["pid"], task["task"], task["cpu"], task["comm"]),
            {
                member["name"]: member["value"]
                for member in inner(row["members"])
                if member["structure"] == "task_struct"
            },
        )
        for task in records(judged.run(line).table)
        for answer in inner(task["answers"])
        for row in inner(answer["rows"])
    ]
    assert [header for header, _ in mine] == [tuple(header) for header, _ in theirs]
    for (_, values), (_, others) in zip(mine, theirs, strict=True):
        # We say which symbol a pointer points to.
        for name in ("pid", "stack", "mm"):
            assert values[name].split()[0] == others[name]
        assert values["comm"] == others["comm"]


def test_a_whole_task_has_crashs_members(judged: Judged) -> None:
    row = records(judged.run("task").table)[0]
    mine = [entry["text"] for name in ("task_struct", "thread_info") for entry in inner(row[name])]
    pattern = re.compile(r"^  (\w+) = ", re.MULTILINE)
    assert pattern.findall("\n".join(mine)) == pattern.findall(judged.said("task"))


def test_timers_are_crashs(judged: Judged) -> None:
    """Since 6.9 there are three wheels, of which crash knows two, by older names."""
    rows = records(judged.run("timer")["timer_bases"])
    mine = {
        (timer["expires"], timer["tte"], timer["timer_list"], timer["function_name"])
        for row in rows
        for timer in (inner(row["timers"]) if row["timers"] else [])
    }
    found = re.findall(r"^ +(\d+) +(-?\d+)  ([0-9a-f]{16})  [0-9a-f]{16}  <(\S+)>", judged.said("timer"), re.MULTILINE)
    theirs = {(int(expires), int(tte), int(place, 16), name) for expires, tte, place, name in found}
    assert theirs
    if judged.kernel == "6.1":
        assert mine == theirs
    else:
        assert mine > theirs
        assert {row["base"] for row in rows} == {"BASE_LOCAL", "BASE_GLOBAL", "BASE_DEF"}


def test_high_resolution_timers_are_crashs(judged: Judged) -> None:
    rows = records(judged.run("timer -r").table)
    mine = {
        (timer["softexpires"], timer["expires"], timer["hrtimer"], timer["function_name"])
        for row in rows
        for clock in inner(row["clocks"])
        for timer in (inner(clock["hrtimers"]) if clock["hrtimers"] else [])
    }
    text = judged.said("timer -r")
    found = re.findall(r"^ +(\d+) +(\d+) +-?\d+  ([0-9a-f]{16})  [0-9a-f]{16}  <(\S+)>", text, re.MULTILINE)
    assert mine == {(int(soft), int(hard), int(place, 16), name) for soft, hard, place, name in found}
    assert len(mine) > 100


def test_foreach_chooses_as_crash_does(judged: Judged) -> None:
    everyone = {row["task"]: row for row in records(judged.run("ps").table)}

    def chosen(words: str) -> set[int]:
        return {row["task"] for row in inner(records(judged.run(f"foreach {words} ps")["joined"])[0]["rows"])}

    def those(condition: str, value: object) -> set[int]:
        return {task for task, row in everyone.items() if row[condition] == value}

    assert chosen("kernel") == those("kernel", value=True)
    assert chosen("user") == those("kernel", value=False)
    assert chosen("active") == those("active", ">")
    assert chosen("ZO") == those("state", "ZO")
    assert chosen("ID ZO") == those("state", "ID") | those("state", "ZO")
    assert chosen("kernel init kswapd0") == those("comm", "kswapd0")
    assert chosen("'^web-worker/1.*' kthreadd") == {
        task for task, row in everyone.items() if re.match(r"web-worker/1|kthreadd\Z", row["comm"])
    }
    leaders = chosen("gleader")
    assert leaders < those("kernel", value=False)
    assert not any(everyone[task]["comm"].startswith("thread/") for task in leaders)


def test_foreach_runs_several_commands(judged: Judged) -> None:
    table = judged.run("foreach active set task -R pid,prio").table
    for row in records(table):
        answers = inner(row["answers"])
        assert [answer["command"] for answer in answers] == ["set", "task"]
        members = inner(inner(answers[1]["rows"])[0]["members"])
        assert [(member["name"], member["number"]) for member in members[:1]] == [("pid", row["pid"])]


def test_foreach_leaves_the_context_alone(judged: Judged) -> None:
    before = records(judged.run("set").table)
    judged.run("foreach kernel set")
    assert records(judged.run("set").table) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("foreach kernel", "no command"),
        ("foreach sys", "does not work on a task"),
        ("foreach nosuchtask ps", "no task nosuchtask"),
        ("ps -l -m", "2 ways to show tasks"),
        ("ps -C 0", "only with -l or -m"),
        ("ps -y FAST", "no scheduling policy"),
        ("task -R nosuch", "no member of task_struct"),
        ("set debug 1", "debugging of itself"),
        ("set radix 8", "not possible"),
        ("mod -d dm_mod", "what was loaded stays"),
        ("sys -panic", "nothing is written"),
        ("sig -s xyz", "not hexadecimal"),
        ("timer -C 99", "no CPU 99"),
    ],
)
def test_what_cannot_be_done_says_why(judged: Judged, line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        judged.dump.run(line)


def test_variables_and_contexts(judged: Judged) -> None:
    dump = judged.dump
    try:
        assert records(dump.run("set 1").table)[0]["comm"] == "init"
        assert records(dump.run("task -R pid -x").table)[0]["pid"] == 1
        dump.run("set radix 16")
        members = inner(records(dump.run("task -R prio").table)[0]["members"])
        assert members[0]["value"] == hex(members[0]["number"])
        values = {row["name"]: row["value"] for row in records(dump.run("set -v").table)}
        assert values["radix"] == "16 (hex)"
        dump.run("set -a 1")
        active = {row["task"] for row in records(dump.run("ps -A").table)}
        assert records(dump.run("set").table)[0]["task"] in active
    finally:
        dump.workspace.settings.clear()
        dump.run("set radix 10")
        dump.run("set -p")
    assert records(dump.run("set").table)[0]["mark"] == "PANIC"
