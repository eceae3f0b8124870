"""The command line on dumps of real kernels."""

from __future__ import annotations

import calendar
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import drgn
import pytest

from postpanic.analysis.banner import read_banner
from postpanic.analysis.context import find_context_task
from postpanic.analysis.crash_commands import capture_crash_command, load_plugins
from postpanic.analysis.program import open_program
from postpanic.cli.open import format_banner
from tests.vm.lab import Crash
from tests.vm.terminal import CTRL_C, CTRL_D, ENTER, TAB, UP, Terminal

POSTPANIC = [sys.executable, "-m", "postpanic"]
KERNELS = ("6.1", "6.12")


@dataclass(frozen=True)
class Shell:
    """Runs postpanic in a home of its own."""

    environment: dict[str, str]

    def run(self, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        return subprocess.run(
            [*POSTPANIC, *words], input=stdin, capture_output=True, text=True, env=self.environment, check=False
        )

    def terminal(self, *arguments: object) -> Terminal:
        return Terminal([*POSTPANIC, *(str(argument) for argument in arguments)], self.environment)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    home = tmp_path_factory.mktemp("home")
    keep = {key: value for key, value in os.environ.items() if key in {"PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH"}}
    places = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "XDG_STATE_HOME": home / "state"}
    return Shell({**keep, **{key: str(path) for key, path in places.items()}, "TZ": "UTC", "COLUMNS": "120"})


@pytest.fixture(scope="module")
def crash(crashed: Callable[..., Crash]) -> Crash:
    """Give the dump for tests of what does not depend on the kernel."""
    return crashed(KERNELS[0])


