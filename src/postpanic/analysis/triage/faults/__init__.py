"""Detectors of faults: bad pointers and calls, freed and overwritten objects, lists, assertions, stacks."""

from postpanic.analysis.triage.faults import (
    assertions,
    bit_flips,
    divisions,
    freed,
    freelists,
    frees,
    from_log,
    kin,
    lists,
    overruns,
    pointers,
    references,
    sanitizers,
    stacks,
)

__all__ = [
    "assertions",
    "bit_flips",
    "divisions",
    "freed",
    "freelists",
    "frees",
    "from_log",
    "kin",
    "lists",
    "overruns",
    "pointers",
    "references",
    "sanitizers",
    "stacks",
]
