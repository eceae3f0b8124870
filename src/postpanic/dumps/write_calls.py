"""What sinks of all kinds do: see parts as bytes, write them whole, tell what went wrong in our words."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import NoSpaceError, OutputError, OutputGoneError

__all__ = ["as_output_error", "as_views", "find_row_groups", "write_views"]

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET})
_IOV_MAX = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 1024


def as_views(parts: Sequence[memoryview | bytes]) -> list[memoryview]:
    """View parts as flat bytes; empty ones are left out."""
    views = [memoryview(part) for part in parts]
    return [view if view.format == "B" and view.ndim == 1 else view.cast("B") for view in views if view.nbytes]


def as_output_error(exc: OSError, name: str, doing: str = "write") -> OutputError:
    """Turn an error of the system into ours."""
    reason = (exc.strerror or str(exc)).lower()
    if exc.errno in _NO_SPACE:
        return NoSpaceError(f"cannot {doing}: {reason}", where=name)
    if exc.errno in _GONE:
        return OutputGoneError("nobody reads the output any more", where=name)
    return OutputError(f"cannot {doing}: {reason}", where=name)


class _WriteCall(Protocol):
    def __call__(self, views: list[memoryview], offset: int, /) -> int: ...


def write_views(call: _WriteCall, views: Sequence[memoryview], offset: int) -> None:
    """
    Write all views, in as many calls as that takes.

    Parameters
    ----------
    call : callable
        Writes what it can of some views at an offset, and tells how many bytes that was.

    Raises
    ------
    OSError
        As *call* raises it; what was written before stays.
    """
    index = 0
    while index < len(views):
        group = list(views[index : index + _IOV_MAX])
        index += len(group)
        while group:
            wrote = call(group, offset)
            if wrote <= 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            offset += wrote
            whole = 0
            while whole < len(group) and wrote >= len(group[whole]):
                wrote -= len(group[whole])
                whole += 1
            del group[:whole]
            if wrote:
                group[0] = group[0][wrote:]


def find_row_groups(numbers: NDArray[np.int64], gap: int) -> list[tuple[int, int]]:
    """Divide rising row numbers into groups with at most *gap* rows missing between neighbours: ``[first, last)``."""
    if len(numbers) == 0:
        return []
    breaks = (np.flatnonzero(np.diff(numbers) > gap + 1) + 1).tolist()
    return list(zip([0, *breaks], [*breaks, len(numbers)], strict=True))
