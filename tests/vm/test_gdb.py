"""gdb on dumps of real kernels: what it shows is what our prompt shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from postpanic.analysis.gdbserver.threads import FIRST_IDLE_ID
from postpanic.analysis.stacks.engine import open_stacks
from postpanic.dumps.memory import PageState
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.programs import ProgramStore
from tests.vm.debug_adapter import AdapterClient
from tests.vm.gdb_session import POSTPANIC, TIMEOUT_S, Debugged, compare_backtraces, parse_threads
from tests.vm.kernel_scripts import fetch_scripts
from tests.vm.lab import Crash, Lab
from tests.vm.recipes import KERNELS as LAB_KERNELS
from tests.vm.terminal import CTRL_C, ENTER, Terminal

GDB = shutil.which("gdb") or "gdb"
KERNELS = ("6.1", "6.12")


# What older scripts of the kernel do for their list of processes.
LEADERS = (
    "python task = gdb.lookup_type('struct task_struct').pointer(); "
    "offset = int(gdb.parse_and_eval('&((struct task_struct *)0)->tasks')); "
    "follow = lambda at: int(gdb.parse_and_eval(f'((struct list_head *){at})->next')); "
    "head = int(gdb.parse_and_eval('&init_task.tasks')); found = [head]; "
    "exec('while follow(found[-1]) != head: found.append(follow(found[-1]))'); "
    "print(*(int(gdb.Value(at - offset).cast(task)['pid']) for at in found))"
)
QUESTIONS = (
    "info threads",
    "bt",
    "info registers rip rsp rax",
    "thread",
    "thread apply all -s bt",
    "x/s linux_banner",
    "p init_task.comm",
    "ptype struct list_head",
    "p &((struct task_struct *)0)->comm",
    "info symbol schedule",
    "x/3i schedule",
    "p/x &init_task",
    "p/x *(unsigned long *)init_task.stack",
    "x/2i virtnet_probe",
    "info symbol virtnet_probe",
    "ptype struct virtnet_info",
    "info sharedlibrary",
    "monitor set",
    "monitor p this_cpu_off:1",
    "monitor kmem -i",
    "monitor ps | head -3",
    "monitor nonsense",
    # The first three are the one that panicked, and the idle ones of two CPUs.
    "thread 4",
    "monitor bt",
    "frame apply -1 -q info registers rip cs",
    "info auxv",
    LEADERS,
    "stepi",
    "p schedule()",
    "set var init_task.prio = 4711",
    "p init_task.prio",
    "monitor p init_task.prio",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, installed: Callable[[str], str]) -> dict[str, str]:
    installed("gdb")
    home = tmp_path_factory.mktemp("home")
    keep = {key: value for key, value in os.environ.items() if key in {"PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH"}}
    return {**keep, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TERM": "dumb", "COLUMNS": "120"}


@pytest.fixture(scope="module", params=KERNELS)
def each(
    request: pytest.FixtureRequest, crashed: Callable[..., Crash], environment: dict[str, str]
) -> Iterator[Debugged]:
    """Give the filtered dump of each kernel in turn."""
    debugged = Debugged(crashed(request.param).filtered, environment, questions=QUESTIONS)
    with debugged.ours:
        yield debugged


@pytest.fixture(scope="module")
def faulted(crashed: Callable[..., Crash], environment: dict[str, str]) -> Iterator[Debugged]:
    """Give the dump of a module that accessed a null pointer."""
    debugged = Debugged(crashed("6.1", scenario="module-null").filtered, environment, questions=QUESTIONS)
    with debugged.ours:
        yield debugged


def test_threads_are_what_ps_lists(each: Debugged) -> None:
    threads = parse_threads(each["info threads"])
    rows = each.ours.run("ps").tables[0].records()
    expected = [(row["pid"] or FIRST_IDLE_ID + row["cpu"], row["comm"], row["state"]) for row in rows]
    assert sorted((thread.id, thread.name, thread.state) for thread in threads) == sorted(expected)
    assert threads[0].id == int(each.ours.prog.crashed_thread().object.pid)


def test_every_backtrace_is_ours(each: Debugged) -> None:
    compare_backtraces(each, each["thread apply all -s bt"])


def test_the_fault_is_the_first_frame_of_the_first_thread(faulted: Debugged) -> None:
    backtrace, registers, thread = faulted["bt"], faulted["info registers rip rsp rax"], faulted["thread"]
    trace = faulted.traces[int(re.findall(r"\(Thread (\d+)\)", thread)[0])]
    saved = next(frame.saved for frame in trace.frames if frame.saved is not None and not frame.saved.user)
    assert saved.place is not None
    functions = [name for _, name in re.findall(r"^#\d+ +(0x\w+) in (\S+)", backtrace, re.MULTILINE)]
    assert functions[0] == saved.place.function == "dummy_xmit"
    assert "dev_hard_start_xmit" in functions[1]
    assert [int(value, 16) for value in re.findall(r"^\w+ +(0x\w+)", registers, re.MULTILINE)] == [
        saved.registers[name] for name in ("rip", "rsp", "rax")
    ]


def test_interrupted_backtraces_are_ours(faulted: Debugged) -> None:
    compare_backtraces(faulted, faulted["thread apply all -s bt"])


def test_types_data_and_code(each: Debugged) -> None:
    prog = each.ours.prog
    assert prog["linux_banner"].string_().decode()[:60] in each["x/s linux_banner"]
    assert '"swapper/0' in each["p init_task.comm"]
    type_ = " ".join(each["ptype struct list_head"].split())
    assert type_ == "type = struct list_head { struct list_head *next; struct list_head *prev; }"
    offset = each["p &((struct task_struct *)0)->comm"].split("0x")[1].split()[0]
    assert int(offset, 16) == prog.type("struct task_struct").member("comm").offset
    assert each["info symbol schedule"].startswith("schedule in section .text")
    assert f"{prog.symbol('schedule').address:#x} <schedule>:" in each["x/3i schedule"]
    assert "bad" not in each["x/3i schedule"]
    assert int(each["p/x &init_task"].split("= ")[1], 16) == prog["init_task"].address_
    word = each["p/x *(unsigned long *)init_task.stack"].split("= ")[1]
    assert int(word, 16) == int.from_bytes(prog.read(int(prog["init_task"].stack), 8), "little")


def test_modules(each: Debugged) -> None:
    """Functions and structures of a module that is loaded, at its addresses."""
    module = next(found for found in each.ours.prog.modules() if found.name == "virtio_net")
    found = re.search(r"0x([0-9a-f]+) <virtnet_probe", each["x/2i virtnet_probe"])
    assert found is not None
    assert int(found[1], 16) == each.ours.prog.symbol("virtnet_probe").address
    assert any(low <= int(found[1], 16) < high for low, high in module.address_ranges or ())
    assert re.search(r"virtnet_probe in section \.text of \S*virtio_net\.ko", each["info symbol virtnet_probe"])
    assert "struct virtio_device *vdev;" in each["ptype struct virtnet_info"]
    assert "/virtio_net.ko" in each["info sharedlibrary"]


def test_monitor_runs_our_commands_on_the_thread(each: Debugged) -> None:
    prog = each.ours.prog
    assert f"PID: {int(prog.crashed_thread().object.pid)}" in each["monitor set"]
    assert str(int(prog["__per_cpu_offset"][1])) in each["monitor p this_cpu_off:1"]
    assert "TOTAL MEM" in each["monitor kmem -i"]
    assert len(each["monitor ps | head -3"].splitlines()) == 3
    assert "nonsense: no such command" in each["monitor nonsense"]
    assert each["monitor bt"].startswith("PID: 1 ")


def test_scripts_walk_the_kernels_lists(each: Debugged) -> None:
    leaders = {number for number, facts in each.tasks.items() if facts.is_group_leader and number < FIRST_IDLE_ID}
    assert {int(word) for word in each[LEADERS].split()} == {0, *leaders}


def test_what_the_filter_left_out_is_no_memory(each: Debugged) -> None:
    """A page of a process's data: the direct map leads to it, and the dump does not have it."""
    memory = each.ours.workspace.memory
    pfns = np.arange(0x10000, dtype=np.uint64)
    excluded = pfns[memory.physical.page_states(pfns) == PageState.EXCLUDED]
    assert len(excluded)
    vaddr = int(each.ours.prog["page_offset_base"]) + int(excluded[len(excluded) // 2]) * memory.page_size_bytes
    (text,) = each.gdb(f"x/2gx {vaddr:#x}")
    assert text.endswith(f"Cannot access memory at address {vaddr:#x}")


def test_writes_are_seen_and_the_file_stays(each: Debugged) -> None:
    before = each.dump.stat()
    assert each["p init_task.prio"].endswith(" = 4711")
    assert "4711" in each["monitor p init_task.prio"]
    after = each.dump.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_nothing_runs(each: Debugged) -> None:
    assert "A dump cannot run" in each["stepi"]
    assert "may-call-functions is off" in each["p schedule()"]


def test_user_registers_are_in_the_outermost_frame(each: Debugged) -> None:
    trace = each.traces[1]
    saved = trace.frames[-1].saved
    assert saved is not None
    assert saved.user
    registers = re.findall(r"^(\w+) +(0x\w+)", each["frame apply -1 -q info registers rip cs"], re.MULTILINE)
    assert {name: int(value, 16) for name, value in registers} == {
        name: saved.registers[name] for name in ("rip", "cs")
    }
    assert "AT_ENTRY             Entry point of program" in each["info auxv"]


@contextmanager
def serving(debugged: Debugged, directory: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    path = directory / "socket"
    server = subprocess.Popen(
        [*debugged.words, "--serve", str(path), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=debugged.environment,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"target remote {path}\n"
        yield server, path
    finally:
        server.kill()
        server.communicate()


def connect(path: Path, *commands: str) -> subprocess.Popen[str]:
    words = [word for command in ("set sysroot", f"target remote {path}", *commands) for word in ("-ex", command)]
    return subprocess.Popen(
        [GDB, "-nx", "-q", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_gdb_finds_everything_by_itself(faulted: Debugged, tmp_path: Path) -> None:
    with serving(faulted, tmp_path) as (server, path):
        target = tmp_path / "written"
        outside = (
            f"!touch {target}",
            f"wr --save-as {target}",
            f"rd -r {target} linux_banner 8",
            f"rd -xr{target} linux_banner 8",
            f"ps > {target}",
            "ps | cat",
            f"extend {target}",
            "dis -s schedule",
            "drgn print(1)",
            "ps --drgn",
            f"alias x !touch {target}",
            f"bt; !touch {target}",
            f"repeat rd -r {target} linux_banner 8",
            f"mod -S {tmp_path}",
            f"dev -v 0 {target}",
        )
        commands = [f"monitor {line}" for line in outside]
        output, _ = connect(path, "bt 2", "monitor ps -S", *commands, "quit").communicate(timeout=TIMEOUT_S)
        assert not target.exists()
        assert output.count("only commands on the dump itself are run here") == len(outside)
        assert " in dummy_xmit (" in output
        assert " in dev_hard_start_xmit (" in output
        assert "IN: " in output
        assert server.wait(20) == 0
        assert not path.exists()


def test_the_server_ends_with_a_gdb_that_is_killed_and_refuses_a_second(faulted: Debugged, tmp_path: Path) -> None:
    with serving(faulted, tmp_path) as (server, path):
        first = connect(path, "echo connected\\n")
        assert first.stdout is not None
        while "connected" not in first.stdout.readline():
            pass
        second, _ = connect(path, "quit").communicate(timeout=60)
        assert "another gdb" in second
        assert server.poll() is None
        first.kill()
        first.communicate()
        assert server.wait(20) == 0


def test_gdb_that_is_killed_takes_the_server_with_it(faulted: Debugged, tmp_path: Path) -> None:
    script = tmp_path / "kill.gdb"
    script.write_text("shell kill -9 $PPID\n")
    finished = subprocess.run(
        faulted.start("-x", str(script)), capture_output=True, env=faulted.environment, timeout=TIMEOUT_S, check=False
    )
    assert finished.returncode == 128 + signal.SIGKILL


def test_exit_status_is_gdbs(faulted: Debugged) -> None:
    finished = subprocess.run(
        faulted.start("-batch", "-ex", "quit 7"), capture_output=True, env=faulted.environment, check=False
    )
    assert finished.returncode == 7


def test_ctrl_c_stops_a_command_of_ours_and_nothing_else(faulted: Debugged) -> None:
    with Terminal(faulted.start(), {**faulted.environment, "TERM": "xterm"}) as terminal:
        terminal.expect(rb"\(gdb\) ")
        terminal.type(b"monitor repeat -0.5 -c 1000 p jiffies" + ENTER)
        time.sleep(3)
        terminal.type(CTRL_C)
        terminal.expect(rb"\(gdb\) ")
        terminal.type(b"monitor ps -S" + ENTER)
        terminal.expect(rb"IN: ")
        terminal.type(b"quit" + ENTER)
        assert terminal.wait() == 0


def test_a_port_is_served_on_this_machine_only(faulted: Debugged) -> None:
    server = subprocess.Popen(
        [*faulted.words, "--serve", "0"], stdout=subprocess.PIPE, text=True, env=faulted.environment
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"$qC#b4")
            assert connection.recv(1) == b"+"
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.communicate()
    refused = subprocess.run(
        [*faulted.words, "--serve", "0.0.0.0:0"], capture_output=True, text=True, env=faulted.environment, check=False
    )
    assert refused.returncode == 64
    assert "--anywhere" in refused.stderr


@pytest.fixture(scope="module")
def newer_gdb(crash_lab: Lab) -> tuple[list[str], dict[str, str]]:
    """Give a gdb that speaks the Debug Adapter Protocol (14 and newer), and its environment."""
    program = ProgramStore(crash_lab.cache_dir).fetch("gdb", "usr/bin/gdb", ("trixie",))
    root = program.path.parents[2]
    words = [*program.command, "--data-directory", str(root / "usr/share/gdb"), "-nx", "-q", "-iex", "set sysroot"]
    return words, {"PYTHONHOME": str(root / "usr"), "PYTHONDONTWRITEBYTECODE": "1"}


def test_an_editor_by_the_debug_adapter_protocol(
    faulted: Debugged, newer_gdb: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    words, more = newer_gdb
    with serving(faulted, tmp_path) as (server, path):
        client = AdapterClient([*words, "-i=dap"], {**faulted.environment, **more})
        try:
            client.ask("initialize", clientID="test", adapterID="gdb")
            attach = client.send("attach", target=str(path))
            client.ask("configurationDone")
            threads = client.ask("threads")["threads"]
            assert {thread["name"] for thread in threads} == {facts.comm for facts in faulted.tasks.values()}
            assert len(threads) == len(faulted.tasks)
            first = min(int(str(thread["id"])) for thread in threads)
            frames = client.ask("stackTrace", threadId=first)["stackFrames"]
            assert [frame["name"] for frame in frames[:2]] == ["dummy_xmit", "dev_hard_start_xmit"]
            scopes = client.ask("scopes", frameId=frames[0]["id"])["scopes"]
            registers = next(scope for scope in scopes if scope["name"] == "Registers")
            variables = client.ask("variables", variablesReference=registers["variablesReference"])["variables"]
            values = {variable["name"]: str(variable["value"]) for variable in variables}
            assert "dummy_xmit" in values["rip"]
            watched = client.ask("evaluate", expression="init_task.comm", frameId=frames[0]["id"], context="watch")
            assert "swapper/0" in str(watched["result"])
            assert "IN: " in str(client.ask("evaluate", expression="monitor ps -S", context="repl")["result"])
            assert attach
            client.ask("disconnect")
        finally:
            client.close()
        assert server.wait(20) == 0


def test_editors_that_speak_gdbs_machine_interface(faulted: Debugged, tmp_path: Path) -> None:
    """What the C/C++ extension of VS Code sends, with a vmlinux that was written before."""
    vmlinux = tmp_path / "vmlinux"
    subprocess.run(
        [*POSTPANIC, "debuginfo", str(faulted.dump), "-o", str(vmlinux)],
        env=faulted.environment,
        check=True,
        capture_output=True,
    )
    lines = (
        f'-file-exec-and-symbols "{vmlinux}"',
        '-interpreter-exec console "set sysroot"',
        f"-target-select remote {tmp_path / 'socket'}",
        "-thread-info",
        "-stack-list-frames",
        '-interpreter-exec console "monitor ps -S"',
        "-gdb-exit",
    )
    with serving(faulted, tmp_path):
        finished = subprocess.run(
            [GDB, "-nx", "-q", "--interpreter=mi"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert "^connected" in finished.stdout
    assert finished.stdout.count('target-id="Thread ') == len(faulted.tasks)
    functions = re.findall(r'level="\d+",addr="0x\w+",func="([^"]+)"', finished.stdout.partition("^done,stack=")[2])
    assert functions[:2] == ["dummy_xmit", "dev_hard_start_xmit"]


@pytest.mark.matrix
@pytest.mark.parametrize("kernel", KERNELS)
def test_real_debug_information(kernel: str, crashed: Callable[..., Crash], environment: dict[str, str]) -> None:
    crash = crashed(kernel)
    if crash.vmlinux is None:
        pytest.skip("no debug information in the cache, and none to be fetched")
    debugged = Debugged(crash.filtered, environment, crash.vmlinux)
    with debugged.ours:
        _, line, local, text = debugged.gdb(
            "set print frame-arguments none", "info line schedule", "info scope schedule", "thread apply all -s bt"
        )
        assert "kernel/sched/core.c" in line
        assert "Symbol tsk is " in local
        compare_backtraces(debugged, text, tail_calls=True)


@pytest.mark.matrix
def test_the_kernels_own_scripts(
    crash_lab: Lab, fetch_kernel: Callable[[str], Kernel], crashed: Callable[..., Crash], environment: dict[str, str]
) -> None:
    crash = crashed("6.1")
    if crash.vmlinux is None:
        pytest.skip("no debug information in the cache, and none to be fetched")
    scripts = fetch_scripts(fetch_kernel("6.1"), LAB_KERNELS["6.1"].suites, crash_lab.cache_dir)
    debugged = Debugged(crash.filtered, environment, crash.vmlinux)
    with debugged.ours as ours:
        # Of the CPU that panicked: they take gdb's first thread for CPU 0.
        panicked = ours.prog.crashed_thread().object
        cpu = open_stacks(ours.workspace).running[int(panicked)]
        _, ps, dmesg, modules, current, per_cpu, version = debugged.gdb(
            f"source {scripts}",
            "lx-ps",
            "lx-dmesg",
            "lx-lsmod",
            f"p $lx_current({cpu}).pid",
            'p $lx_per_cpu("runqueues", 1).cpu',
            "lx-version",
        )
        tasks = re.findall(r"^0x([0-9a-f]+) +(\d+) +(.*?)\s*$", ps, re.MULTILINE)
        listed = {int(vaddr, 16): (int(pid), comm) for vaddr, pid, comm in tasks if int(pid)}
        assert listed == {facts.vaddr: (facts.pid, facts.comm) for facts in debugged.tasks.values() if facts.pid}
        assert "Kernel panic - not syncing: " in dmesg
        names = {line.split()[1] for line in modules.splitlines() if line.startswith("0x")}
        assert names == {row["name"] for row in ours.run("mod").table.records()}
        assert int(current.rpartition(" = ")[2]) == int(panicked.pid)
        assert per_cpu.endswith(" = 1")
        assert ours.prog["linux_banner"].string_().decode().strip() in version
