"""Everything that happens after a Linux kernel panics, in one tool."""

__version__ = "0.1.0"
