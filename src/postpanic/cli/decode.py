"""``postpanic decode``: kernel reports of a text with their locations, code and facts spelled out."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from postpanic.cli.decode_arguments import DecodeArguments, sort_arguments
from postpanic.cli.decode_hardware import decode_record_files, decode_registers
from postpanic.cli.verb import Verb
from postpanic.errors import FactAbsentError, FileFaultError, UsageError
from postpanic.units import format_size

if TYPE_CHECKING:
    from postpanic.analysis.decode.context import LogContext
    from postpanic.analysis.decode.store import SymbolOptions, SymbolStore
    from postpanic.evidence.sources import Text

__all__ = ["command"]

STANDARD_INPUT = Path("-")
LARGEST_PIPE_BYTES = 1 << 30
LONGEST_LINE_BYTES = 1 << 16
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
    "-r", "--release", default="", metavar="RELEASE", help="Take the symbols of this release, whatever the log says."
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
@click.option("--debuginfod", is_flag=True, help="Ask debuginfod servers for symbols that are not here.")
@click.option("-f", "--force", is_flag=True, help="Use VMLINUX even if its build ID is not the log's.")
@click.option("-a", "--annotate", is_flag=True, help="Print the log itself, with the locations in its lines.")
@click.option(
    "--mce",
    "machine_checks",
    metavar="STATUS[,ADDR[,MISC]]",
    multiple=True,
    help="Decode a machine check's registers, or NAME=NUMBER,... (status, addr, misc, bank, ipid, synd, mcgcap ...).",
)
@click.option("--cpu", "processor", default="", metavar="VENDOR[:FAMILY[:MODEL]]", help="The processor of --mce.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
def command(
    files: tuple[Path, ...],
    vmlinux: Path | None,
    modules: tuple[Path, ...],
    release: str,
    base: str,
    debug_dir: tuple[Path, ...],
    debuginfod: bool,
    force: bool,
    annotate: bool,
    machine_checks: tuple[str, ...],
    processor: str,
    as_json: bool,
) -> int:
    """
    Say what the kernel's reports in a text mean.

    Reports are oopses, warnings, stalls, panics; each LOG is a text of any kind:
    a serial console, dmesg, syslog, a journal.
    Functions get their source lines and inlined callers, the bytes of Code:
    become instructions, and it is said what the one that trapped did, which
    operand was bad, and what error codes, taint letters and addresses mean.
    Symbols come from VMLINUX, or are looked for by the build ID and release of
    the log. Without any, everything is said that needs none.

        postpanic decode oops.log
        postpanic decode vmlinux oops.log more.log --json
        postpanic decode --annotate vmlinux console.log > located.log

    What hardware and firmware said of themselves in the text (machine checks,
    APEI, EDAC, PCI Express) is decoded too: which part failed, whether the
    data was saved, whether hardware or software is at fault, what to do. So
    are binary records: CPER files, machine checks of pstore, BERT. The
    registers of a machine check can be given instead of a LOG.

        postpanic decode --mce be00000000800400 --cpu Intel:6:85

    Without LOG it is a filter, as decode_stacktrace.sh of the kernel, with the
    same words: standard input comes out with the locations in its lines.

        dmesg | postpanic decode vmlinux auto modules/
        postpanic decode -r 6.1.0-56-amd64 < console.log

    The exit status is 3 if there is no report and no error of the hardware in
    any LOG.
    """
    if machine_checks or processor:
        return decode_registers(machine_checks, processor, files, as_json=as_json)
    if annotate and as_json:
        raise UsageError("--annotate prints the log, --json the reports", hint="leave one of them out")
    chosen = sort_arguments(files)
    if chosen.records:
        return decode_record_files(chosen.records, as_json=as_json)
    _check_logs(chosen, vmlinux)
    from postpanic.analysis.decode.store import SymbolOptions

    options = SymbolOptions(
        kernel=vmlinux or chosen.kernel,
        modules=(*modules, *chosen.modules),
        roots=debug_dir or DEBUG_ROOTS,
        release=release,
        base=base or chosen.base,
        force=force,
        debuginfod=debuginfod,
    )
    return _decode_logs(options, chosen, annotate=annotate, as_json=as_json)


def _check_logs(chosen: DecodeArguments, vmlinux: Path | None) -> None:
    """Refuse what cannot be meant."""
    if not chosen.logs and chosen.dump is None and sys.stdin.isatty():
        raise UsageError("no LOG, and the standard input is a terminal", hint="decode LOG, or dmesg | decode")
    if chosen.kernel is not None and vmlinux is not None:
        raise UsageError(f"symbols of the kernel twice: {vmlinux} and {chosen.kernel}")


def _decode_logs(options: SymbolOptions, chosen: DecodeArguments, *, annotate: bool, as_json: bool) -> int:
    """Annotate the logs, or report what is in them; give the exit status."""
    from postpanic.analysis.decode.store import SymbolStore

    with tempfile.TemporaryDirectory(prefix="postpanic-") as scratch:
        store = SymbolStore(options, Path(scratch))
        if annotate or (not chosen.logs and chosen.dump is None and not as_json):
            _annotate(store, chosen)
            return 0
        return _report(store, chosen, as_json=as_json)


def _report(store: SymbolStore, chosen: DecodeArguments, *, as_json: bool) -> int:
    """Print the reports of each log; give the exit status."""
    from postpanic.analysis.decode.answer import decode_text
    from postpanic.report.json import encode_json
    from postpanic.report.text import render_problems, render_text

    is_empty = True
    for name, opened in _logs(chosen):
        with opened as log:
            answer = decode_text(log.read(name), store, log.context)
        is_found = any(table.rows for table in answer.tables if table.shape.name != "symbols")
        is_empty = is_empty and not is_found
        if as_json:
            print(encode_json(answer))
            continue
        if len(chosen.logs) > 1 and is_found:
            print(f"{name}:")
        for line in render_text(answer):
            print(line)
        for line in render_problems(answer):
            print(line, file=sys.stderr)
    return FactAbsentError.exit_status if is_empty else 0


def _annotate(store: SymbolStore, chosen: DecodeArguments) -> None:
    from postpanic.analysis.decode.annotate import Annotator
    from postpanic.analysis.decode.context import find_context

    write, flush = sys.stdout.buffer.write, sys.stdout.buffer.flush
    for _, opened in _logs(chosen):
        with opened as log:
            context = log.context or (find_context(log.whole) if log.whole is not None else None)
            annotator = Annotator(store, context)
            for raw in log.lines():
                write(annotator.annotate_bytes(raw))
                if log.whole is None:
                    # Whoever waits at the other end of a pipe sees each line when it comes.
                    flush()
        flush()
        for note in annotator.notes:
            print(f"decode: {note}", file=sys.stderr)


@dataclass
class _Log:
    """A log that is open: all of it, if it is a file that is whole already, else what comes in."""

    file: BinaryIO | None
    whole: Text | None
    context: LogContext | None = None

    def lines(self) -> Iterator[bytes]:
        if self.whole is not None:
            return _lines_of(self.whole)
        file = self.file
        return iter(lambda: file.readline(LONGEST_LINE_BYTES), b"") if file is not None else iter(())

    def read(self, name: str) -> Text:
        if self.whole is not None or self.file is None:
            return self.whole if self.whole is not None else b""
        data = self.file.read(LARGEST_PIPE_BYTES + 1)
        if len(data) > LARGEST_PIPE_BYTES:
            limit = format_size(LARGEST_PIPE_BYTES)
            raise FileFaultError(f"more than {limit} from a pipe", where=name, hint="write it to a file")
        return data


def _lines_of(text: Text) -> Iterator[bytes]:
    start, size = 0, len(text)
    while start < size:
        end = text.find(b"\n", start, start + LONGEST_LINE_BYTES) + 1 or min(start + LONGEST_LINE_BYTES, size)
        yield text[start:end]
        start = end


def _logs(chosen: DecodeArguments) -> Iterator[tuple[str, AbstractContextManager[_Log]]]:
    if chosen.dump is not None:
        yield str(chosen.dump), _open_dump_log(chosen.dump)
        return
    for path in chosen.logs or (STANDARD_INPUT,):
        yield str(path), _open_log(path)


@contextmanager
def _open_dump_log(path: Path) -> Iterator[_Log]:
    from postpanic.analysis.decode.from_dump import read_dump_log

    text, context = read_dump_log(path)
    yield _Log(None, text, context)


@contextmanager
def _open_log(path: Path) -> Iterator[_Log]:
    with ExitStack() as stack:
        try:
            file: BinaryIO = sys.stdin.buffer if path == STANDARD_INPUT else stack.enter_context(path.open("rb"))
            status = os.fstat(file.fileno())
            is_whole = stat.S_ISREG(status.st_mode) and status.st_size > 0 and file.tell() == 0
            whole = stack.enter_context(mmap(file.fileno(), 0, access=ACCESS_READ)) if is_whole else None
        except OSError as exc:
            raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
        yield _Log(file, whole)
