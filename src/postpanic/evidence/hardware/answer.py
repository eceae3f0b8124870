"""Errors of the hardware as an answer: which parts failed, and each error with its facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from postpanic.evidence.hardware.model import HardwareError, Severity, Verdict
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Shape

__all__ = ["ERRORS", "PARTS", "SHAPES", "hardware_answer"]

DETAILS = Shape(
    "hardware_details", (Column("name", title="NAME"), Column("value", title="VALUE")), title="Details:", indent=2
)
PARTS = Shape(
    "hardware_parts",
    (
        Column("part", title="PART", help="memory, cache, bus, tlb, pcie …"),
        Column("place", title="PLACE", help="where the part is, as firmware and drivers name it"),
        Column("severity", title="WORST", help="the gravest of its errors"),
        Column("count", Kind.NUMBER, title="ERRORS", help="how many there were"),
        Column("verdict", title="VERDICT", help="hardware, firmware, software, injected, unclear"),
        Column("confidence", title="CONFIDENCE"),
        Column(
            "first_s",
            Kind.REAL,
            title="FIRST",
            format=".3f",
            help="time of its first message, seconds since that kernel started",
        ),
        Column("last_s", Kind.REAL, title="LAST", format=".3f"),
        Column("is_panic", Kind.BOOL, title="PANIC", help="whether the kernel panicked over it"),
        Column("advice", title="WHAT TO DO"),
    ),
    layout=Layout.FIELDS,
    title="Hardware: parts that failed",
)
ERRORS = Shape(
    "hardware_errors",
    (
        Column("number", Kind.NUMBER, title="ERROR"),
        Column("what", title="WHAT"),
        Column("source", title="SOURCE", help="machine-check, apei, edac, aer, nmi …"),
        Column("part", title="PART"),
        Column("severity", title="SEVERITY", help="corrected, deferred, recoverable, uncorrected, fatal"),
        Column("unit", title="UNIT", help="who found it: a bank's unit, a device, a memory controller"),
        Column("place", title="PLACE"),
        Column("paddr", Kind.ADDRESS, title="PHYSICAL ADDRESS"),
        Column("cpu", Kind.NUMBER, title="CPU", help="who reported it, which need not be the part that failed"),
        Column("count", Kind.NUMBER, title="COUNT"),
        Column("time_s", Kind.REAL, title="TIME", format=".6f", suffix=" s"),
        Column("is_panic", Kind.BOOL, title="PANIC"),
        Column("verdict", title="VERDICT"),
        Column("confidence", title="CONFIDENCE"),
        Column("reason", title="REASON"),
        Column("advice", title="WHAT TO DO"),
        Column("details", Kind.ROWS, shape=DETAILS),
        Column("offset", Kind.NUMBER, hidden=True, help="place of its first line in the text, bytes"),
        Column("end", Kind.NUMBER, hidden=True, help="place of its last line in the text, bytes"),
    ),
    layout=Layout.FIELDS,
    title="Hardware: the errors",
)
SHAPES = (PARTS, ERRORS)
"""Of all tables of the answer."""

_MODULE_KEYS = (
    "dimm",
    "socket",
    "node",
    "card",
    "module",
    "controller",
    "channel",
    "slot",
    "chip_select",
    "rank",
    "device",
)


def hardware_answer(errors: Sequence[HardwareError], command: str = "decode") -> Answer:
    """
    Make the answer of a command from errors of the hardware.

    The first table has one row for each part that failed, the gravest first; the second has every error.

    Parameters
    ----------
    errors : sequence of HardwareError
    command : str
        Its name.
    """
    parts = sorted(_grouped(errors), key=lambda row: (-row[0], -row[1]))
    return Answer(
        command,
        (
            PARTS.table([row[2] for row in parts]),
            ERRORS.table([_row(number, error) for number, error in enumerate(errors)]),
        ),
    )


def _key(error: HardwareError) -> tuple[str, ...]:
    place = tuple(f"{name.replace('_', ' ')} {error.location[name]}" for name in _MODULE_KEYS if name in error.location)
    return (error.part.value, error.verdict.value, *place)


def _grouped(errors: Iterable[HardwareError]) -> list[tuple[int, int, tuple[Cell, ...]]]:
    groups: dict[tuple[str, ...], list[HardwareError]] = {}
    for error in errors:
        groups.setdefault(_key(error), []).append(error)
    return [_part(key, members) for key, members in groups.items()]


def _part(key: tuple[str, ...], members: list[HardwareError]) -> tuple[int, int, tuple[Cell, ...]]:
    worst = max(members, key=lambda error: error.severity.rank)
    times = [error.time_s for error in members if error.time_s is not None]
    count = sum(error.count for error in members)
    row: tuple[Cell, ...] = (
        worst.part.value,
        ", ".join(key[2:]) or None,
        worst.severity.value,
        count,
        worst.verdict.value,
        worst.confidence.value,
        times[0] if times else None,
        times[-1] if times else None,
        any(error.is_panic for error in members),
        worst.advice or None,
    )
    return _gravity(worst), count, row


def _gravity(error: HardwareError) -> int:
    """Order of the parts: what the machine died of first, what was made up last."""
    if error.verdict is Verdict.INJECTED:
        return -1
    return error.severity.rank + (len(Severity) if error.is_panic else 0)


def _row(number: int, error: HardwareError) -> tuple[Cell, ...]:
    details = DETAILS.table(list(error.details.items()))
    return (
        number,
        error.what,
        error.source.value,
        error.part.value,
        error.severity.value,
        error.unit or None,
        error.place or None,
        error.paddr,
        error.cpu,
        error.count,
        error.time_s,
        error.is_panic,
        error.verdict.value,
        error.confidence.value,
        error.reason or None,
        error.advice or None,
        details if details.rows else None,
        error.offset,
        error.end,
    )
