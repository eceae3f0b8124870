"""Names of hosts, from a file of the administrator's: never from what a packet or a name server says."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from postpanic.errors import CorruptError

__all__ = ["read_names"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_SIZE_LIMIT = 16 << 20


def read_names(path: Path) -> dict[str, str]:
    """
    Read a file in the form of ``/etc/hosts``: address, name; what follows on a line is of no account.

    Returns
    -------
    dict of str to str
        Name of each address, addresses spelled as they are shown.

    Raises
    ------
    CorruptError
        If a line has no address or no name.
    OSError
        If it cannot be read.
    """
    names: dict[str, str] = {}
    with path.open(errors="replace") as file:
        for number, line in enumerate(file.read(_SIZE_LIMIT).splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                address = ipaddress.ip_address(words[0].partition("%")[0])
            except ValueError as exc:
                raise CorruptError(f"{words[0][:80]!r} is no address", where=f"{path}:{number}") from exc
            if len(words) < 2 or _NAME.match(words[1]) is None:
                raise CorruptError("a name of letters, digits, _ . - is needed", where=f"{path}:{number}")
            names.setdefault(str(getattr(address, "ipv4_mapped", None) or address), words[1])
    return names
