"""``postpanic gdb``: a dump in gdb, or in whatever speaks to one."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.arguments import sort_files
from postpanic.cli.environment import show_log
from postpanic.cli.opening import SourceOptions, open_for_analysis, source_options
from postpanic.cli.verb import Verb
from postpanic.errors import FactAbsentError, FileFaultError, UsageError

if TYPE_CHECKING:
    from postpanic.analysis.gdbserver.transport import Address
    from postpanic.analysis.gdbserver.view import DumpView
    from postpanic.analysis.program import OpenedProgram

__all__ = ["SETTINGS", "command"]

SETTINGS = (
    # What is debugged does not run: there is nothing to lose by leaving, and nothing to call.
    "set confirm off",
    "set may-call-functions off",
    # The entry of a synthesized vmlinux is at 0, where a call through a null pointer is, too.
    "set backtrace past-entry on",
    "set print thread-events off",
    # A long command of "monitor" is no failure.
    "set remotetimeout 60",
    # What was read once stays as it is, until it is written.
    "mem 0 0 rw cache",
    # The files are this machine's.
    "set sysroot",
)
"""What gdb is told before it connects."""

_GDB_WORDS = "postpanic.gdb_words"


class _WithGdbWords(Verb):
    """A verb that leaves what stands behind ``--`` to gdb."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            end = args.index("--")
            ctx.meta[_GDB_WORDS] = args[end + 1 :]
            args = args[:end]
        return super().parse_args(ctx, args)


@click.command(cls=_WithGdbWords, name="gdb")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[VMLINUX] DUMP [-- GDB-ARGUMENT...]")
@click.option("--serve", metavar="ADDRESS", help="Start no gdb, and wait for one at this port, HOST:PORT or socket.")
@click.option("--multi", is_flag=True, help="With --serve: wait for the next client when one has left.")
@click.option("--anywhere", is_flag=True, help="With --serve: an address that other machines can reach is meant so.")
@click.option(
    "--gdb",
    "program",
    metavar="PROGRAM",
    help="The gdb to start: gdb, for another architecture gdb-multiarch.",
)
@source_options
@click.pass_context
def command(
    ctx: click.Context,
    files: tuple[Path, ...],
    serve: str | None,
    multi: bool,
    anywhere: bool,
    program: str | None,
    sources: SourceOptions,
) -> int:
    """
    Debug a dump with gdb, or with an editor.

    The dump is served in gdb's remote protocol, and gdb is started on it: with
    the kernel's symbols and types, real or synthesized, at the addresses where
    the kernel ran, its modules, and unwind tables. The threads are all tasks,
    the one that panicked first. Nothing but the dump is needed.

        postpanic gdb dump.201901010000
        postpanic gdb vmlinux-6.1.0 dump.201901010000
        postpanic gdb dump.201901010000 -- -batch -ex 'thread apply all bt'

    In gdb, "monitor" runs the commands of our prompt on the thread that gdb is
    at: "monitor ps", "monitor kmem -i", "monitor p runqueues:0". Memory that
    the dump does not hold cannot be accessed, it is never zero. Nothing runs;
    what is written is seen until the end, and the file stays as it is.

    With --serve no gdb is started: editors and other front-ends connect
    themselves. A port is open to this machine only, a socket (a path with a
    slash) to its owner only; "monitor" then runs no program and opens no file.

        postpanic gdb dump.201901010000 --serve 1234
        gdb -ex 'target remote :1234'

    It ends when its client has left, with --multi at Ctrl-C.
    """
    words = ctx.meta.get(_GDB_WORDS, [])
    address = _choose_address(files, serve, words, multi=multi, anywhere=anywhere)
    inputs = sort_files(files, vmlinux=sources.vmlinux)
    show_log()
    sources = dataclasses.replace(sources, vmlinux=inputs.vmlinux)
    with (
        open_for_analysis(inputs.dump_paths, sources, modules=inputs.modules) as opened,
        tempfile.TemporaryDirectory(prefix="postpanic-") as directory,
    ):
        for warning in opened.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if not opened.has_types:
            raise FactAbsentError(
                "the kernel carries no types (BTF), so its tasks cannot be shown to gdb", hint="give its vmlinux"
            )
        if address is None:
            return _run_gdb(opened, _find_gdb(program, opened.memory.machine), words, Path(directory))
        return _serve(opened, address, Path(directory), many=multi)


