"""``postpanic join``: make one file of the parts of a split dump."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.cli.filter_job import FilterJob

__all__ = ["command", "make_join_job"]


@click.command(cls=Verb, name="join")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="PART... OUT")
@click.option("-f", "overwrite", is_flag=True, help="Overwrite OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
def command(files: tuple[Path, ...], overwrite: bool, as_json: bool, quiet: bool) -> int:
    """
    Make one file of the parts of a split dump.

    The parts, in any order, are those of "postpanic split", "postpanic filter
    --split" or "makedumpfile --split". OUT is a kdump-compressed file with a
    manifest. Parts that are missing are named, and what there is is joined.

        postpanic join part1 part2 part3 dump
    """
    from postpanic.cli.filter_job import run_job
    from postpanic.cli.filter_report import report_outcome

    outcome = run_job(make_join_job(files, overwrite=overwrite))
    return report_outcome(outcome, as_json=as_json, quiet=quiet, show_stats=False)


def make_join_job(files: tuple[Path, ...], *, overwrite: bool) -> FilterJob:
    """
    Tell the parts from the output, which comes last.

    Raises
    ------
    UsageError
        If there are too few files.
    """
    if len(files) < 2:
        raise UsageError(f"{len(files)} files named: the parts and OUT are needed")
    from postpanic.cli.filter_job import FilterJob, available_threads
    from postpanic.pages.filtering import WritePlan

    plan = WritePlan(threads=available_threads())
    return FilterJob(files[:-1], files[-1:], plan, overwrite=overwrite, classify=False)
