"""Take out of a page what must not leave the house: names, addresses, command lines."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["REDACTIONS", "Redactor"]

REDACTIONS = ("names", "addresses", "command-lines")
"""What can be taken out."""

_ADDRESS = re.compile(r"(?<![0-9a-zA-Z_])(?:0x)?(?P<digits>[0-9a-f]{16}|(?<=0x)[0-9a-f]{8,15})(?![0-9a-zA-Z_])")
_COMMAND_LINE = re.compile(r"((?:[Kk]ernel )?[Cc]ommand line: |Unknown kernel command line parameters ).*")
_NULL = "0" * 16


class Redactor:
    """
    Replaces private things by stand-ins; the same thing gets the same one, so that the page can still be followed.

    Parameters
    ----------
    what : iterable of str
        Of :data:`REDACTIONS`.
    names : iterable of str
        What names are: of the host, of programs.
    keep : iterable of str
        Texts that look like an address and are none: the signature.
    """

    def __init__(self, what: Iterable[str] = (), names: Iterable[str] = (), keep: Iterable[str] = ()) -> None:
        self.what = tuple(what)
        self._keep = frozenset(keep)
        self._stand_ins: dict[str, str] = {}
        ordered = sorted(set(names), key=lambda name: (-len(name), name)) if "names" in self.what else []
        self._names = {name: f"name-{number}" for number, name in enumerate(ordered, 1)}
        # A program may be called as a word of the language is; only whole words are names.
        pattern = "|".join(map(re.escape, ordered))
        self._pattern = re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])") if pattern else None

    def __call__(self, text: str) -> str:
        """Replace what is private in a text."""
        if "command-lines" in self.what:
            text = _COMMAND_LINE.sub(r"\1(redacted)", text)
        if self._pattern is not None:
            text = self._pattern.sub(lambda found: self._names[found[0]], text)
        if "addresses" in self.what:
            text = _ADDRESS.sub(self._address, text)
        return text

    def _address(self, found: re.Match[str]) -> str:
        digits = found["digits"].rjust(16, "0")
        if found[0] in self._keep or digits == _NULL:
            return found[0]
        return self._stand_ins.setdefault(digits, f"address-{len(self._stand_ins) + 1}")
