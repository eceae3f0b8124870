"""``postpanic listen --follow``: reports in files that grow, and on serial lines."""

from __future__ import annotations

import select
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from postpanic.cli.listen_run import Signals
from postpanic.cli.listen_show import Show
from postpanic.errors import OutputError
from postpanic.evidence.follow import ReportFollower
from postpanic.evidence.growing_file import GrowingFile
from postpanic.evidence.netconsole.logs import directory_name
from postpanic.evidence.netconsole.record import Event
from postpanic.evidence.netconsole.reports import ReportStore, document_of
from postpanic.evidence.oops.model import Report

__all__ = ["follow_files"]

_POLL_S = 0.25


class _Followed:
    def __init__(self, path: Path, place: str, *, from_start: bool) -> None:
        self.path = path
        self.place = place
        self.file = GrowingFile(path, from_start=from_start)
        self.follower = ReportFollower()
        self.fed_s = time.monotonic()
        self.read_bytes = 0


def follow_files(paths: Sequence[Path], directory: Path | None, show: Show, *, from_start: bool) -> int:
    """
    Follow files until told to stop.

    Parameters
    ----------
    directory : Path, optional
        Where reports are stored.
    from_start : bool
        Read what is in the files already.
    """
    names = Counter(path.name for path in paths)
    followed = [
        _Followed(path, directory_name(path.name if names[path.name] == 1 else str(path)), from_start=from_start)
        for path in paths
    ]
    store = None
    if directory is not None:
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as exc:
            raise OutputError((exc.strerror or str(exc)).lower(), where=str(directory)) from exc
        store = ReportStore(directory)
    count = 0
    poll = select.poll()
    with Signals() as signals:
        poll.register(signals.descriptor, select.POLLIN)
        while not signals.is_ended:
            found = [(each, report) for each in followed for report in _read(each)]
            for each, report in found:
                count += 1
                _tell(each, report, store, show)
            if signals.take_statistics():
                show.statistics(_count(followed, count))
            if not found:
                poll.poll(_POLL_S * 1000)
            signals.drain()
        for each in followed:
            for report in each.follower.finish():
                count += 1
                _tell(each, report, store, show)
            each.file.close()
    show.statistics(_count(followed, count))
    return 0


def _read(followed: _Followed) -> list[Report]:
    data = followed.file.read_new()
    now_s = time.monotonic()
    if data:
        followed.fed_s = now_s
        followed.read_bytes += len(data)
        return followed.follower.feed(data)
    if followed.follower.is_open and now_s - followed.fed_s >= followed.follower.silence_s:
        return followed.follower.finish()
    return []


def _tell(followed: _Followed, report: Report, store: ReportStore | None, show: Show) -> None:
    now_s = time.monotonic()
    document = document_of(str(followed.path), report, datetime.now(UTC), followed.path)
    path = None
    if store is not None and store.has_room(followed.place, report.signature, now_s):
        try:
            path = store.store(followed.place, document)
        except OutputError as exc:
            show.problem(str(exc))
    event: Event = {
        "event": "report",
        **{name: document[name] for name in ("host", "received", "title", "kind", "signature", "is_panic")},
        "path": None if path is None else str(path),
        "document": document,
    }
    show.event(event, now_s)


def _count(followed: Sequence[_Followed], reports: int) -> dict[str, int]:
    return {
        "files": len(followed),
        "read_bytes": sum(each.read_bytes for each in followed),
        "rotations": sum(each.file.rotations for each in followed),
        "reports": reports,
    }
