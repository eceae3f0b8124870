"""All detectors: their modules are imported when they are first asked."""

from __future__ import annotations

import importlib
from functools import cache

from postpanic.analysis.triage.registry import Detector, declared_detectors

__all__ = ["MODULES", "all_detectors"]

MODULES = ("deliberate", "reported", "faults", "rules", "hangs", "memory", "context")
"""Of this package: modules that declare detectors, and packages that import theirs."""


@cache
def all_detectors() -> tuple[Detector, ...]:
    """Import all detectors and return them, the deepest first."""
    for name in MODULES:
        importlib.import_module(f"postpanic.analysis.triage.{name}")
    return declared_detectors()
