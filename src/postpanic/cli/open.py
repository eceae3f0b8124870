"""``postpanic open``: a dump at a prompt with the commands of crash."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.arguments import sort_files
from postpanic.cli.environment import find_pager, history_file, show_log
from postpanic.cli.opening import SourceOptions, open_for_analysis, source_options
from postpanic.cli.verb import Verb
from postpanic.errors import FileFaultError, NotReadyError, UsageError

if TYPE_CHECKING:
    from postpanic.analysis.banner import BannerLine
    from postpanic.analysis.program import OpenedProgram
    from postpanic.cli.session import Session

__all__ = ["command", "format_banner"]

KEY_WIDTH = len("LOAD AVERAGE")
LIVE_MEMORY = Path("/proc/kcore")


@click.command(cls=Verb, name="open")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[VMLINUX] DUMP [MODULE.ko]...")
@click.option(
    "-e",
    "--execute",
    "commands",
    multiple=True,
    metavar="COMMANDS",
    help="Run these and leave; ';' separates commands. May be repeated.",
)
@click.option(
    "-i",
    "--input",
    "input_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Run the commands in FILE first, one per line; # begins a comment.",
)
@click.option("--live", is_flag=True, help="The kernel that is running here, in place of a dump; for root.")
@click.option("-s", "--silent", is_flag=True, help="Print no banner and no warnings.")
@click.option("--json", "as_json", is_flag=True, help="Print answers as JSON, one document per command.")
@source_options
def command(
    files: tuple[Path, ...],
    commands: tuple[str, ...],
    input_file: Path | None,
    live: bool,
    silent: bool,
    as_json: bool,
    sources: SourceOptions,
) -> int:
    """
    Open a dump at a prompt with the commands of crash.

    Nothing but the dump is needed: the kernel's symbols, types and unwind
    tables are read from its own memory, and kept for the next time under
    $XDG_CACHE_HOME/postpanic. A VMLINUX with debug information, and modules,
    may be given in any order, as crash takes them; files are told apart by
    what is in them. Several dump files are the parts of one split dump.

        postpanic open dump.201901010000
        postpanic open vmlinux-6.1.0 dump.201901010000
        postpanic open -s -e 'bt; ps | head' dump.201901010000
        echo 'log | tail' | postpanic open -s dump.201901010000

    With --live it is the kernel that is running on this machine (/proc/kcore):
    what is shown may change while it is read, and each command reads anew.

    Without -e, and if the standard input is a terminal, commands are read at
    a prompt with line editing, history and completion (Tab) of commands,
    options, symbols, types and members. "help" lists the commands, "help bt"
    explains one; "q" or Ctrl-D leaves; Ctrl-C stops a command.

        postpanic> bt -a | grep schedule > file
        postpanic> task_struct.comm,pid ffff8b79cfb320c0
        postpanic> !ls

    Debug information (--debuginfo): "auto" takes real debug information when
    it is given or found in the standard places and belongs to the dump by its
    build ID, and synthesizes the rest; "synth" takes nothing from the disk
    but the files on the command line; "real" never synthesizes.

    With -e, or commands from a file or a pipe, the exit status is that of the
    first command that failed: 3 if the dump does not hold what it needs, 64 if
    it was typed wrong, else 1.
    """
    if not files and not live:
        raise UsageError("no dump is given", hint="postpanic open DUMP, or --live for the kernel that is running")
    inputs = sort_files(_add_live(files) if live else files, vmlinux=sources.vmlinux)
    input_lines = _read_lines(input_file) if input_file is not None else []
    show_log(silent=silent)
    sources = dataclasses.replace(sources, vmlinux=inputs.vmlinux)
    with open_for_analysis(inputs.dump_paths, sources, modules=inputs.modules) as opened:
        from postpanic.cli.session import Session

        if not opened.has_types:
            return _run_without_types(opened, commands, input_lines, silent=silent)
        _choose_context(opened, silent=silent)
        if not silent:
            from postpanic.analysis.banner import read_banner

            _introduce(opened.warnings, read_banner(opened))
        return _run(Session(opened, pager=find_pager(), as_json=as_json), commands, input_lines)


def _add_live(files: Sequence[Path]) -> tuple[Path, ...]:
    """
    Add the memory of the running kernel to the files.

    Raises
    ------
    NotReadyError
        If it cannot be read: not root, or a kernel without it.
    """
    try:
        with LIVE_MEMORY.open("rb") as file:
            file.read(1)
    except PermissionError:
        raise NotReadyError(
            f"{LIVE_MEMORY} may not be read", hint="be root; a locked-down kernel (Secure Boot) lets nobody"
        ) from None
    except OSError as exc:
        raise NotReadyError(
            f"{LIVE_MEMORY}: {(exc.strerror or str(exc)).lower()}", hint="the kernel needs CONFIG_PROC_KCORE"
        ) from None
    return (*files, LIVE_MEMORY)


def _run_without_types(
    opened: OpenedProgram, commands: Sequence[str], input_lines: Sequence[str], *, silent: bool
) -> int:
    from postpanic.analysis.symbols_only import SymbolsOnly, read_symbols_only_banner, warn_symbols_only
    from postpanic.cli.session import Session

    kernel = SymbolsOnly(opened.memory, opened.dump.description)
    if not silent:
        _introduce(warn_symbols_only(opened), read_symbols_only_banner(opened, kernel))
    return _run(Session(opened, pager=find_pager(), symbols_only=kernel), commands, input_lines)


def _introduce(warnings: Sequence[str], banner: Sequence[BannerLine]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{format_banner(banner)}\n", flush=True)


def format_banner(lines: Sequence[BannerLine]) -> str:
    """
    Align the banner as crash does: keys to the right, values of several lines below each other.

    A fact that could not be had is shown as ``(unavailable: reason)``.
    """
    rows = []
    for line in lines:
        value = line.value or f"(unavailable: {line.reason})"
        rows.append(f"{line.key:>{KEY_WIDTH}}: " + value.replace("\n", "\n" + " " * (KEY_WIDTH + 2)))
    return "\n".join(rows)


def _run(session: Session, commands: Sequence[str], input_lines: Sequence[str]) -> int:
    def lines() -> Iterator[str]:
        yield from input_lines
        if commands:
            yield from commands
        elif not sys.stdin.isatty():
            yield from sys.stdin

    status = session.run_lines(lines())
    if session.ended or commands or not sys.stdin.isatty():
        return status
    from postpanic.cli.prompt import run_prompt

    run_prompt(session, history_file=history_file())
    return 0


def _choose_context(opened: OpenedProgram, *, silent: bool) -> None:
    """Give the commands a task to work on when no task panicked; drgn finds one that did by itself."""
    from postpanic.analysis.context import find_context_task
    from postpanic.analysis.crash_commands import CommandFailedError, capture_crash_command

    try:
        context = find_context_task(opened.prog)
        if not context.panicked:
            capture_crash_command(opened.prog, "set -c 0")
    except (LookupError, CommandFailedError) as exc:
        if not silent:
            print(f"warning: no task to begin with: {exc}", file=sys.stderr)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from None
