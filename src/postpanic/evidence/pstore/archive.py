"""
Put crashes into an archive as systemd-pstore keeps them, and erase what is safe there.

A directory for each crash (``<seconds>/<count>/`` for EFI and all others that
have a time, ``<record id>/`` for ERST), in it the records as they were and the
log in ``dmesg.txt``; beside them what systemd-pstore does not have: a manifest with
digests, quality and reports. A directory appears under its name only when all
of it is on the disk; a record is erased only after that, and only if it is still the same.

Sources: systemd-pstore(8), systemd's ``src/pstore/pstore.c``; rename(2), fsync(2).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from postpanic.errors import NoSpaceError, NotReadyError, OutputError
from postpanic.evidence.oops.model import Report
from postpanic.evidence.pstore.model import Crash, Record, RecordType

__all__ = ["ARCHIVE", "MANIFEST", "Archived", "archive_crash", "erase_records", "hold_archive"]

ARCHIVE = Path("/var/lib/systemd/pstore")
MANIFEST = "postpanic.json"
LOG = "dmesg.txt"
_VERSION = 1
_LOCK = ".postpanic.lock"
_MOST_DIRECTORIES = 1000
_ERST_ID_BYTES = 20


class Archived(msgspec.Struct, frozen=True):
    """
    Where a crash is now.

    Parameters
    ----------
    path : Path
    is_new : bool
        False: the same records were there already.
    """

    path: Path
    is_new: bool


@contextmanager
def hold_archive(directory: Path) -> Iterator[None]:
    """
    Keep every other postpanic out of the archive meanwhile; systemd-pstore takes no lock, and needs none.

    Raises
    ------
    NotReadyError
        If somebody archives now.
    OutputError
        If there is no place for the archive.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise _refusal(exc, directory) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise NotReadyError(f"{directory}: somebody archives now", hint="try again") from None
    finally:
        os.close(descriptor)


def _refusal(error: OSError, path: Path) -> OutputError:
    kind = NoSpaceError if error.errno in (28, 122) else OutputError
    return kind(f"cannot be written: {(error.strerror or str(error)).lower()}", where=str(error.filename or path))


def archive_crash(
    crash: Crash, directory: Path, *, reports: Sequence[Report] = (), now_s: float, node: str = ""
) -> Archived:
    """
    Put one crash into an archive.

    Parameters
    ----------
    directory : Path
        Of the archive; held by :func:`hold_archive`.
    reports : sequence of Report
        What was found in its log, for the manifest.
    now_s : float
        Seconds since 1970: of the archiving, and of a crash that has no time.
    node : str
        Name of the machine.

    Raises
    ------
    OutputError
        If it cannot be written; what was written is taken away again.
    """
    files = dict(_files(crash))
    parent, name = _place(crash, directory, now_s)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(_MOST_DIRECTORIES):
            target = parent / (f"{name}-{number + 1}" if number else name)
            if _has_all(target, files):
                return Archived(target, is_new=False)
            if not target.exists():
                break
        manifest = _manifest(crash, files, reports, now_s, node)
        _write_directory(parent, target, files, manifest)
        _sync_directory(directory)
    except OSError as exc:
        raise _refusal(exc, directory) from exc
    return Archived(target, is_new=True)


def _files(crash: Crash) -> Iterator[tuple[str, bytes]]:
    """Name the files: records as they were; from images also what a mounted pstore would show."""
    seen: set[str] = set()
    for record in crash.records:
        name = Path(record.name).name
        while name in seen or name in (LOG, MANIFEST, "", ".", ".."):
            name += "_"
        seen.add(name)
        if record.is_file:
            yield name, record.raw
            continue
        yield f"{name}.raw", record.raw
        if record.type is not RecordType.DMESG and record.data:
            yield name, record.data
    if crash.text:
        yield LOG, crash.text


def _place(crash: Crash, directory: Path, now_s: float) -> tuple[Path, str]:
    last = crash.records[-1] if crash.records else None
    for record in reversed(crash.records):
        if record.type is RecordType.DMESG:
            last = record
            break
    if last is not None and crash.backend == "erst" and last.id is not None:
        ids = [record.id for record in crash.records if record.backend == "erst" and record.id is not None]
        return directory, str(max(ids))
    seconds = int(crash.time_s if crash.time_s is not None and 0 < crash.time_s < 1 << 40 else now_s)
    count = last.count if last is not None and last.count is not None else 0
    return directory / str(seconds), f"{count % 1000:03d}"


def _has_all(target: Path, files: dict[str, bytes]) -> bool:
    """Tell whether the same records are there already, from an archiving before."""
    try:
        return (
            all(
                (target / name).read_bytes() == content
                for name, content in files.items()
                if name not in (LOG, MANIFEST)
            )
            and (target / MANIFEST).is_file()
        )
    except OSError:
        return False


def _manifest(crash: Crash, files: dict[str, bytes], reports: Sequence[Report], now_s: float, node: str) -> bytes:
    value = {
        "version": _VERSION,
        "node": node,
        "archived_s": now_s,
        "backend": crash.backend,
        "reasons": crash.reasons,
        "time_s": crash.time_s,
        "problems": crash.problems,
        "quality": crash.quality,
        "files": [
            {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        ],
        "records": [_describe_record(record) for record in crash.records],
        "reports": [
            {"title": report.title, "kind": report.kind.value, "panic": report.is_panic, "signature": report.signature}
            for report in reports
        ],
    }
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _describe_record(record: Record) -> dict[str, object]:
    names = ("name", "source", "backend", "time_s", "id", "reason", "count", "part", "sequence", "compression")
    described: dict[str, object] = {name: getattr(record, name) for name in names}
    return {
        **described,
        "type": record.type.value,
        "quality": record.quality,
        "sha256": hashlib.sha256(record.raw).hexdigest(),
    }


def _write_directory(parent: Path, target: Path, files: dict[str, bytes], manifest: bytes) -> None:
    made = Path(tempfile.mkdtemp(prefix=".postpanic-", dir=parent))
    try:
        for name, content in (*files.items(), (MANIFEST, manifest)):
            _write_file(made / name, content)
        made.chmod(0o755)
        _sync_directory(made)
        made.rename(target)
        _sync_directory(parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _write_file(path: Path, content: bytes) -> None:
    # The log is for root and its group, as systemd-pstore has it.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def erase_records(records: Sequence[Record], archived: Archived) -> tuple[list[str], list[str]]:
    """
    Erase records from their store, each only if its copy in the archive is whole and the record is still the same.

    Parameters
    ----------
    records : sequence of Record
        Files of a mounted pstore or of efivarfs; unlinking them erases what they show.

    Returns
    -------
    tuple of list of str and list of str
        Paths that were erased, and reasons why others were not.
    """
    erased: list[str] = []
    kept: list[str] = []
    for record in records:
        path = Path(record.source)
        try:
            if (archived.path / Path(record.name).name).read_bytes() != record.raw:
                kept.append(f"{path}: its copy in {archived.path} is another")
            elif path.read_bytes() != record.raw:
                kept.append(f"{path}: has changed since it was read")
            else:
                path.unlink()
                erased.append(str(path))
        except FileNotFoundError:
            # Somebody else has archived and erased it.
            continue
        except OSError as exc:
            kept.append(f"{path}: {(exc.strerror or str(exc)).lower()}")
    return erased, kept
