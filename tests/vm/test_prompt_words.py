"""``alias``, ``repeat``, ``gdb``, the bare name of a type, and formats, at the prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postpanic.analysis.program import open_program
from postpanic.cli.session import Session, SessionEndError
from tests.vm.lab import Crash


@pytest.fixture(scope="module")
def session(crashed: Callable[..., Crash], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    cache = tmp_path_factory.mktemp("debuginfo")
    with open_program([crashed("6.1").filtered], cache_directory=cache) as opened:
        yield Session(opened)


@pytest.fixture
def say(session: Session, capfd: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def run(line: str) -> str:
        session.run_line(line)
        captured = capfd.readouterr()
        return captured.out + captured.err

    return run


def test_alias_with_a_pipe(say: Callable[[str], str]) -> None:
    assert re.search(r"runtime +four +p 1\+3 \| sed", say('alias four "p 1+3 | sed s/4/four/"'))
    assert say("four").strip().endswith("= four")
    assert say('alias four ""') == "alias deleted: four\n"
    assert "no such command" in say("four")
    assert "is a command" in say("alias ps bt")


def test_alias_can_mean_the_end(session: Session, say: Callable[[str], str]) -> None:
    say("alias bye quit")
    with pytest.raises(SessionEndError):
        session.run_line("bye")


def test_repeat_shows_every_answer(say: Callable[[str], str]) -> None:
    values = re.findall(r"= (\d+)$", say("repeat -0.01 -c 3 pd 20+3"), re.MULTILINE)
    assert values == ["23"] * 3
    assert len(re.findall(r"= 23$", say("repeat -1 p 20+3"), re.MULTILINE)) == 1
    assert say("repeat -c 2 p 1 | wc -l").strip() == "2"
    assert "command is missing" in say("repeat -5")
    assert "no option -x" in say("repeat -x p 1")


def test_gdb_gets_a_line(say: Callable[[str], str], installed: Callable[[str], str]) -> None:
    installed("gdb")
    assert "struct list_head *next;" in say("gdb ptype struct list_head")
    assert "schedule in section" in say("gdb info symbol schedule")
    assert "Undefined command" in say("gdb nosuchcommand")


def test_prompt_without_gdb_says_so(say: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "gdb: program not found" in say("gdb ptype int")


def test_name_of_a_type_is_a_command(say: Callable[[str], str]) -> None:
    assert say("list_head") == say("struct list_head")
    assert say("rcu_special").startswith("union rcu_special {")
    assert say("*list_head") == say("struct list_head")
    assert "tasks = {" in say("task_struct.tasks init_task")
    assert "NET_DEVICE" in say("net")


def test_formats_stick_to_the_command(say: Callable[[str], str]) -> None:
    assert say("p/x 255").strip().endswith("= 0xff")
    assert say("p /t 5").strip().endswith("= 101")
    assert "no format /y" in say("p/y 1")
    assert say("px 10 --json").lstrip().startswith("{")
