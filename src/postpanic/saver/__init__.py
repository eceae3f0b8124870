"""PID 1 of the capture kernel: plan, save, targets.  Standard library, numpy and one codec only."""
