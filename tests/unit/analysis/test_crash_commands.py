"""Running drgn's crash commands on a kernel of which nothing is known but its release."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import drgn
import pytest

from postpanic.analysis.crash_commands import (
    CommandFailedError,
    UnknownCommandError,
    capture_crash_command,
    command_names,
    command_options,
    describe_error,
    load_plugins,
    run_crash_command,
    set_pager,
)
from postpanic.errors import PageAbsentError

VMCOREINFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82a0a000\n"


@pytest.fixture(scope="module")
def prog() -> drgn.Program:
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    program.set_linux_kernel_custom(VMCOREINFO, is_live=False)
    load_plugins()
    return program


def test_output_is_captured(prog: drgn.Program) -> None:
    assert capture_crash_command(prog, "eval 1 + 1").startswith("hexadecimal: 2\n")


def test_pipe_is_captured(prog: drgn.Program) -> None:
    assert capture_crash_command(prog, "eval 1 + 1 | grep decimal | wc -l").strip() == "2"


def test_redirection_leaves_nothing_to_capture(prog: drgn.Program, tmp_path: Path) -> None:
    assert capture_crash_command(prog, f"eval 2 > {tmp_path / 'out'}") == ""
    assert "hexadecimal: 2\n" in (tmp_path / "out").read_text()


def test_capture_does_not_start_the_pager(prog: drgn.Program, tmp_path: Path) -> None:
    set_pager(prog, f"tee {tmp_path / 'paged'}")
    assert "hexadecimal: 7" in capture_crash_command(prog, "eval 7")
    assert not (tmp_path / "paged").exists()
    assert prog.config["crash_scroll"] is True
    set_pager(prog, None)


def test_pager_gets_the_output(prog: drgn.Program, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    set_pager(prog, f"cat > {tmp_path / 'paged'}")
    with (tmp_path / "stdout").open("w") as out, contextlib.redirect_stdout(out):
        run_crash_command(prog, "eval 7")
    set_pager(prog, None)
    assert "hexadecimal: 7" in (tmp_path / "paged").read_text()
    assert (tmp_path / "stdout").read_text() == capfd.readouterr().out == ""


def test_output_can_go_to_a_stream_without_descriptor(prog: drgn.Program) -> None:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        run_crash_command(prog, "eval 3")
    assert "hexadecimal: 3" in stream.getvalue()


def test_unknown_command_names_the_near_ones(prog: drgn.Program) -> None:
    with pytest.raises(UnknownCommandError, match="evel: no such command or type") as caught:
        capture_crash_command(prog, "evel 1")
    assert "eval" in caught.value.hint
    assert caught.value.status == 64


def test_failure_of_a_command_is_one_line(prog: drgn.Program) -> None:
    with pytest.raises(CommandFailedError, match=r"\Acould not find 'nosuch'\Z") as caught:
        capture_crash_command(prog, "p nosuch")
    assert caught.value.status == 1


@pytest.mark.parametrize("line", ["eval", "eval --nosuch 1", 'eval "1', "eval 1 |", "eval 1 >"])
def test_mistyped_command_has_the_status_of_wrong_usage(prog: drgn.Program, line: str) -> None:
    with pytest.raises(CommandFailedError) as caught:
        capture_crash_command(prog, line)
    assert caught.value.status == 64
    assert "\n" not in str(caught.value)


def test_program_of_a_pipe_that_fails_is_named(prog: drgn.Program) -> None:
    with pytest.raises(CommandFailedError, match="'exit 3' exited with status 3"):
        capture_crash_command(prog, "eval 1 | exit 3")


def test_grep_that_finds_nothing_fails_without_words(prog: drgn.Program) -> None:
    with pytest.raises(CommandFailedError) as caught:
        capture_crash_command(prog, "eval 1 | grep nothing")
    assert str(caught.value) == ""
    assert caught.value.status == 1


def test_empty_line_does_nothing(prog: drgn.Program) -> None:
    assert capture_crash_command(prog, "   ") == ""


def test_names_and_options_are_those_of_the_help(prog: drgn.Program) -> None:
    names = command_names(prog)
    assert names == sorted(names)
    assert {"bt", "ps", "struct", "kmem", "*"} <= set(names)
    assert {"-a", "-c", "--drgn"} <= set(command_options(prog, "bt"))
    assert command_options(prog, "nosuch") == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (drgn.FaultError("no segment", 0x1000), "cannot read memory at 0x1000: no segment"),
        (KeyError("could not find 'x'"), "could not find 'x'"),
        (KeyError("x"), "not found: x"),
        (ValueError("one\ntwo"), "one"),
        (ValueError(""), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory"),
        (RecursionError(), "the structures refer to each other without end"),
        (MemoryError(), "not enough memory"),
        (ExceptionGroup("both", [ValueError("a"), KeyError("b")]), "a; not found: b"),
        (PageAbsentError("physical address 0x1000 is left out", paddr=0x1000), "physical address 0x1000 is left out"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_error_is_put_into_one_line(error: BaseException, text: str) -> None:
    assert describe_error(error) == text
