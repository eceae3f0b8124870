"""A line on which every packet takes its time: a proxy of TCP between a client and a server on loopback."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

PACKET_BYTES = 1460
"""What a packet of Ethernet carries."""
BUFFER_BYTES = 4096


class SlowLine:
    """
    Passes on what comes, packet by packet, one at a time in each direction.

    Parameters
    ----------
    port : int
        Of the server on loopback.
    delay_s : float
        Of each packet.
    """

    def __init__(self, port: int, delay_s: float) -> None:
        self._server = ("127.0.0.1", port)
        self._delay_s = delay_s
        self._is_cut = threading.Event()
        self._listener = socket.socket()
        # What buffers take in has not crossed the line; connections inherit the size.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.port: int = self._listener.getsockname()[1]
        self.packets = 0
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def start(self) -> None:
        self._threads[0].start()

    def stop(self) -> None:
        """Cut the line, and everything on it."""
        self._is_cut.set()
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._is_cut.is_set():
                client, _ = self._listener.accept()
                self._ends.append(client)
                server = socket.create_connection(self._server)
                self._ends.append(server)
                for source, sink in ((client, server), (server, client)):
                    thread = threading.Thread(target=self._carry, args=(source, sink), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(PACKET_BYTES):
                if self._is_cut.wait(self._delay_s):
                    break
                self.packets += 1
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
