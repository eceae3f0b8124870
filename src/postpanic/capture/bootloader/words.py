"""
``crashkernel=`` in a command line, and in the files that command lines are kept in.

Everything around it stays as it is, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from postpanic.errors import CorruptError

__all__ = ["assign_words", "edit_line", "find_assignments", "find_values", "is_assigned", "replace_words"]

# A word of the kernel's own: not another one that ends like it.
_WORD = re.compile(r"""(?<![^\s"'=])crashkernel=([^\s"']*)""")
# What a POSIX shell takes for one word, without substitutions of commands.
_SHELL_VALUE = r"""(?:"(?:[^"\\]|\\[\s\S])*"|'[^']*'|\\[\s\S]|[^\s"'\\;&|])*"""


def find_values(text: str) -> tuple[str, ...]:
    """
    Find the values of all ``crashkernel=`` of a command line.

    >>> find_values('quiet crashkernel=1G,high crashkernel=256M,low')
    ('1G,high', '256M,low')
    """
    return tuple(_WORD.findall(text))


def replace_words(text: str, values: Sequence[str]) -> str:
    """
    Put values of ``crashkernel=`` in the place of those that a command line has, or at its end.

    >>> replace_words("ro crashkernel=1G,high quiet crashkernel=256M,low", ["160M"])
    'ro crashkernel=160M quiet'
    >>> replace_words("ro quiet", ["160M"]), replace_words("ro crashkernel=auto", [])
    ('ro quiet crashkernel=160M', 'ro')
    """
    new = " ".join(f"crashkernel={value}" for value in values)
    found = list(_WORD.finditer(text))
    if not found:
        body = text.rstrip()
        separator = " " if body else ""
        return f"{body}{separator}{new}{text[len(body) :]}" if new else text
    pieces, at = [], 0
    for number, match in enumerate(found):
        before = text[at : match.start()]
        # The first leaves its place to the new ones; what goes takes the space before it along.
        pieces.append(before + new if number == 0 and new else before.rstrip(" \t"))
        at = match.end()
    rest = text[at:]
    if not new and not "".join(pieces).strip():
        rest = rest.lstrip(" \t")
    return "".join(pieces) + rest


def find_assignments(text: str, name: str) -> list[re.Match[str]]:
    """
    Find the assignments of a variable in a shell script's configuration, ``NAME+=`` included.

    Group 1 is what comes before the value, group 2 the value with its quotes.
    """
    return list(re.finditer(rf"^([ \t]*(?:export[ \t]+)?{re.escape(name)}\+?=)({_SHELL_VALUE})", text, re.MULTILINE))


def is_assigned(text: str, name: str) -> bool:
    """Tell whether a variable is given a value."""
    return bool(find_assignments(text, name))


def assign_words(text: str, name: str, values: Sequence[str]) -> str:
    """
    Change ``crashkernel=`` in the value of a shell variable.

    The last assignment has the values afterwards, those before it none. Without one a line is added,
    unless there is nothing to be said.

    Raises
    ------
    CorruptError
        If a quote is not closed.

    >>> assign_words('GRUB_CMDLINE_LINUX="quiet"  # mine', "GRUB_CMDLINE_LINUX", ["160M"])
    'GRUB_CMDLINE_LINUX="quiet crashkernel=160M"  # mine'
    """
    found = find_assignments(text, name)
    if not found:
        if not values:
            return text
        gap = "" if not text or text.endswith("\n") else "\n"
        return f"{text}{gap}{name}={_quote(values)}\n"
    pieces, at = [], 0
    for match in found:
        if text[match.end(2) : match.end(2) + 1] in ('"', "'"):
            raise CorruptError(f"a quote is not closed: {text[match.start() :].splitlines()[0][:80]}")
        pieces.append(text[at : match.start(2)])
        pieces.append(_edit_value(match[2], values if match is found[-1] else ()))
        at = match.end(2)
    return "".join(pieces) + text[at:]


def _quote(values: Iterable[str]) -> str:
    return '"' + " ".join(f"crashkernel={value}" for value in values) + '"'


def _edit_value(value: str, values: Sequence[str]) -> str:
    if _WORD.search(value):
        edited = replace_words(value, values)
        return f'"{edited}"' if value[-1] not in "\"'" and " " in edited else edited
    if not values:
        return value
    new = " ".join(f"crashkernel={one}" for one in values)
    if value.endswith(('"', "'")):
        body, quote = value[:-1], value[-1]
        # What is empty so far, or ends in a space, needs none.
        gap = "" if body.endswith(quote) and len(body) == 1 else " " if body and not body[-1].isspace() else ""
        return f"{body}{gap}{new}{quote}"
    return f'"{value} {new}"' if value else f'"{new}"'


def edit_line(text: str, pattern: str, values: Sequence[str]) -> str:
    """
    Change ``crashkernel=`` in the rest of each line that begins with a pattern.

    Parameters
    ----------
    pattern : str
        Regular expression of the beginning, up to the command line.
    """

    def edit(match: re.Match[str]) -> str:
        return match[1] + replace_words(match[2], values)

    return re.sub(rf"^({pattern})(.*)$", edit, text, flags=re.MULTILINE)
