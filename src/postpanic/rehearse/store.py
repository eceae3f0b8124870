"""
Unpacked packages in a cache, several that belong together in one entry.

What is wanted is resolved anew as long as there is a network; without one the
last answer that is in the cache stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from postpanic.errors import FactAbsentError, PostpanicError, ProcessError
from postpanic.rehearse.cache import build_once, digest_recipe, find_entry
from postpanic.rehearse.packages import Archive, Package, unpack

__all__ = ["Bundle", "PackageStore", "resolve_packages"]

# Needed by maintainers' scripts, by other languages, or for what nobody does with packages that are only unpacked.
_UNWANTED = re.compile(
    r"debconf|dpkg|tar|perl.*|adduser|passwd|init-system-helpers|media-types|ucf|python3-pkg-resources"
)
_PACKAGES_LIMIT = 200


@dataclass(frozen=True)
class Bundle:
    """
    Packages that are unpacked into one place.

    Attributes
    ----------
    main : Package
        Gives the entry its name.
    parts : tuple of Package
        All of them, *main* included.
    """

    main: Package
    parts: tuple[Package, ...]

    @property
    def entry_name(self) -> str:
        """The name of the directory."""
        return f"{self.main.name}_{self.main.version.replace(':', '%3a')}"


class PackageStore:
    """
    Bundles of one kind.

    Parameters
    ----------
    directory : Path
        The cache.
    kind : str
        The directory in it that has the entries.
    architecture : str
        Debian's name of it; empty: the host's. Others have entries of their own.
    """

    def __init__(self, directory: Path, kind: str, architecture: str = "") -> None:
        self.directory = directory
        self.kind = f"{kind}-{architecture}" if architecture else kind
        self.architecture = architecture

    def open_archive(self, suites: Sequence[str]) -> Archive:
        """Return the packages of some suites; kinds share the lists."""
        recipe = [*suites, *([f"architecture {self.architecture}"] if self.architecture else [])]
        return Archive(self.directory / "apt" / digest_recipe(recipe), suites, self.architecture)

    def fetch(
        self,
        suites: Sequence[str],
        wanted: str,
        resolve: Callable[[Archive, str], Bundle],
        check: Callable[[Path], object] = lambda _: None,
    ) -> tuple[Bundle, Path]:
        """
        Return a bundle and the directory that it is unpacked into.

        Parameters
        ----------
        wanted : str
            What *resolve* makes a bundle of.
        check : callable
            Gets the unpacked directory; what it raises keeps it out of the cache.

        Raises
        ------
        ProcessError
            If it is not in the cache and cannot be fetched.
        FactAbsentError
            If the suites have no such package.
        """
        bundle = self._resolve(suites, wanted, resolve)
        try:
            return bundle, self._unpack(suites, bundle, check)
        except ProcessError:
            # The mirror may have replaced a version since the lists were fetched.
            self.open_archive(suites).update(max_age_s=0)
            bundle = self._resolve(suites, wanted, resolve)
            return bundle, self._unpack(suites, bundle, check)

    def _unpack(self, suites: Sequence[str], bundle: Bundle, check: Callable[[Path], object]) -> Path:
        archive = self.open_archive(suites)

        def build(target: Path) -> None:
            for part in bundle.parts:
                package = archive.fetch(part, target)
                unpack(package, target)
                package.unlink()
            check(target)

        return build_once(self.directory / self.kind, bundle.entry_name, build)

    def _resolve(self, suites: Sequence[str], wanted: str, resolve: Callable[[Archive, str], Bundle]) -> Bundle:
        record = self.directory / "resolved" / f"{digest_recipe([self.kind, list(suites), wanted])}.json"
        archive = self.open_archive(suites)
        try:
            archive.update()
            bundle = resolve(archive, wanted)
        except ProcessError as exc:
            return self._recall(record, exc)
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary = record.with_suffix(".new")
        temporary.write_text(json.dumps({"main": _encode(bundle.main), "parts": [*map(_encode, bundle.parts)]}))
        temporary.replace(record)
        return bundle

    def _recall(self, record: Path, failure: PostpanicError) -> Bundle:
        """Return what was wanted last time if its files are still here; else the failure stands."""
        try:
            known = json.loads(record.read_text())
            bundle = Bundle(Package(*known["main"]), tuple(Package(*part) for part in known["parts"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise failure from None
        if find_entry(self.directory / self.kind, bundle.entry_name) is None:
            raise failure
        return bundle


def resolve_packages(archive: Archive, wanted: str, unwanted: re.Pattern[str] = _UNWANTED) -> Bundle:
    """
    Find packages and all that they depend on; what no package is called is virtual, and left out.

    Parameters
    ----------
    wanted : str
        Names, between blanks.
    unwanted : re.Pattern
        Of names; nobody asks for what these depend on, either.

    Raises
    ------
    FactAbsentError
        If there is none of what is wanted.
    """
    found: dict[str, Package] = {}
    missing: set[str] = set()
    names = set(wanted.split())
    while names and len(found) < _PACKAGES_LIMIT:
        try:
            packages = archive.find("|".join(map(re.escape, sorted(names))))
        except FactAbsentError:
            packages = []
        found |= {package.name: package for package in packages}
        missing |= names - set(found)
        needed = {name for package in packages for name in package.depends if not unwanted.fullmatch(name)}
        names = needed - set(found) - missing
    absent = set(wanted.split()) & missing
    if absent:
        raise FactAbsentError(f"no package {min(absent)} in {', '.join(archive.suites)}")
    parts = tuple(Package(found[name].name, found[name].version) for name in sorted(found))
    digest = digest_recipe([[part.name, part.version] for part in parts])
    return Bundle(Package("host", digest), parts)


def _encode(package: Package) -> list[str]:
    return [package.name, package.version]