def _choose_address(
    files: Sequence[Path], serve: str | None, words: Sequence[str], *, multi: bool, anywhere: bool
) -> Address | None:
    """Check that the options go together, and find where to serve; None: gdb is started."""
    if not files:
        raise UsageError("no dump is given", hint="postpanic gdb DUMP")
    if serve is None:
        if multi or anywhere:
            raise UsageError(f"{'--multi' if multi else '--anywhere'} is for --serve ADDRESS")
        return None
    if words:
        raise UsageError(f"{words[0]!r} is for gdb, and --serve starts none")
    from postpanic.analysis.gdbserver.transport import parse_address

    return parse_address(serve, anywhere=anywhere)


def _find_gdb(program: str | None, machine: str) -> str:
    """Find the gdb that was asked for, or one that knows the dump's machine."""
    from postpanic.process import find_program

    if program is None:
        program = "gdb" if machine == platform.machine() else "gdb-multiarch"
    return str(find_program(program, hint=f"install {program}, or use --serve and one that is elsewhere"))


def _make_view(opened: OpenedProgram, directory: Path, *, trusted: bool) -> DumpView:
    from postpanic.analysis.gdbserver.unwinding import write_unwind_file
    from postpanic.analysis.gdbserver.view import DumpView
    from postpanic.cli.gdb_monitor import PromptMonitor

    monitor = PromptMonitor(opened, trusted=trusted)
    # A gdb of ours has the kernel's file from its command line.
    view = DumpView(
        monitor.workspace, monitor, write_unwind_file(monitor.workspace, directory), names_kernel=not trusted
    )
    view.prepare()
    return view


def _serve(opened: OpenedProgram, address: Address, directory: Path, *, many: bool) -> int:
    """Say where the dump is served, and serve it."""
    from postpanic.analysis.gdbserver.transport import open_listener, serve

    with open_listener(address) as (listener, bound):
        view = _make_view(opened, directory, trusted=False)
        print(f"target remote {bound}", flush=True)
        serve(listener, view, many=many)
    return 0


def _run_gdb(opened: OpenedProgram, program: str, words: Sequence[str], directory: Path) -> int:
    """Start gdb on a socket that it alone can reach, serve it until it ends, and return its exit status."""
    from postpanic.analysis.gdbserver.transport import Address, open_listener, serve
    from postpanic.process import start

    with open_listener(Address(path=directory / "socket")) as (listener, address), _left_to_gdb():
        commands = [*SETTINGS, *_connect(opened, address)]
        sys.stdout.flush()
        # gdb reads its file while we read the dump; when it connects, it waits until we are ready.
        child = start([program, "-q", *(word for each in commands for word in ("-ex", each)), *words], stdin=None)
        try:
            view = _make_view(opened, directory, trusted=True)
            serve(listener, view, is_over=lambda: child.poll() is not None, many=True)
        finally:
            if child.poll() is None:
                child.terminate()
            status = child.wait()
    return status if status >= 0 else 128 - status


def _connect(opened: OpenedProgram, address: Address) -> list[str]:
    """Say how gdb loads the kernel's file, at the addresses where the kernel ran, and connects."""
    from postpanic.analysis.debug_files import DebugKind
    from postpanic.analysis.gdbserver.libraries import find_unmoved_sections

    source = opened.sources[0] if opened.sources else None
    connect = f"target remote {address}"
    if source is None or source.file is None:
        return [connect]
    unmoved = []
    # In a synthesized file the symbols of such sections are absolute.
    if source.kind is not DebugKind.SYNTHESIZED:
        with contextlib.suppress(FileFaultError, OSError):
            unmoved = find_unmoved_sections(source.file)
    if not unmoved:
        # gdb asks us where it was.
        return [f'file "{source.file}"', connect]
    stay = " ".join(f"-s {section.name} {section.vaddr:#x}" for section in unmoved)
    # Without a file of its own gdb does not load those of the modules unasked.
    return [
        f'add-symbol-file "{source.file}" -o {opened.memory.kaslr_offset:#x} {stay}',
        connect,
        "sharedlibrary",
    ]


@contextlib.contextmanager
def _left_to_gdb() -> Iterator[None]:
    """Leave Ctrl-C to gdb, but for a command of ours that it waits for, which makes its own arrangement."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
