"""``postpanic collect``: fetch and check what a crash left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.evidence.netconsole.announce import Announcer

__all__ = ["command"]


@click.command(cls=Verb, name="collect")
@click.argument("directory", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="PATH", help="Read this file instead."
)
@click.option(
    "--command", "program", metavar="COMMAND", help="Run for each new dump, with its record as JSON on its input."
)
@click.option("--webhook", metavar="URL", help="POST the record of each new dump there.")
@click.option("--tell-later", is_flag=True, help="Leave the telling to the next time, by --command or --webhook.")
@click.option("--no-devices", is_flag=True, help="Do not look for dumps on raw devices and swap areas.")
@click.option("--json", "as_json", is_flag=True, help="Print the new dumps as JSON.")
def command(
    directory: tuple[Path, ...],
    config_path: Path | None,
    program: str | None,
    webhook: str | None,
    tell_later: bool,
    no_devices: bool,
    as_json: bool,
) -> int:
    """
    Fetch and check what a crash left.

    Dumps on raw devices and swap areas are copied into the first directory, and
    the device is given back. Every new dump is compared with its manifest, its
    log is read for what happened, and both are written beside it, where
    postpanic list finds them. Then whoever is to know is told; where that does
    not succeed, the next time. Done again it finds nothing new. At boot the
    service does it (postpanic service).

        postpanic collect
        postpanic collect --command "mail -s crash root"
        postpanic collect --webhook https://example.org/crashes

    The exit status is 2 if a new dump is damaged.
    """
    from postpanic.capture.collection import collect, mark_told
    from postpanic.cli.list import choose_directories, dumps_answer
    from postpanic.cli.recover import list_block_devices
    from postpanic.report.json import encode_json
    from postpanic.report.text import render_text

    if tell_later and (program or webhook):
        raise UsageError("--tell-later tells nobody: --command and --webhook are for later")
    announcer = _make_announcer(program, webhook)
    show = sys.stderr.isatty() and not as_json
    outcome = collect(
        choose_directories(directory, config_path),
        () if no_devices else list_block_devices(),
        tell=tell_later or announcer.is_wanted,
        say=(lambda text: print(f"{text} …", file=sys.stderr)) if show else lambda _: None,
    )
    answer = dumps_answer("collect", list(outcome.collected))
    if as_json:
        print(encode_json(answer))
    elif outcome.collected:
        for line in render_text(answer):
            print(line)
    else:
        print("nothing new", file=sys.stderr)
    problems = [*outcome.problems]
    if announcer.is_wanted:
        untold: list[str] = []
        announcer.on_failure = untold.append
        for row in dumps_answer("collect", list(outcome.untold)).table.records():
            announcer.offer(str(row["directory"]), {key: value for key, value in row.items() if value is not None}, 0.0)
        announcer.close()
        if not untold:
            mark_told(outcome.untold)
        problems += untold
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    bad = any(dump.record is not None and dump.record.verdict == "bad" for dump in outcome.collected)
    return 2 if bad else 1 if problems else 0


def _make_announcer(program: str | None, webhook: str | None) -> Announcer:
    import shlex

    from postpanic.evidence.netconsole.announce import Announcer, check_webhook

    return Announcer(
        shlex.split(program) if program else (), check_webhook(webhook) if webhook else "", per_hour=1000, again_s=0.0
    )
