"""
Join two pieces of one kernel log by the lines that both have.

A dump is the tail of the log; the dump of a panic mostly has what the dump of
the oops before it has, and the console has both. Lines are compared without
their level, since a console has none.
"""

from __future__ import annotations

import re

__all__ = ["first_stamp", "last_stamp", "merge_console", "merge_logs"]

_LEVEL = re.compile(rb"<\d{1,3}>")
_STAMP = re.compile(rb"\[ {0,10}(\d{1,10}\.\d{6})\]")
_ANCHORS = 24
_ANCHOR_BYTES = 16
_PLACES = 8
_LEAST_SHARE = 0.8
_LEAST_SHARE_OF_CONSOLE = 0.5
_TAIL_LINES = 48
_UNSTAMPED = b"[    0.000000]"


def _keys(lines: list[bytes]) -> list[bytes]:
    return [_LEVEL.sub(b"", line, count=1).rstrip() if line[:1] == b"<" else line.rstrip() for line in lines]


def merge_logs(first: bytes, second: bytes) -> bytes | None:
    """
    Make one log of two that overlap.

    Returns
    -------
    bytes or None
        Every line of both once, in order; what both have as *second* has it. None: they do not overlap.
    """
    if not may_overlap(first, second):
        return None
    ours, theirs = first.splitlines(keepends=True), second.splitlines(keepends=True)
    our_keys, their_keys = _keys(ours), _keys(theirs)
    shift = _find_shift(our_keys, their_keys)
    if shift is not None:
        head, tail = ours[:shift], ours[shift + len(theirs) :]
        # Either end of a dump may be cut inside a line that the other has whole.
        body = [
            _longer(line, ours[shift + n]) if shift + n < len(ours) and n in (0, len(theirs) - 1) else line
            for n, line in enumerate(theirs)
        ]
        return _concatenated(head, body, tail)
    shift = _find_shift(their_keys, our_keys)
    if shift is None:
        return None
    body = list(theirs)
    for number in {0, len(ours) - 1}:
        if shift + number < len(theirs):
            body[shift + number] = _longer(theirs[shift + number], ours[number])
    return _concatenated([], body, ours[len(theirs) - shift :])


def _longer(line: bytes, other: bytes) -> bytes:
    """Give the line that is whole: the other one is its beginning or its end."""
    # Cut at its beginning a line may have lost half of its level, which is no longer one then.
    for mine, others in (_keys([line, other]), (line.rstrip(b"\n"), other.rstrip(b"\n"))):
        if len(others) > len(mine) and (others.startswith(mine) or others.endswith(mine)):
            return other
    return line


def _concatenated(*parts: list[bytes]) -> bytes:
    lines = [line for part in parts for line in part]
    return b"".join(
        line if line.endswith(b"\n") or number == len(lines) - 1 else line + b"\n" for number, line in enumerate(lines)
    )


def _find_shift(ours: list[bytes], theirs: list[bytes]) -> int | None:
    """Find at which of our lines theirs begin."""
    places: dict[bytes, list[int]] = {}
    for number, key in enumerate(ours):
        if len(key) >= _ANCHOR_BYTES:
            places.setdefault(key, []).append(number)
    tried = 0
    for number, key in enumerate(theirs):
        if key not in places:
            if number > _ANCHORS:
                break
            continue
        for place in places[key][-_PLACES:]:
            if place >= number and _is_same(ours, theirs, place - number):
                return place - number
        tried += 1
        if tried >= _ANCHORS:
            break
    return None


def _is_same(ours: list[bytes], theirs: list[bytes], shift: int) -> bool:
    count = min(len(ours) - shift, len(theirs))
    same = sum(ours[shift + number] == theirs[number] for number in range(count))
    # The line at either end may be cut; one line alone is the same only if it has a time stamp.
    if same < 2 and not any(
        ours[shift + number] == theirs[number] and _STAMP.search(theirs[number]) for number in range(count)
    ):
        return False
    return same >= _LEAST_SHARE * max(count - 2, 1)


def merge_console(log: bytes, console: bytes) -> bytes | None:
    """
    Add to a log what a console has of the time before and after it.

    A console has fewer lines than the log, by its level, so they do not match one by one.

    Returns
    -------
    bytes or None
        None: they are not of one boot, or nothing shows that they are.
    """
    if not may_overlap(log, console):
        return None
    theirs = console.splitlines(keepends=True)
    our_keys, their_keys = _keys(log.splitlines()), _keys(theirs)
    # Every boot begins with the same lines, before the clock runs.
    known = {key for key in our_keys if len(key) >= _ANCHOR_BYTES and _STAMP.search(key) and _UNSTAMPED not in key}
    shared = [number for number, key in enumerate(their_keys) if key in known]
    if not shared:
        return None
    first, last = shared[0], shared[-1]
    if len(shared) < _LEAST_SHARE_OF_CONSOLE * (last - first + 1):
        return None
    # Of one boot they have the end of one of them in common.
    if len(theirs) - last > _TAIL_LINES and their_keys[last] not in our_keys[-_TAIL_LINES:]:
        return None
    ours = set(our_keys)
    before, after = (
        b"".join(theirs[number] for number in numbers if their_keys[number] not in ours)
        for numbers in (range(first), range(last + 1, len(theirs)))
    )
    ours_first, ours_last = first_stamp(log), last_stamp(log)
    their_last, their_first = last_stamp(before), first_stamp(after)
    # Where the log has begun, or ended, lines that only the console has are damaged ones.
    if their_last is None or ours_first is None or their_last > ours_first:
        before = b""
    if their_first is None or ours_last is None or their_first < ours_last:
        after = b""
    return _concatenated([before] if before else [], [log], [after] if after else [])


def may_overlap(first: bytes, second: bytes) -> bool:
    """Tell by the time stamps at their ends whether two logs can have lines in common."""
    starts, ends = [first_stamp(first), first_stamp(second)], [last_stamp(first), last_stamp(second)]
    if None in starts or None in ends:
        return bool(first and second)
    return max(start or 0.0 for start in starts) <= min(end or 0.0 for end in ends)


def first_stamp(text: bytes) -> float | None:
    """Give the first time stamp of a log, seconds."""
    found = _STAMP.search(text, 0, 16384)
    return float(found[1]) if found else None


def last_stamp(text: bytes) -> float | None:
    """Give the last time stamp of a log, seconds."""
    stamps = _STAMP.findall(text, max(0, len(text) - 16384))
    return float(stamps[-1]) if stamps else None
