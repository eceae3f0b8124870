"""Dumps of real kernels whose types are gone, and of one whose symbols are gone."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from drgn.helpers.linux.sched import task_cpu

from postpanic.analysis.crash_commands import CommandFailedError, capture_crash_command, load_plugins
from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.program import open_program
from postpanic.analysis.symbols_only import SymbolsOnly
from postpanic.analysis.symbols_only.backtrace import choose_cpus, read_trace_lines
from postpanic.cli.session import split_commands
from postpanic.dumps.open import open_dump
from postpanic.kernel.kallsyms import read_kallsyms
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from tests.vm.lab import Crash, MemoryDumps
from tests.vm.terminal import CTRL_D, Terminal

KERNELS = ("6.1", "6.12")
_PT_LOAD = 1
_PHDR = struct.Struct("<IIQQQQQQ")


@dataclass(frozen=True)
class Shell:
    """Runs postpanic with a cache of its own."""

    environment: dict[str, str]

    def open(self, dump: Path, commands: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("open", *options, "-e", commands, str(dump))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "postpanic", *words],
            capture_output=True, text=True, env=self.environment, check=False,
        )  # fmt: skip


def _make_shell(home: Path) -> Shell:
    keep = {key: value for key, value in os.environ.items() if key in {"PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH"}}
    places = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "XDG_STATE_HOME": home / "state"}
    return Shell({**keep, **{key: str(path) for key, path in places.items()}, "TZ": "UTC", "COLUMNS": "120"})


def _say_by_drgn(dump: Path, commands: str) -> str:
    """Have drgn's own commands of these names say it, with types; those that fail say nothing."""
    said = []
    with open_program([dump], policy=DebugPolicy.SYNTHESIZED) as opened:
        load_plugins()
        for command in split_commands(commands):
            with contextlib.suppress(CommandFailedError):
                said.append(capture_crash_command(opened.prog, command))
    return "".join(said)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """For dumps without types; the kernels' types never get into its cache."""
    return _make_shell(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def typed_shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """For the dumps as they are."""
    return _make_shell(tmp_path_factory.mktemp("typed"))


def _file_offset(dump: Path, paddr: int) -> int:
    with dump.open("rb") as file:
        header = file.read(64)
        (table,) = struct.unpack_from("<Q", header, 32)
        (count,) = struct.unpack_from("<H", header, 56)
        file.seek(table)
        rows = _PHDR.iter_unpack(file.read(_PHDR.size * count))
        for kind, _flags, offset, _vaddr, start, size, _memory, _align in rows:
            if kind == _PT_LOAD and start <= paddr < start + size:
                return int(offset + paddr - start)
    raise AssertionError(f"{paddr:#x} is not in {dump}")


def _copy_without(dump: Path, copy: Path, find: Callable[[KernelMemory], int], size_bytes: int) -> None:
    """Copy a raw dump, with zeroes in place of something in the kernel's memory."""
    with open_dump([dump]) as opened:
        memory = open_kernel_memory(opened)
        paddr = memory.translate(find(memory))  # type: ignore[arg-type]
    subprocess.run(["/bin/cp", "--sparse=always", dump, copy], check=True)
    with copy.open("r+b") as file:
        file.seek(_file_offset(dump, paddr))
        file.write(bytes(size_bytes))


@dataclass(frozen=True)
class Stripped:
    """A dump, and its copy without types."""

    crash: Crash
    untyped: Path


@pytest.fixture(scope="module", params=KERNELS)
def stripped(
    request: pytest.FixtureRequest, crashed: Callable[..., Crash], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stripped]:
    crash = crashed(request.param)
    copy = tmp_path_factory.mktemp("untyped") / "vmcore"
    _copy_without(crash.raw, copy, lambda memory: read_kallsyms(memory).find("__start_BTF").vaddr, 8)
    yield Stripped(crash, copy)
    copy.unlink()


def _functions(trace: str) -> list[str]:
    """Name the functions of a trace without what tells parts of a function apart, which types may leave out."""
    return [
        name.partition(".")[0].removesuffix("_after_hwframe")
        for name in re.findall(r" ([\w.]+) at [0-9a-f]{8,16}", trace)
    ]


def test_one_warning_says_what_is_missing_and_what_works(shell: Shell, stripped: Stripped) -> None:
    finished = shell.open(stripped.untyped, "help")
    assert finished.returncode == 0
    warnings = finished.stderr.splitlines()
    assert len(warnings) == 1
    for phrase in ("the kernel carries no types (BTF at ", "bt, rd", "log (dmesg)", "VMLINUX", "--debuginfod"):
        assert phrase in warnings[0]


def test_banner_has_what_needs_no_types(shell: Shell, typed_shell: Shell, stripped: Stripped) -> None:
    def banner(text: str) -> dict[str, str]:
        return dict(re.findall(r"^ *([A-Z ]+): (.*)$", text.partition("\n\n")[0], re.MULTILINE))

    found = banner(shell.open(stripped.untyped, "help").stdout)
    typed = banner(typed_shell.open(stripped.crash.raw, "help").stdout)
    for key in ("DATE", "NODENAME", "RELEASE", "VERSION", "PANIC", "PID", "CPU"):
        assert found[key] == typed[key]
    assert found["TASK"] == typed["TASK"].partition(" ")[0]
    assert typed["MACHINE"].startswith(found["MACHINE"])
    assert found["CPUS"] == "2  (those that left registers)"
    assert found.keys() == typed.keys()
    for key in ("UPTIME", "LOAD AVERAGE", "TASKS", "COMMAND", "STATE"):
        assert found[key] == "(unavailable: the kernel carries no types)"


def test_bt_names_the_same_frames_as_with_types(shell: Shell, stripped: Stripped) -> None:
    typed = _say_by_drgn(stripped.crash.raw, "bt")
    found = shell.open(stripped.untyped, "bt", "-s")
    assert found.returncode == 0
    assert len(_functions(typed)) >= 8
    assert _functions(found.stdout) == _functions(typed)
    # Stack pointers, return addresses and the user's registers too.
    numbers = re.compile(r"\[[0-9a-f]{16}\]|at [0-9a-f]{16}|R\w\w: [0-9a-f]{16}")
    assert numbers.findall(found.stdout) == numbers.findall(typed)
    assert "(ends here" not in found.stdout


def test_bt_shows_every_cpu_that_left_registers(shell: Shell, stripped: Stripped) -> None:
    shown = shell.open(stripped.untyped, "bt -a", "-s").stdout
    panicked = shell.open(stripped.untyped, "sys | grep CPU:", "-s").stdout.split()[-1]
    # The CPU that panicked comes first.
    first, second = re.findall(r"CPU: (\d+)", shown)
    assert first == panicked
    assert {first, second} == {"0", "1"}
    parts = [shell.open(stripped.untyped, f"bt -c {cpu}", "-s").stdout for cpu in (first, second)]
    assert shown == "\n".join(parts)
    assert shell.open(stripped.untyped, "bt", "-s").stdout == parts[0]
    absent = shell.open(stripped.untyped, "bt -c 7", "-s")
    assert absent.returncode == 3
    assert absent.stderr == "bt: CPU 7 left no registers, only 0, 1 did\n"


MEMORY_COMMANDS = (
    "rd -s sys_call_table 7; rd panic 5; rd -8 panic 20; rd -16 panic 5; rd -32 panic 5; rd -d panic 3; "
    "rd -D panic 3; rd -x panic 3; rd -a linux_banner 40; rd -a linux_banner; rd -8 -d panic 9; rd linux_banner 3"
)
SYMBOL_COMMANDS = "sym panic; sym -p panic; sym -n -p schedule; sym nosuchthing; sym -q sysrq_handle; sym -q nosuch"


@pytest.mark.parametrize("commands", [MEMORY_COMMANDS, SYMBOL_COMMANDS])
def test_output_is_that_of_the_commands_with_types(shell: Shell, stripped: Stripped, commands: str) -> None:
    typed = _say_by_drgn(stripped.crash.raw, commands)
    # Without DWARF there are no files to name; synthesized DWARF has none either.
    assert len(typed.splitlines()) > 10
    assert shell.open(stripped.untyped, commands, "-s").stdout == re.sub(r" : 0$", "", typed, flags=re.MULTILINE)


def test_stack_shows_return_addresses_by_name(shell: Shell, stripped: Stripped) -> None:
    trace = shell.open(stripped.untyped, "bt", "-s").stdout
    frame = re.search(r"#2 \[([0-9a-f]+)\] sysrq_handle_crash at", trace)
    assert frame
    # The return address into the function lies right below the frame that it returns to.
    shown = shell.open(stripped.untyped, f"rd -s {int(frame[1], 16) - 8:x} 2", "-s").stdout
    assert re.search(r":  sysrq_handle_crash\+\d+ ", shown)


def test_log_is_that_of_dmesg(shell: Shell, stripped: Stripped) -> None:
    log = shell.run("dmesg", str(stripped.crash.raw)).stdout
    assert shell.open(stripped.untyped, "log", "-s").stdout == log
    assert shell.open(stripped.untyped, "dmesg -t | wc -l", "-s").stdout.strip() == str(log.count("\n"))


@pytest.mark.parametrize(
    "line", ["ps", "struct task_struct", "task_struct.pid 0", "ps | wc -l", "set -c 0", "foreach bt"]
)
def test_what_needs_types_says_so_with_status_3(shell: Shell, stripped: Stripped, line: str) -> None:
    finished = shell.open(stripped.untyped, line, "-s")
    name = line.partition(" ")[0]
    assert finished.returncode == 3
    assert finished.stdout == ""
    assert finished.stderr.startswith(f"{name}: needs types, and the kernel carries no types\n  hint: without types: ")


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("rd 0", 3, "rd: virtual address 0x0 is not mapped"),
        ("rd nosuch", 3, "rd: could not find symbol with name 'nosuch'"),
        ("rd panic x", 64, "usage: rd "),
        ("rd panic -- -1", 64, "rd: a count of -1 cannot be shown"),
        ("rd -32 -s panic", 64, "rd: symbols can only be shown in place of 64-bit values"),
        ("bt -c x", 64, "bt: 'x' is no list of CPUs"),
        ("bt 1", 3, "bt: to find task 1 types are needed"),
        ("sym", 64, "usage: sym "),
        ("help ps", 3, "ps: needs types"),
    ],
)
def test_failure_is_one_line_with_a_status(
    shell: Shell, stripped: Stripped, line: str, status: int, message: str
) -> None:
    finished = shell.open(stripped.untyped, line, "-s")
    assert finished.returncode == status
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_prompt_shell_python_and_pipes_work_without_types(shell: Shell, stripped: Stripped) -> None:
    with Terminal(
        [sys.executable, "-m", "postpanic", "open", "-s", str(stripped.untyped)],
        {**shell.environment, "PAGER": ""},
    ) as terminal:
        terminal.prompt()
        assert b" panic\r\n" in terminal.enter(b"sym panic")
        assert stripped.crash.release.encode() in terminal.enter(b"sys | grep RELEASE")
        assert terminal.enter(b"!echo $((40 + 2))").startswith(b"42\r\n")
        assert b"X86_64" in terminal.enter(b"drgn print(prog.platform.arch)")
        assert b"needs types" in terminal.enter(b"ps")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_types_of_another_dump_of_the_kernel_are_used_and_never_lost(stripped: Stripped, tmp_path: Path) -> None:
    fresh = _make_shell(tmp_path)
    assert fresh.open(stripped.untyped, "ps", "-s").returncode == 3
    assert fresh.open(stripped.crash.raw, "ps | head -3", "-s").returncode == 0
    # The kernel is the same, so its types are known by now.
    assert fresh.open(stripped.untyped, "ps | head -3", "-s").returncode == 0


