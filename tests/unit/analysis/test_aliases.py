"""Aliases at the beginning of a line."""

from __future__ import annotations

import pytest

from postpanic.analysis.aliases import Aliases


@pytest.mark.parametrize(
    ("line", "expanded"),
    [
        ("px jiffies", "p -x jiffies"),
        ("dmesg|head", "log|head"),
        ("  hex", "set radix 16"),
        ("lsmod > file", "mod > file"),
        ("pxx", "pxx"),
        ("p px", "p px"),
        ("", ""),
        ("?", "help"),
    ],
)
def test_first_word_is_expanded(line: str, expanded: str) -> None:
    assert Aliases().expand(line) == expanded


def test_alias_of_an_alias_and_of_itself() -> None:
    aliases = Aliases()
    aliases.define("j", "px jiffies")
    aliases.define("round", "about")
    aliases.define("about", "round")
    aliases.define("self", "self -x")
    assert aliases.expand("j | cat") == "p -x jiffies | cat"
    assert aliases.expand("self y") == "self -x y"
    assert aliases.expand("round x") == "round x"


def test_aliases_are_made_and_removed() -> None:
    aliases = Aliases()
    assert aliases.define("kp", "kmem -p").origin == "runtime"
    assert "kp" in aliases
    assert aliases.remove("kp")
    assert not aliases.remove("kp")
    assert aliases.expand("kp") == "kp"
    assert [alias.origin for alias in aliases] == ["builtin"] * 15
