"""A stopped machine of a few threads and pages, and a client of the remote protocol to talk to its server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from postpanic.analysis.gdbserver.memory import MEMORY_MAP
from postpanic.analysis.gdbserver.targets import Target, find_target
from postpanic.analysis.gdbserver.threads import Thread, encode_threads
from postpanic.analysis.gdbserver.transport import Address, open_listener, serve
from postpanic.errors import PageAbsentError, TranslationError

__all__ = ["EXCLUDED", "KERNEL", "PAGE_BYTES", "USER", "Client", "Machine", "checksum", "connected", "frame"]

PAGE_BYTES = 4096
KERNEL = 0xFFFF_8880_0000_0000
"""Of two pages that are there; behind them is one that the filter left out."""
EXCLUDED = KERNEL + 2 * PAGE_BYTES
USER = 0x40_0000


class Machine:
    """What is debugged: three threads, of which the second has user memory."""

    document_names = ("threads", "memory-map", "auxv")
    text_vaddr: int | None = 0xFFFF_FFFF_8100_0000

    def __init__(self, machine: str = "x86_64", threads: Sequence[Thread] | None = None) -> None:
        self.target: Target = find_target(machine)
        self.threads: Sequence[Thread] = threads or (
            Thread(42, "crasher", "RU, on CPU 1", 1),
            Thread(1, "init", "IN, CPU 0"),
            Thread(1 << 24, "swapper/0", "RU, on CPU 0", 0),
        )
        self.values = {42: {"rip": 0xFFFF_FFFF_8100_1234, "rsp": KERNEL + 8, "eflags": 0x246}, 1: {"rip": 7}}
        self.pages = {KERNEL: bytearray(range(256)) * 16, KERNEL + PAGE_BYTES: bytearray(b"\x5a") * PAGE_BYTES}
        self.user = bytearray(b"user memory of init")
        self.read_ahead_times = 0
        self.read_ahead_limit = 1000
        self.lines: list[tuple[str, int]] = []
        self.output: Callable[[str], Iterable[str]] = lambda line: [f"ran {line}\n"]

    def find_thread(self, number: int) -> Thread | None:
        return next((thread for thread in self.threads if thread.id == number), None)

    def registers(self, thread: Thread) -> Mapping[str, int]:
        return self.values.get(thread.id, {})

    def read_ahead(self) -> bool:
        self.read_ahead_times += 1
        return self.read_ahead_times < self.read_ahead_limit

    def read(self, thread: Thread | None, vaddr: int, size_bytes: int) -> bytes:
        if thread is not None and thread.id == 1 and USER <= vaddr < USER + len(self.user):
            return bytes(self.user[vaddr - USER : vaddr - USER + size_bytes])
        found = b""
        while len(found) < size_bytes:
            at = vaddr + len(found)
            page = self.pages.get(at - at % PAGE_BYTES)
            if page is None:
                if found:
                    break
                if at - at % PAGE_BYTES == EXCLUDED:
                    raise PageAbsentError("left out", paddr=0)
                raise TranslationError("not mapped", vaddr=at)
            found += page[at % PAGE_BYTES :][: size_bytes - len(found)]
        return found

    def write(self, thread: Thread | None, vaddr: int, data: bytes) -> None:
        if len(self.read(thread, vaddr, len(data))) < len(data):
            raise TranslationError("not mapped", vaddr=vaddr)
        for at, byte in enumerate(data, vaddr):
            self.pages[at - at % PAGE_BYTES][at % PAGE_BYTES] = byte

    def document(self, name: str, thread: Thread | None) -> bytes | None:
        if name == "threads":
            return encode_threads(self.threads)
        if name == "auxv":
            return b"}#$*auxv" if thread is not None and thread.id == 1 else None
        return MEMORY_MAP

    def monitor(self, line: str, thread: Thread | None) -> Iterable[str]:
        self.lines.append((line, thread.id if thread is not None else 0))
        return self.output(line)


def checksum(data: bytes) -> int:
    """Return the sum that a packet ends in, as gdb's manual defines it."""
    return sum(data) % 256


def frame(data: bytes) -> bytes:
    """Write a packet, as gdb's manual defines it."""
    return b"$" + data + b"#" + f"{checksum(data):02x}".encode()


class Client:
    """The other side of the protocol, without any leniency."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(10)
        self.acks = True
        self._pending = b""

    def byte(self) -> bytes:
        while not self._pending:
            try:
                data = self.connection.recv(65536)
            except ConnectionResetError:
                raise EOFError from None
            if not data:
                raise EOFError
            self._pending += data
        first, self._pending = self._pending[:1], self._pending[1:]
        return first

    def receive(self) -> bytes:
        """Take one packet, and check it."""
        assert self.byte() == b"$"
        data = b""
        while (byte := self.byte()) != b"#":
            data += byte
        assert int(self.byte() + self.byte(), 16) == checksum(data)
        if self.acks:
            # Behind its last reply the server may be gone.
            with suppress(ConnectionError):
                self.connection.sendall(b"+")
        return data

    def send(self, data: bytes) -> None:
        self.connection.sendall(frame(data))
        if self.acks:
            assert self.byte() == b"+"

    def ask(self, data: bytes) -> bytes:
        self.send(data)
        return self.receive()

    def read_document(self, name: bytes, annex: bytes = b"", step: int = 100) -> bytes:
        """Read what ``qXfer`` gives, piece by piece."""
        found = b""
        while True:
            reply = self.ask(b"qXfer:%b:read:%b:%x,%x" % (name, annex, len(found), step))
            assert reply[:1] in {b"m", b"l"}, reply
            part, escaped = b"", False
            for byte in reply[1:]:
                if byte == ord("}") and not escaped:
                    escaped = True
                    continue
                part += bytes((byte ^ 0x20 if escaped else byte,))
                escaped = False
            found += part
            if reply[:1] == b"l":
                return found


@contextmanager
def connected(machine: Machine, directory: Path, *, many: bool = False) -> Iterator[tuple[Client, Address]]:
    """Serve a machine on a Unix socket, and connect to it; at the end the server must end as well."""
    over = threading.Event()
    with open_listener(Address(path=directory / "socket")) as (listener, address):
        server = threading.Thread(
            target=serve, args=(listener, machine), kwargs={"is_over": over.is_set, "many": many}, daemon=True
        )
        server.start()
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(address))
                yield Client(connection), address
        finally:
            if many:
                over.set()
            server.join(20)
            assert not server.is_alive()
