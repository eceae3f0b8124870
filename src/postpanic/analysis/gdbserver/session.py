"""
One client's session: packets in, replies out.

What a dump cannot do is refused in words that gdb shows: nothing runs, no
breakpoint is set, no file is opened. Packets that this does not know have an
empty reply, as the protocol wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.gdbserver.memory import error_number
from postpanic.analysis.gdbserver.packets import decode_hex, decode_number, escape, unescape
from postpanic.analysis.gdbserver.targets import Target
from postpanic.analysis.gdbserver.threads import Thread
from postpanic.errors import AbsentError, FileFaultError

__all__ = ["PACKET_BYTES", "Session", "View"]

PACKET_BYTES = 1 << 16
"""The longest packet, of either side; gdb asks for less when less is said."""
_REPLY_BYTES = PACKET_BYTES - 16
_BAD_REQUEST = b"E16"
"""``EINVAL``."""
_NO_SUCH = b"E03"
"""``ESRCH``."""
_SIGNAL = 5
"""What the machine stopped with, in gdb's numbers: ``SIGTRAP``."""
_STILL = 2
"""What it stops with when it is to run: ``SIGINT``. At a trap gdb would step on and on."""
_FEATURES = "features"
_OUTPUT_BYTES = _REPLY_BYTES // 2 - 1
_CANNOT_RUN = "A dump cannot run: this is the moment of the crash.\n"


class View(Protocol):
    """What is debugged, as every session on it sees it."""

    @property
    def target(self) -> Target:
        """The machine."""

    @property
    def document_names(self) -> Collection[str]:
        """What ``qXfer`` can read, beside the description of the target."""

    @property
    def threads(self) -> Sequence[Thread]:
        """All threads, the one first that gdb begins with."""

    @property
    def text_vaddr(self) -> int | None:
        """Where the first segment of the kernel's file is in memory; None: nobody knows."""

    def find_thread(self, number: int) -> Thread | None:
        """Find a thread by its ID."""

    def registers(self, thread: Thread) -> Mapping[str, int]:
        """Return its registers, as far as they are known."""

    def read_ahead(self) -> bool:
        """Read a little of what will be asked for; False: there is no more."""

    def read(self, thread: Thread | None, vaddr: int, size_bytes: int) -> bytes:
        """Read what there is of a range from its beginning on; an ``AbsentError`` if there is nothing."""

    def write(self, thread: Thread | None, vaddr: int, data: bytes) -> None:
        """Write bytes, or raise an ``AbsentError``."""

    def document(self, name: str, thread: Thread | None) -> bytes | None:
        """Make a document of ``qXfer``; None: there is none for this thread."""

    def monitor(self, line: str, thread: Thread | None) -> Iterable[str]:
        """Run a line of ``monitor``, and give what it prints, piece by piece."""


