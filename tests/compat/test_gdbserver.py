"""gdb judges what we tell it of a machine, without any dump."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from postpanic.analysis.gdbserver.transport import Address, open_listener, serve
from tests.unit.analysis.gdbserver.machine import EXCLUDED, KERNEL, Machine


def test_gdb_takes_threads_registers_and_memory(installed: Callable[[str], str], tmp_path: Path) -> None:
    machine = Machine()
    with open_listener(Address(path=tmp_path / "socket")) as (listener, address):
        server = threading.Thread(target=serve, args=(listener, machine), daemon=True)
        server.start()
        words = ["set sysroot", f"target remote {address}", "info threads", "info registers rip rax eflags"]
        words += [f"x/4xb {KERNEL:#x}", f"x/xb {EXCLUDED:#x}", "info mem", f"set {{char}}{KERNEL:#x} = 0x7f", "stepi"]
        words += ["monitor hello", "thread 2", "info auxv", "p $rip"]
        finished = subprocess.run(
            [installed("gdb"), "-nx", "-batch", *(part for word in words for part in ("-ex", word))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        server.join(20)
        assert not server.is_alive()
    output = finished.stdout
    for line in ('Thread 42 "crasher" (RU, on CPU 1)', 'Thread 1 "init" (IN, CPU 0)', 'Thread 16777216 "swapper/0"'):
        assert line in output
    assert "0xffffffff81001234" in output
    assert "rax            <unavailable>" in output
    assert "[ PF ZF IF ]" in output
    assert "0x00\t0x01\t0x02\t0x03" in output
    assert f"Cannot access memory at address {EXCLUDED:#x}" in output
    assert machine.pages[KERNEL][0] == 0x7F
    assert "A dump cannot run" in output
    assert "ran hello" in output
    assert "$1 = (void (*)()) 0x7" in output
    assert "warning: " not in output.replace("warning: No executable has been specified", "")
