"""Detectors of faults: bad pointers and calls, freed and overwritten objects, lists, assertions, stacks."""

from postpanic.analysis.triage.faults import pointers

__all__ = ["pointers"]