class Session:
    """
    What one client has chosen, and the answers to its packets.

    Parameters
    ----------
    view : View
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._thread: Thread | None = next(iter(view.threads), None)
        self._set: dict[int, dict[str, int]] = {}
        """Registers that the user has set, by thread."""
        self._document = ("", b"")
        """The one that gdb reads piece by piece, and its name: it is to be the same to its end."""
        self._listed = 0
        self.needs_acks = True
        """Whether packets are still acknowledged (``QStartNoAckMode``)."""
        self.ended = False
        """Whether the client said that it leaves."""
        self._by_letter: dict[bytes, Callable[[bytes], bytes]] = {
            b"?": lambda _: self._stopped(_SIGNAL),
            b"g": self._read_registers,
            b"G": self._write_registers,
            b"p": self._read_register,
            b"P": self._write_register,
            b"m": lambda body: self._read_memory(body).hex().encode(),
            b"x": lambda body: b"b" + escape(self._read_memory(body)),
            b"M": lambda body: self._write_memory(body, decode_hex),
            b"X": lambda body: self._write_memory(body, unescape),
            b"H": self._choose_thread,
            b"T": lambda body: b"OK" if self._find_thread(body) else _NO_SUCH,
            b"D": lambda _: self._end(b"OK"),
            b"k": lambda _: self._end(b""),
            b"Z": lambda _: b"E.a dump cannot run, so it reaches no breakpoint",
            b"z": lambda _: b"OK",
            b"Q": lambda body: self._switch_acks() if body == b"StartNoAckMode" else b"",
        }
        self._queries: dict[bytes, Callable[[bytes], bytes]] = {
            b"Supported": lambda _: self._features(),
            b"C": lambda _: b"QC%x" % self._thread.id if self._thread else b"",
            b"Attached": lambda _: b"1",
            b"Offsets": lambda _: self._offsets(),
            b"Symbol": lambda _: b"OK",
            b"fThreadInfo": lambda _: self._list_threads(0),
            b"sThreadInfo": lambda _: self._list_threads(self._listed),
            b"ThreadExtraInfo": self._describe_thread,
            b"Xfer": self._transfer,
        }

    def answer(self, packet: bytes) -> Iterator[bytes]:
        """
        Answer a packet.

        Parameters
        ----------
        packet : bytes
            Its data, still escaped.

        Returns
        -------
        iterator of bytes
            One reply, ready to be framed; before it, output for the user where a command gives some.
        """
        try:
            if packet.startswith(b"qRcmd,"):
                yield from self._monitor(packet[6:])
                return
            if packet[:1] in {b"c", b"C", b"s", b"S"} or packet.startswith((b"vCont;", b"vRun")):
                yield b"O" + _CANNOT_RUN.encode().hex().encode()
                yield self._stopped(_STILL)
                return
            yield self._answer(packet)
        except AbsentError as exc:
            yield b"E%02x" % error_number(exc)
        except (ValueError, *UNREADABLE, FileFaultError, OSError):
            yield _BAD_REQUEST

    def _answer(self, packet: bytes) -> bytes:
        if packet.startswith(b"vKill"):
            return self._end(b"OK")
        if packet[:1] == b"q":
            name, separator, body = packet[1:].partition(b",")
            if b":" in name:
                name, _, tail = name.partition(b":")
                body = tail + separator + body
            query = self._queries.get(name)
            return query(body) if query is not None else b""
        handler = self._by_letter.get(packet[:1])
        return handler(packet[1:]) if handler is not None else b""

    def _features(self) -> bytes:
        features = [f"PacketSize={PACKET_BYTES:x}", "QStartNoAckMode+", "binary-upload+"]
        features += [f"qXfer:{name}:read+" for name in (_FEATURES, *self._view.document_names)]
        return ";".join(features).encode()

    def _switch_acks(self) -> bytes:
        self.needs_acks = False
        return b"OK"

    def _end(self, reply: bytes) -> bytes:
        self.ended = True
        return reply

    def _stopped(self, signal: int) -> bytes:
        thread = b"thread:%x;" % self._thread.id if self._thread else b""
        return b"T%02x" % signal + thread

    # Threads

    def _find_thread(self, text: bytes) -> Thread | None:
        return self._view.find_thread(decode_number(text))

    def _choose_thread(self, body: bytes) -> bytes:
        which, text = body[:1], body[1:]
        if text in {b"0", b"-1"} or which != b"g":
            return b"OK"
        thread = self._find_thread(text)
        if thread is None:
            return _NO_SUCH
        self._thread = thread
        return b"OK"

    def _list_threads(self, start: int) -> bytes:
        threads = self._view.threads
        names: list[bytes] = []
        room = _REPLY_BYTES
        for thread in threads[start:]:
            name = b"%x" % thread.id
            room -= len(name) + 1
            if room < 0:
                break
            names.append(name)
        self._listed = start + len(names)
        return b"m" + b",".join(names) if names else b"l"

    def _describe_thread(self, body: bytes) -> bytes:
        thread = self._find_thread(body)
        return _NO_SUCH if thread is None else f"{thread.name} ({thread.state})".encode().hex().encode()

    # Registers

    def _values(self) -> Mapping[str, int]:
        if self._thread is None:
            return {}
        values = self._view.registers(self._thread)
        changed = self._set.get(self._thread.id)
        return {**values, **changed} if changed else values

    def _read_registers(self, _: bytes) -> bytes:
        return self._view.target.encode(self._values())

    def _read_register(self, body: bytes) -> bytes:
        return self._view.target.encode_register(decode_number(body), self._values())

    def _write_registers(self, body: bytes) -> bytes:
        return self._set_registers(self._view.target.decode(body))

    def _write_register(self, body: bytes) -> bytes:
        number, _, value = body.partition(b"=")
        return self._set_registers(dict([self._view.target.decode_register(decode_number(number), value)]))

    def _set_registers(self, values: Mapping[str, int]) -> bytes:
        if self._thread is None:
            return _NO_SUCH
        self._set.setdefault(self._thread.id, {}).update(values)
        return b"OK"

    # Memory

    def _read_memory(self, body: bytes) -> bytes:
        vaddr, _, length = body.partition(b",")
        size_bytes = min(decode_number(length), _REPLY_BYTES // 2)
        return self._view.read(self._thread, decode_number(vaddr), size_bytes)

    def _write_memory(self, body: bytes, decode: Callable[[bytes], bytes]) -> bytes:
        place, _, text = body.partition(b":")
        vaddr, _, length = place.partition(b",")
        data = decode(text)
        if len(data) != decode_number(length):
            raise ValueError(f"{len(data)} bytes where {length!r} are said")
        self._view.write(self._thread, decode_number(vaddr), data)
        return b"OK"

    # Documents

    def _offsets(self) -> bytes:
        vaddr = self._view.text_vaddr
        return b"TextSeg=%x" % vaddr if vaddr is not None else b""

    def _transfer(self, body: bytes) -> bytes:
        """``object:read:annex:offset,length``; gdb asks from 0 on until it has all."""
        name, what, annex, place = body.split(b":", 3)
        offset, _, length = place.partition(b",")
        start, size_bytes = decode_number(offset), min(decode_number(length), _REPLY_BYTES // 2)
        key = name.decode("ascii", "replace")
        if what != b"read" or (key != _FEATURES and key not in self._view.document_names):
            return b""
        if start == 0 or self._document[0] != key:
            made = self._make_document(key, annex)
            if made is None:
                return b"E00"
            self._document = key, made
        contents = self._document[1]
        part = contents[start : start + size_bytes]
        return (b"m" if start + len(part) < len(contents) else b"l") + escape(part)

    def _make_document(self, name: str, annex: bytes) -> bytes | None:
        if name == _FEATURES:
            return self._view.target.description if annex == b"target.xml" else None
        return self._view.document(name, self._thread)

    # Commands

    def _monitor(self, body: bytes) -> Iterator[bytes]:
        line = decode_hex(body).decode("utf-8", "replace").strip()
        pending = bytearray()
        for text in self._view.monitor(line, self._thread):
            pending += text.encode("utf-8", "replace")
            while len(pending) >= _OUTPUT_BYTES:
                yield b"O" + bytes(pending[:_OUTPUT_BYTES]).hex().encode()
                del pending[:_OUTPUT_BYTES]
        if pending:
            yield b"O" + bytes(pending).hex().encode()
        yield b"OK"
