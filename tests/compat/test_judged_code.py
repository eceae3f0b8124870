"""``struct -o``, ``dis``, ``sym``, ``mod``, ``log``, ``task``, ``set`` and ``runq``, cell by cell against crash."""

from __future__ import annotations

import re

import pytest
from drgn import Object

from tests.compat.crash_text.code import parse_dis, parse_log, parse_mod, parse_offsets, parse_sym
from tests.compat.crash_text.tasks import parse_members, parse_runq, parse_set
from tests.compat.judged import Judged, differences, inner, records

pytestmark = pytest.mark.compat

STRUCTURES = (
    *("task_struct", "page", "list_head", "vm_area_struct", "mm_struct", "file", "inode", "dentry", "rq"),
    *("kmem_cache", "module", "sk_buff", "net_device"),
)
DISASSEMBLED = ("dis schedule", "dis vfs_read", "dis do_exit", "dis panic", "dis -f schedule+20", "dis schedule 3")
EXIT_ZOMBIE, TASK_DEAD = 0x20, 0x80


def test_definitions_are_crashs_line_by_line(judged: Judged) -> None:
    """Types come from BTF, those of crash from DWARF."""
    for name in STRUCTURES:
        size, theirs = judged.parsed(f"struct -o {name}", parse_offsets)
        rows = records(judged.run(f"struct -o {name}").tables[0])
        text = [str(row["text"]) for row in rows if not str(row["text"]).startswith("SIZE")]
        our_size, ours = parse_offsets("\n".join([*text, f"SIZE: {rows[0]['size']}"]))
        assert our_size == size, name
        assert [member.declaration for member in ours] == [member.declaration for member in theirs], name
        # Inside of a structure with a name crash gives no offsets.
        placed = [
            (mine.offset, other.offset) for mine, other in zip(ours, theirs, strict=True) if other.offset is not None
        ]
        assert [mine for mine, _ in placed] == [other for _, other in placed], name


@pytest.mark.parametrize("line", DISASSEMBLED)
def test_instructions_are_crashs(judged: Judged, line: str) -> None:
    rows = records(judged.run(line).table)
    ours = [(row["address"], f"{row['mnemonic']} {row['operands']}".split()) for row in rows]
    # What stands behind the operands is how each of the two names addresses.
    theirs = [
        (one.vaddr, re.sub(r" *(\[FTRACE NOP\]|#.*|<.*)", "", f"{one.mnemonic} {one.operands}").split())
        for one in judged.parsed(line, parse_dis)
    ]
    assert ours == theirs


def test_targets_of_calls_are_named_as_crash_does(judged: Judged) -> None:
    named = 0
    for mine, other in zip(
        records(judged.run("dis do_exit").table), judged.parsed("dis do_exit", parse_dis), strict=True
    ):
        target = re.search(r"<([\w.]+)(?:\+(\d+))?>$", other.operands)
        if other.mnemonic.startswith(("call", "j")) and target:
            # gdb does not say that a function is a part of one, or a copy for some arguments.
            assert str(mine["symbol"]).startswith(target[1]), (mine["text"], other)
            named += 1
    assert named > 50


def test_dis_r_ends_with_the_instruction_that_holds_the_address(judged: Judged) -> None:
    """The next one is shown by crash, too, when the address lies inside an instruction."""
    ours = [row["address"] for row in records(judged.run("dis -r schedule+20").table)]
    theirs = [one.vaddr for one in judged.parsed("dis -r schedule+20", parse_dis)]
    target = judged.dump.prog.symbol("schedule").address + 20
    assert ours[-1] <= target
    assert theirs[-1] > target
    assert ours == theirs[:-1]


def bare(name: str) -> str:
    """Take off what the compiler adds to the names of parts and copies, which crash does."""
    return re.sub(r"\.(part|isra|constprop|cold)\b.*", "", name)


