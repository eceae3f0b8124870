"""Every verb and every option of the command line is in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from postpanic.analysis.aliases import BUILT_IN
from postpanic.cli.app import VERBS, cli
from postpanic.cli.session import END_WORDS

DOCS = Path(__file__).parents[2] / "docs" / "commands"


def _command(verb: str) -> click.Command:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    return command


def _page(verb: str) -> str:
    return (DOCS / f"{verb}.md").read_text()


def _options(verb: str) -> list[str]:
    return [
        spelling
        for parameter in _command(verb).params
        if isinstance(parameter, click.Option)
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    ]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_verb_has_a_page(verb: str) -> None:
    page = _page(verb)
    assert page.startswith(f"# postpanic {verb}\n")
    for section in ("## Synopsis", "## Description", "## Examples", "## Exit status"):
        assert f"\n{section}\n" in page


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_page_has_every_option(verb: str) -> None:
    documented = set(re.findall(r"(?<![\w-])--?\w[\w-]*", "\n".join(re.findall(r"`[^`]+`", _page(verb)))))
    assert set(_options(verb)) <= documented


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_page_has_no_option_that_is_gone(verb: str) -> None:
    options = re.search(r"\n## Options\n(.*?)(?=\n## )", _page(verb), re.DOTALL)
    listed = re.findall(r"^`(.*?)`$", options[1] if options else "", re.MULTILINE)
    spellings = {word for line in listed for word in re.findall(r"(?<![\w-])--?\w[\w-]*", line)}
    assert spellings == set(_options(verb))


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_option_and_verb_has_help(verb: str) -> None:
    command = _command(verb)
    assert len((command.help or "").splitlines()) > 5
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert parameter.help.endswith(".")


def test_every_verb_is_in_the_overview() -> None:
    overview = (DOCS / "README.md").read_text()
    for verb, (_, summary) in VERBS.items():
        assert f"[{verb}]({verb}.md)" in overview
        assert summary.rstrip(".") in overview


def test_aliases_are_documented() -> None:
    page = _page("open")
    for alias in {*BUILT_IN, *END_WORDS}:
        assert f"`{alias}`" in page
