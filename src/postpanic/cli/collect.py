"""``postpanic collect``: fetch and check what a crash left."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.capture.collection.index import SavedDump
    from postpanic.evidence.announce import Announcer

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
@click.option("--triage-later", is_flag=True, help="Leave the looking for the cause to the next time.")
@click.option("--no-triage", is_flag=True, help="Do not look for the cause, and write no page.")
@click.option("--no-devices", is_flag=True, help="Do not look for dumps on raw devices and swap areas.")
@click.option("--json", "as_json", is_flag=True, help="Print the new dumps as JSON.")
def command(
    directory: tuple[Path, ...],
    config_path: Path | None,
    program: str | None,
    webhook: str | None,
    tell_later: bool,
    triage_later: bool,
    no_triage: bool,
    no_devices: bool,
    as_json: bool,
) -> int:
    """
    Fetch and check what a crash left.

    Dumps on raw devices and swap areas are copied into the first directory, and
    the device is given back. Every new dump is compared with its manifest, its
    log is read for what happened, and both are written beside it, where
    postpanic list finds them. Triage looks for the cause, and leaves its
    verdict (triage.json) and a page (report.html) there. Then whoever is to know is told; where that does
    not succeed, the next time. Done again it finds nothing new. At boot the
    service does it (postpanic service).

        postpanic collect
        postpanic collect --command "mail -s crash root"
        postpanic collect --webhook https://example.org/crashes

    The exit status is 2 if a new dump is damaged.
    """
    from postpanic.capture.collection import collect, mark_triaged
    from postpanic.cli.collect_triage import triage_dumps
    from postpanic.cli.list import choose_directories, dumps_answer
    from postpanic.cli.recover import list_block_devices
    from postpanic.report.json import encode_json
    from postpanic.report.text import render_text

    if tell_later and (program or webhook):
        raise UsageError("--tell-later tells nobody: --command and --webhook are for later")
    if triage_later and no_triage:
        raise UsageError("--triage-later or --no-triage, not both")
    announcer = _make_announcer(program, webhook)
    say = _say if sys.stderr.isatty() and not as_json else lambda _: None
    outcome = collect(
        choose_directories(directory, config_path),
        () if no_devices else list_block_devices(),
        tell=tell_later or announcer.is_wanted,
        triage_later=triage_later,
        say=say,
    )
    problems = [*outcome.problems]
    if not (no_triage or triage_later):
        mark_triaged(outcome.untriaged)
        problems += triage_dumps(outcome.untriaged, say)
    answer = dumps_answer("collect", list(outcome.collected))
    if as_json:
        print(encode_json(answer))
    elif outcome.collected:
        for line in render_text(answer):
            print(line)
    else:
        print("nothing new", file=sys.stderr)
    if announcer.is_wanted:
        problems += _tell(announcer, outcome.untold)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    bad = any(dump.record is not None and dump.record.verdict == "bad" for dump in outcome.collected)
    return 2 if bad else 1 if problems else 0


def _say(text: str) -> None:
    print(f"{text} …", file=sys.stderr)


def _tell(announcer: Announcer, dumps: Sequence[SavedDump]) -> list[str]:
    """Tell of dumps, and remember it; return whom it was not possible to tell."""
    from postpanic.capture.collection import mark_told
    from postpanic.cli.list import dumps_answer

    untold: list[str] = []
    announcer.on_failure = untold.append
    for row in dumps_answer("collect", list(dumps)).table.records():
        announcer.offer(str(row["directory"]), {key: value for key, value in row.items() if value is not None}, 0.0)
    announcer.close()
    if not untold:
        mark_told(dumps)
    return untold


def _make_announcer(program: str | None, webhook: str | None) -> Announcer:
    import shlex

    from postpanic.evidence.announce import Announcer, check_webhook

    return Announcer(
        shlex.split(program) if program else (), check_webhook(webhook) if webhook else "", per_hour=1000, again_s=0.0
    )
