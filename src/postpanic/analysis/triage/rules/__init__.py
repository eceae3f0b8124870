"""Detectors of what the kernel's own checkers say: lockdep, KCSAN, debug objects, UBSAN, control-flow integrity."""

from postpanic.analysis.triage.rules import lifetimes, locks, races, values

__all__ = ["lifetimes", "locks", "races", "values"]
