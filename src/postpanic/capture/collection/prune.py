"""Delete old dumps, by rules."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from postpanic.capture.collection.index import SavedDump
from postpanic.errors import OutputError

__all__ = ["PruneRules", "prune", "select"]


@dataclass(frozen=True)
class PruneRules:
    """
    What may stay.

    Attributes
    ----------
    keep_count : int
        So many, the newest; 0: no bound.
    keep_bytes : int
        All together; 0: no bound.
    max_age_s : float
        0: no bound.
    """

    keep_count: int = 0
    keep_bytes: int = 0
    max_age_s: float = 0.0

    @property
    def says_something(self) -> bool:
        """Whether there is a bound at all."""
        return bool(self.keep_count or self.keep_bytes or self.max_age_s)


def select(dumps: Iterable[SavedDump], rules: PruneRules, now: datetime | None = None) -> list[SavedDump]:
    """
    Choose what goes, the oldest first. The newest that is complete always stays.

    Parameters
    ----------
    dumps : iterable of SavedDump
        Oldest first.
    """
    all_of_them = list(dumps)
    now = now or datetime.now(UTC)
    newest = next((dump for dump in reversed(all_of_them) if dump.state == "complete"), None)
    count, size = len(all_of_them), sum(dump.size_bytes for dump in all_of_them)
    chosen = []
    for dump in all_of_them:
        too_many = rules.keep_count and count > rules.keep_count
        too_large = rules.keep_bytes and size > rules.keep_bytes
        too_old = rules.max_age_s and now - dump.when > timedelta(seconds=rules.max_age_s)
        if dump is not newest and (too_many or too_large or too_old):
            chosen.append(dump)
            count -= 1
            size -= dump.size_bytes
    return chosen


def prune(dumps: Iterable[SavedDump]) -> None:
    """
    Delete dumps with everything in their directories.

    Raises
    ------
    OutputError
        If one cannot be deleted; those after it stay.
    """
    for dump in dumps:
        try:
            # Gone from the list first, so that a deletion that is cut short leaves nothing that looks whole.
            doomed = dump.directory.with_name(f".{dump.directory.name}.deleted")
            dump.directory.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as exc:
            raise OutputError(
                f"cannot be deleted: {(exc.strerror or str(exc)).lower()}", where=str(dump.directory)
            ) from exc