@pytest.fixture(scope="module", params=KERNELS)
def each(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Crash:
    """Give the dump of each kernel in turn."""
    return crashed(request.param)


@dataclass(frozen=True)
class Console:
    """What the first kernel said on its console when it died."""

    panic: str
    cpu: str
    pid: str
    command: str
    functions: list[str]
    """Of the call trace, reliable ones only, without suffixes."""


@pytest.fixture(scope="module")
def console(each: Crash) -> Console:
    text = each.console.read_text(errors="replace")
    died = text[text.index("Kernel panic - not syncing") :]
    who = re.search(r"CPU: (\d+) (?:UID: \d+ )?PID: (\d+) Comm: (\S+)", died)
    assert who
    trace = died[died.index("<TASK>") : died.index("</TASK>")]
    functions = re.findall(r"\]\S*  ([\w.]+)\+0x", trace)
    return Console(died.split("\r")[0].split("\n")[0], who[1], who[2], who[3], functions)


def _banner(text: str) -> dict[str, str]:
    rows = re.findall(r"^ *([A-Z ]+): (.*)$", text.partition("\n\n")[0], re.MULTILINE)
    return dict(rows)


@pytest.mark.parametrize("file", ["filtered", "raw"])
def test_bt_shows_the_functions_of_the_consoles_trace(shell: Shell, each: Crash, console: Console, file: str) -> None:
    finished = shell.run("open", "-s", "-e", "bt", getattr(each, file))
    assert finished.returncode == 0, finished.stderr
    shown = re.findall(r" ([\w.]+) at [0-9a-f]{16}", finished.stdout)
    assert "panic" in shown
    traced = [name.partition(".")[0] for name in console.functions]
    # The console names functions by symbol, with suffixes; both see the same calls in the same order.
    names = [name.partition(".")[0] for name in shown]
    for name in traced[traced.index("panic") :]:
        if not name.endswith("_after_hwframe"):
            assert name in names, f"{name} is missing in {names}"
    assert f"PID: {console.pid}" in finished.stdout
    assert finished.stdout.count("\n") > 10


def test_banner_says_what_the_console_says(shell: Shell, each: Crash, console: Console) -> None:
    finished = shell.run("open", each.filtered, stdin="q\n")
    assert finished.returncode == 0, finished.stderr
    banner = _banner(finished.stdout)
    assert banner["PANIC"] == f'"{console.panic}"'
    assert banner["PID"] == console.pid
    assert banner["COMMAND"] == f'"{console.command}"'
    assert banner["CPU"] == console.cpu
    assert banner["RELEASE"] == each.release
    assert banner["STATE"] == "TASK_RUNNING (PANIC)"
    assert banner["DUMPFILE"] == f"{each.filtered}  [PARTIAL DUMP]"
    assert banner["KERNEL"].startswith("synthesized from the dump (build ID ")
    assert banner["CPUS"] == "2"


def test_banner_has_crashs_keys_in_crashs_order_and_place(shell: Shell, each: Crash) -> None:
    lines = shell.run("open", each.filtered, stdin="q\n").stdout.partition("\n\n")[0].splitlines()
    keys = [line.partition(":")[0].strip() for line in lines]
    assert [key for key in keys if key != "DEBUG INFO"] == [
        "KERNEL", "DUMPFILE", "CPUS", "DATE", "UPTIME", "LOAD AVERAGE", "TASKS", "NODENAME", "RELEASE", "VERSION",
        "MACHINE", "MEMORY", "PANIC", "PID", "COMMAND", "TASK", "CPU", "STATE",
    ]  # fmt: skip
    assert {line.index(":") for line in lines} == {len("LOAD AVERAGE")}


def test_guest_that_had_not_panicked_begins_with_the_task_of_cpu_0(crash: Crash, shell: Shell) -> None:
    cache = Path(shell.environment["XDG_CACHE_HOME"]) / "postpanic"
    with open_program([crash.filtered], cache_directory=cache) as opened:
        load_plugins()
        # As in a kernel that runs: include/linux/panic.h, PANIC_CPU_INVALID.
        for name in ("panic_cpu", "crashing_cpu"):
            opened.prog.add_memory_segment(
                opened.prog[name].address_, 4, lambda _address, count, _offset, _physical: b"\xff" * count
            )
        context = find_context_task(opened.prog)
        banner = {line.key: line.value for line in read_banner(opened)}
        assert not context.panicked
        assert banner["PANIC"] == "(none: no CPU had panicked)"
        assert banner["CPU"] == "0"
        assert banner["STATE"] == "TASK_RUNNING (ACTIVE)"
        capture_crash_command(opened.prog, "set -c 0")
        assert f"TASK: {context.task.value_():x}" in capture_crash_command(opened.prog, "set")


def test_fact_that_the_dump_does_not_hold_is_one_absent_line(crash: Crash, shell: Shell) -> None:
    def fail(address: int, _count: int, _offset: int, _physical: object) -> bytes:
        raise drgn.FaultError("left out", address)

    cache = Path(shell.environment["XDG_CACHE_HOME"]) / "postpanic"
    with open_program([crash.filtered], cache_directory=cache) as opened:
        load = opened.prog["avenrun"]
        opened.prog.add_memory_segment(load.address_, drgn.sizeof(load), fail)
        lines = {line.key: line for line in read_banner(opened)}
        assert "left out" in lines["LOAD AVERAGE"].reason
        assert [key for key, line in lines.items() if line.reason] == ["LOAD AVERAGE"]
        shown = format_banner(tuple(lines.values()))
        assert "\nLOAD AVERAGE: (unavailable: cannot read memory at 0x" in shown


def _seconds(clock: str) -> int:
    hours, minutes, seconds = clock.split(":")
    return (int(hours) * 60 + int(minutes)) * 60 + int(seconds)


@pytest.mark.compat
def test_banner_equals_that_of_crash(
    shell: Shell, crashed: Callable[..., Crash], installed: Callable[[str], str]
) -> None:
    crash = crashed("6.1")
    if crash.vmlinux is None:
        pytest.skip("crash cannot start without real debug information")
    theirs = subprocess.run(
        [installed("crash"), crash.vmlinux, crash.filtered],
        input="q\n", capture_output=True, text=True, env={**shell.environment, "TERM": "dumb"}, check=False,
    ).stdout  # fmt: skip
    expected = _banner(theirs[theirs.index("KERNEL: ") :])
    found = _banner(shell.run("open", crash.filtered, stdin="q\n").stdout)
    # crash 8.0.2 finds no more than a few tasks of a kernel whose struct pid has a flexible array.
    for key in expected.keys() - {"KERNEL", "TASKS", "UPTIME"}:
        assert found[key] == expected[key]
    # crash counts jiffies, we read the clock: a second may have begun between the two.
    assert abs(_seconds(found["UPTIME"]) - _seconds(expected["UPTIME"])) <= 1
    assert len(expected) > 15


def test_commands_with_a_pipe_run_in_order(shell: Shell, crash: Crash) -> None:
    finished = shell.run("open", "-s", "-e", "sys | grep RELEASE; p jiffies_64 | wc -l", "-e", "!echo done", crash.raw)
    assert finished.stdout.split("\n") == [f"     RELEASE: {crash.release}", "1", "done", ""]


def test_banner_and_output_come_in_order_in_a_file(shell: Shell, crash: Crash, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("w") as file:
        subprocess.run(
            [*POSTPANIC, "open", "-e", "ps | head -1; bt", crash.filtered],
            stdout=file,
            env=shell.environment,
            check=True,
        )
    text = out.read_text()
    assert text.index("STATE: ") < text.index("PID    PPID") < text.index(" #1 [")


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("bt", 0, ""),
        ("rd 0", 3, "rd: 8 bytes from 0x0 on cannot be read: virtual address 0x0 is not mapped"),
        ("bt 99999", 64, "no task 99999"),
        ("rd nosuch", 3, "rd: no symbol nosuch\n"),
        ("nosuch", 64, "nosuch: no such command or type\n"),
        ("struct nosuch", 3, "struct: no struct nosuch\n"),
        ("p nosuch", 3, "p: column 1: no symbol nosuch\n"),
        ("bt --nosuch", 64, "bt: no option --nosuch\n"),
        ("ps | grep nothing_has_this_name", 1, ""),
        ("ps | exit 7", 1, "ps: 'exit 7' exited with status 7\n"),
        ("ps > /nonexistent/file", 1, "ps: /nonexistent/file: No such file or directory\n"),
        ('p "', 64, "p: column 1: "),
        ("nosuch; bt", 64, "nosuch: no such command or type\n"),
        ("drgn 1/0", 0, "ZeroDivisionError"),
    ],
)
def test_exit_status_is_that_of_the_first_failure(
    shell: Shell, crash: Crash, command: str, status: int, message: str
) -> None:
    finished = shell.run("open", "-s", "-e", command, crash.filtered)
    assert finished.returncode == status, finished.stderr
    assert message in finished.stderr
    assert message or not finished.stderr
    if status:
        assert "Traceback" not in finished.stderr


