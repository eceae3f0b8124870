"""``postpanic triage``: what happened, who is at fault, and how that can be seen."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from postpanic.cli.environment import show_log
from postpanic.cli.evidence_inputs import open_scene
from postpanic.cli.opening import SourceOptions, source_options
from postpanic.cli.verb import Verb
from postpanic.errors import FactAbsentError, UsageError

__all__ = ["command"]


@click.command(cls=Verb, name="triage")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[VMLINUX] DUMP | LOG")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict and all findings as JSON.")
@source_options
def command(files: tuple[Path, ...], as_json: bool, sources: SourceOptions) -> int:
    """
    Say what happened, who is at fault, and how that can be seen.

    Detectors look at the kernel's reports, the registers and memory of the
    moment, the tasks and what they wait for, and at what memory was spent on.
    The verdict is the finding that explains the others. Every finding names
    its evidence: a command of the prompt, and what stands in its output.

        postpanic triage dump.201901010000
        postpanic triage console.log
        dmesg | postpanic triage -

    How sure a finding is: "proven" means that the dump shows all of it,
    "likely" that nothing else fits, "possible" that other things fit too. What
    could not be seen, because the dump level left it out or there is only a
    log, is said at the end.

    The exit status is 3 if nothing is known of a crash.
    """
    if not files:
        raise UsageError("no dump and no log is given", hint="postpanic triage DUMP, or LOG, or - for standard input")
    from postpanic.analysis.triage import judge
    from postpanic.findings.verdict_answer import answer_of
    from postpanic.report.json import encode_json
    from postpanic.report.text import render_problems, render_text

    show_log()
    with open_scene(files, sources) as scene:
        verdict = judge(scene)
    answer = answer_of(verdict)
    if as_json:
        print(encode_json(answer))
    else:
        for line in render_text(answer):
            print(line)
        for line in render_problems(answer):
            print(line, file=sys.stderr)
    return 0 if verdict.kind or verdict.findings else FactAbsentError.exit_status
