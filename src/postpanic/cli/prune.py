"""``postpanic prune``: delete old dumps."""

from __future__ import annotations

from pathlib import Path

import click

from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

__all__ = ["command"]

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


@click.command(cls=Verb, name="prune")
@click.argument("directory", nargs=-1, type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Keep so many, the newest.")
@click.option("--keep-bytes", metavar="SIZE", help="Keep as many as fit into this.")
@click.option("--older-than", metavar="TIME", help="Delete those that are older: 30d, 12h, 4w.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="PATH", help="Read this file instead."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was deleted as JSON.")
def command(
    directory: tuple[Path, ...],
    keep: int | None,
    keep_bytes: str | None,
    older_than: str | None,
    dry_run: bool,
    config_path: Path | None,
    as_json: bool,
) -> int:
    """
    Delete old dumps.

    A dump goes when it is beyond one of the bounds that are given; one is
    needed. The newest complete dump always stays. The saver itself deletes by
    the bounds of its configuration (keep, keep_bytes, min_free).

        postpanic prune --keep 5
        postpanic prune --older-than 90d -n
        postpanic prune /srv/crash --keep-bytes "20 GiB"
    """
    from postpanic.capture.collection import PruneRules, find_dumps, prune, select
    from postpanic.cli.list import choose_directories, dumps_answer
    from postpanic.report.json import encode_json
    from postpanic.units import format_size, parse_size

    rules = PruneRules(
        keep or 0, parse_size(keep_bytes) if keep_bytes else 0, _parse_time(older_than) if older_than else 0.0
    )
    if not rules.says_something:
        raise UsageError("nothing says what may stay", hint="--keep N, --keep-bytes SIZE or --older-than TIME")
    chosen = select(find_dumps(choose_directories(directory, config_path)), rules)
    if not dry_run:
        prune(chosen)
    if as_json:
        print(encode_json(dumps_answer("prune", chosen)))
        return 0
    word = "would delete" if dry_run else "deleted"
    for dump in chosen:
        print(f"{word} {dump.directory} ({format_size(dump.size_bytes)})")
    size = sum(dump.size_bytes for dump in chosen)
    print(f"{len(chosen)} dumps, {format_size(size)}" if chosen else "nothing is beyond the bounds")
    return 0


def _parse_time(text: str) -> float:
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(number) :].strip() or "s"
    try:
        return float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        raise UsageError(f"--older-than {text}: must be a number and one of {', '.join(_UNITS)}") from None
