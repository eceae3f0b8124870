"""
Directories that are built once and shared by every run, named by their recipe.

An entry is built in a temporary directory and renamed into place, under a lock
that other processes respect, so a reader sees all of it or nothing. Its
manifest names every file with size and digest; an entry that no longer agrees
with its manifest is built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypedDict

from postpanic.errors import PostpanicError

__all__ = [
    "build_once",
    "digest_file",
    "digest_recipe",
    "find_entry",
    "hold_all_slots",
    "hold_lock",
    "hold_slot",
    "prune",
    "remove_entry",
]

SLOT_POLL_S = 0.2
MANIFEST = "manifest.json"
BUILD_SUFFIX = ".build"
DIGEST_CHARACTERS = 20


class FileRecord(TypedDict):
    """What the manifest says of one file."""

    size_bytes: int
    mtime_ns: int
    sha256: str


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_recipe(recipe: object) -> str:
    """
    Return the name of a recipe: a digest of its JSON form, independent of the order of keys.

    >>> digest_recipe({"a": 1, "b": 2}) == digest_recipe({"b": 2, "a": 1})
    True
    """
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on *path* (created when absent); wait for whoever holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        # The kernel drops the lock when the process dies, however it dies.
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def hold_slot(directory: Path, name: str, count: int) -> Iterator[None]:
    """Hold one of *count* locks of a name, whichever comes free first; whoever has waited longest is next."""
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        slots = [stack.enter_context((directory / f".{name}-{number}.lock").open("ab")) for number in range(count)]
        # Only the first in the line looks for one: the kernel lets those in who wait for a lock in their order.
        with hold_lock(_find_line(directory, name)):
            while not any(_try_lock(slot) for slot in slots):
                time.sleep(SLOT_POLL_S)
        yield


@contextlib.contextmanager
def hold_all_slots(directory: Path, name: str, count: int) -> Iterator[None]:
    """Hold all locks of a name, waiting in the same line."""
    with contextlib.ExitStack() as stack:
        with hold_lock(_find_line(directory, name)):
            for number in range(count):
                stack.enter_context(hold_lock(directory / f".{name}-{number}.lock"))
        yield


def _find_line(directory: Path, name: str) -> Path:
    return directory / f".{name}-line.lock"


def _try_lock(stream: IO[bytes]) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def find_entry(root: Path, name: str) -> Path | None:
    """
    Return the entry's directory if it is there and undamaged, else None.

    Times that changed while size and digest did not (a restored backup) are no damage.
    """
    entry = root / name
    try:
        manifest: dict[str, FileRecord] = json.loads((entry / MANIFEST).read_text())
        intact = all(_agrees(entry / file, record) for file, record in manifest.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not intact:
        return None
    # The manifest's time is the time of the last use: see prune().
    with contextlib.suppress(OSError):
        os.utime(entry / MANIFEST)
    return entry


def build_once(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """
    Return the directory ``root/name``, calling *build* to fill it unless it is there and undamaged.

    Parameters
    ----------
    build : callable
        Fills the empty directory that it is given. When it raises, nothing of
        it stays.
    """
    found = find_entry(root, name)
    if found is not None:
        return found
    with hold_lock(root / f".{name}.lock"):
        # Another process may have built it while we waited.
        found = find_entry(root, name)
        if found is not None:
            return found
        entry = root / name
        remove_entry(entry)
        # What a builder left that was killed: nobody else can be at work on it while we hold the lock.
        for left in root.glob(f".{glob.escape(name)}.*{BUILD_SUFFIX}"):
            remove_entry(left)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=BUILD_SUFFIX, dir=root))
        try:
            build(work)
            _write_manifest(work)
            work.rename(entry)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return entry


def prune(root: Path, max_age_s: float) -> list[str]:
    """Remove the entries that nobody has used for *max_age_s*, and return their names."""
    removed = []
    for manifest in sorted(root.glob(f"[!.]*/{MANIFEST}")):
        entry = manifest.parent
        with hold_lock(root / f".{entry.name}.lock"):
            if time.time() - manifest.stat().st_mtime > max_age_s:
                remove_entry(entry)
                removed.append(entry.name)
    return removed


def remove_entry(entry: Path) -> None:
    """
    Remove an entry, or anything else of the cache, if it is there; for holders of its lock.

    Raises
    ------
    PostpanicError
        If it cannot be removed.
    """
    if not os.path.lexists(entry):
        return
    try:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    except OSError as exc:
        raise PostpanicError(f"cannot remove the cache entry: {exc.strerror}", where=str(entry)) from exc


def _agrees(path: Path, record: FileRecord) -> bool:
    status = path.stat()
    if status.st_size != record["size_bytes"]:
        return False
    return status.st_mtime_ns == record["mtime_ns"] or digest_file(path) == record["sha256"]


def _write_manifest(directory: Path) -> None:
    records: dict[str, FileRecord] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        status = path.stat()
        records[path.relative_to(directory).as_posix()] = {
            "size_bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": digest_file(path),
        }
    (directory / MANIFEST).write_text(json.dumps(records, indent=1))
