"""What ``postpanic rehearse`` prints: the subject, the links, the table of a matrix, JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from postpanic.units import format_size

if TYPE_CHECKING:
    from postpanic.rehearse.extrapolation import Extrapolation, Range
    from postpanic.rehearse.rehearsal import RehearsalOutcome
    from postpanic.rehearse.runs import Run, Series
    from postpanic.rehearse.subject import Subject

__all__ = ["print_runs", "print_subject", "show_progress", "to_json"]

_MARKS = {"held": "ok", "broken": "BROKEN", "not reached": "-", "not proven": "?", "faulted": "fault"}
_STEPS = (
    (re.compile(r"rehearsal: kernel "), "the host's kernel is up"),
    (re.compile(r"rehearsal: loaded "), "the capture kernel is loaded"),
    (re.compile(r"rehearsal: crash "), "crashing"),
    (re.compile(r"postpanic: (saver started.*)"), ""),
    (re.compile(r"postpanic: (.*: (?:log saved|saved, .*|given up: .*))"), ""),
    (re.compile(r"postpanic: (rebooting|powering off|halting)"), ""),
)


def show_progress(line: str) -> None:
    """Say on standard error how far the machine is, by a line of its console."""
    for pattern, text in _STEPS:
        found = pattern.search(line)
        if found is not None:
            print(f"  {text or found[1]}", file=sys.stderr, flush=True)
            return


def print_subject(subject: Subject, kvm_fault: str) -> None:
    """Print what is rehearsed."""
    image = "the one that is armed" if subject.is_armed else "what postpanic arm would build"
    print(f"kernel      {subject.host.release}, captured by {subject.prepared.kernel.release}")
    print(f"image       {format_size(len(subject.image))}, {image}")
    print(f"reserved    {format_size(subject.reserved_bytes)} ({subject.reserved_by})")
    for number, target in enumerate(subject.targets):
        print(f"target {number}    {target.name}" + (" (fallback)" if number >= len(subject.plan.targets) else ""))
    print(f"machine     QEMU, {f'software emulation ({kvm_fault})' if kvm_fault else 'KVM'}", flush=True)
    for reason in subject.stale:
        print(f"stale       {reason}")


def print_runs(series: Series) -> None:
    """Print each run, or the table of a matrix, and the verdict."""
    is_matrix = any(run.target is not None for run in series.runs)
    for run in series.runs:
        if not is_matrix or run.outcome.broken is not None:
            _print_run(run)
    if is_matrix:
        _print_table(series)
    expected = extrapolate_best(series)
    if expected is not None:
        _print_expected(expected)
    if series.needed_bytes:
        print(f"\nthe smallest that works: crashkernel={series.needed_bytes >> 20}M (16M less does not)")
    print(f"broken: {series.broken}" if series.broken else "proven: a crash of this configuration is captured")


def extrapolate_best(series: Series) -> Extrapolation | None:
    """Extrapolate the run with the largest dump to the host."""
    from postpanic.rehearse.extrapolation import extrapolate

    best = max((run.outcome for run in series.runs), key=lambda outcome: outcome.dump_bytes, default=None)
    if best is None:
        return None
    subject = series.subject
    return extrapolate(
        best,
        series.config,
        subject.host,
        subject.targets[0].dump_levels[0],
        memory_bytes=series.host_memory_bytes,
        is_emulated=series.is_emulated,
    )


def to_json(series: Series) -> str:
    """Encode everything but the consoles."""
    subject, expected = series.subject, extrapolate_best(series)
    value = {
        "verdict": "broken" if series.broken else "proven",
        "broken": series.broken or None,
        "image": {"armed": subject.is_armed, "stale": list(subject.stale), "bytes": len(subject.image)},
        "reserved_bytes": subject.reserved_bytes,
        "smallest_bytes": series.needed_bytes or None,
        "is_emulated": series.is_emulated,
        "extrapolated": asdict(expected) if expected is not None else None,
        "rehearsals": {run.name: _encode_run(run) for run in series.runs},
    }
    return json.dumps(value, indent=2)


def _encode_run(run: Run) -> dict[str, Any]:
    value = asdict(run.outcome)
    del value["console"]
    return {"crash": run.crash, "target": run.target_name or None, "verdict": run.verdict, **value}


def _print_run(run: Run) -> None:
    outcome: RehearsalOutcome = run.outcome
    print(f"\n{run.name}, {format_size(outcome.memory_bytes)} of memory:")
    width = max(len(link.name) for link in outcome.links)
    for link in outcome.links:
        print(f"  {_MARKS[link.state]:<7} {link.name:<{width}}  {link.evidence}".rstrip())
        if link.mend:
            print(f"  {'':<7} {'':<{width}}  mend: {link.mend}")
    if outcome.seconds:
        print(f"  saved {outcome.seconds:.0f} s after the panic")
    if outcome.peak_bytes:
        used, reserved = format_size(outcome.peak_bytes), format_size(outcome.reserved_bytes)
        print(f"  about {used} of the {reserved} were in use at the most")
    for text in outcome.unproven:
        print(f"  not shown: {text}")


def _print_table(series: Series) -> None:
    """Print a row for each kind of crash, a column for each target."""
    numbers = sorted({run.target for run in series.runs if run.target is not None})
    cells = {(run.crash, run.target): _describe_cell(run) for run in series.runs}
    kinds = list(dict.fromkeys(run.crash for run in series.runs))
    rows = [["crash", *(f"target {number}" for number in numbers)]]
    rows += [[kind, *(cells.get((kind, number), "") for number in numbers)] for kind in kinds]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _describe_cell(run: Run) -> str:
    link = run.outcome.broken
    if link is None:
        return f"proven, {run.outcome.seconds:.0f} s"
    return "?" if link.state == "not proven" else f"BROKEN at {link.name.split(' ', 1)[0]}"


def _print_expected(expected: Extrapolation) -> None:
    def spell(found: Range, show: Callable[[float], str]) -> str:
        likely = f"about {show(found.likely)}, " if found.likely is not None else ""
        return f"{likely}{show(found.least)} to {show(found.most)}"

    dump = spell(expected.dump_bytes, lambda size: format_size(int(size)))
    time = spell(expected.seconds, lambda seconds: f"{seconds:.0f} s")
    print(f"\nto be expected of the host, with {format_size(expected.memory_bytes)} of memory:")
    print(f"  dump    {dump}")
    print(f"  saved   {time} after the panic")
    for text in expected.basis:
        print(f"  as      {text}")
