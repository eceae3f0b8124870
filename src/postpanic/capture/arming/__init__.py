"""Make the machine ready to capture its crash, and undo it."""
