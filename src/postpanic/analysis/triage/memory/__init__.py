"""Memory: who holds it when there is none left, what the kernel lost, and why a large piece cannot be had."""

from postpanic.analysis.triage.memory import exhausted, fragmentation

__all__ = ["exhausted", "fragmentation"]
