"""What a guest wrote down of its ``/proc`` and ``/sys`` right before it crashed (scenario ``views``)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["Area", "ProcViews"]


@dataclass(frozen=True)
class Area:
    """A line of ``/proc/PID/maps``."""

    start: int
    end: int
    access: str
    offset: int
    name: str


class ProcViews:
    """The files that were shown, by name."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(errors="replace")
        parts = re.split(r"^== (.*)\n", text, flags=re.MULTILINE)
        self.sections = dict(zip(parts[1::2], parts[2::2], strict=True))

    def lines(self, name: str) -> list[str]:
        """Return the lines of ``/proc/NAME``."""
        return self.sections[f"/proc/{name}"].splitlines()

    @cached_property
    def holder(self) -> int:
        """The PID of the process that holds one of everything."""
        return int(self.sections["holder"])

    @cached_property
    def pids(self) -> list[int]:
        """The processes whose ``maps`` and ``fd`` were shown."""
        return [int(found[1]) for name in self.sections if (found := re.fullmatch(r"/proc/(\d+)/maps", name))]

    def links(self, name: str) -> dict[str, str]:
        """Return what the symbolic links of a directory of ``/proc`` pointed to."""
        return dict(line.split(" ", 1) for line in self.sections[f"ls /proc/{name}"].splitlines())

    def areas(self, pid: int) -> list[Area]:
        """Return the memory areas of a process."""
        found = []
        for line in self.lines(f"{pid}/maps"):
            if line.startswith("cat: "):
                # The process was gone by then.
                break
            span, access, offset, _, _, *name = line.split(maxsplit=5)
            start, end = (int(word, 16) for word in span.split("-"))
            found.append(Area(start, end, access, int(offset, 16), name[0] if name else ""))
        return found

    def mounts(self, name: str) -> list[tuple[str, str, str]]:
        """Return type, device and directory of each mount of a ``mountinfo``."""
        found = []
        for line in self.lines(name):
            before, after = line.split(" - ")
            type_, device, _ = after.split(" ", 2)
            found.append((type_, device, before.split()[4]))
        return found

    @cached_property
    def pages(self) -> dict[int, tuple[str, ...]]:
        """Where each page of the holder is: ``("pfn", N)``, ``("swap", TYPE, OFFSET)`` or ``("none",)``, by address."""
        found = {}
        for line in self.sections["pages"].splitlines():
            vaddr, *place = line.split()
            found[int(vaddr, 16)] = tuple(place)
        return found

    def sockets(self, name: str) -> dict[int, tuple[str, int, str, int, int]]:
        """Return address and port of both ends and the state of each socket of ``net/tcp`` …, by its inode."""
        found = {}
        for line in self.lines(name)[1:]:
            _, source, destination, state, *rest = line.split()
            found[int(rest[5])] = (*_address(source), *_address(destination), int(state, 16))
        return found


def _address(text: str) -> tuple[str, int]:
    """Decode ``0100007F:1F90``: words of 32 bits in the order of the machine, and a port."""
    words, port = text.split(":")
    data = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    return str(ipaddress.ip_address(data)), int(port, 16)
