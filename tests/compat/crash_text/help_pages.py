"""crash's own help: which commands and options there are, and the lines of its examples."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HelpPage", "parse_foreach", "parse_help", "parse_variables"]

_WORDS = frozenset({"-seconds", "-panic"})
"""Options that are words; ``-rfl`` in a synopsis is three."""
_PART_OF_WORD = "-object"
"""Stands behind a dash in a synopsis, and is none: ``[shared-object ...]``."""


@dataclass(frozen=True)
class HelpPage:
    """
    What the page of a command says.

    Attributes
    ----------
    options : tuple of str
        In the order in which they are described.
    examples : tuple of str
        Command lines, without the prompt.
    """

    name: str
    text: str
    options: tuple[str, ...]
    examples: tuple[str, ...]


def parse_help(text: str) -> dict[str, HelpPage]:
    """Read ``help all``."""
    pages = {}
    for page in re.split(r"^NAME\n", text, flags=re.MULTILINE)[1:]:
        name = page.partition(" - ")[0].strip()
        pages[name] = HelpPage(name, page, _find_options(page), _find_examples(page))
    return pages


def _find_options(page: str) -> tuple[str, ...]:
    head, _, rest = page.partition("DESCRIPTION")
    # What foreach says there of options is about the commands that it runs.
    description = "" if head.lstrip().startswith("foreach ") else rest.partition("\nEXAMPLES")[0]
    found = re.findall(r"^ {1,20}(-\w+)(?=[ =]| {2})", description, re.MULTILINE)
    for cluster in re.findall(r"(?<![\w-])-\[?([\w|]+)", head):
        found += [f"-{word}" for word in cluster.split("|")]
    options: list[str] = []
    for word in found:
        is_one = len(word) == 2 or word in _WORDS or word[1:].isdigit()
        options += [word] if is_one else [f"-{letter}" for letter in word[1:]] if word != _PART_OF_WORD else []
    return tuple(dict.fromkeys(options))


def _find_examples(page: str) -> tuple[str, ...]:
    # A long line goes on behind a backslash.
    found = re.findall(r"^ *crash> ?(\S.*?) *$", re.sub(r"\\\n +", "", page), re.MULTILINE)
    return tuple(dict.fromkeys(found))


def parse_foreach(page: HelpPage) -> dict[str, tuple[str, ...]]:
    """Read which commands ``foreach`` runs, with which of their options."""
    pattern = r'^ +(\w+)  run the "\w+" command(?: +\(optional flags?: ([^)]*)\))?'
    return {name: tuple(flags.split()) for name, flags in re.findall(pattern, page.text, re.MULTILINE)}


def parse_variables(page: HelpPage) -> tuple[str, ...]:
    """Read the names of the variables of ``set``."""
    table = page.text.partition("and purpose:")[2].partition("Internal variables may")[0]
    values = r"[a-zA-Z0-9-]+ +\| |number|device-name|filename|text-addr|CRASHPAGER|\w+ +/"
    return tuple(dict.fromkeys(re.findall(rf"^ +([a-z][a-z_-]+)  (?:{values})", table, re.MULTILINE)))