def test_near_names_are_suggested(shell: Shell, crash: Crash) -> None:
    finished = shell.run("open", "-s", "-e", "foreech bt", crash.filtered)
    assert "  hint: did you mean foreach" in finished.stderr


def test_commands_come_from_standard_input(shell: Shell, crash: Crash) -> None:
    finished = shell.run("open", "-s", crash.filtered, stdin="# a comment\nsys | grep NODE\n\nq\np jiffies\n")
    assert re.fullmatch(r"    NODENAME: \S+\n", finished.stdout)
    assert finished.returncode == 0


def test_commands_come_from_a_file_first(shell: Shell, crash: Crash, tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.write_text("# crash's input file\n!echo one\n")
    finished = shell.run("open", "-s", "-i", commands, "-e", "!echo two", crash.filtered)
    assert finished.stdout == "one\ntwo\n"


@pytest.mark.parametrize(
    ("alias", "command"), [("dmesg -t", "log -t"), ("lsmod", "mod"), ("last", "ps -l"), ("man bt", "help bt")]
)
def test_aliases_of_crash_work(shell: Shell, crash: Crash, alias: str, command: str) -> None:
    outputs = [shell.run("open", "-s", "-e", line, crash.filtered).stdout for line in (alias, command)]
    assert outputs[0] == outputs[1] != ""


_COUNT_FILES = """
import gc, os, sys
from pathlib import Path
from postpanic import open_dump

def count() -> int:
    return sum(os.path.exists(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd"))

# Nothing waits for the collector of garbage.
gc.disable()
before = count()
for line in ("ps", "mod", "kmem -s", "log"):
    with open_dump(Path(sys.argv[1])) as dump:
        dump.run(line)
        while_open = count()
    del dump
    print(line, before, while_open, count())
"""


def test_a_closed_dump_holds_no_file(shell: Shell, crash: Crash) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _COUNT_FILES, str(crash.filtered)],
        capture_output=True,
        text=True,
        env=shell.environment,
        check=True,
    )
    for line in finished.stdout.splitlines():
        *_, before, while_open, after = line.split()
        # A file for each module, and those of the dump and the kernel.
        assert int(while_open) > int(before) + 20
        assert after == before, line
    assert len(finished.stdout.splitlines()) == 4


