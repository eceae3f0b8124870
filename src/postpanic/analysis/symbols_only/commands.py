"""
The commands that work without types, in drgn's own command language.

They have the names, options and output of crash's; pipes, redirection and the
parsing of options are drgn's, as for the commands that need types.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from drgn import Program
from drgn.commands import CommandNamespace, CommandNotFoundError, argument, command, mutually_exclusive_group

from postpanic.analysis.crash_commands import CommandFailedError, failure_of, run_crash_command
from postpanic.analysis.symbols_only.backtrace import choose_cpus, parse_cpus, read_trace_lines
from postpanic.analysis.symbols_only.banner import NO_TYPES, read_symbols_only_banner
from postpanic.analysis.symbols_only.kernel import SymbolsOnly
from postpanic.analysis.symbols_only.names import read_all_lines, read_matching_lines, read_symbol_lines
from postpanic.analysis.symbols_only.words import WordStyle, read_letter_lines, read_word_lines
from postpanic.errors import AbsentError, UsageError
from postpanic.kernel.log_text import LogStyle, format_record
from postpanic.kernel.printk import LogRecord, read_log

if TYPE_CHECKING:
    from postpanic.analysis.program import OpenedProgram

__all__ = ["run_without_types"]

_COMMANDS = CommandNamespace()
_NS_PER_S = 1_000_000_000
_KEY_WIDTH = len("LOAD AVERAGE")
_FIRST_WORD = re.compile(r"[^\s|<>!]*")


def run_without_types(
    opened: OpenedProgram,
    kernel: SymbolsOnly,
    line: str,
    *,
    pager: str | None = None,
    variables: dict[str, Any] | None = None,
) -> None:
    """
    Run one line of crash's command language; it prints to ``sys.stdout``.

    The shell (``!``) and Python (``drgn``) work as they do with types.

    Parameters
    ----------
    pager : str, optional
        Shell command that shows what goes nowhere else.
    variables : dict, optional
        Global variables of the command ``drgn``.

    Raises
    ------
    CommandFailedError
        If the command failed. Status 3: it needs types.
    """
    line = line.strip()
    match = _FIRST_WORD.match(line)
    name = match.group() if match else ""
    if not name or name == "drgn":
        run_crash_command(opened.prog, line, variables=variables)
        return
    if pager is not None and not re.search(r"[|<>]", line):
        line = f"{line} | {pager}"
    # What the command starts writes to the same file behind our back.
    sys.stdout.flush()
    try:
        _COMMANDS.run(opened.prog, line, globals={"opened": opened, "kernel": kernel})
        sys.stdout.flush()
    except CommandNotFoundError as exc:
        raise CommandFailedError(
            f"{exc.name}: needs types, and {NO_TYPES}",
            exit_status=AbsentError.exit_status,
            hint=f"without types: {', '.join(_names(opened.prog))}",
        ) from exc
    except BrokenPipeError:
        raise
    except UsageError as exc:
        raise CommandFailedError(str(exc), exit_status=exc.exit_status, hint=exc.hint) from exc
    except Exception as exc:
        raise failure_of(exc) from exc


def _names(prog: Program) -> list[str]:
    return sorted(name for name, _ in _COMMANDS.enabled(prog))


def _write(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")


@command(
    namespace=_COMMANDS,
    description="print stack traces",
    long_description="Without a CPU, the stack of the one that panicked. Unwound by the kernel's ORC tables.",
    arguments=(
        mutually_exclusive_group(
            argument("-a", dest="every", action="store_true", help="all CPUs that left registers"),
            argument("-c", dest="cpus", metavar="CPU", help="these CPUs: 0,2 or 0-3"),
        ),
        argument("-s", dest="offsets", action="store_true", help="show the offset in each function"),
        argument("tasks", metavar="PID|TASK", nargs="*", help="not without types"),
    ),
)
def _cmd_bt(prog: Program, name: str, args: argparse.Namespace, **kwargs: Any) -> None:  # noqa: ANN401, ARG001
    kernel: SymbolsOnly = kwargs["globals"]["kernel"]
    if args.tasks:
        raise AbsentError(f"to find task {args.tasks[0]} types are needed, and {NO_TYPES}; -a shows all CPUs")
    numbers = parse_cpus(args.cpus) if args.cpus is not None else None
    for index, cpu in enumerate(choose_cpus(kernel, every=args.every, numbers=numbers)):
        if index:
            _write([""])
        _write(read_trace_lines(kernel, cpu, offsets=args.offsets))


@command(
    namespace=_COMMANDS,
    description="read memory",
    arguments=(
        mutually_exclusive_group(
            argument("-d", dest="base", action="store_const", const="d", help="signed decimal"),
            argument("-D", dest="base", action="store_const", const="u", help="unsigned decimal"),
        ),
        argument("-x", dest="letters", action="store_false", help="no letters at the end of each line"),
        argument("-s", dest="symbolic", action="store_true", help="symbols where values are their addresses"),
        mutually_exclusive_group(
            argument("-8", dest="unit", action="store_const", const=1, help="8-bit values"),
            argument("-16", dest="unit", action="store_const", const=2, help="16-bit values"),
            argument("-32", dest="unit", action="store_const", const=4, help="32-bit values"),
            argument("-64", dest="unit", action="store_const", const=8, help="64-bit values (the default)"),
            argument("-a", dest="text", action="store_true", help="text, up to the first byte that is none"),
        ),
        argument("start", metavar="address|symbol[+offset]", help="hexadecimal"),
        argument("count", type=int, nargs="?", help="how many values (default: 1)"),
    ),
)
def _cmd_rd(prog: Program, name: str, args: argparse.Namespace, **kwargs: Any) -> None:  # noqa: ANN401, ARG001
    kernel: SymbolsOnly = kwargs["globals"]["kernel"]
    vaddr = kernel.find_address(args.start)
    if args.text:
        _write(read_letter_lines(kernel, vaddr, args.count))
        return
    style = WordStyle(args.unit or 8, args.base or "x", letters=args.letters and not args.symbolic)
    count = 1 if args.count is None else args.count
    _write(read_word_lines(kernel, vaddr, count, style, symbolic=args.symbolic))


@command(
    namespace=_COMMANDS,
    description="symbol table lookup",
    arguments=(
        mutually_exclusive_group(
            argument("-l", dest="every", action="store_true", help="all symbols"),
            argument("-q", dest="parts", metavar="STRING", action="append", help="symbols whose names contain this"),
            argument("words", metavar="name|address", nargs="*", default=[], help="names, or hexadecimal addresses"),
            required=True,
        ),
        argument("-p", dest="before", action="store_true", help="the symbol before it as well"),
        argument("-n", dest="after", action="store_true", help="the symbol behind it as well"),
    ),
)
def _cmd_sym(prog: Program, name: str, args: argparse.Namespace, **kwargs: Any) -> None:  # noqa: ANN401, ARG001
    kernel: SymbolsOnly = kwargs["globals"]["kernel"]
    if args.every:
        _write(read_all_lines(kernel))
    for part in args.parts or ():
        _write(read_matching_lines(kernel, part))
    for word in args.words:
        _write(read_symbol_lines(kernel, word, before=args.before, after=args.after))


@command(
    namespace=_COMMANDS,
    description="print the kernel log",
    arguments=(
        mutually_exclusive_group(
            argument("-T", dest="as_date", action="store_true", help="times as local dates"),
            argument("-t", dest="no_time", action="store_true", help="no times"),
        ),
    ),
)
def _cmd_log(prog: Program, name: str, args: argparse.Namespace, **kwargs: Any) -> None:  # noqa: ANN401, ARG001
    kernel: SymbolsOnly = kwargs["globals"]["kernel"]
    records = read_log(kernel.memory)
    boot_time_s = _find_boot_time(kernel, records) if args.as_date else None
    style = LogStyle(time=not args.no_time, boot_time_s=boot_time_s)
    _write(format_record(record, style) for record in records)


def _find_boot_time(kernel: SymbolsOnly, records: list[LogRecord]) -> float:
    """Reckon the time at time 0 of the log: ``CRASHTIME`` is that of the last record (``kernel/vmcore_info.c``)."""
    crash_time_s = kernel.memory.vmcoreinfo.crash_time_s
    if crash_time_s is None or not records:
        raise AbsentError("the dump has no time of the crash, so the log has no dates")
    return crash_time_s - records[-1].timestamp_ns / _NS_PER_S


@command(namespace=_COMMANDS, description="what the machine is, and why it died")
def _cmd_sys(prog: Program, name: str, args: argparse.Namespace, **kwargs: Any) -> None:  # noqa: ANN401, ARG001
    variables = kwargs["globals"]
    for line in read_symbols_only_banner(variables["opened"], variables["kernel"]):
        _write([f"{line.key:>{_KEY_WIDTH}}: {line.value or f'(unavailable: {line.reason})'}"])


@command(
    namespace=_COMMANDS,
    description="list the commands, or explain them",
    arguments=(argument("names", metavar="command", nargs="*", help="what to explain"),),
)
def _cmd_help(prog: Program, name: str, args: argparse.Namespace, **kwargs: Any) -> None:  # noqa: ANN401, ARG001
    if args.names:
        _write(_COMMANDS.lookup(prog, word).format_help().rstrip("\n") for word in args.names)
        return
    rows = [f"{word:<6}{_COMMANDS.lookup(prog, word).description()}" for word in _names(prog)]
    _write(["Commands that work without types:", *rows, "", "All others need a vmlinux with debug information."])
