"""The debugger's side of QEMU's stub: what is asked of it, and what becomes of the first processor."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postpanic.errors import ProcessError, UsageError
from postpanic.rehearse.debugger import Stub, strike

RSP, RIP, EFLAGS, CS = 7, 16, 17, 18
KERNEL, USER = 0xFFFFFFFF81234567, 0x7F0012345678
STACK = 0xFFFFC90000013D58


class Processor:
    """A stub with one processor, which is somewhere else for each who connects."""

    def __init__(self, path: Path, states: list[dict[int, int]]) -> None:
        self.states = states
        self.registers: dict[int, int] = {}
        self.memory: dict[int, bytes] = {}
        self.asked: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for state in self.states:
            self.registers = dict(state)
            connection, _ = self._listener.accept()
            with connection:
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        received = b""
        # Unasked, as QEMU tells that it has stopped.
        connection.sendall(b"$T05thread:01;#07")
        while data := connection.recv(4096):
            received = (received + data).replace(b"+", b"")
            while found := re.match(rb"\$([^#]*)#(..)", received):
                received = received[found.end() :]
                request = found[1].decode()
                assert int(found[2], 16) == sum(found[1]) & 0xFF
                self.asked.append(request)
                answer = self._answer(request)
                # In two pieces, as a stream may come.
                packet = f"+${answer}#{sum(answer.encode()) & 0xFF:02x}".encode()
                connection.sendall(packet[:3])
                connection.sendall(packet[3:])
                if request == "D":
                    return

    def _answer(self, request: str) -> str:
        if request.startswith("p"):
            number = int(request[1:], 16)
            return self.registers[number].to_bytes(4 if number in {EFLAGS, CS} else 8, "little").hex()
        if request.startswith("P"):
            name, _, value = request[1:].partition("=")
            self.registers[int(name, 16)] = int.from_bytes(bytes.fromhex(value), "little")
        if request.startswith("M"):
            address, _, data = request[1:].partition(":")
            self.memory[int(address.split(",")[0], 16)] = bytes.fromhex(data)
        return "E22" if request.startswith("M0,") else "OK"

    def join(self) -> None:
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def processor(tmp_path: Path) -> Iterator[Callable[..., tuple[Processor, Path]]]:
    made: list[Processor] = []

    def make(*states: dict[int, int]) -> tuple[Processor, Path]:
        made.append(Processor(tmp_path / "stub", list(states)))
        return made[-1], tmp_path / "stub"

    yield make
    for one in made:
        one.join()


def state(rip: int, *, cs: int = 0x10, eflags: int = 0x246) -> dict[int, int]:
    return {RSP: STACK, RIP: rip, EFLAGS: eflags, CS: cs}


Make = Callable[..., tuple[Processor, Path]]


def test_a_null_pointer_is_called_from_where_the_kernel_is(processor: Make) -> None:
    one, path = processor(state(USER, cs=0x33), state(KERNEL, eflags=0x46), state(KERNEL))
    strike(path, "null")
    one.join()
    assert one.registers == {RSP: STACK - 8, RIP: 0, EFLAGS: 0x246, CS: 0x10}
    assert one.memory == {STACK - 8: KERNEL.to_bytes(8, "little")}
    assert one.asked.count("D") == 3
    # Each time it is asked for its registers' names first: else it lets none of them be written.
    assert one.asked.count("qXfer:features:read:target.xml:0,400") == 3


def test_a_loop_is_put_where_it_is(processor: Make) -> None:
    one, path = processor(state(KERNEL))
    strike(path, "softlockup")
    one.join()
    assert (one.memory, one.registers) == ({KERNEL: b"\xeb\xfe"}, state(KERNEL))


def test_a_stack_is_at_its_end(processor: Make) -> None:
    one, path = processor(state(KERNEL))
    strike(path, "stack")
    one.join()
    assert one.registers[RSP] == 0xFFFFC90000010000


def test_what_is_refused_or_gone_is_one_line(processor: Make, tmp_path: Path) -> None:
    _, path = processor(state(KERNEL))
    with Stub(path) as stub, pytest.raises(ProcessError, match="refuses 'M0,1:00': 'E22'"):
        stub.write_memory(0, b"\0")
    with pytest.raises(ProcessError, match="qemu's debugger stub: "), Stub(tmp_path / "none"):
        pass
    with pytest.raises(UsageError, match="is longer than the 107 bytes"):
        Stub(tmp_path / ("x" * 107))


def test_a_processor_that_is_never_there_is_said(processor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("postpanic.rehearse.debugger._ATTEMPTS", 2)
    _, path = processor(state(USER, cs=0x33), state(USER, cs=0x33))
    with pytest.raises(ProcessError, match="no chance to crash the machine by null"):
        strike(path, "null")
