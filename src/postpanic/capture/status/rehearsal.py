"""Whether a rehearsal has proven what is armed now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from postpanic.capture.rehearsals import REHEARSAL_NAME, Rehearsal, find_changes, read_rehearsal, take_fingerprint
from postpanic.capture.status.model import Check, Fact
from postpanic.capture.status.subject import Subject
from postpanic.capture.status.targets import describe_targets
from postpanic.units import format_size

__all__ = ["check_rehearsal", "find_rehearsed_changes"]

GROUP = "rehearsal"
_MEND = "postpanic rehearse"


def check_rehearsal(subject: Subject) -> Iterator[Check]:
    """Look at the last rehearsal."""
    name = f"var/lib/postpanic/{REHEARSAL_NAME}"
    reading = subject.read(name)
    if reading.text is None:
        if reading.is_there:
            yield Check(GROUP, "last", "unknown", reading.problem, (reading.fact,), needs_root=True)
            return
        found = "never rehearsed: that the capture works is not proven"
        yield Check(GROUP, "last", "warning", found, (reading.fact,), _MEND)
        return
    rehearsal = read_rehearsal(subject.host.path(name))
    if rehearsal is None:
        says = Fact(reading.source, "holds no rehearsal that can be read")
        yield Check(GROUP, "last", "warning", "what is remembered of it cannot be read", (says,), _MEND)
        return
    yield _judge(subject, rehearsal, reading.source)


def find_rehearsed_changes(subject: Subject, rehearsal: Rehearsal) -> list[str]:
    """Name what is not as it was rehearsed."""
    expected = subject.expected
    if expected is None or expected.kernel is None or not isinstance(expected.initrd, Path):
        return ["what is armed"]
    now = take_fingerprint(
        expected.kernel,
        expected.initrd,
        expected.command_line or "",
        describe_targets(subject),
        subject.crash_size_bytes or 0,
    )
    return find_changes(rehearsal, now)


def _judge(subject: Subject, rehearsal: Rehearsal, source: str) -> Check:
    what = [f"{rehearsal.verdict} on {rehearsal.when}"]
    what += [f"by {', '.join(rehearsal.kinds)}"] if rehearsal.kinds else []
    what += [f"saved {rehearsal.seconds:.0f} s after the panic"] if rehearsal.seconds else []
    what += [f"dump of {format_size(rehearsal.dump_bytes)}"] if rehearsal.dump_bytes else []
    what += [*rehearsal.runs]
    what += [f"not shown: {', '.join(rehearsal.unproven)}"] if rehearsal.unproven else []
    evidence = (Fact(source, "; ".join(what)),)
    if rehearsal.verdict == "broken":
        found = f"the last one failed: {rehearsal.broken_link or 'not said at what'}"
        changes = find_rehearsed_changes(subject, rehearsal)
        if changes:
            found += f" (since then changed: {', '.join(changes)})"
        return Check(GROUP, "last", "warning" if changes else "failing", found, evidence, f"mend that; {_MEND}")
    changes = find_rehearsed_changes(subject, rehearsal)
    if changes:
        found = f"of another state: {', '.join(changes)} changed since {rehearsal.when}"
        return Check(GROUP, "last", "warning", found, evidence, _MEND)
    return Check(GROUP, "last", "ok", f"proven on {rehearsal.when}, and nothing has changed since", evidence)
