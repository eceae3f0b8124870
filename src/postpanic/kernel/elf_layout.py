"""Section headers and symbols of 64-bit little-endian ELF files (System V gABI, chapter 4), as numpy types."""

from __future__ import annotations

import numpy as np

__all__ = ["SHDR", "SYM"]

SHDR = np.dtype(
    [
        ("name", "<u4"),
        ("type", "<u4"),
        ("flags", "<u8"),
        ("addr", "<u8"),
        ("offset", "<u8"),
        ("size", "<u8"),
        ("link", "<u4"),
        ("info", "<u4"),
        ("addralign", "<u8"),
        ("entsize", "<u8"),
    ]
)
"""``Elf64_Shdr``."""

SYM = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")])
"""``Elf64_Sym``."""
