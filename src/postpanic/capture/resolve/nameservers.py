"""The name servers that the capture kernel can ask: this machine's, but for those that run on it."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from pathlib import Path

from postpanic.capture.root_paths import follow_below

__all__ = ["read_nameservers"]

_FILES = (
    # Where the resolver that resolv.conf(5) names is on the machine itself, these tell whom it asks in its turn.
    "run/systemd/resolve/resolv.conf",
    "run/NetworkManager/no-stub-resolv.conf",
    "etc/resolv.conf",
)
_MOST = 3
"""The C library asks no more: MAXNS of resolv.conf(5)."""


def read_nameservers(root: Path) -> tuple[str, ...]:
    """
    Read this machine's name servers: resolv.conf(5), systemd-resolved.service(8), NetworkManager.conf(5).

    Parameters
    ----------
    root : Path
        Below which this machine's files are.
    """
    for name in _FILES:
        with suppress(OSError):
            found = _find_servers(follow_below(root, name).read_text(errors="replace"))
            if found:
                return tuple(found[:_MOST])
    return ()


def _find_servers(text: str) -> list[str]:
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with suppress(ValueError):
                if not ipaddress.ip_address(words[1].partition("%")[0]).is_loopback:
                    found.append(words[1])
    return found