def test_context_can_be_changed_and_kept(shell: Shell, crash: Crash) -> None:
    finished = shell.run("open", "-s", "-e", "set 1; bt", crash.filtered)
    assert finished.stdout.count("PID: 1 ") + finished.stdout.count("PID: 1\n") >= 2


def test_foreign_vmlinux_is_a_mismatch(shell: Shell, crash: Crash) -> None:
    # The Python interpreter: an executable with a build ID of its own, or none.
    finished = shell.run("open", "-s", "-e", "bt", sys.executable, crash.filtered)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error[mismatch]: ")
    assert len([line for line in finished.stderr.splitlines() if not line.startswith("  hint")]) == 1


@pytest.mark.parametrize("kept", [0.0005, 0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("verb", [["info"], ["dmesg"], ["open", "-e", "bt; ps; mod"]], ids=lambda verb: verb[0])
def test_dump_that_was_cut_is_told_in_plain_words(
    shell: Shell, crash: Crash, tmp_path: Path, verb: list[str], kept: float
) -> None:
    cut = tmp_path / "cut"
    with crash.filtered.open("rb") as whole:
        cut.write_bytes(whole.read(int(crash.filtered.stat().st_size * kept)))
    finished = shell.run(*verb, cut)
    assert finished.returncode in {0, 1, 2, 3}
    assert "Traceback" not in finished.stderr
    assert "internal" not in finished.stderr
    lines = finished.stderr.splitlines()
    assert len(lines) == len(set(lines)), "nothing is said twice"
    if verb[0] == "info" and finished.returncode == 0:
        assert "complete:       no: " in finished.stdout
    if verb[0] == "open" and finished.stdout:
        assert "[INCOMPLETE]" in finished.stdout


def test_info_finds_the_kernel_in_both_files(shell: Shell, each: Crash) -> None:
    raw, filtered = (json.loads(shell.run("info", "--json", path).stdout) for path in (each.raw, each.filtered))
    for key in ("release", "build_id", "kaslr_offset", "crash_time_s"):
        assert raw["kernel"][key] == filtered["kernel"][key] is not None
    assert raw["kernel"]["release"] == each.release
    assert filtered["dump"]["dump_level"] == 31
    assert filtered["memory"]["pages"]["excluded"] > filtered["memory"]["pages"]["present"] > 0
    assert filtered["cpus_with_registers"] == raw["cpus_with_registers"] == 2
    assert all(not content["reason"] for content in filtered["contents"])


_PREFIX = re.compile(r"\[ *\d+\.\d{6}\] ")


def _assert_same_log(ours: str, theirs: str) -> None:
    """Compare two logs line by line; other programs indent the further lines of a record, we repeat its prefix."""
    pairs = list(zip(ours.splitlines(), theirs.splitlines(), strict=True))
    assert len(pairs) > 100
    for our, their in pairs:
        match = _PREFIX.match(our)
        assert match
        expected = their if _PREFIX.match(their) else match.group() + their.removeprefix(" " * match.end())
        assert our == expected


@pytest.mark.compat
def test_dmesg_equals_that_of_makedumpfile(
    shell: Shell, each: Crash, installed: Callable[[str], str], tmp_path: Path
) -> None:
    subprocess.run(
        [installed("makedumpfile"), "--dump-dmesg", each.raw, tmp_path / "log"], check=True, capture_output=True
    )
    _assert_same_log(shell.run("dmesg", each.filtered).stdout, (tmp_path / "log").read_text())


def test_dmesg_equals_the_log_command(shell: Shell, each: Crash) -> None:
    log = shell.run("open", "-s", "-e", "log", each.filtered).stdout
    _assert_same_log(shell.run("dmesg", each.filtered).stdout, log)


def test_dmesg_ends_with_the_panic_and_dates_it(shell: Shell, each: Crash, console: Console) -> None:
    time_s = json.loads(shell.run("info", "--json", each.filtered).stdout)["kernel"]["crash_time_s"]
    lines = shell.run("dmesg", "-T", "-x", "--since", "-5", each.filtered).stdout.splitlines()
    died = next(line for line in lines if console.panic in line)
    date = re.search(r"\[(.*?)\]", died)
    assert date
    died_at = calendar.timegm(time.strptime(date[1], "%a %b %d %H:%M:%S %Y"))
    assert abs(died_at - time_s) <= 2
    assert died.startswith("kern  :emerg : ")


def test_dmesg_filters_by_level(shell: Shell, crash: Crash) -> None:
    records = [json.loads(line) for line in shell.run("dmesg", "--json", crash.filtered).stdout.splitlines()]
    severe = [record for record in records if record["level"] in {"emerg", "alert", "crit", "err"}]
    chosen = [
        json.loads(line) for line in shell.run("dmesg", "--json", "-l", "err+", crash.filtered).stdout.splitlines()
    ]
    assert 0 < len(chosen) < len(records)
    assert chosen == severe
    assert [record["seq"] for record in records] == sorted({record["seq"] for record in records})


def test_dmesg_into_a_reader_that_leaves_is_silent(shell: Shell, crash: Crash) -> None:
    command = f"{sys.executable} -m postpanic dmesg {crash.filtered} | head -1"
    finished = subprocess.run(
        ["/bin/bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, env=shell.environment, check=False,
    )  # fmt: skip
    assert finished.stdout.count("\n") == 1
    assert finished.stderr == ""
    assert finished.returncode in {0, 141}


def test_script_has_the_program_and_its_arguments(shell: Shell, crash: Crash, tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text(
        "import sys\n"
        "print(prog['init_uts_ns'].name.release.string_().decode(), sys.argv[1:], __name__)\n"
        "print(sum(1 for _ in for_each_task()) > 10)\n"
        "sys.exit(5)\n"
    )
    finished = shell.run("script", script, crash.filtered, "--flag", "word")
    assert finished.stdout == f"{crash.release} ['--flag', 'word'] __main__\nTrue\n"
    assert finished.returncode == 5


def test_traceback_of_a_script_begins_in_the_script(shell: Shell, crash: Crash, tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text("def look():\n    return prog['no_such_variable']\n\nlook()\n")
    finished = shell.run("script", script, crash.filtered)
    assert finished.returncode == 1
    lines = finished.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert f'"{script}", line 4' in lines[1]
    assert "postpanic" not in finished.stderr.replace(str(script), "")
    assert "no_such_variable" in lines[-1]


@pytest.mark.parametrize(("text", "status"), [("def (", 2), ("import sys; sys.exit('no')", 1), ("", 0)])
def test_script_that_does_not_run_has_a_status(
    shell: Shell, crash: Crash, tmp_path: Path, text: str, status: int
) -> None:
    script = tmp_path / "odd.py"
    script.write_text(text)
    finished = shell.run("script", script, crash.filtered)
    assert finished.returncode == status
    assert "Traceback" not in finished.stderr


def test_debuginfo_writes_files_that_other_tools_read(
    shell: Shell, each: Crash, installed: Callable[[str], str], tmp_path: Path
) -> None:
    finished = shell.run("debuginfo", each.filtered, "-o", tmp_path / "vmlinux", "--modules", tmp_path / "modules")
    assert finished.returncode == 0, finished.stderr
    for path in (tmp_path / "vmlinux", next((tmp_path / "modules").iterdir())):
        read = subprocess.run([installed("readelf"), "-hS", path], capture_output=True, text=True, check=True)
        assert read.stderr == ""
        assert ".symtab" in read.stdout
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_debuginfo_of_a_module_that_is_not_loaded_is_status_3(shell: Shell, crash: Crash, tmp_path: Path) -> None:
    finished = shell.run("debuginfo", crash.filtered, "--module", "nosuch", "-o", tmp_path / "nosuch")
    assert finished.returncode == 3
    assert "nosuch is none of the" in finished.stderr
    assert not (tmp_path / "nosuch").exists()


@pytest.fixture
def prompt(shell: Shell, crash: Crash) -> Iterator[Terminal]:
    with shell.terminal("open", "-s", crash.filtered) as terminal:
        terminal.prompt()
        yield terminal


def test_prompt_runs_commands_with_pipes(prompt: Terminal, crash: Crash) -> None:
    assert f"RELEASE: {crash.release}".encode() in prompt.enter(b"sys | grep RELEASE")
    assert prompt.enter(b"!echo $((40 + 2))").startswith(b"42\r\n")


def test_prompt_completes_commands_and_symbols(prompt: Terminal) -> None:
    prompt.type(b"hel" + TAB)
    prompt.expect(b"help")
    prompt.type(CTRL_C)
    prompt.prompt()
    prompt.type(b"p jiffies_6" + TAB)
    prompt.expect(b"jiffies_64")
    prompt.type(ENTER)
    prompt.expect(rb"\$1 = \d+")


def test_prompt_completes_types_and_members(prompt: Terminal) -> None:
    prompt.type(b"struct task_str" + TAB + b".threa" + TAB)
    prompt.expect(rb"task_struct.{0,200}thread")


def test_interrupt_stops_a_command_and_keeps_the_session(prompt: Terminal, crash: Crash) -> None:
    prompt.type(b"; ".join([b"foreach task > /dev/null"] * 20) + ENTER)
    prompt.expect(rb"\x1b\[\?2004l")
    time.sleep(0.5)
    started = time.monotonic()
    prompt.type(CTRL_C)
    prompt.expect(b"interrupted")
    assert time.monotonic() - started < 10
    prompt.prompt()
    assert crash.release.encode() in prompt.enter(b"sys | grep RELEASE")


def test_interrupt_throws_the_typed_line_away(prompt: Terminal, crash: Crash) -> None:
    prompt.type(b"this is not a command" + CTRL_C)
    prompt.prompt()
    assert crash.release.encode() in prompt.enter(b"sys | grep RELEASE")


def test_output_is_redirected_and_appended(prompt: Terminal, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prompt.enter(f"bt > {out}".encode())
    once = out.read_text()
    prompt.enter(f"bt >> {out}".encode())
    assert " #1 [" in once
    assert out.read_text() == once * 2


def test_error_at_the_prompt_is_one_line_and_the_session_goes_on(prompt: Terminal) -> None:
    shown = prompt.enter(b"rd 0")
    assert shown.count(b"from 0x0 on cannot be read") == 1
    assert b"Traceback" not in shown
    assert b"no such command" in prompt.enter(b"nosuch")


def test_pager_survives_ctrl_c_and_gives_the_terminal_back(
    prompt: Terminal, crash: Crash, installed: Callable[[str], str]
) -> None:
    installed("less")
    prompt.type(b"ps" + ENTER)
    prompt.expect(rb"PID.*COMM")
    time.sleep(1)
    prompt.type(CTRL_C)
    time.sleep(0.3)
    prompt.type(b"q")
    prompt.prompt()
    assert crash.release.encode() in prompt.enter(b"sys | grep RELEASE")


@pytest.mark.parametrize("keys", [CTRL_D, b"q\r", b"quit\r", b"exit\r"])
def test_session_ends_with_status_0(prompt: Terminal, keys: bytes) -> None:
    prompt.type(keys)
    assert prompt.wait() == 0


def test_lines_are_remembered_for_the_user_alone(shell: Shell, crash: Crash) -> None:
    with shell.terminal("open", "-s", crash.filtered) as first:
        first.prompt()
        first.enter(b"!echo remembered")
        first.type(CTRL_D)
        first.wait()
    history = Path(shell.environment["XDG_STATE_HOME"]) / "postpanic" / "history"
    assert history.stat().st_mode & 0o077 == 0
    with shell.terminal("open", "-s", crash.filtered) as second:
        second.prompt()
        second.type(UP + ENTER)
        second.expect(rb"\nremembered|lremembered")
