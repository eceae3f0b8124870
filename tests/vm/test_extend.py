"""``extend``: the plug-in of the documents, and plug-ins that fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postpanic import open_dump
from postpanic.analysis.commands.registry import declared_commands
from postpanic.analysis.open_dump import OpenDump
from postpanic.errors import UsageError
from tests.vm.lab import Crash

HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "extend.md"


@pytest.fixture(scope="module")
def dump(crashed: Callable[..., Crash], tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenDump]:
    with open_dump(crashed("6.12").filtered, cache_directory=tmp_path_factory.mktemp("debuginfo")) as opened:
        yield opened


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    blocks = re.findall(r"```python\n(.*?)```", HOWTO.read_text(), re.DOTALL)
    path = tmp_path / "longest.py"
    path.write_text(blocks[0])
    return path


def test_plug_in_of_the_documents_works(dump: OpenDump, plugin: Path) -> None:
    assert dump.run(f"extend {plugin}").table.records() == [
        {"plugin": str(plugin), "change": "loaded", "commands": "longest"}
    ]
    try:
        rows = dump.run("longest 5").table.records()
        assert len(rows) == 5
        waited = [row["waited"] for row in rows]
        assert waited == sorted(waited, key=lambda value: float(str(value)), reverse=True)
        everyone = {row["pid"]: str(row["command"]).strip("[]") for row in dump.run("ps").table.records()}
        assert all(everyone[row["pid"]] == row["comm"] for row in rows)
        assert "tasks that have waited longest" in str(dump.run("help longest").table.column("line"))
        with pytest.raises(UsageError, match="loaded already"):
            dump.run(f"extend {plugin}")
        assert [row["commands"] for row in dump.run("extend").table.records()] == ["longest"]
    finally:
        dump.run("extend -u")
    assert dump.run("extend").table.rows == ()
    with pytest.raises(UsageError, match="no native command longest"):
        dump.run("longest")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "declares no command"),
        ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def (", "SyntaxError"),
        ("raise SystemError('broken')", "SystemError: broken"),
    ],
)
def test_plug_in_that_fails_leaves_nothing_behind(
    dump: OpenDump, plugin: Path, tmp_path: Path, source: str, message: str
) -> None:
    before = declared_commands()
    path = tmp_path / "broken.py"
    path.write_text(f"{plugin.read_text() if 'raise' in source else ''}\n{source}\n")
    with pytest.raises(UsageError, match=message):
        dump.run(f"extend {path}")
    assert declared_commands() == before


def test_words_that_name_no_plug_in(dump: OpenDump, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        dump.run(f"extend {tmp_path / 'nosuch.py'}")
    with pytest.raises(UsageError, match="neither a file ending in"):
        dump.run("extend nosuch")
    with pytest.raises(UsageError, match="not loaded"):
        dump.run("extend -u nosuch")
