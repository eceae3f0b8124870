"""Whose context it was: interrupts, taints, what came before, hardware."""