def test_symbols_are_crashs(judged: Judged) -> None:
    ours = {(row["address"], bare(row["name"])) for row in records(judged.run("sym -l").table)}
    theirs = {(one.vaddr, bare(one.name)) for one in judged.parsed("sym -l", parse_sym)}
    assert len(ours & theirs) > 100_000
    # The kernel's own table has neither literals, sections and checksums, nor what only the linker needs.
    missing = {name for _, name in theirs - ours}
    left = {name for name in missing if not name.startswith((".", "__crc_", "init_per_cpu__", "__ksym", "__kstr"))}
    assert len(left) < 100, sorted(left)[:40]
    # Of symbols at one place crash keeps some.
    places = {vaddr for vaddr, _ in theirs}
    assert sum(vaddr not in places for vaddr, _ in ours) < 300


def test_sym_q_finds_crashs_names(judged: Judged) -> None:
    ours = {(row["address"], row["type"], bare(row["name"])) for row in records(judged.run("sym -q alloc_pages").table)}
    theirs = {(one.vaddr, one.kind, bare(one.name)) for one in judged.parsed("sym -q alloc_pages", parse_sym)}
    assert [one for one in theirs - ours if not one[2].startswith(("__crc_", "__kstrtab"))] == []
    assert len(ours & theirs) > 30


def test_mod_lists_modules(judged: Judged) -> None:
    ours = [(row["module"], row["name"], row["base"], row["size_bytes"]) for row in records(judged.run("mod").table)]
    assert sorted(ours) == sorted(judged.parsed("mod", parse_mod))
    assert len(ours) > 20


def test_log_has_every_line(judged: Judged) -> None:
    """A message of several lines has one time and one level, which crash gives with the first line only."""
    rows = records(judged.run("log").table)
    ours = [(row["timestamp_ns"] // 1000, row["level"], row["text"].strip()) for row in rows]
    theirs: list[tuple[int | None, int | None, str]] = []
    for message in judged.parsed("log -m", parse_log):
        time_us, level = (message.time_us, message.level) if message.time_us is not None else theirs[-1][:2]
        theirs.append((time_us, level, message.text.strip()))
    assert differences(ours, theirs) == []
    assert len(ours) > 400


def test_members_of_tasks(judged: Judged) -> None:
    for row, (header, theirs) in zip(
        judged.run_each("task -R pid,comm,stack,mm,flags"),
        judged.parsed("foreach task -R pid,comm,stack,mm,flags", parse_members),
        strict=True,
    ):
        # thread_info has flags, too; of two of one name crash's last one counts.
        ours = {member["name"]: member["value"] for member in inner(row["members"])}
        assert row["task"] == header.task
        for name, value in theirs.items():
            assert str(ours[name]).partition(" <")[0] == value.partition(" <")[0], (name, header)


def test_contexts_of_all_tasks(judged: Judged) -> None:
    ours = {row["task"]: row for row in judged.run_each("set")}
    theirs = judged.parsed("foreach set", parse_set)
    assert sorted(ours) == sorted(one.task for one in theirs)
    for one in theirs:
        row = ours[one.task]
        assert (row["pid"], row["comm"], row["thread_info"], row["cpu"]) == (
            one.pid,
            one.comm,
            one.thread_info,
            one.cpu,
        )
        state, _, mark = one.state.partition(" (")
        assert (row["mark"] or "") == mark.rstrip(")")
        if row["state"] != state:
            # crash takes TASK_DEAD for the EXIT_DEAD of old kernels.
            task = Object(judged.dump.prog, "struct task_struct *", one.task)
            assert (row["state"], state) == ("EXIT_ZOMBIE|TASK_DEAD", "EXIT_DEAD|EXIT_ZOMBIE")
            assert (task.exit_state.value_(), task.member_("__state").value_()) == (EXIT_ZOMBIE, TASK_DEAD)


def test_runq_names_what_runs_and_what_waits(judged: Judged) -> None:
    rows = records(judged.run("runq").table)
    ours = []
    for row in rows:
        queues = [queue["address"] for queue in inner(row["queues"])]
        ours.append((row["cpu"], row["runqueue"], row["pid"], row["task"], row["comm"], queues[0], queues[1]))
    theirs = [
        (one.cpu, one.runqueue, one.current.pid, one.current.task, one.current.comm, one.rt_array, one.cfs_root)
        for one in judged.parsed("runq", parse_runq)
    ]
    assert ours == theirs
