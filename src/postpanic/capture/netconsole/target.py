"""
A target of netconsole, as the kernel takes it.

Sources: Documentation/networking/netconsole.rst; drivers/net/netconsole.c
``alloc_param_target``, net/core/netpoll.c ``netpoll_parse_options``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from postpanic.errors import UsageError

__all__ = ["DEFAULT_PORT", "Target", "parse_receiver", "parse_userdata"]

DEFAULT_PORT = 6666
LOCAL_PORT = 6665

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,53}\Z")
_VALUE_LIMIT = 199
"""``MAX_USERDATA_VALUE_LENGTH`` of Linux 6.9 less the zero."""


@dataclass(frozen=True)
class Target:
    """
    Where messages go, and how.

    Attributes
    ----------
    interface : str
    local_ip, remote_ip : str
    remote_mac : str
        Of the next hop: the receiver itself, or the gateway.
    extended : bool
        With a header; needed for anything but the bare text.
    release : bool
        The kernel's release before the header; Linux 6.6.
    userdata : tuple of (str, str)
        Sent with each message; Linux 6.9.
    """

    interface: str
    local_ip: str
    remote_ip: str
    remote_mac: str
    remote_port: int = DEFAULT_PORT
    local_port: int = LOCAL_PORT
    extended: bool = True
    release: bool = False
    userdata: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Of its directory in configfs."""
        return f"postpanic-{self.remote_ip.replace(':', '-')}-{self.remote_port}"

    @property
    def parameter(self) -> str:
        """
        The value of ``netconsole=``, of the module or of the kernel's command line.

        >>> Target("eth0", "192.0.2.7", "192.0.2.1", "52:54:00:12:34:56").parameter
        '+6665@192.0.2.7/eth0,6666@192.0.2.1/52:54:00:12:34:56'
        """
        flags = ("+" if self.extended else "") + ("r" if self.release and self.extended else "")
        return (
            f"{flags}{self.local_port}@{self.local_ip}/{self.interface},"
            f"{self.remote_port}@{self.remote_ip}/{self.remote_mac}"
        )


def parse_receiver(text: str) -> tuple[str, int]:
    """
    Split ``HOST:PORT``; IPv6 addresses with a port stand in brackets.

    Raises
    ------
    UsageError
        If it is none.

    >>> parse_receiver("logs.example:5555"), parse_receiver("[2001:db8::1]:77"), parse_receiver("2001:db8::1")
    (('logs.example', 5555), ('2001:db8::1', 77), ('2001:db8::1', 6666))
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else ""
        is_good = bool(bracket) and (not rest or rest.startswith(":"))
    elif text.count(":") > 1:
        host, port, is_good = text, "", True
    else:
        host, colon, port = text.partition(":")
        is_good = not colon or bool(port)
    if not is_good or not host or (port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536)):
        raise UsageError(f"{text}: HOST or HOST:PORT is needed", hint="IPv6 with a port: [ADDRESS]:PORT")
    if ":" in host:
        try:
            ipaddress.IPv6Address(host.partition("%")[0])
        except ValueError as exc:
            raise UsageError(f"{text}: {host} is no address") from exc
    return host, int(port) if port else DEFAULT_PORT


def parse_userdata(text: str) -> tuple[str, str]:
    """
    Split ``KEY=VALUE``.

    Raises
    ------
    UsageError
        If the kernel would not take it.
    """
    key, equals, value = text.partition("=")
    if not equals or _KEY.match(key) is None or key in {".", ".."}:
        raise UsageError(f"{text}: KEY=VALUE is needed, of at most 53 letters, digits, _ . - in the key")
    if len(value.encode()) > _VALUE_LIMIT or not value.isprintable() or not value:
        raise UsageError(f"{key}: 1 to {_VALUE_LIMIT} bytes that can be printed are needed as the value")
    return key, value
