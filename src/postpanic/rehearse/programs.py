"""
Newer programs than the host has: Debian's, run where they are unpacked.

A program of another release needs that release's C library; its own dynamic
loader, told where the libraries are, runs it without installing anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from postpanic.errors import FactAbsentError
from postpanic.process import run
from postpanic.rehearse.packages import Archive, Package
from postpanic.rehearse.store import Bundle, PackageStore

__all__ = ["ProgramStore", "UnpackedProgram", "resolve_libraries"]

LOADER = "ld-linux-x86-64.so.2"
LIBRARY_DIRECTORIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


@dataclass(frozen=True)
class UnpackedProgram:
    """
    A program in the cache.

    Attributes
    ----------
    path : Path
        The file.
    version : str
        Its package's.
    command : tuple of str
        What to run, before the program's own words.
    """

    path: Path
    version: str
    command: tuple[str, ...]


class ProgramStore:
    """
    Programs of Debian, fetched when first wanted.

    Parameters
    ----------
    directory : Path
        The cache.
    """

    def __init__(self, directory: Path) -> None:
        self._packages = PackageStore(directory, "unpacked")

    def fetch(self, package: str, program: str, suites: Sequence[str] = ("sid",)) -> UnpackedProgram:
        """
        Return a program of a package with the libraries that it needs.

        Parameters
        ----------
        program : str
            Where it is in the package: ``usr/bin/makedumpfile``.

        Raises
        ------
        ProcessError
            If it is not in the cache and cannot be fetched, or if libraries are missing.
        FactAbsentError
            If there is no such package, or no such program in it.
        """

        def check(entry: Path) -> None:
            loader, *words = _spell_command(entry, program)
            run([loader, "--list", *words])

        bundle, entry = self._packages.fetch(suites, package, resolve_libraries, check)
        return UnpackedProgram(entry / program, bundle.main.version, tuple(_spell_command(entry, program)))


def resolve_libraries(archive: Archive, name: str) -> Bundle:
    """
    Find a package and the libraries that it depends on, directly or not.

    Of the dependencies only packages of libraries count, for whose names Debian
    prescribes the beginning ``lib``, and zlib, which is older than the rule.
    """
    main = archive.find(re.escape(name))[-1]
    found = {main.name: main}
    wanted = _select_libraries(main)
    while wanted:
        for package in archive.find("|".join(map(re.escape, sorted(wanted)))):
            found[package.name] = package
        missing = wanted - set(found)
        if missing:
            raise FactAbsentError(f"no package {min(missing)} in {', '.join(archive.suites)}, which {name} needs")
        wanted = {library for package in found.values() for library in _select_libraries(package)} - set(found)
    return Bundle(replace(main, depends=()), tuple(replace(part, depends=()) for part in found.values()))


def _select_libraries(package: Package) -> set[str]:
    return {name for name in package.depends if name.startswith("lib") or name == "zlib1g"}


def _spell_command(entry: Path, program: str) -> list[str]:
    loaders = [path for path in sorted(entry.rglob(LOADER)) if path.is_file()]
    if not loaders or not (entry / program).is_file():
        raise FactAbsentError(f"no {program if loaders else LOADER} in the package", where=str(entry))
    libraries = ":".join(str(entry / name) for name in LIBRARY_DIRECTORIES if (entry / name).is_dir())
    return [str(loaders[0]), "--library-path", libraries, str(entry / program)]
