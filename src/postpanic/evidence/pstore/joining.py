"""
Make crashes of records: parts put in order, the dumps of one event joined.

The first line of a dump (``Panic#2 Part3``) is what is believed, and not the
name: in the names of EFI variables fields overflow into each other. Part 1 has
the newest text. An oops and the panic that followed are two dumps of one log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from postpanic.evidence.pstore.model import Crash, Quality, Record, RecordType
from postpanic.evidence.pstore.overlap import first_stamp, last_stamp, merge_console, merge_logs

__all__ = ["join_records"]

_EVENT_S = 180.0
"""The parts of a dump are written within this: firmware is slow."""
_FOLLOWS_S = 30.0
_NEAR = 4
"""Dumps back that are looked at: those of one boot follow each other."""
_MOST_BOOTS = 64
_MOST_MISSING = 9999
_COMPANIONS = (RecordType.FTRACE, RecordType.PMSG)
_HARDWARE = (RecordType.MCE, RecordType.CPER)
_BACKENDS = {"efi": "efi_pstore"}
"""Names that changed: 6.0 renamed the back-end of EFI variables."""
_CONTINUES_S = 5.0


def join_records(records: Iterable[Record]) -> list[Crash]:
    """
    Join records into crashes, oldest first.

    Every record is in one crash. A console log joins the dump that it overlaps with; function traces and
    messages of programs join the last crash of their storage, which is the boot that they are of; a machine check
    the crash that came with it.
    """
    everything = list(records)
    dumps = [record for record in everything if record.type is RecordType.DMESG]
    events = [_join_parts(parts) for parts in _group_parts(dumps)]
    events.sort(key=_order)
    crashes = _join_events(events)
    for record in everything:
        if record.type is RecordType.CONSOLE:
            crashes = _add_console(crashes, record)
    crashes.sort(key=_order)
    for record in everything:
        if record.type not in (RecordType.DMESG, RecordType.CONSOLE):
            crashes = _add_other(crashes, record)
    return crashes


def _backend(record: Record) -> str:
    return _BACKENDS.get(record.backend, record.backend)


def _order(crash: Crash) -> tuple[float, int]:
    sequences = [record.sequence for record in crash.records if record.sequence is not None]
    stamp = crash.time_s if crash.time_s is not None else 0.0
    return stamp, sequences[-1] if sequences else max((record.count or 0 for record in crash.records), default=0)


def _group_parts(dumps: Sequence[Record]) -> list[list[Record]]:
    """Put the parts of one dump together: the same reason and count, near in time, no part twice."""
    whole: list[list[Record]] = []
    by_header: dict[tuple[str, str, int], list[Record]] = {}
    for record in dumps:
        if record.part is None or record.count is None:
            whole.append([record])
        else:
            by_header.setdefault((_backend(record), record.reason, record.count), []).append(record)
    for same in by_header.values():
        same.sort(key=lambda record: (record.time_s or 0.0, record.id or 0, record.part or 0))
        groups: list[list[Record]] = []
        for record in same:
            group = next((group for group in groups[-_NEAR:] if _belongs(group, record)), None)
            if group is None:
                groups.append([record])
            else:
                group.append(record)
        whole += groups
    return whole


def _belongs(group: Sequence[Record], record: Record) -> bool:
    for other in group:
        if record.part == other.part and not _is_copy(record, other):
            return False
    newest = group[-1]
    if record.time_s is None or newest.time_s is None:
        return True
    return abs(record.time_s - newest.time_s) <= _EVENT_S


def _is_copy(record: Record, other: Record) -> bool:
    """Tell whether two records are one: the store and its archive both have it, or one copy is damaged."""
    if record.data == other.data:
        return True
    if record.time_s is None or other.time_s is None or abs(record.time_s - other.time_s) >= 1:
        return False
    return not (record.quality.is_good and other.quality.is_good)


def _join_parts(parts: Sequence[Record]) -> Crash:
    # Of two copies the better one comes first; the other is kept, and not read.
    everything = sorted(parts, key=lambda record: (-(record.part or 0), not record.quality.is_good, -len(record.data)))
    ordered = (
        [record for place, record in enumerate(everything) if not place or record.part != everything[place - 1].part]
        if everything[0].part is not None
        else everything
    )
    problems = [
        f"{record.name}: a damaged copy, not used"
        for record in everything
        if not record.quality.is_good and not any(record is used for used in ordered)
    ]
    text = b""
    expected = ordered[0].part or 1
    for record in ordered:
        part = record.part or 1
        if part < expected:
            name = f"part {part + 1}" if expected - part == 1 else f"parts {part + 1} to {expected}"
            problems.append(f"{name} of {_title(record)} missing")
            text = _ended(text) + f"--- {name} of {_title(record)} missing ---\n".encode()
        expected = part - 1
        text = _append(text, record, problems)
    if expected > 0:
        name = "part 1" if expected == 1 else f"parts 1 to {min(expected, _MOST_MISSING)}"
        problems.append(f"{name} of {_title(ordered[-1])} missing: the newest lines")
    quality = Quality()
    for record in ordered:
        quality = quality.joined(record.quality)
        if record.quality.bad_blocks:
            problems.append(f"{record.name}: {record.quality}")
        problems += [f"{record.name}: {note}" for note in record.quality.notes]
    times = [record.time_s for record in ordered if record.time_s is not None]
    return Crash(
        text=text,
        records=tuple(everything),
        reasons=(ordered[-1].reason,) if ordered[-1].reason else (),
        backend=_backend(ordered[-1]),
        time_s=max(times) if times else None,
        problems=tuple(dict.fromkeys(problems)),
        quality=quality,
    )


def _title(record: Record) -> str:
    return f"{record.reason}#{record.count}"


def _ended(text: bytes) -> bytes:
    return text if not text or text.endswith(b"\n") else text + b"\n"


def _append(text: bytes, record: Record, problems: list[str]) -> bytes:
    """Put a newer part behind the text; what both have is there once."""
    if not text or not record.data:
        return text + record.data
    merged = merge_logs(text, record.data)
    if merged is not None and len(merged) < len(text) + len(record.data):
        overlap = len(text) + len(record.data) - len(merged)
        problems.append(f"{record.name}: {overlap} bytes are in the part before it, too")
        return merged
    before, after = last_stamp(text), first_stamp(record.data)
    if before is not None and after is not None and after + _CONTINUES_S < before:
        problems.append(f"{record.name}: its lines are older ({after:.6f}) than those before it ({before:.6f})")
    return _ended(text) + record.data


def _join_events(events: Sequence[Crash]) -> list[Crash]:
    """Join the dumps of one log: those that overlap, and a panic that followed an oops at once."""
    crashes: list[Crash] = []
    for event in events:
        near = range(len(crashes) - 1, max(len(crashes) - 1 - _NEAR, -1), -1)
        for join in (_join_overlapping, _join_following):
            found = ((place, join(crashes[place], event)) for place in near)
            place, joined = next(((place, joined) for place, joined in found if joined is not None), (-1, None))
            if joined is not None:
                crashes[place] = joined
                break
        else:
            crashes.append(event)
    return crashes


def _join_overlapping(earlier: Crash, later: Crash) -> Crash | None:
    merged = merge_logs(earlier.text, later.text) if earlier.text and later.text else None
    return _joined(earlier, later, merged) if merged is not None else None


def _join_following(earlier: Crash, later: Crash) -> Crash | None:
    if not earlier.text or not later.text or not _follows(earlier, later):
        return None
    problem = f"lines between {earlier.reasons[-1]} and {later.reasons[0]} may be missing: the dumps do not overlap"
    return _joined(earlier, later, _ended(earlier.text) + later.text, problem)


def _follows(earlier: Crash, later: Crash) -> bool:
    """Tell whether a dump is the next of the same boot, and came at once."""
    last, first = earlier.records[-1], later.records[0]
    if earlier.backend != later.backend or last.count is None or first.count is None or first.count != last.count + 1:
        return False
    before, after = last_stamp(earlier.text), first_stamp(later.text)
    if earlier.time_s is None or later.time_s is None or before is None or after is None:
        return False
    return 0 <= later.time_s - earlier.time_s <= _FOLLOWS_S and before <= after <= before + _FOLLOWS_S


def _joined(earlier: Crash, later: Crash, text: bytes, *problems: str) -> Crash:
    return msgspec.structs.replace(
        later,
        text=text,
        records=(*earlier.records, *later.records),
        reasons=tuple(dict.fromkeys((*earlier.reasons, *later.reasons))),
        problems=tuple(dict.fromkeys((*earlier.problems, *later.problems, *problems))),
        quality=earlier.quality.joined(later.quality),
        time_s=later.time_s if later.time_s is not None else earlier.time_s,
    )


def _of_one(record: Record, text: bytes = b"") -> Crash:
    problems = tuple(f"{record.name}: {note}" for note in record.quality.notes)
    if record.quality.bad_blocks:
        problems += (f"{record.name}: {record.quality}",)
    return Crash(
        text=text,
        records=(record,),
        backend=_backend(record),
        time_s=record.time_s,
        problems=problems,
        quality=record.quality,
    )


def _add_console(crashes: list[Crash], record: Record) -> list[Crash]:
    console = _of_one(record, record.data)
    for place in range(len(crashes) - 1, max(len(crashes) - 1 - _MOST_BOOTS, -1), -1):
        crash = crashes[place]
        merged = merge_console(crash.text, record.data)
        if merged is not None:
            joined = msgspec.structs.replace(
                crash,
                text=merged,
                records=(*crash.records, record),
                problems=tuple(dict.fromkeys((*crash.problems, *console.problems))),
                quality=crash.quality.joined(record.quality),
            )
            return [*crashes[:place], joined, *crashes[place + 1 :]]
    return [*crashes, console]


def _add_other(crashes: list[Crash], record: Record) -> list[Crash]:
    one = _of_one(record)
    for place in range(len(crashes) - 1, -1, -1):
        if _is_companion(crashes[place], record):
            joined = msgspec.structs.replace(
                crashes[place],
                records=(*crashes[place].records, record),
                problems=(*crashes[place].problems, *one.problems),
                quality=crashes[place].quality.joined(record.quality),
            )
            return [*crashes[:place], joined, *crashes[place + 1 :]]
    return [*crashes, one]


def _is_companion(crash: Crash, record: Record) -> bool:
    if crash.backend != _backend(record):
        return False
    if record.type in _HARDWARE:
        # A machine check panics at once; an older record of the firmware's is another matter.
        both = crash.time_s is not None and record.time_s is not None
        return both and abs((crash.time_s or 0) - (record.time_s or 0)) <= _EVENT_S
    return record.type in _COMPANIONS
