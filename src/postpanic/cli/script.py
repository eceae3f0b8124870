"""``postpanic script``: the user's Python on a dump."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from postpanic.cli.environment import show_log
from postpanic.cli.opening import SourceOptions, open_for_analysis, source_options
from postpanic.cli.verb import Verb

__all__ = ["command"]


@click.command(cls=Verb, name="script", context_settings={"allow_interspersed_args": False})
@click.argument("script", type=click.Path(path_type=Path), metavar="FILE.py")
@click.argument("dump", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
@source_options
def command(script: Path, dump: Path, arguments: tuple[str, ...], sources: SourceOptions) -> int:
    """
    Run a Python program on a dump.

    FILE.py runs as if drgn had started it: "prog" is the dump's program, and
    drgn's names and all of its kernel helpers are there without an import.
    It finds its ARGUMENTs in sys.argv[1:], and ends with sys.exit() as usual;
    its exit status becomes ours. Options for postpanic come before FILE.py.

        postpanic script biggest.py dump.201901010000

    with biggest.py for example:

        for task in sorted(for_each_task(prog), key=lambda task: -task_rss(task).total)[:3]:
            print(task.pid.value_(), task.comm.string_().decode(), task_rss(task).total)

    An exception in the program is shown with its traceback, which begins in
    FILE.py, and the exit status is 1.
    """
    from postpanic.analysis.scripting import ScriptFailedError, run_script
    from postpanic.cli.arguments import check_readable

    check_readable(script)
    show_log()
    with open_for_analysis((dump,), sources) as opened:
        try:
            return run_script(opened.prog, script, arguments)
        except ScriptFailedError as exc:
            sys.stdout.flush()
            sys.stderr.write(exc.report)
            return exc.exit_status
