"""``postpanic report``: one page about a crash."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from postpanic.cli.environment import show_log
from postpanic.cli.evidence_inputs import open_scene
from postpanic.cli.opening import SourceOptions, source_options
from postpanic.cli.progress import Progress
from postpanic.cli.verb import Verb
from postpanic.errors import FactAbsentError, FileFaultError, UsageError

__all__ = ["command"]

STANDARD_OUTPUT = Path("-")


@click.command(cls=Verb, name="report")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[VMLINUX] DUMP | LOG")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the page to FILE (default: beside the dump, .html behind its name); - is standard output.",
)
@click.option(
    "--redact",
    metavar="WHAT",
    help="Take out what must not leave the house: names, addresses, command-lines, or all; separated by commas.",
)
@click.option(
    "--verdict",
    "verdict_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the verdict to FILE, too: the JSON of postpanic triage.",
)
@click.option("-f", "--force", is_flag=True, help="Write over a file that is there.")
@source_options
def command(
    files: tuple[Path, ...],
    output: Path | None,
    redact: str | None,
    verdict_file: Path | None,
    force: bool,
    sources: SourceOptions,
) -> int:
    """
    Write one page about a crash: the verdict, its evidence, and the facts.

    The page is one HTML file that needs no network: it can be mailed,
    archived, printed. It begins with the verdict of "postpanic triage"; then
    come the facts in the order in which an engineer asks for them, the code
    that faulted, registers, CPUs, who waits for whom, backtraces, memory, the
    log. Every finding links to the output of the command that shows it.

        postpanic report dump.201901010000 -o crash.html
        postpanic report console.log -o crash.html
        postpanic report --redact all dump.201901010000 -o for-the-vendor.html

    The exit status is 3 if nothing is known of a crash; the page is written
    all the same.
    """
    if not files:
        raise UsageError("no dump and no log is given", hint="postpanic report DUMP -o PAGE.html")
    place = output or files[-1].with_name(f"{files[-1].name}.html")
    if place == STANDARD_OUTPUT.with_name("-.html"):
        raise UsageError("the log is standard input: where is the page to go?", hint="-o PAGE.html, or -o -")
    for each in (place, verdict_file):
        if each is not None and each != STANDARD_OUTPUT and each.exists() and not force:
            raise UsageError(f"{each} is there already", hint="--force writes over it")
    redactions = _parse_redactions(redact)
    from postpanic.analysis.page import make_page
    from postpanic.analysis.triage import judge
    from postpanic.findings.verdict_answer import answer_of
    from postpanic.report.html import Redactor, render_page
    from postpanic.report.json import encode_json

    show_log()
    with open_scene(files, sources) as scene, Progress() as progress:
        progress("looking for the cause")
        verdict = judge(scene)
        page = make_page(scene, verdict, made_of=files[-1].name, progress=progress)
        progress("drawing the page")
        text = render_page(page, Redactor(redactions, page.private_names, (verdict.signature,)))
    _write(place, text)
    if verdict_file is not None:
        _write(verdict_file, f"{encode_json(answer_of(verdict))}\n")
    return 0 if verdict.kind or verdict.findings else FactAbsentError.exit_status


def _parse_redactions(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    from postpanic.report.html.redaction import REDACTIONS

    words = [word.strip() for word in text.split(",") if word.strip()]
    if "all" in words:
        return REDACTIONS
    for word in words:
        if word not in REDACTIONS:
            raise UsageError(f"--redact: {word!r} is not known", hint=f"{', '.join(REDACTIONS)}, or all")
    return tuple(words)


def _write(place: Path, text: str) -> None:
    if place == STANDARD_OUTPUT:
        sys.stdout.write(text)
        return
    try:
        # What it tells of the machine is for the one who asked.
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(place)) from exc
    print(f"wrote {place}", file=sys.stderr)
