"""Kernel stacks as values: whose they are, the frames on them, and what else lies there."""
