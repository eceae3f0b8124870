"""Exit statuses and the shape of errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from postpanic.cli.app import VERBS, cli
from tests.unit.cli.conftest import Outcome

POSTPANIC = [sys.executable, "-m", "postpanic"]


def test_help_exits_with_zero(run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli("--help")
    assert outcome.status == 0
    for verb in VERBS:
        assert f"\n  {verb} " in outcome.out


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_every_verb_keeps_its_examples_in_lines(verb: str, run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli(verb, "--help")
    assert outcome.status == 0
    assert f"\n      postpanic {verb} " in outcome.out or f"    postpanic {verb} " in outcome.out


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_summary_in_the_list_is_the_first_line_of_the_verbs_own_help(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert (command.help or "").strip().split("\n")[0] == VERBS[verb][1]


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["info"], ["info", "--frob", "x"], ["dmesg", "-l", "loud", "x"], ["completion", "csh"]],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_status_64(arguments: list[str], run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli(*arguments)
    assert outcome.status == 64
    assert outcome.out == ""
    errors = [line for line in outcome.err.splitlines() if not line.startswith("  hint: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error[usage]: ")


def test_no_verb_shows_the_help_and_is_wrong_usage(run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli()
    assert outcome.status == 64
    assert "Commands:" in outcome.err


def test_an_error_of_ours_is_one_line_without_traceback(
    monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr("postpanic.dumps.open.open_dump", explode)
    outcome = run_cli("info", tmp_path)
    assert outcome.status == 1
    assert outcome.err.startswith("error[internal]: ZeroDivisionError: first line\n  hint: ")
    assert "Traceback" not in outcome.err


def test_traceback_is_shown_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("postpanic.dumps.open.open_dump", explode)
    monkeypatch.setenv("POSTPANIC_TRACEBACK", "1")
    assert "Traceback" in run_cli("info", tmp_path).err


def test_closed_output_is_silent() -> None:
    # Far more than a pipe takes, and a reader that is gone before the first byte.
    reader, writer = os.pipe()
    os.close(reader)
    try:
        finished = subprocess.run(
            [*POSTPANIC, "completion", "bash"], stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert finished.returncode == 141
    assert finished.stderr == b""


def test_interrupt_ends_with_status_130(tmp_path: Path) -> None:
    # A verb that waits for its input: a FIFO without a writer, read as a file of commands.
    script = tmp_path / "wait.py"
    script.write_text(
        # A test run in the background is started with the signal ignored.
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import postpanic.dumps.open as module\n"
        "def wait(*_):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "module.open_dump = wait\n"
        "from postpanic.cli.app import main\n"
        "sys.exit(main(['info', 'x']))\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_asks_postpanic(shell: str, run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli("completion", shell)
    assert outcome.status == 0
    assert f"_POSTPANIC_COMPLETE={shell}_complete" in outcome.out


def test_bash_completion_completes_verbs_and_options() -> None:
    environment = {**os.environ, "_POSTPANIC_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "postpanic d"}
    verbs = subprocess.run([*POSTPANIC], env=environment, capture_output=True, check=True, text=True).stdout
    # python -m is not called postpanic, yet the completion speaks for it.
    assert verbs.split() == [f"plain,{verb}" for verb in sorted(VERBS) if verb.startswith("d")]
