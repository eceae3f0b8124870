"""Structures of the kernel as text."""

from postpanic.analysis.structures.text import STRUCTURE, structure_lines, structure_table, value_lines

__all__ = ["STRUCTURE", "structure_lines", "structure_table", "value_lines"]
