"""Reports that were found, stored beside the logs they are from."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from postpanic.errors import OutputError
from postpanic.evidence.netconsole.outlet import stamp_of
from postpanic.evidence.oops.answer import answer_of
from postpanic.evidence.oops.model import Report
from postpanic.evidence.quota import Quota
from postpanic.findings.schema import answer_value

__all__ = ["REPORTS_NAME", "ReportStore", "document_of"]

REPORTS_NAME = "reports"

_SAME_AN_HOUR = 3
_OF_HOST_AN_HOUR = 64
_ALL_AN_HOUR = 4096
_HOSTS_LIMIT = 4096


def document_of(host: str, report: Report, received: datetime, log: Path | None = None) -> dict[str, object]:
    """
    Make what is stored of a report, and told.

    Returns
    -------
    dict
        ``host``, ``received`` (ISO 8601), ``log`` (path or null), the report's ``title``, ``kind``, ``signature``,
        ``is_panic``; ``answer`` as ``postpanic decode --json`` gives it, and ``lines``, its messages.
    """
    return {
        "host": host,
        "received": stamp_of(received.astimezone(UTC)),
        "log": str(log) if log is not None else None,
        "title": report.title,
        "kind": report.kind.value,
        "signature": report.signature,
        "is_panic": report.is_panic,
        "answer": answer_value(answer_of([report], "listen")),
        "lines": list(report.lines),
    }


class ReportStore:
    """
    Write reports as files of JSON, no more than a host can have in earnest.

    Parameters
    ----------
    directory : Path
        Of the logs of all hosts.
    """

    def __init__(self, directory: Path) -> None:
        self.kept_back = 0
        """Reports that were not stored: one host or all of them had too many, or the same again."""
        self._directory = directory
        self._all = Quota(_ALL_AN_HOUR, 3600.0)
        self._hosts: dict[str, tuple[Quota, dict[str, Quota]]] = {}

    def has_room(self, place: str, signature: str, now_s: float) -> bool:
        """Tell whether one more report is stored; it is counted if not."""
        has_room = self._take(place, signature, now_s)
        self.kept_back += not has_room
        return has_room

    def _take(self, place: str, signature: str, now_s: float) -> bool:
        if place not in self._hosts:
            while len(self._hosts) >= _HOSTS_LIMIT:
                self._hosts.pop(next(iter(self._hosts)))
            self._hosts[place] = (Quota(_OF_HOST_AN_HOUR, 3600.0), {})
        quota, signatures = self._hosts[place]
        if signature not in signatures:
            while len(signatures) >= _OF_HOST_AN_HOUR:
                signatures.pop(next(iter(signatures)))
            signatures[signature] = Quota(_SAME_AN_HOUR, 3600.0)
        return signatures[signature].take(now_s) and quota.take(now_s) and self._all.take(now_s)

    def store(self, place: str, document: dict[str, object]) -> Path:
        """
        Write a report.

        Parameters
        ----------
        place : str
            The host's directory, as :meth:`~postpanic.evidence.netconsole.logs.HostLogs.place` gives it.
        document : dict
            Of :func:`document_of`.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        received = datetime.fromisoformat(str(document["received"])).astimezone(UTC)
        stamp = f"{received:%Y%m%dT%H%M%S}.{received.microsecond // 1000:03}Z"
        directory = self._directory / place / REPORTS_NAME
        content = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            return _write(directory, f"{stamp}-{document['signature']}", content)
        except OSError as exc:
            raise OutputError((exc.strerror or str(exc)).lower(), where=str(directory)) from exc


def _write(directory: Path, name: str, content: bytes) -> Path:
    """Write a file that is there whole or not at all, beside others of the same name."""
    temporary = directory / f".{name}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    for number in range(1, 1000):
        path = directory / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        try:
            os.link(temporary, path, follow_symlinks=False)
        except FileExistsError:
            continue
        break
    temporary.unlink()
    return path
