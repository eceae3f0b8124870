"""What ``pip install --target`` puts into a directory: all that postpanic needs, as it is installed here."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from postpanic.errors import FactAbsentError
from tests.vm.host_disk import compile_modules

__all__ = ["copy_requirements", "copy_source", "list_requirements"]

ROOT_DIR = Path(__file__).parents[2]
SOURCE_DIR = ROOT_DIR / "src" / "postpanic"
GUEST_VERSION = (3, 11)
"""Of Debian 12."""


def list_requirements() -> dict[str, metadata.Distribution]:
    """Return all that postpanic needs, directly or not, by name."""
    found: dict[str, metadata.Distribution] = {}
    # Not our own metadata: those of a work tree are as old as its installation.
    waiting = list(tomllib.loads((ROOT_DIR / "pyproject.toml").read_text())["project"]["dependencies"])
    while waiting:
        text = waiting.pop()
        wanted = re.match(r"[\w.-]+", text)
        if wanted is None or "extra ==" in text or wanted[0] in found:
            continue
        try:
            found[wanted[0]] = metadata.distribution(wanted[0])
        except metadata.PackageNotFoundError:
            # Of other versions of Python.
            continue
        waiting += found[wanted[0]].requires or []
    return dict(sorted(found.items()))


def copy_requirements(target: Path) -> None:
    """
    Copy the files of what postpanic needs.

    Raises
    ------
    FactAbsentError
        If this Python is another one than the guest's: what is compiled for it does not run there.
    """
    if sys.version_info[:2] != GUEST_VERSION:
        raise FactAbsentError(
            f"the guest has Python {'.'.join(map(str, GUEST_VERSION))}, this is {sys.version.split()[0]}"
        )
    for distribution in list_requirements().values():
        for file in distribution.files or ():
            # What is beside the libraries: programs.
            if ".." in file.parts or "__pycache__" in file.parts:
                continue
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(distribution.locate_file(file)), place)


def copy_source(target: Path, place: str) -> Path:
    """
    Copy postpanic into a directory as pip does, compiled.

    Parameters
    ----------
    place : str
        The directory that it will be in, in the guest.
    """
    package = target / "postpanic"
    shutil.copytree(SOURCE_DIR, package, ignore=shutil.ignore_patterns("__pycache__"))
    compile_modules(target, "postpanic", prefix=place)
    return package
