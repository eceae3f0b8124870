"""What is asked of ``platform``, by ``uname()``."""

from __future__ import annotations

import os
import sys

__all__ = ["machine", "node", "python_implementation", "python_version", "release", "system"]


def python_implementation() -> str:
    """Return what there is an image of."""
    return "CPython"


def python_version() -> str:
    """Return the version of Python."""
    return ".".join(map(str, sys.version_info[:3]))


def machine() -> str:
    """Return ``x86_64``, ``aarch64``."""
    return os.uname().machine


def node() -> str:
    """Return the machine's name."""
    return os.uname().nodename


def release() -> str:
    """Return the kernel's release."""
    return os.uname().release


def system() -> str:
    """Return ``Linux``."""
    return os.uname().sysname
