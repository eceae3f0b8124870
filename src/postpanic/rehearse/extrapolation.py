"""
What a rehearsal says of the host itself: how large its dump would be, and how long saving it would take.

The machine is smaller than the host, so both are ranges. What the host's kernel
says of its memory bounds what a dump holds; how well that compresses and how
fast it goes was measured in the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from postpanic.capture.config import Config
from postpanic.capture.crashkernel.reservation import read_memory
from postpanic.capture.host import Host
from postpanic.capture.status.dump_size import estimate_dump
from postpanic.capture.status.subject import Subject as StatusSubject
from postpanic.rehearse.rehearsal import RehearsalOutcome
from postpanic.units import format_size

__all__ = ["Extrapolation", "Range", "extrapolate"]

_PAGE_STRUCT_SHARE = 64
"""A ``struct page`` takes 64 bytes for each page of 4096: it is in every dump, whatever the level."""
_LEAST_SHARE = 0.5
"""Of what the kernel's figures allow: pages of zeros are in them, and are in no dump."""


@dataclass(frozen=True)
class Range:
    """
    A number that is not known well.

    Attributes
    ----------
    least, most : float
        Between which it is.
    likely : float or None
        What it is in all likelihood; None: nothing speaks for one or the other.
    """

    least: float
    likely: float | None
    most: float


@dataclass(frozen=True)
class Extrapolation:
    """
    What is to be expected of the host.

    Attributes
    ----------
    memory_bytes : int
        Of the host.
    dump_bytes : Range
    seconds : Range
        From the panic to the dump on its target.
    basis : tuple of str
        What it rests on.
    """

    memory_bytes: int
    dump_bytes: Range
    seconds: Range
    basis: tuple[str, ...]


def extrapolate(
    outcome: RehearsalOutcome,
    config: Config,
    host: Host,
    level: int,
    *,
    memory_bytes: int = 0,
    is_emulated: bool = True,
) -> Extrapolation | None:
    """
    Extrapolate a rehearsal to the host.

    Parameters
    ----------
    level : int
        Of the dump.
    memory_bytes : int
        Of the host, where its own figures are not here; 0: they are.
    is_emulated : bool
        Whether the machine was emulated by software.

    Returns
    -------
    Extrapolation or None
        None where nothing was saved, or nothing is known of the host's memory.
    """
    if not outcome.dump_bytes or not outcome.kept_bytes or not outcome.seconds:
        return None
    own = estimate_dump(StatusSubject(host, config), level) if not memory_bytes else None
    total = memory_bytes or read_memory(host).total_bytes
    if not total:
        return None
    machine = outcome.memory_bytes - outcome.reserved_bytes
    ratio = min(outcome.dump_bytes / outcome.kept_bytes, 1.0)
    more = max(total - machine, 0)
    idle = outcome.dump_bytes + more / _PAGE_STRUCT_SHARE * ratio
    if own is not None:
        dump = Range(own.kept_bytes * ratio * _LEAST_SHARE, own.kept_bytes * ratio, float(own.kept_bytes))
        use = f"{own.evidence[0].source}: {own.evidence[0].says}"
    else:
        dump = Range(idle, None, float(total))
        use = f"a host of {format_size(total)}, idle at the least, full of kernel memory at the most"
    basis = [
        use,
        f"compressed to {ratio:.0%} in the machine; not at all at the most",
        f"saving took {outcome.seconds - outcome.start_seconds:.0f} s for {format_size(machine)} of memory",
    ]
    if is_emulated:
        basis.append("the machine was emulated, which is many times slower than the host: the times are too long")
    return Extrapolation(total, dump, _scale_time(outcome, dump, total / machine), tuple(basis))


def _scale_time(outcome: RehearsalOutcome, dump: Range, memory_factor: float) -> Range:
    """Scale the time of saving by what is read and what is written; the start of the capture kernel stays."""
    start, saving = outcome.start_seconds, outcome.seconds - outcome.start_seconds

    def after(factor: float) -> float:
        return start + saving * factor

    written = [size / outcome.dump_bytes for size in (dump.least, dump.most)]
    likely = None if dump.likely is None else after(max(memory_factor, dump.likely / outcome.dump_bytes))
    return Range(after(min(memory_factor, written[0])), likely, after(max(memory_factor, written[1])))
