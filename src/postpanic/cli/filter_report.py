"""Say what came of a filter, split, join or convert: to people, or as JSON."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING

from postpanic.errors import PostpanicError
from postpanic.units import MIB, format_size

if TYPE_CHECKING:
    from postpanic.cli.filter_job import JobOutcome

__all__ = ["report_outcome"]

LOST_STATUS = 3
SIGNAL_STATUS = 128
SHOWN_FRAMES = 4

# makedumpfile's words and order, which people and scripts know.
_STATISTICS = (
    ("zero", "Pages filled with zero"),
    ("cache", "Non-private cache pages"),
    ("cache_private", "Private cache pages"),
    ("user", "User process data pages"),
    ("free", "Free pages"),
    ("unaccepted", "Unaccepted pages"),
    ("hwpoison", "Hwpoison pages"),
    ("offline", "Offline pages"),
    ("not_in_source", "Not in the source"),
)


def report_outcome(outcome: JobOutcome, *, as_json: bool, quiet: bool, show_stats: bool) -> int:
    """Print the report and return the exit status."""
    # A stream owns standard output.
    stream = sys.stderr if outcome.job.flattened and not outcome.job.outputs else sys.stdout
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(_as_json(outcome), indent=2), file=stream)
    elif not quiet:
        print(_summarize(outcome), file=stream)
        if show_stats:
            print(_format_statistics(outcome), file=stream)
    return _judge(outcome)


def _judge(outcome: JobOutcome) -> int:
    """Say on stderr what is wrong, worst first, and choose the exit status."""
    result = outcome.result
    name = _spell_outputs(outcome)
    if result.error is not None or result.stopped:
        left = result.selection.kept.count - result.written_pages
        reason = result.stopped or str(result.error)
        code = result.error.code if result.error is not None else "interrupted"
        print(
            f"error[{code}]: {reason}; {result.written_pages} of {result.selection.kept.count} pages were written, "
            f"{left} are missing",
            file=sys.stderr,
        )
        print(f"  hint: {name} is marked incomplete; postpanic verify tells what is in it", file=sys.stderr)
        if result.stopped:
            word = result.stopped.rsplit(" ", 1)[-1]
            return SIGNAL_STATUS + getattr(signal, word, signal.SIGTERM)
        return result.error.exit_status if result.error is not None else PostpanicError.exit_status
    status = 0
    if result.lost:
        shown = ", ".join(f"{pfn:#x}" for pfn in result.lost[:SHOWN_FRAMES])
        more = f" and {len(result.lost) - SHOWN_FRAMES} more" if len(result.lost) > SHOWN_FRAMES else ""
        print(f"error[page-absent]: {len(result.lost)} pages could not be read: frames {shown}{more}", file=sys.stderr)
        print(f"  hint: everything else is in {name}, which is marked incomplete", file=sys.stderr)
        status = LOST_STATUS
    for gap in outcome.erasure.gaps if outcome.erasure is not None else ():
        print(f"error[erase]: {name}: {gap}", file=sys.stderr)
        status = LOST_STATUS
    if outcome.self_test is not None and outcome.self_test.failures:
        for item in outcome.self_test.failures:
            print(f"error[self-test]: {name}: {item.name}: {item.detail}", file=sys.stderr)
        status = LOST_STATUS
    return status


def _summarize(outcome: JobOutcome) -> str:
    result = outcome.result
    ram_bytes = outcome.source_pages * outcome.page_size_bytes
    rate = ram_bytes / MIB / max(outcome.seconds, 0.001)
    would = "would be " if outcome.job.dry_run else ""
    kept = f"{result.selection.kept.count} of {outcome.source_pages} pages kept ({result.zero_pages} of them zero)"
    level = f"level {outcome.level}, " if outcome.job.classify else ""
    lines = [
        f"{_spell_outputs(outcome)}: {would}{format_size(outcome.output_bytes)}, {level}{kept}",
        f"{outcome.seconds:.1f} s, {rate:.0f} MiB of memory per second",
    ]
    if outcome.self_test is not None:
        lines.append(f"self-test: {outcome.self_test.summary}")
    return "\n".join(lines)


def _format_statistics(outcome: JobOutcome) -> str:
    counts = _count(outcome)
    kept = outcome.result.selection.kept.count - counts["zero"]
    lines = ["", f"Original pages  : {outcome.source_pages}", f"  Excluded pages   : {outcome.source_pages - kept}"]
    lines += [f"    {words:<24}: {counts[name]}" for name, words in _STATISTICS if name in counts]
    share = 100 * kept // max(outcome.source_pages, 1)
    lines += [f"  Remaining pages  : {kept}", f"  (The number of pages is reduced to {share}%.)"]
    return "\n".join(lines)


def _count(outcome: JobOutcome) -> dict[str, int]:
    counts = {verdict.name.lower(): count for verdict, count in outcome.result.selection.counts.items()}
    return {**counts, "zero": outcome.result.zero_pages}


def _as_json(outcome: JobOutcome) -> dict[str, object]:
    report: dict[str, object] = {}
    if outcome.manifest is not None:
        report.update(outcome.manifest.to_json())
    report["outputs"] = [str(path) for path in outcome.job.outputs]
    report["output_bytes"] = outcome.output_bytes
    report["seconds"] = round(outcome.seconds, 3)
    report["pages"] = _count(outcome)
    report["complete"] = outcome.result.complete
    report["faults"] = outcome.result.faults
    report["warnings"] = outcome.warnings
    return report


def _spell_outputs(outcome: JobOutcome) -> str:
    return ", ".join(str(path) for path in outcome.job.outputs) or "the stream"
