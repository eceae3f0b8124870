"""
Names of Rust and C++ functions in their readable form.

Rust's v0 scheme is read as far as paths need it (RFC 2603: crates, modules,
implementations, generic arguments, back references); of C++ and of Rust's old
scheme, nested names. A name that cannot be read stays as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["demangle"]

_LIMIT = 4096
_STEPS = 2000
_DEPTH = 48
_BASIC = {
    "a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8", "i": "isize", "j": "usize",
    "l": "i32", "m": "u32", "n": "i128", "o": "u128", "p": "_", "s": "i16", "t": "u16", "u": "()", "v": "...",
    "x": "i64", "y": "u64", "z": "!",
}  # fmt: skip
_OLD_HASH = re.compile(r"h[0-9a-f]{16}")
_DIGITS = re.compile(r"\d{1,5}")


@lru_cache(maxsize=4096)
def demangle(name: str) -> str:
    """
    Return the readable name; *name* itself if it is not mangled, or not readable.

    >>> demangle("_Z8fakeNameiii"), demangle("_ZN4core9panicking5panic17h0123456789abcdefE")
    ('fakeName', 'core::panicking::panic')
    >>> demangle("_RNvNtCs1234_7mycrate3foo3bar")
    'mycrate::foo::bar'
    """
    if len(name) > _LIMIT:
        return name
    try:
        if name.startswith("_R"):
            return _Rust(name).path_text()
        if name.startswith("_ZN"):
            return "::".join(_nested(name, 3)) or name
        if name.startswith("_Z") and (match := _DIGITS.match(name, 2)):
            return name[match.end() : match.end() + int(match[0])] or name
    except (ValueError, IndexError):
        return name
    return name


def _nested(name: str, position: int) -> list[str]:
    parts: list[str] = []
    while (match := _DIGITS.match(name, position)) is not None:
        end = match.end() + int(match[0])
        part = name[match.end() : end]
        position = end
        if _OLD_HASH.fullmatch(part) is None:
            parts.append(part)
    return parts


class _Rust:
    """A reader of one v0 name."""

    def __init__(self, name: str) -> None:
        self._text = name[2:]
        self._place = 0
        self._steps = 0
        self._depth = 0

    def path_text(self) -> str:
        """Read the path that the name is."""
        return self._path()

    def _next(self) -> str:
        self._steps += 1
        if self._steps > _STEPS:
            raise ValueError
        letter = self._text[self._place]
        self._place += 1
        return letter

    def _peek(self) -> str:
        return self._text[self._place]

    def _number62(self) -> int:
        value = 0
        if self._peek() == "_":
            self._place += 1
            return 0
        while (letter := self._next()) != "_":
            digit = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ".index(letter)
            value = value * 62 + digit
        return value + 1

    def _identifier(self) -> str:
        if self._peek() == "s":
            self._place += 1
            self._number62()
        if self._peek() == "u":
            self._place += 1
        match = _DIGITS.match(self._text, self._place)
        if match is None:
            raise ValueError
        start = match.end()
        if self._text[start : start + 1] == "_":
            start += 1
        self._place = start + int(match[0])
        if self._place > len(self._text):
            raise ValueError
        return self._text[start : self._place]

    def _path(self) -> str:
        self._depth += 1
        if self._depth > _DEPTH:
            raise ValueError
        text = self._path_of(self._next())
        self._depth -= 1
        return text

    def _path_of(self, letter: str) -> str:
        if letter == "C":
            return self._identifier()
        if letter == "N":
            space = self._next()
            path, name = self._path(), self._identifier()
            if space.isupper():
                return f"{path}::{{{'closure' if space == 'C' else 'shim'}}}"
            return f"{path}::{name}"
        if letter in "MX":
            self._implementation()
            kind = self._type()
            return f"<{kind} as {self._path()}>" if letter == "X" else f"<{kind}>"
        if letter == "Y":
            return f"<{self._type()} as {self._path()}>"
        if letter == "I":
            path = self._path()
            while self._peek() != "E":
                self._argument()
            self._place += 1
            return path
        if letter == "B":
            return self._back(self._path)
        raise ValueError

    def _implementation(self) -> None:
        if self._peek() == "s":
            self._place += 1
            self._number62()
        self._path()

    def _back(self, read: object) -> str:
        target = self._number62()
        here = self._place
        if target >= here or not callable(read):
            raise ValueError
        self._place = target
        text = str(read())
        self._place = here
        return text

    def _argument(self) -> None:
        letter = self._peek()
        if letter == "L":
            self._place += 1
            self._number62()
        elif letter == "K":
            self._place += 1
            self._constant()
        else:
            self._type()

    def _constant(self) -> str:
        if self._peek() == "B":
            self._place += 1
            return self._back(self._constant)
        if self._next() == "p":
            return "_"
        end = self._text.index("_", self._place)
        value, self._place = self._text[self._place : end], end + 1
        return value

    def _type(self) -> str:
        self._depth += 1
        if self._depth > _DEPTH:
            raise ValueError
        letter = self._peek()
        if letter in _BASIC:
            self._place += 1
            text = _BASIC[letter]
        elif letter in "RQPO":
            text = self._pointer()
        elif letter in "AS":
            self._place += 1
            inner = self._type()
            text = f"[{inner}; {self._constant()}]" if letter == "A" else f"[{inner}]"
        elif letter == "T":
            text = self._tuple()
        elif letter == "B":
            self._place += 1
            text = self._back(self._type)
        else:
            text = self._path()
        self._depth -= 1
        return text

    def _pointer(self) -> str:
        letter = self._next()
        if letter in "RQ" and self._peek() == "L":
            self._place += 1
            self._number62()
        prefix = {"R": "&", "Q": "&mut ", "P": "*const ", "O": "*mut "}[letter]
        return prefix + self._type()

    def _tuple(self) -> str:
        self._place += 1
        parts: list[str] = []
        while self._peek() != "E":
            parts.append(self._type())
        self._place += 1
        return f"({', '.join(parts)})"
