"""Symbols and machine code of a kernel."""
