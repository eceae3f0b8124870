"""
See whether messages arrive: print one, and wait for the receiver to say so.

``postpanic listen`` answers a line ``postpanic: netconsole test NUMBER PORT``
with a packet to that port of the sender, which has the number and its own port.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.netconsole.target import Target
from postpanic.errors import NotReadyError

__all__ = ["Probe", "console_level", "send_probe"]

_ANSWER = b"postpanic: arrived "
_LEVEL = 3
"""KERN_ERR: the level that a console shows if it shows anything worth the name."""


@dataclass(frozen=True)
class Probe:
    """
    What came of a test.

    Attributes
    ----------
    line : str
        That was printed.
    arrived : tuple of Target
        Whose receivers have answered.
    silent : tuple of Target
    """

    line: str
    arrived: tuple[Target, ...]
    silent: tuple[Target, ...]


def console_level(root: Path = Path("/")) -> int | None:
    """Return the console's level: messages of lower numbers are sent; None if it cannot be read."""
    try:
        return int((root / "proc/sys/kernel/printk").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def send_probe(targets: Sequence[Target], *, timeout_s: float = 5.0, kmsg: Path = Path("/dev/kmsg")) -> Probe:
    """
    Print a line, and wait for the receivers to answer.

    Raises
    ------
    NotReadyError
        If nothing can be printed.
    """
    number = secrets.token_hex(8)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as waiting:
        waiting.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        waiting.bind(("::", 0))
        waiting.settimeout(0)
        line = f"postpanic: netconsole test {number} {waiting.getsockname()[1]}"
        try:
            descriptor = os.open(kmsg, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, f"<{_LEVEL}>{line}\n".encode())
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise NotReadyError((exc.strerror or str(exc)).lower(), where=str(kmsg)) from exc
        arrived = _collect(waiting, targets, number, timeout_s)
    return Probe(line, tuple(arrived), tuple(target for target in targets if target not in arrived))


def _collect(waiting: socket.socket, targets: Sequence[Target], number: str, timeout_s: float) -> list[Target]:
    deadline = time.monotonic() + timeout_s
    arrived: list[Target] = []
    poll = select.poll()
    poll.register(waiting, select.POLLIN)
    while len(arrived) < len(targets):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            break
        data, (host, *_) = waiting.recvfrom(256)
        if not data.startswith(_ANSWER + number.encode()):
            continue
        port = data[len(_ANSWER) + len(number) :].strip()
        address = host.removeprefix("::ffff:")
        for target in targets:
            # Address translation on the way changes who answers, not where we have sent it.
            is_it = target.remote_ip == address or len(targets) == 1
            if is_it and target not in arrived and port in {b"", str(target.remote_port).encode()}:
                arrived.append(target)
    return arrived
