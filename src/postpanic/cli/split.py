"""``postpanic split``: divide a dump among several files."""

from __future__ import annotations

from pathlib import Path

import click

from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

__all__ = ["command"]


@click.command(cls=Verb, name="split")
@click.argument("dump", type=click.Path(path_type=Path))
@click.argument("parts", nargs=-1, type=click.Path(path_type=Path), metavar="PART PART...")
@click.option("-f", "overwrite", is_flag=True, help="Overwrite the parts.")
@click.option("--no-manifest", is_flag=True, help="Write no manifests, and compute no digests.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
def command(dump: Path, parts: tuple[Path, ...], overwrite: bool, no_manifest: bool, as_json: bool, quiet: bool) -> int:
    """
    Divide a dump among several files.

    Every part is a kdump-compressed file with about as many pages as the
    others. crash, drgn, makedumpfile and postpanic open all of them together;
    "postpanic join" makes one file again. To filter at the same time, use
    "postpanic filter --split".

        postpanic split dump part1 part2 part3
        postpanic open part1 part2 part3
    """
    if len(parts) < 2:
        raise UsageError(f"{len(parts)} part named, two are needed at least")
    from postpanic.cli.filter_job import FilterJob, available_threads, run_job
    from postpanic.cli.filter_report import report_outcome
    from postpanic.pages.filtering import WritePlan

    plan = WritePlan(threads=available_threads())
    job = FilterJob((dump,), parts, plan, overwrite=overwrite, manifest=not no_manifest, classify=False)
    return report_outcome(run_job(job), as_json=as_json, quiet=quiet, show_stats=False)
