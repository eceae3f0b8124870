"""``postpanic decode``: kernel reports of a text with their locations, code and facts spelled out."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from postpanic.cli.decode_arguments import sort_arguments
from postpanic.cli.verb import Verb
from postpanic.errors import FactAbsentError, FileFaultError, UsageError

if TYPE_CHECKING:
    from postpanic.analysis.decode.store import SymbolStore
    from postpanic.evidence.sources import Text

__all__ = ["command"]

STANDARD_INPUT = Path("-")
LARGEST_PIPE_BYTES = 1 << 30
LONGEST_LINE_BYTES = 1 << 20
DEBUG_ROOTS = (Path("/usr/lib/debug"), Path("/"))


@click.command(cls=Verb, name="decode")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[VMLINUX [BASE|auto] [MODULES]] [LOG...]")
@click.option(
    "-k",
    "--vmlinux",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take the kernel's symbols from FILE: a vmlinux, System.map, copy of /proc/kallsyms, or a dump.",
)
@click.option(
    "-m",
    "--modules",
    type=click.Path(path_type=Path),
    metavar="PATH",
    multiple=True,
    help="Look for modules in PATH: a directory tree or a file. May be repeated.",
)
@click.option(
    "-r", "--release", default="", metavar="RELEASE", help="The kernel's release, where the log does not say it."
)
@click.option(
    "-b", "--base", default="", metavar="PATH", help="Take PATH off the front of source files (default: found out)."
)
@click.option(
    "-d",
    "--debug-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    multiple=True,
    help="Search DIR by build ID and release (default: /usr/lib/debug and /). May be repeated.",
)
@click.option("-f", "--force", is_flag=True, help="Use VMLINUX even if its build ID is not the log's.")
@click.option("-a", "--annotate", is_flag=True, help="Print the log itself, with the locations in its lines.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
def command(
    files: tuple[Path, ...],
    vmlinux: Path | None,
    modules: tuple[Path, ...],
    release: str,
    base: str,
    debug_dir: tuple[Path, ...],
    force: bool,
    annotate: bool,
    as_json: bool,
) -> int:
    """
    Say what the kernel's reports in a text mean: oopses, warnings, stalls, panics.

    Each LOG is a text of any kind: a serial console, dmesg, syslog, a journal.
    Functions get their source lines and inlined callers, the bytes of Code:
    become instructions, and it is said what the one that trapped did, which
    operand was bad, and what error codes, taint letters and addresses mean.
    Symbols come from VMLINUX, or are looked for by the build ID and release of
    the log. Without any, everything is said that needs none.

        postpanic decode oops.log
        postpanic decode vmlinux oops.log more.log --json
        postpanic decode --annotate vmlinux console.log > located.log

    Without LOG it is a filter, as decode_stacktrace.sh of the kernel, with the
    same words: standard input comes out with the locations in its lines.

        dmesg | postpanic decode vmlinux auto modules/
        postpanic decode -r 6.1.0-56-amd64 < console.log

    The exit status is 3 if there is no report in any LOG.
    """
    if annotate and as_json:
        raise UsageError("--annotate prints the log, --json the reports", hint="leave one of them out")
    chosen = sort_arguments(files)
    if chosen.kernel is not None and vmlinux is not None:
        raise UsageError(f"symbols of the kernel twice: {vmlinux} and {chosen.kernel}")
    from postpanic.analysis.decode.store import SymbolOptions, SymbolStore

    options = SymbolOptions(
        kernel=vmlinux or chosen.kernel,
        modules=(*modules, *chosen.modules),
        roots=debug_dir or DEBUG_ROOTS,
        release=release,
        base=base or chosen.base,
        force=force,
    )
    logs = chosen.logs or (STANDARD_INPUT,)
    with tempfile.TemporaryDirectory(prefix="postpanic-") as scratch:
        store = SymbolStore(options, Path(scratch))
        if annotate or (not chosen.logs and not as_json):
            _annotate(store, logs)
            for remark in _remarks(store):
                print(f"decode: {remark}", file=sys.stderr)
        else:
            return _report(store, logs, as_json=as_json)
        return 0


def _report(store: SymbolStore, logs: Sequence[Path], *, as_json: bool) -> int:
    """Print the reports of all logs as one answer; give the exit status."""
    from postpanic.analysis.decode.answer import decode_reports
    from postpanic.analysis.decode.context import find_context
    from postpanic.evidence.oops import find_reports
    from postpanic.evidence.sources import plain_text
    from postpanic.report.json import encode_json
    from postpanic.report.text import render_problems, render_text

    is_empty = True
    for log in logs:
        with _open_whole(log) as text:
            plain = plain_text(text)
            reports = find_reports(plain)
            answer = decode_reports(reports, store, find_context(plain))
        is_empty = is_empty and not reports
        if as_json:
            print(encode_json(answer))
            continue
        if len(logs) > 1 and reports:
            print(f"{log}:")
        for line in render_text(answer):
            print(line)
        for line in render_problems(answer):
            print(line, file=sys.stderr)
    return FactAbsentError.exit_status if is_empty else 0


@contextmanager
def _open_whole(log: Path) -> Iterator[Text]:
    """Open a log to read all of it."""
    with ExitStack() as stack:
        file: BinaryIO = sys.stdin.buffer if log == STANDARD_INPUT else stack.enter_context(_open(log))
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size:
            yield stack.enter_context(mmap(file.fileno(), 0, access=ACCESS_READ))
            return
        data = file.read(LARGEST_PIPE_BYTES + 1)
        if len(data) > LARGEST_PIPE_BYTES:
            raise FileFaultError(
                f"more than {LARGEST_PIPE_BYTES >> 20} MiB from a pipe", where=str(log), hint="write it to a file"
            )
        yield data


def _annotate(store: SymbolStore, logs: Sequence[Path]) -> None:
    from postpanic.analysis.decode.annotate import Annotator
    from postpanic.analysis.decode.context import find_context

    for log in logs:
        with _open_lines(log) as (lines, whole):
            annotator = Annotator(store, find_context(whole) if whole is not None else None)
            for raw in lines:
                line = raw.decode("utf-8", "surrogateescape")
                body = line.removesuffix("\n")
                ending = line[len(body) :]
                sys.stdout.buffer.write((annotator.annotate(body) + ending).encode("utf-8", "surrogateescape"))
                if whole is None:
                    # Whoever waits at the other end of a pipe sees each line when it comes.
                    sys.stdout.buffer.flush()
    sys.stdout.buffer.flush()


@contextmanager
def _open_lines(log: Path) -> Iterator[tuple[Iterator[bytes], Text | None]]:
    """Open a log to read its lines, and give all of it as well if it is a file that is whole already."""
    with ExitStack() as stack:
        file: BinaryIO = sys.stdin.buffer if log == STANDARD_INPUT else stack.enter_context(_open(log))
        whole: Text | None = None
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size and file.tell() == 0:
            whole = stack.enter_context(mmap(file.fileno(), 0, access=ACCESS_READ))
        yield iter(lambda: file.readline(LONGEST_LINE_BYTES), b""), whole


def _open(log: Path) -> BinaryIO:
    try:
        return log.open("rb")
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(log)) from exc


def _remarks(store: SymbolStore) -> Iterator[str]:
    yield from store.remarks
    for locator in store.locators():
        for reason, count in locator.reasons.items():
            yield reason if count == 1 else f"{reason} ({count} places)"
