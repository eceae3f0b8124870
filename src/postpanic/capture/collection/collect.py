"""
Collect: what a crash left is fetched off raw devices, checked, and said.

Done at every boot, and by hand: what has been collected has a record beside it
and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from postpanic.capture.collection.index import SavedDump, find_dumps
from postpanic.capture.collection.record import DumpRecord, Verdict, read_record, write_record
from postpanic.capture.config import Config, FileTarget
from postpanic.dumps.open import open_dump
from postpanic.errors import PostpanicError
from postpanic.evidence.oops import Kind, Report, find_reports
from postpanic.pages.manifest import read_manifest
from postpanic.pages.verification import check_file, match_files
from postpanic.saver.recovery import find_raw_dumps, recover_raw_dump, release_raw_dump

__all__ = ["DEFAULT_DIRECTORY", "CollectOutcome", "collect", "examine", "list_directories", "mark_told", "mark_triaged"]

DEFAULT_DIRECTORY = Path("/var/crash")
_LOG_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class CollectOutcome:
    """
    What was done.

    Attributes
    ----------
    recovered : tuple of Path
        Directories of dumps that were copied off raw devices.
    collected : tuple of SavedDump
        Those that are new, with their records, oldest first.
    problems : tuple of str
        What could not be done.
    untold : tuple of SavedDump
        Those that somebody is yet to be told of: new ones, and earlier ones where it did not succeed.
    untriaged : tuple of SavedDump
        Those whose cause is yet to be looked for: new ones, and earlier ones that were left for later.
    """

    recovered: tuple[Path, ...]
    collected: tuple[SavedDump, ...]
    problems: tuple[str, ...]
    untold: tuple[SavedDump, ...] = ()
    untriaged: tuple[SavedDump, ...] = ()


def list_directories(config: Config) -> list[Path]:
    """List the directories of this machine to which dumps are saved; without one, the default."""
    found = [
        Path(target.path)
        for target in (*config.targets, *config.fallbacks)
        if isinstance(target, FileTarget) and target.device is None
    ]
    return list(dict.fromkeys(found)) or [DEFAULT_DIRECTORY]


def collect(
    directories: Sequence[Path],
    devices: Sequence[Path] = (),
    *,
    tell: bool = False,
    triage_later: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> CollectOutcome:
    """
    Fetch and examine what is new.

    Parameters
    ----------
    directories : sequence of Path
        Where dumps lie; those on devices go to the first.
    devices : sequence of Path
        Block devices on which a saver may have left a dump.
    tell : bool
        Whether somebody is to be told: records say so until :func:`mark_told`.
    triage_later : bool
        Whether the cause is looked for another time: records say so until :func:`mark_triaged`.
    say : callable
        Is told what takes a while.
    """
    recovered: list[Path] = []
    problems: list[str] = []
    try:
        for raw in find_raw_dumps(devices):
            say(f"copying {raw.name} off {raw.device}")
            copy = recover_raw_dump(raw, directories[0])
            recovered.append(copy.directory)
            if copy.damaged:
                problems.append(f"{copy.directory}: damaged: {', '.join(copy.damaged)}; {raw.device} keeps the dump")
            else:
                release_raw_dump(raw)
    except PostpanicError as exc:
        problems.append(str(exc))
    collected: list[SavedDump] = []
    untold: list[SavedDump] = []
    untriaged: list[SavedDump] = []
    for dump in find_dumps(directories):
        if dump.record is not None:
            untold += [dump] if dump.record.untold else []
            untriaged += [dump] if dump.record.untriaged else []
            continue
        say(f"examining {dump.directory}")
        record = replace(examine(dump), untold=tell, untriaged=triage_later)
        try:
            write_record(dump.directory, record)
        except PostpanicError as exc:
            problems.append(f"{dump.directory}: {exc.message}")
        collected.append(replace(dump, record=record))
    untold += collected if tell else []
    untriaged += collected
    return CollectOutcome(tuple(recovered), tuple(collected), tuple(problems), tuple(untold), tuple(untriaged))


def mark_told(dumps: Iterable[SavedDump]) -> None:
    """
    Remember that somebody has been told.

    Raises
    ------
    OutputError
        If a record cannot be written.
    """
    _update_records(dumps, lambda record: replace(record, untold=False))


def mark_triaged(dumps: Iterable[SavedDump]) -> None:
    """
    Remember that the cause was looked for; done before, a dump that is too much for this machine is tried once only.

    Raises
    ------
    OutputError
        If a record cannot be written.
    """
    _update_records(dumps, lambda record: replace(record, untriaged=False))


def _update_records(dumps: Iterable[SavedDump], change: Callable[[DumpRecord], DumpRecord]) -> None:
    """Change the records as they are on the disk by now, those that a change makes others."""
    for dump in dumps:
        record = read_record(dump.directory)
        if record is not None and (changed := change(record)) != record:
            write_record(dump.directory, changed)


def examine(dump: SavedDump) -> DumpRecord:
    """Check a dump by its manifest, and read its log for what happened."""
    verdict, faults, release = _verify(dump)
    report = _find_first_report(dump)
    return DumpRecord(
        when=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict=verdict,
        faults=tuple(faults),
        title=report.title if report else "",
        kind=report.kind.value if report else "",
        signature=report.signature if report else "",
        release=release or (report.release if report else ""),
    )


def _verify(dump: SavedDump) -> tuple[Verdict, list[str], str]:
    if dump.dump is None:
        return "unverified", ["there is only a log"], ""
    place = dump.dump.with_name(f"{dump.dump.name}.manifest.json")
    if not place.exists():
        try:
            with open_dump(dump.dump):
                return "unverified", ["there is no manifest"], ""
        except PostpanicError as exc:
            return "bad", [exc.message], ""
    faults: list[str] = []
    release = ""
    try:
        manifest = read_manifest(place)
        release = manifest.kernel.release
        faults += manifest.incomplete
        files, missing = match_files((dump.dump,), manifest)
        faults += missing
        for file in files:
            faults += check_file(file).faults
    except PostpanicError as exc:
        faults.append(exc.message)
    return ("bad" if faults else "good"), faults, release


def _find_first_report(dump: SavedDump) -> Report | None:
    if dump.log is None:
        return None
    try:
        with dump.log.open("rb") as stream:
            text = stream.read(_LOG_LIMIT_BYTES)
    except OSError:
        return None
    reports = find_reports(text)
    panicked = [report for report in reports if report.is_panic]
    asked_for = next((report for report in reports if report.kind is Kind.SYSRQ), None)
    if asked_for is not None:
        return asked_for
    # The one that began what ended in the panic; warnings of long before are none of it.
    chosen = next((report for report in panicked if report.consequence_of is None), None)
    return chosen or (panicked[0] if panicked else reports[-1] if reports else None)