@pytest.mark.parametrize("scenario", ["module-null", "module-call", "module-recursion", "nmi"])
def test_stack_is_followed_through_modules_and_exceptions(
    crashed: Callable[..., Crash], scenario: str, tmp_path: Path
) -> None:
    crash = crashed("6.1", scenario=scenario)
    with open_program([crash.filtered], policy=DebugPolicy.SYNTHESIZED, cache_directory=tmp_path) as opened:
        cpu = task_cpu(opened.prog.crashed_thread().object)
    with open_dump([crash.filtered]) as dump:
        kernel = SymbolsOnly(open_kernel_memory(dump), dump.description)
        assert kernel.panic_cpu == cpu
        assert kernel.cpus[cpu].source == "the CPU's own note in memory"
        (chosen,) = choose_cpus(kernel, every=False, numbers=None)
        assert chosen.cpu == cpu
        lines = list(read_trace_lines(kernel, chosen))
    names = _functions("\n".join(lines))
    if scenario == "nmi":
        assert "exc_nmi" in names
        # Whatever ran on that CPU: idling, a system call, or user space.
        assert re.fullmatch(r"secondary_startup_64_no_verify|entry_SYSCALL_64|ret_from_fork|asm_\w+", names[-1])
    else:
        assert names[-2:] == ["do_syscall_64", "entry_SYSCALL_64"]
        assert names[0] == "dev_hard_start_xmit"
        assert " #0 [" in lines[1]
        assert "(unknown) at" in lines[1]
        assert re.search(r"\(\d+ bytes of stack passed over: 0x[0-9a-f]+ is not in the kernel image", lines[2])


