"""Detectors of faults: bad pointers and calls, freed and overwritten objects, lists, assertions, stacks."""

from postpanic.analysis.triage.faults import bit_flips, overruns, pointers

__all__ = ["bit_flips", "overruns", "pointers"]
