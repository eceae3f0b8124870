"""docs/configuration.md has every key that the configuration has, with what it may hold, and no other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from postpanic.capture.config import decode_config
from postpanic.capture.config.model import Config
from postpanic.capture.config.tables import Key, list_keys
from postpanic.capture.config.targets import TARGETS, TargetSettings

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def _sections() -> dict[str, list[list[str]]]:
    """Read the tables of the page by their headings, which are those of TOML."""
    tables: dict[str, list[list[str]]] = {}
    for section in re.split(r"^##+ ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("|")]
        if lines and lines[0].startswith("| Key "):
            tables[heading] = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
    return tables


def _row(key: Key, name: str) -> list[str]:
    return [f"`{name}`", key.allowed.replace("|", "\\|"), key.default, key.summary]


def expected_tables() -> dict[str, list[list[str]]]:
    common = {key.name for key in list_keys(TargetSettings)}
    tables: dict[str, list[list[str]]] = {"Every target": [_row(key, key.name) for key in list_keys(TargetSettings)]}
    for kind, model in TARGETS.items():
        heading = f'`kind = "{kind}"`'
        tables[heading] = [_row(key, key.name) for key in list_keys(model) if key.name not in common]
    for key in list_keys(Config):
        table, _, name = key.name.rpartition(".")
        if table.startswith(("target[", "fallback[")):
            continue
        many = table.startswith(("network.interface", "hooks."))
        tables.setdefault(f"`[[{table}]]`" if many else f"`[{table}]`", []).append(_row(key, name))
    return tables


def test_every_key_is_documented_as_it_is_and_no_other() -> None:
    assert _sections() == expected_tables()


def test_the_examples_are_read() -> None:
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        assert tomllib.loads(example)
        decode_config(example.encode(), "docs/configuration.md")
