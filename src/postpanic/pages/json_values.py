"""Take values out of JSON that nobody vouches for: each is there, of its type and within its bounds, or named."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from postpanic.errors import CorruptError

__all__ = ["JsonObject", "clean_text"]

_MOST = (1 << 64) - 1
_SHOWN_CHARACTERS = 40
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")


def clean_text(text: str) -> str:
    r"""
    Spell control characters out, which have no place in a message.

    >>> clean_text("two\nlines")
    'two\\x0alines'
    """
    return text if text.isprintable() else "".join(map(_spell, text))


def _spell(character: str) -> str:
    return character if character.isprintable() else f"\\x{ord(character):02x}"


class JsonObject:
    """
    An object of JSON; every method names the key that is at fault.

    Parameters
    ----------
    value : object
        As the parser gives it.
    where : str
        The file.
    path : str
        The keys that lead here: ``output.files[0]``.

    Raises
    ------
    CorruptError
        From all methods, if the key is missing or its value is not what it must be.
    """

    def __init__(self, value: object, where: str, path: str) -> None:
        self._where = where
        self._path = path
        if not isinstance(value, dict):
            raise CorruptError(f"{path or 'the manifest'} is {_show(value)}, must be an object", where=where)
        self._value: dict[str, Any] = value

    def fault(self, key: str, found: str, allowed: str) -> CorruptError:
        """Make the error for a key: what was found, and what is allowed."""
        return CorruptError(f"{self._name(key)} {found}, must be {allowed}", where=self._where)

    def is_null(self, key: str) -> bool:
        """Tell whether a key is there and null."""
        return self._get(key) is None

    def text(self, key: str) -> str:
        """Get a string without control characters."""
        return self._text(key, self._get(key))

    def texts(self, key: str) -> tuple[str, ...]:
        """Get a list of strings."""
        return tuple(self._text(f"{key}[{index}]", value) for index, value in enumerate(self._list(key)))

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        """Get one of some strings."""
        value = self._get(key)
        if not isinstance(value, str) or value not in allowed:
            raise self.fault(key, f"is {_show(value)}", f"one of {', '.join(allowed)}")
        return value

    def file_name(self, key: str) -> str:
        """Get the name of a file in the same directory."""
        value = self._get(key)
        if not isinstance(value, str) or value in {"", ".", ".."} or "/" in value or "\0" in value:
            raise self.fault(key, f"is {_show(value)}", "the name of a file, without a directory")
        return value

    def integer(self, key: str, *, least: int = 0, most: int = _MOST) -> int:
        """Get a whole number within bounds."""
        return self._integer(key, self._get(key), least, most)

    def integers(self) -> dict[str, int]:
        """Get all members, which must be whole numbers."""
        return {self._text(key, key): self._integer(key, value, 0, _MOST) for key, value in self._value.items()}

    def number(self, key: str) -> float:
        """Get a number that is not negative."""
        value = self._get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise self.fault(key, f"is {_show(value)}", "a number that is not negative")
        return float(value)

    def moment(self, key: str) -> datetime:
        """Get a time, ``2026-01-31T23:59:59Z``."""
        value = self._get(key)
        try:
            if isinstance(value, str) and _MOMENT.match(value):
                return datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            pass
        raise self.fault(key, f"is {_show(value)}", "a time as in 2026-01-31T23:59:59Z")

    def child(self, key: str) -> JsonObject:
        """Get an object."""
        return JsonObject(self._get(key), self._where, self._name(key))

    def children(self, key: str) -> list[JsonObject]:
        """Get a list of objects."""
        return [
            JsonObject(value, self._where, f"{self._name(key)}[{index}]") for index, value in enumerate(self._list(key))
        ]

    def digest(self, key: str) -> str:
        """Get a SHA-256 in hexadecimal digits, or an empty string."""
        value = self._get(key)
        return "" if value == "" else self._digest(key, value)

    def digests(self, key: str) -> tuple[str, ...]:
        """Get a list of SHA-256 in hexadecimal digits."""
        return tuple(self._digest(f"{key}[{index}]", value) for index, value in enumerate(self._list(key)))

    def ranges(self, key: str, *, most: int) -> tuple[tuple[int, int], ...]:
        """Get rising ranges ``[start, end)``."""
        values = self._list(key)
        if len(values) > most:
            raise self.fault(key, f"has {len(values)} ranges", f"{most} at most")
        ranges: list[tuple[int, int]] = []
        least = 0
        for index, value in enumerate(values):
            name = f"{key}[{index}]"
            if not isinstance(value, list) or len(value) != 2:
                raise self.fault(name, f"is {_show(value)}", "a list of start and end")
            start = self._integer(name, value[0], least, _MOST)
            end = self._integer(name, value[1], start + 1, _MOST)
            ranges.append((start, end))
            least = end
        return tuple(ranges)

    def _name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _get(self, key: str) -> object:
        try:
            found: object = self._value[key]
        except KeyError:
            raise CorruptError(f"{self._name(key)} is missing", where=self._where) from None
        return found

    def _list(self, key: str) -> list[object]:
        value = self._get(key)
        if not isinstance(value, list):
            raise self.fault(key, f"is {_show(value)}", "a list")
        return value

    def _text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise self.fault(clean_text(key), f"is {_show(value)}", "a string without control characters")
        return value

    def _integer(self, key: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fault(clean_text(key), f"is {_show(value)}", f"a whole number from {least} to {most}")
        return value

    def _digest(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not _SHA256.match(value):
            raise self.fault(key, f"is {_show(value)}", "64 hexadecimal digits")
        return value


def _show(value: object) -> str:
    """Spell a value, cut short; of lists and objects only what they are."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        cut = value[:_SHOWN_CHARACTERS]
        return clean_text(repr(cut)) + ("…" if len(cut) < len(value) else "")
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _MOST.bit_length():
        return f"a number of {value.bit_length()} bits"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )
