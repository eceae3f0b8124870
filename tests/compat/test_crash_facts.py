"""What we say that crash has is what crash says itself, and its text is understood."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.compat.crash_facts import COMMANDS, EXAMPLES, FOREACH, VARIABLES, VERSION
from tests.compat.crash_oracle import CrashOracle
from tests.compat.crash_text.help_pages import HelpPage, parse_foreach, parse_help, parse_variables
from tests.vm.lab import Crash

pytestmark = pytest.mark.compat


@pytest.fixture(scope="module")
def pages(crash_oracle: CrashOracle, crashed: Callable[[str], Crash]) -> dict[str, HelpPage]:
    crash = crashed("6.1")
    if not crash_oracle.program.version.startswith(VERSION):
        pytest.skip(f"the list is of crash {VERSION}")
    if crash.vmlinux is None:
        pytest.skip("the kernel's own debug information cannot be had")
    text = crash_oracle.ask(crash.vmlinux, crash.filtered, ["help all"])["help all"]
    assert text is not None
    return parse_help(text)


def test_commands_and_options_are_those_of_crashs_help(pages: dict[str, HelpPage]) -> None:
    assert {name: page.options for name, page in pages.items()} == COMMANDS
    assert parse_foreach(pages["foreach"]) == FOREACH
    assert parse_variables(pages["set"]) == VARIABLES
    assert len(COMMANDS) == 52
    assert sum(map(len, COMMANDS.values())) > 200


def test_examples_are_those_of_crashs_help(pages: dict[str, HelpPage]) -> None:
    assert {name: page.examples for name, page in pages.items() if page.examples} == EXAMPLES
    assert sum(map(len, EXAMPLES.values())) > 250