def test_order_of_the_notes_counts_where_a_hypervisor_wrote_them(
    memory_dumped: Callable[[str], MemoryDumps],
) -> None:
    with open_dump([memory_dumped("6.1").elf]) as dump:
        kernel = SymbolsOnly(open_kernel_memory(dump), dump.description)
        assert [cpu.cpu for cpu in kernel.cpus] == [0, 1]
        assert {cpu.source for cpu in kernel.cpus} == {"the order of the notes alone"}
        assert {cpu.pid for cpu in kernel.cpus} == {None}
        (chosen,) = choose_cpus(kernel, every=False, numbers=None)
        assert chosen.cpu == kernel.panic_cpu
        assert "panic" in _functions("\n".join(read_trace_lines(kernel, chosen)))


def test_without_symbols_the_log_is_still_there(shell: Shell, crashed: Callable[..., Crash], tmp_path: Path) -> None:
    crash = crashed("6.1")
    copy = tmp_path / "vmcore"
    _copy_without(crash.raw, copy, lambda memory: memory.vmcoreinfo.symbol("kallsyms_token_table"), 4096)
    try:
        finished = shell.open(copy, "bt")
        assert finished.returncode in {2, 3}
        assert re.fullmatch(r"error\[[a-z-]+\]: .*kallsyms.*\n  hint: .*vmlinux.*postpanic dmesg.*\n", finished.stderr)
        log = shell.run("dmesg", str(copy))
        assert log.returncode == 0
        assert log.stdout == shell.run("dmesg", str(crash.raw)).stdout
    finally:
        copy.unlink()
