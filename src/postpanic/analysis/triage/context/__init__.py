"""Context: where it happened, what came before it; crashes by hardware, by the boot, and by panic() itself."""

from postpanic.analysis.triage.context import (
    before,
    boot,
    bystanders,
    hardware,
    interrupts,
    machine,
    panics,
    taints,
)

__all__ = ["before", "boot", "bystanders", "hardware", "interrupts", "machine", "panics", "taints"]
