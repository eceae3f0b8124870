"""Real arm64 kernels, opened on whatever machine this is, with nothing but the dump."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.page.evidence import run_line
from postpanic.analysis.program import open_program
from postpanic.analysis.workspace import Workspace
from postpanic.cli.app import main
from postpanic.dumps.open import open_dump
from postpanic.kernel.printk import read_log
from postpanic.pages.checks import Outcome
from postpanic.pages.selftest import check_dump
from postpanic.report.text import render_text
from tests.vm.arm64 import LARGE_PAGES, Arm64Dump, fetch_dump
from tests.vm.lab import Lab

Records = list[dict[str, Any]]
MORE_KERNELS = ("6.12", "6.12-16k", "newest", LARGE_PAGES)


@pytest.fixture(
    scope="module",
    params=["6.1", *(pytest.param(key, marks=pytest.mark.matrix) for key in MORE_KERNELS)],
    ids=lambda key: f"arm64-{key}",
)
def dump(request: pytest.FixtureRequest, crash_lab: Lab, installed: Callable[[str], str]) -> Arm64Dump:
    installed("qemu-system-aarch64")
    return fetch_dump(crash_lab, request.param)


class Prompt:
    """An opened dump, asked in lines of the prompt."""

    def __init__(self, path: Path) -> None:
        self.opened = open_program([path], policy=DebugPolicy.SYNTHESIZED)
        self.memory = self.opened.memory
        self._workspace = Workspace(self.opened)

    def records(self, line: str) -> Records:
        return run_line(self._workspace, line).table.records()

    def tables(self, line: str) -> list[Records]:
        return [list(table.records()) for table in run_line(self._workspace, line).tables]

    def text(self, line: str) -> str:
        return "\n".join(render_text(run_line(self._workspace, line)))


@pytest.fixture(scope="module")
def opened(dump: Arm64Dump) -> Iterator[Prompt]:
    prompt = Prompt(dump.path)
    with prompt.opened:
        yield prompt


@pytest.fixture(scope="module")
def ask(opened: Prompt) -> Callable[[str], Records]:
    return opened.records


def test_log_is_the_consoles(dump: Arm64Dump, opened: Prompt) -> None:
    lines = [line for record in read_log(opened.memory) for line in record.text.decode().splitlines()]
    console = dump.console.read_text(errors="replace")
    for line in ("Trigger a crash", "Kernel panic - not syncing: sysrq triggered crash", "PHYS_OFFSET: 0x40000000"):
        assert any(line in each for each in lines)
        assert line in console
    # Randomised, so what is printed is what was found.
    offset = int(re.findall(r"Kernel Offset: 0x([0-9a-f]+) from", console)[-1], 16)
    assert opened.memory.kaslr_offset == offset != 0


def test_tasks_are_there_and_the_panic_task_is_known(ask: Callable[[str], Records]) -> None:
    tasks = ask("ps")
    names = {row["comm"] for row in tasks}
    assert {"init", "kthreadd", "sleep", "cat", "swapper/0", "swapper/1"} <= names
    assert 1 in [row["pid"] for row in tasks if row["active"] == ">"]


def test_panicking_stack_leads_from_the_delay_to_the_system_call(opened: Prompt) -> None:
    text = opened.text("bt 1")
    names = re.findall(r"^ ?#\d+ \[[0-9a-f]{16}\] (\S+) at", text, re.MULTILINE)
    place = names.index("panic")
    assert names[place : place + 3] == ["panic", "sysrq_handle_crash", "__handle_sysrq"]
    assert names[-4:] == ["do_el0_svc", "el0_svc", "el0t_64_sync_handler", "el0t_64_sync"]
    # The user's registers are behind it, three in a line; 64 is write().
    assert re.search(r"^     PC: 0000[0-9a-f]{12}   LR: [0-9a-f]{16}   SP: 0000[0-9a-f]{12}$", text, re.MULTILINE)
    assert re.search(r"^    X29: 0000[0-9a-f]{12}  X28: [0-9a-f]{16}  X27: [0-9a-f]{16}$", text, re.MULTILINE)
    assert re.search(r"^    ORIG_X0: 0000000000000001  SYSCALLNO: 40  PSTATE: [0-9a-f]{8}$", text, re.MULTILINE)
    assert "not certain" not in text


FRAME = re.compile(r"^ ?#\d+ \[([0-9a-f]{16})\] (\S+) at ([0-9a-f]{16})", re.MULTILINE)


def test_searches_of_a_stack_find_what_unwinding_finds(opened: Prompt) -> None:
    frames = FRAME.findall(opened.text("bt 1"))
    # Where the kernel was entered, and nowhere else, are registers of user code: those of the trace.
    found = opened.text("bt -e 1")
    assert found.count("USER-MODE EXCEPTION FRAME AT: ") == 1
    assert opened.text("bt 1").split("     PC: ")[-1] == found.split("     PC: ")[-1]
    # Return addresses are signed on the stack; each is found under its plain value.
    lines = re.findall(r"^  \[[0-9a-f]{16}\] .* at ([0-9a-f]{16})", opened.text("bt -t 1"), re.MULTILINE)
    calls = [pc for _, _, pc in frames[1:]]
    assert set(lines) >= set(calls) or frames[0][1] == "vectors"
    assert "No stack overflows detected" in opened.text("bt -v")


def test_contents_of_frames_are_the_stack_word_by_word(opened: Prompt) -> None:
    text = opened.text("bt -f 1")
    lines = [(int(place, 16), words) for place, words in re.findall(r"^    ([0-9a-f]{16}): (.+)$", text, re.MULTILINE)]
    assert len(lines) > 50
    for (place, words), (following, _) in itertools.pairwise(lines):
        assert following == place + 8 * len(words.split()), f"{place:x}"
    place, words = lines[0]
    assert words.split() == opened.text(f"rd {place:x} 2").split()[1:3]


def test_trace_begins_where_it_is_told_to(opened: Prompt) -> None:
    frames = FRAME.findall(opened.text("bt 1"))
    place = next(number for number, frame in enumerate(frames) if frame[1] == "panic")
    # The record of a frame names its caller.
    assert FRAME.findall(opened.text(f"bt -S {frames[place][0]} 1")) == frames[place + 1 :]
    begun = FRAME.findall(opened.text(f"bt -I {frames[place][2]} 1"))
    assert (begun[0][1], begun[1:]) == ("panic", frames[1:])


def find_stopped_cpu(ask: Callable[[str], Records]) -> int:
    """Tell which of the two did not panic."""
    return 1 - next(int(row["cpu"]) for row in ask("ps") if row["pid"] == 1)


def test_stopped_cpu_is_followed_through_its_interrupt(ask: Callable[[str], Records], opened: Prompt) -> None:
    text = opened.text(f"bt -c {find_stopped_cpu(ask)}")
    names = re.findall(r"^ ?#\d+ \[[0-9a-f]{16}\] (\S+) at", text, re.MULTILINE)
    assert {"gic_handle_irq", "call_on_irq_stack"} <= set(names)
    # Where another compiler was at work the one is part of the other.
    assert {"local_cpu_stop", "ipi_handler"} & set(names)
    assert "--- <IRQ stack> ---" in text
    # The busy loop is user code: then the stack ends with its entry.
    assert "el1h_64_irq" in names or "el0t_64_irq" in names


def test_every_stack_ends_where_stacks_end(opened: Prompt) -> None:
    ends = {"ret_from_fork", "el0t_64_sync", "el0t_64_irq", "__secondary_switched", "__primary_switched"}
    seen = 0
    for part in re.split(r"(?=^PID: )", opened.text("foreach bt"), flags=re.MULTILINE):
        names = re.findall(r"^ ?#\d+ \[[0-9a-f]{16}\] (\S+) at", part, re.MULTILINE)
        if names:
            assert names[-1] in ends, part
            assert not any(name.startswith("(none") for name in names), part
            seen += 1
    assert seen > 35


def test_sleeping_process_waits_where_it_should(opened: Prompt) -> None:
    assert re.search(r"hrtimer_nanosleep|do_nanosleep", opened.text("bt sleep"))
    assert re.search(r"fifo_open|wait_for_partner", opened.text("bt cat"))


def test_modules_are_found_with_their_functions(dump: Arm64Dump, ask: Callable[[str], Records], opened: Prompt) -> None:
    if not any(dump.kernel.modules_dir.iterdir()):
        # A kernel that cannot load any has no list of them.
        assert list(ask("mod")) == []
        assert " (T) schedule" in opened.text("sym schedule")
        return
    modules = {row["name"]: row for row in ask("mod")}
    assert "qemu_fw_cfg" in modules
    assert "fw_cfg" in opened.text("sym -m qemu_fw_cfg")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dis panic", "<panic>"),
        ("sys", "aarch64"),
        ("mach", "aarch64"),
        ("files 1", "/dev/console"),
        ("vm 1", "busybox"),
        ("mount", "devtmpfs"),
        ("runq", "CURRENT: PID: 1 "),
        ("net", "lo"),
        ("kmem -i", "TOTAL MEM"),
        ("struct task_struct.pid", "pid_t pid"),
        ("sym jiffies", "jiffies"),
    ],
)
def test_commands_answer(opened: Prompt, line: str, expected: str) -> None:
    assert expected in opened.text(line)


def test_bases_of_the_machine_are_where_things_are(ask: Callable[[str], Records], opened: Prompt) -> None:
    (machine,), stacks = opened.tables("mach")
    info = opened.memory.vmcoreinfo
    task = next(row["task"] for row in ask("ps") if row["pid"] == 1)
    # The direct map is one piece, from the first byte of memory on.
    assert task - machine["direct_map"] == opened.memory.translate(task) - info.number("PHYS_OFFSET")
    assert machine["vmalloc"] == info.number("VMALLOC_START") % (1 << 64)
    assert machine["vmemmap"] == info.number("VMEMMAP_START") % (1 << 64)
    for module in ask("mod"):
        assert abs(module["base"] - opened.memory.layout.image_range[0]) < 4 << 30
    # Only with CONFIG_VMAP_STACK is there a stack for when another is full.
    overflow = ["OVERFLOW"] if "__bad_stack" in opened.text("sym -q bad_stack") else []
    assert (machine["stack_size"], [row["kind"] for row in stacks]) == (16384, ["IRQ", *overflow])
    cpu = find_stopped_cpu(ask)
    frames = FRAME.findall(opened.text(f"bt -c {cpu}"))
    (irq,) = (stack["vaddr"] for stack in stacks[0]["stacks"].records() if stack["cpu"] == cpu)
    assert any(irq <= int(place, 16) < irq + stacks[0]["size"] for place, _, _ in frames)


def test_walk_of_the_page_tables_agrees_with_the_linear_map(ask: Callable[[str], Records], opened: Prompt) -> None:
    task = next(row for row in ask("ps") if row["pid"] == 1)
    vaddr = task["task"]
    paddr = opened.memory.translate(vaddr)
    assert f"{paddr:x}" in opened.text(f"vtop {vaddr:x}")
    # Read by way of either, it is the same.
    assert opened.text(f"rd {vaddr:x} 4").split()[1:3] == opened.text(f"rd -p {paddr:x} 4").split()[1:3]


@pytest.mark.parametrize("quick", [True, False])
def test_self_test_finds_everything_a_debugger_needs(dump: Arm64Dump, quick: bool) -> None:
    with open_dump(dump.path) as written:
        test = check_dump(written, quick=quick)
    # There is no ORC on arm64.
    assert {result.name for result in test.results if result.outcome is not Outcome.OK} == {"ORC"}, test.summary
    assert test.passed


def test_panic_cpu_is_known_to_the_debugger(ask: Callable[[str], Records], opened: Prompt) -> None:
    cpu = int(opened.opened.prog["panic_cpu"].counter)
    (running,) = (row for row in ask("ps") if row["pid"] == 1)
    assert running["cpu"] == cpu
    assert opened.opened.prog.crashed_thread().tid == 1


def test_memory_sections_are_those_of_the_memory(opened: Prompt) -> None:
    sections = opened.tables("kmem -n")[2]
    page, first = opened.memory.page_size_bytes, 1 << opened.memory.vmcoreinfo.number("SECTION_SIZE_BITS")
    starts = [row["pfn"] * page for row in sections]
    assert starts == list(range(0x40000000, 0x60000000, first))


def test_slab_caches_are_listed(opened: Prompt) -> None:
    text = opened.text("kmem -s")
    assert " kmalloc-128" in text
    assert " task_struct" in text


def test_triage_knows_a_crash_by_hand(dump: Arm64Dump, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triage", "--json", str(dump.path)]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)["tables"][0]["rows"]
    assert (verdict["kind"], verdict["cause"], verdict["confidence"]) == ("sysrq-crash", "deliberate", "proven")


def test_page_of_it_is_made(dump: Arm64Dump, tmp_path: Path) -> None:
    assert main(["report", "-o", str(tmp_path / "page.html"), str(dump.path)]) == 0
    assert "el0t_64_sync" in (tmp_path / "page.html").read_text()
