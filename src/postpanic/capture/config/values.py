"""What the keys of the configuration may hold: sizes, times, levels, names of devices."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from postpanic.units import GIB, KIB, MIB

__all__ = [
    "ADDRESS",
    "COMMAND_LINE",
    "DEVICE",
    "FLAG",
    "HARDWARE_ADDRESS",
    "HEADERS",
    "HOST",
    "LEVELS",
    "PATH",
    "PREFIX",
    "RELATIVE_PATH",
    "SIZE",
    "TEXT",
    "URL",
    "DeviceName",
    "RefusedError",
    "Value",
    "choice",
    "duration",
    "integer",
    "list_of",
]

T = TypeVar("T")
W = TypeVar("W", bound=str)

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "K": KIB,
    "M": MIB,
    "G": GIB,
    "T": 1 << 40,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
_TIME_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_LIMIT = 1 << 60


class RefusedError(Exception):
    """A value that its key must not hold; the message says more than what is allowed does."""


@dataclass(frozen=True)
class Value(Generic[T]):
    """
    What a key may hold.

    Attributes
    ----------
    allowed : str
        In words, after "must be".
    read : callable
        Turns what TOML has into what the program uses; raises ValueError or
        TypeError for what is not allowed, :class:`RefusedError` with a message
        of its own.
    """

    allowed: str
    read: Callable[[object], T]


@dataclass(frozen=True)
class DeviceName:
    """
    A block device as fstab spells it.

    Attributes
    ----------
    tag : str
        ``UUID``, ``LABEL``, ``PARTUUID``, ``PARTLABEL``, or ``path``.
    value : str
        What the tag says; of ``path`` a file below ``/dev``.
    """

    tag: str
    value: str

    def __str__(self) -> str:
        return self.value if self.tag == "path" else f"{self.tag}={self.value}"


def choice(*words: W) -> Value[W]:
    """Allow some words."""

    def read(value: object) -> W:
        for word in words:
            if value == word:
                return word
        raise ValueError

    return Value("one of " + ", ".join(f'"{word}"' for word in words), read)


def integer(least: int, most: int) -> Value[int]:
    """Allow whole numbers between two bounds, both included."""

    def read(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise ValueError

    return Value(f"a number from {least} to {most}", read)


def duration(least_s: float, most_s: float) -> Value[float]:
    """Allow times between two bounds: seconds, or a number and a unit."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError
        seconds = _read_time(value) if isinstance(value, str) else float(value)
        if not least_s <= seconds <= most_s:
            raise ValueError
        return seconds

    bounds = f"from {_spell_time(least_s)} to {_spell_time(most_s)}"
    return Value(f'a time {bounds}: seconds, or a number and s, min or h, as in "90 s"', read)


def list_of(value: Value[T], *, most: int = 64) -> Value[tuple[T, ...]]:
    """Allow a list of what another value allows."""

    def read(found: object) -> tuple[T, ...]:
        if not isinstance(found, list) or len(found) > most:
            raise TypeError
        return tuple(value.read(item) for item in found)

    return Value(f"a list, each member {value.allowed}", read)


def _read_time(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if match is None or match[2] not in _TIME_UNITS:
        raise ValueError
    return float(match[1]) * _TIME_UNITS[match[2]]


def _spell_time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def _read_size(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", value.strip())
        if match is None or match[2].upper() not in _SIZE_UNITS:
            raise ValueError
        size = int(float(match[1]) * _SIZE_UNITS[match[2].upper()])
    else:
        raise TypeError
    if not 0 <= size <= _SIZE_LIMIT:
        raise ValueError
    return size


def _read_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise TypeError


def _read_text(value: object) -> str:
    if isinstance(value, str) and value and value.isprintable():
        return value
    raise ValueError


def _read_path(value: object) -> str:
    path = _read_text(value)
    if not path.startswith("/") or len(path) > 4095:
        raise ValueError
    if ".." in path.split("/"):
        raise RefusedError("must not go up by ..")
    return path


def _read_relative_path(value: object) -> str:
    path = _read_text(value)
    if ".." in path.split("/"):
        raise RefusedError("must not go up by ..")
    return path.strip("/")


def _read_levels(value: object) -> tuple[int, ...]:
    level = integer(0, 31)
    if not isinstance(value, list):
        return (level.read(value),)
    if not 1 <= len(value) <= 8:
        raise ValueError
    return tuple(level.read(item) for item in value)


def _read_device(value: object) -> DeviceName:
    text = _read_text(value)
    if text.startswith("/dev/") and len(text) > 5:
        return DeviceName("path", _read_path(text))
    tag, equals, name = text.partition("=")
    name = name.strip('"')
    if not equals or not name or tag not in {"UUID", "LABEL", "PARTUUID", "PARTLABEL"}:
        raise ValueError
    return DeviceName(tag, name)


def _read_words(value: object) -> tuple[str, ...]:
    if isinstance(value, list):
        words = tuple(_read_text(item) for item in value)
    elif isinstance(value, str):
        words = tuple(_split_quoted(value))
    else:
        raise TypeError
    if any(not word.isprintable() for word in words) or sum(map(len, words)) > 2048:
        raise ValueError
    return words


def _split_quoted(text: str) -> list[str]:
    """Split as the kernel does: a quoted part of a word keeps its blanks, and its quotes."""
    if text.count('"') % 2:
        raise ValueError
    return re.findall(r'(?:"[^"]*"|[^\s"])+', text)


def _read_prefix(value: object) -> str:
    return str(ipaddress.ip_interface(_read_text(value)))


def _read_address(value: object) -> str:
    return str(ipaddress.ip_address(_read_text(value)))


def _read_hardware_address(value: object) -> str:
    text = _read_text(value).lower()
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", text):
        raise ValueError
    return text


def _read_host(value: object) -> str:
    text = _read_text(value).strip("[]")
    if not re.fullmatch(r"[0-9A-Za-z._-]{1,253}|[0-9A-Fa-f:.]+(%[0-9A-Za-z._-]+)?", text) or text.startswith("-"):
        raise ValueError
    return text


def _read_url(value: object) -> str:
    text = _read_text(value)
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or " " in text or not text.isascii():
        raise ValueError
    if parts.port == 0:
        raise ValueError
    return text


def _read_headers(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise TypeError
    for name in value:
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise RefusedError(f"{name!r} is no name of a header")
    return tuple((name, _read_text(content)) for name, content in value.items())


FLAG = Value("true or false", _read_flag)
TEXT = Value("text, not empty, in one line", _read_text)
PATH = Value("a path that begins with /", _read_path)
RELATIVE_PATH = Value("a path", _read_relative_path)
SIZE = Value('a size: bytes, or a number and KiB, MiB, GiB or TiB, as in "20 GiB"', _read_size)
LEVELS = Value("a dump level from 0 to 31, or a list of them", _read_levels)
DEVICE = Value('"UUID=…", "LABEL=…", "PARTUUID=…", "PARTLABEL=…" or "/dev/…"', _read_device)
COMMAND_LINE = Value("words of a kernel command line, in one text or a list", _read_words)
PREFIX = Value('an address with the length of its network, as in "192.0.2.7/24"', _read_prefix)
ADDRESS = Value("an IPv4 or IPv6 address", _read_address)
HARDWARE_ADDRESS = Value('a hardware address, as in "52:54:00:12:34:56"', _read_hardware_address)
HOST = Value("the name or the address of a host", _read_host)
URL = Value("an address that begins with http:// or https://", _read_url)
HEADERS = Value("a table of names and values", _read_headers)
