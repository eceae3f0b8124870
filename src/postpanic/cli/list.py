"""``postpanic list``: the dumps that a machine has saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.findings.table import Answer, Cell, Column, Kind, Shape

if TYPE_CHECKING:
    from postpanic.capture.collection import SavedDump

__all__ = ["DUMPS", "choose_directories", "command", "dumps_answer"]

DUMPS = Shape(
    "dumps",
    (
        Column("when", title="WHEN (UTC)", help="the crash"),
        Column("node", title="NODE", help="name or address in the directory's name"),
        Column("release", title="KERNEL", help="that crashed"),
        Column("size_bytes", Kind.NUMBER, hidden=True, help="that its files take on the disk"),
        Column("size", title="SIZE", align=">"),
        Column("state", title="STATE", help="complete, incomplete, log only"),
        Column("verdict", title="CHECKED", help="good, bad, unverified; empty: not collected yet"),
        Column("what", title="WHAT", help="the report in its log that came first"),
        Column("signature", hidden=True, help="the same for the same crash"),
        Column("faults", hidden=True),
        Column("directory", title="DIRECTORY"),
    ),
)


@click.command(cls=Verb, name="list")
@click.argument("directory", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="PATH", help="Read this file instead."
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def command(directory: tuple[Path, ...], config_path: Path | None, as_json: bool) -> int:
    """
    List the dumps that this machine has saved.

    They are looked for in the directories of the configuration, or in those
    that are named: ours, and those that kdump-utils, kdump-tools and openSUSE
    have saved. Nothing is changed; postpanic collect checks what is new.

        postpanic list
        postpanic list /srv/crash --json
    """
    from postpanic.capture.collection import find_dumps
    from postpanic.report.json import encode_json
    from postpanic.report.text import render_text

    answer = dumps_answer("list", find_dumps(choose_directories(directory, config_path)))
    if as_json:
        print(encode_json(answer))
        return 0
    if not answer.table.rows:
        print("no dumps", file=sys.stderr)
        return 0
    for line in render_text(answer):
        print(line)
    return 0


def choose_directories(named: tuple[Path, ...], config_path: Path | None) -> list[Path]:
    """Return the directories that were named, else those of the configuration."""
    from postpanic.capture.collection import list_directories
    from postpanic.capture.config import CONFIG_PATH, read_config

    if named:
        return list(named)
    return list_directories(read_config(config_path or CONFIG_PATH, must_exist=config_path is not None))


def dumps_answer(name: str, dumps: list[SavedDump]) -> Answer:
    """Make the answer of a command from dumps."""
    from postpanic.units import format_size

    rows: list[tuple[Cell, ...]] = []
    for dump in dumps:
        record = dump.record
        rows.append(
            (
                dump.when.strftime("%Y-%m-%d %H:%M:%S"),
                dump.node or None,
                (record.release if record else "") or None,
                dump.size_bytes,
                format_size(dump.size_bytes),
                dump.state,
                record.verdict if record else None,
                (record.title if record else "") or None,
                (record.signature if record else "") or None,
                "; ".join(record.faults) if record and record.faults else None,
                str(dump.directory),
            )
        )
    return Answer(name, (DUMPS.table(rows),))
