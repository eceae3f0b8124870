"""``postpanic convert``: the same dump in another format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.dumps.kdump.codecs import Compression

__all__ = ["command"]

STDOUT = Path("-")


@click.command(cls=Verb, name="convert")
@click.argument(
    "dump", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True), metavar="DUMP... OUT"
)
@click.option(
    "--to", "form", type=click.Choice(["kdump", "elf"]), default="kdump", help="What OUT is: kdump by default."
)
@click.option(
    "--compression",
    type=click.Choice(["zstd", "zlib", "lzo", "snappy", "none"]),
    help="Of a kdump's pages: zstd by default.",
)
@click.option("-F", "--flattened", is_flag=True, help="Write a flattened stream; to standard output if OUT is -.")
@click.option("-f", "overwrite", is_flag=True, help="Overwrite OUT.")
@click.option("--no-manifest", is_flag=True, help="Write no OUT.manifest.json, and compute no digest.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
def command(
    dump: tuple[Path, ...],
    form: str,
    compression: str | None,
    flattened: bool,
    overwrite: bool,
    no_manifest: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """
    Write the same dump in another format.

    DUMP is anything postpanic opens: ELF, kdump-compressed, flattened, the
    parts of a split set, what QEMU writes. OUT has the same pages; what an
    earlier filter left out stays left out.

        postpanic convert --to elf dump vmcore
        postpanic convert dump.flat dump
        postpanic convert --compression lzo dump dump.lzo
    """
    if len(dump) < 2:
        raise UsageError("DUMP and OUT are needed")
    from postpanic.cli.filter_job import FilterJob, available_threads, run_job
    from postpanic.cli.filter_report import report_outcome
    from postpanic.pages.filtering import OutputForm, WritePlan

    if form == "elf" and compression is not None:
        raise UsageError("--compression goes with --to kdump only: ELF files are not compressed")
    outputs = dump[-1:]
    if outputs == (STDOUT,):
        if not flattened:
            raise UsageError("a dump cannot be written to a pipe as it is", hint="-F writes a flattened stream")
        outputs = ()
    plan = WritePlan(
        form=OutputForm.ELF if form == "elf" else OutputForm.KDUMP,
        compression=_find_compression(compression),
        threads=available_threads(),
    )
    job = FilterJob(
        dump[:-1],
        outputs,
        plan,
        flattened=flattened,
        overwrite=overwrite,
        manifest=bool(outputs) and not no_manifest,
        classify=False,
    )
    return report_outcome(run_job(job), as_json=as_json, quiet=quiet, show_stats=False)


def _find_compression(name: str | None) -> Compression | None:
    from postpanic.dumps.kdump.codecs import Compression

    return None if name == "none" else Compression[(name or "zstd").upper()]
