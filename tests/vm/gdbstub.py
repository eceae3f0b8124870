"""
Write into the memory of a running guest, through QEMU's gdb stub: faults where no fault would happen.

The protocol is gdb's "Remote Serial Protocol": packets ``$DATA#CHECKSUM``,
acknowledged with ``+``. QEMU stops the guest while somebody is connected.
"""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from postpanic.errors import ProcessError

__all__ = ["poke", "poke_physical"]

ATTEMPTS = 50
RETRY_S = 0.1
TIMEOUT_S = 10.0
# QEMU takes packets of 4 KiB, two digits for a byte.
PIECE_SIZE = 1024


def poke(stub: Path, vaddr: int, data: bytes) -> None:
    """
    Write *data* to a kernel virtual address of the guest, read-only text included.

    Raises
    ------
    ProcessError
        If the stub never lets us.
    """
    answer = ""
    for _ in range(ATTEMPTS):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(stub))
            answer = _ask(connection, f"M{vaddr:x},{len(data):x}:{data.hex()}")
            with contextlib.suppress(OSError):
                _ask(connection, "D")
        if answer == "OK":
            return
        # A CPU in user mode may have page tables without the kernel: another moment will do.
        time.sleep(RETRY_S)
    raise ProcessError(f"gdb stub: cannot write {len(data)} bytes at 0x{vaddr:x}: {answer!r}")


def poke_physical(stub: Path, paddr: int, data: bytes) -> None:
    """
    Write *data* to a physical address of the guest.

    Raises
    ------
    ProcessError
        If the stub does not let us.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(str(stub))
        answers = {_ask(connection, "Qqemu.PhyMemMode:1")}
        for at in range(0, len(data), PIECE_SIZE):
            piece = data[at : at + PIECE_SIZE]
            answers.add(_ask(connection, f"M{paddr + at:x},{len(piece):x}:{piece.hex()}"))
        with contextlib.suppress(OSError):
            _ask(connection, "Qqemu.PhyMemMode:0")
            _ask(connection, "D")
    if answers != {"OK"}:
        raise ProcessError(f"gdb stub: cannot write {len(data)} bytes at 0x{paddr:x}: {sorted(answers)}")


def _ask(connection: socket.socket, request: str) -> str:
    packet = f"${request}#{sum(request.encode()) & 0xFF:02x}"
    connection.sendall(packet.encode())
    received = b""
    while True:
        start = received.find(b"$")
        end = received.find(b"#", start)
        if start >= 0 and 0 <= end <= len(received) - 3:
            answer, received = received[start + 1 : end].decode(errors="replace"), received[end + 3 :]
            connection.sendall(b"+")
            # That the guest was stopped for us is reported at any time, unasked.
            if not answer.startswith(("T", "S")):
                return answer
            continue
        data = connection.recv(4096)
        if not data:
            raise ProcessError(f"gdb stub: closed while it was asked {request[:40]!r}")
        received += data
