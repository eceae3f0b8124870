"""
Debian packages without root: a private apt configuration and its own package lists.

Where the packages come from is the host's own choice: the mirrors are taken
from its apt sources, only the suites are put in place of the host's.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shlex
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE

from postpanic.errors import FactAbsentError, ProcessError, UsageError
from postpanic.process import find_program, run, start
from postpanic.rehearse.cache import hold_lock
from postpanic.rehearse.tarballs import unpack_files

__all__ = [
    "Archive",
    "HostSource",
    "Package",
    "compare_versions",
    "find_keyring",
    "parse_index_targets",
    "parse_stanzas",
    "unpack",
    "unpack_some",
    "write_sources",
]

LISTS_FRESH_S = 12 * 3600
FETCH_TIMEOUT_S = 1800.0
MESSAGE_LIMIT_BYTES = 400
_SUITE_NAME = re.compile(r"[a-z][a-z0-9-]*")
_SUFFIXES = ("-security", "-updates", "-backports", "-proposed-updates", "/updates")


@dataclass(frozen=True)
class HostSource:
    """
    One line of the host's apt sources.

    Attributes
    ----------
    uri : str
        The mirror.
    suite : str
        As the host spells it: ``bookworm``, ``bookworm-security``, ``stable``.
    signed_by : str
        The keyring given for it; empty: the host's trusted keys.
    """

    uri: str
    suite: str
    signed_by: str = ""


@dataclass(frozen=True)
class Package:
    """A package of one version, as the package lists describe it."""

    name: str
    version: str
    depends: tuple[str, ...] = ()


def parse_index_targets(text: str) -> list[HostSource]:
    """
    Decode what ``apt-get indextargets`` printed: stanzas with ``Repo-URI`` and ``Release``.

    The keyring is not among them, but the place in the sources that has it is.
    """
    sources: list[HostSource] = []
    for stanza in parse_stanzas(text):
        if stanza.get("Created-By") != "Packages" or "Repo-URI" not in stanza or "Release" not in stanza:
            continue
        source = HostSource(stanza["Repo-URI"], stanza["Release"], find_keyring(stanza.get("Sourcesentry", "")))
        if source not in sources:
            sources.append(source)
    return sources


def find_keyring(entry: str) -> str:
    """
    Return the keyring of a place in the apt sources, empty where none is named.

    Parameters
    ----------
    entry : str
        ``FILE:NUMBER``: of a ``.sources`` file the number of the stanza, of a
        ``.list`` file the number of the line.
    """
    name, _, number = entry.rpartition(":")
    try:
        text, index = Path(name).read_text(errors="replace"), int(number) - 1
    except (OSError, ValueError):
        return ""
    parts = re.split(r"\n\s*\n", text.strip()) if name.endswith(".sources") else text.splitlines()
    found = re.search(
        r"signed-by\s*[:=]\s*(/[^\s\],]+)", parts[index] if 0 <= index < len(parts) else "", re.IGNORECASE
    )
    return found[1] if found else ""


def parse_stanzas(text: str) -> list[dict[str, str]]:
    """Decode control-file stanzas; of a field that goes over several lines the first line is kept."""
    stanzas: list[dict[str, str]] = []
    for block in text.split("\n\n"):
        fields = (line.split(":", 1) for line in block.splitlines() if ":" in line and not line[0].isspace())
        stanza = {name: value.strip() for name, value in fields}
        if stanza:
            stanzas.append(stanza)
    return stanzas


def write_sources(host: Sequence[HostSource], suites: Iterable[str]) -> str:
    """
    Spell an apt sources file: the host's mirrors, other suites.

    A ``-security`` suite goes to the mirror of the host's own security suite;
    it is left out where the host has none, every other suite goes to the mirror
    of the host's release.

    Raises
    ------
    UsageError
        If a suite is not a suite's name.
    FactAbsentError
        If the host's sources name no release.
    """
    main = [source for source in host if not source.suite.rstrip("/").endswith(_SUFFIXES)]
    security = [source for source in host if source.suite.endswith(("-security", "/updates"))]
    if not main:
        raise FactAbsentError(
            "the host's apt sources name no release to take a mirror from", hint="see /etc/apt/sources.list.d"
        )
    lines = []
    for suite in suites:
        if not _SUITE_NAME.fullmatch(suite):
            raise UsageError(f"not the name of a suite: {suite!r}")
        choice = security if suite.endswith("-security") else main
        for source in choice[:1]:
            keyring = f"[signed-by={source.signed_by}] " if source.signed_by else ""
            lines.append(f"deb {keyring}{source.uri} {suite} main\n")
    return "".join(lines)


def compare_versions(one: str, other: str) -> int:
    """Return a number below, at or above 0: the order of two package versions, as dpkg has it."""
    dpkg = find_program("dpkg")
    if run([dpkg, "--compare-versions", one, "lt", other], check=False).returncode == 0:
        return -1
    return 1 if run([dpkg, "--compare-versions", one, "gt", other], check=False).returncode == 0 else 0


class Archive:
    """
    The packages of some suites, reached through the host's mirrors.

    Parameters
    ----------
    directory : Path
        Where the private configuration and the package lists live.
    suites : sequence of str
        Newest packages win, whichever suite has them.
    architecture : str
        Debian's name of it (``arm64``); empty: the host's. Nothing of another architecture is ever installed.
    """

    def __init__(self, directory: Path, suites: Sequence[str], architecture: str = "") -> None:
        self.directory = directory
        self.suites = tuple(suites)
        self.architecture = architecture

    def update(self, *, max_age_s: float = LISTS_FRESH_S) -> None:
        """
        Fetch the package lists, unless those at hand are younger than *max_age_s*.

        Raises
        ------
        ProcessError
            If apt is missing or a list cannot be fetched.
        """
        with hold_lock(self.directory / "lock"):
            self._update(max_age_s)

    def _update(self, max_age_s: float) -> None:
        stamp = self.directory / "updated"
        sources = write_sources(self._read_host_sources(), self.suites)
        list_file = self.directory / "sources.list"
        fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < max_age_s
        if fresh and list_file.exists() and list_file.read_text() == sources:
            return
        for name in ("lists/partial", "cache/archives/partial", "state"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        list_file.write_text(sources)
        self._apt_get("update", "--error-on=any")
        stamp.touch()

    def find(self, pattern: str) -> list[Package]:
        """
        Return the packages whose whole name matches *pattern*, oldest version first.

        Raises
        ------
        FactAbsentError
            If there is none.
        """
        # apt's own search knows POSIX expressions only.
        names = sorted({name for name in self._apt_cache("pkgnames").split() if re.fullmatch(pattern, name)})
        # Names that packages only provide have no stanza, and make apt exit with an error.
        stanzas = parse_stanzas(self._apt_cache("show", "--no-all-versions", *names, check=False) if names else "")
        packages = [
            Package(stanza["Package"], stanza["Version"], _read_depends(stanza))
            for stanza in stanzas
            if stanza.get("Package") in names and "Version" in stanza
        ]
        if not packages:
            raise FactAbsentError(f"no package {pattern} in {', '.join(self.suites)}")
        return sorted(packages, key=functools.cmp_to_key(_compare_packages))

    def fetch(self, package: Package, directory: Path) -> Path:
        """
        Download a package into *directory* and return the file.

        Raises
        ------
        ProcessError
            If it cannot be fetched.
        """
        self._apt_get("download", f"{package.name}={package.version}", cwd=directory)
        found = sorted(directory.glob(f"{package.name}_*.deb"))
        if not found:
            raise ProcessError(f"apt-get download {package.name}: left no file in {directory}")
        return found[-1]

    def fetch_all(self, packages: Sequence[Package], directory: Path) -> list[Path]:
        """
        Download packages into *directory*, all at once, and return the files in order.

        Raises
        ------
        ProcessError
            If one cannot be fetched.
        """
        self._apt_get("download", *(f"{package.name}={package.version}" for package in packages), cwd=directory)
        files = {path.name.split("_", 1)[0]: path for path in directory.glob("*.deb")}
        missing = [package.name for package in packages if package.name not in files]
        if missing:
            raise ProcessError(f"apt-get download {missing[0]}: left no file in {directory}")
        return [files[package.name] for package in packages]

    def _read_host_sources(self) -> list[HostSource]:
        listed = run([find_program("apt-get"), "indextargets"], timeout_s=60)
        return parse_index_targets(listed.stdout.decode(errors="replace"))

    def _options(self) -> list[str]:
        own = {
            "Dir::Etc::SourceList": self.directory / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": self.directory / "state",
            "Dir::State::Lists": self.directory / "lists",
            "Dir::Cache": self.directory / "cache",
            # Images made for containers turn apt's own index off; without it every question takes seconds.
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            # Root's apt would fetch as a user who cannot write here.
            "APT::Sandbox::User": pwd.getpwuid(os.getuid()).pw_name,
            # Packages of all suites count the same: backports are not second best here.
            "APT::Default-Release": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
        }
        if self.architecture:
            # The list of them has two colons behind its name, and is emptied first.
            own |= {"APT::Architecture": self.architecture, "APT::Architectures": self.architecture}
        return [word for name, value in own.items() for word in ("-o", f"{name}={value}")]

    def _apt_get(self, *words: str, cwd: Path | None = None) -> None:
        run([find_program("apt-get"), "-q", *self._options(), *words], cwd=cwd, timeout_s=FETCH_TIMEOUT_S)

    def _apt_cache(self, *words: str, check: bool = True) -> str:
        finished = run([find_program("apt-cache"), *self._options(), *words], timeout_s=120, check=check)
        return finished.stdout.decode(errors="replace")


def _compare_packages(one: Package, other: Package) -> int:
    return compare_versions(one.version, other.version)


def _read_depends(stanza: dict[str, str]) -> tuple[str, ...]:
    return _split_depends(",".join(stanza.get(field, "") for field in ("Pre-Depends", "Depends")))


def _split_depends(text: str) -> tuple[str, ...]:
    # The first of alternatives stands for all: kernels depend on each other without alternatives.
    names = (re.match(r"\s*([a-z0-9][a-z0-9+.-]*)", clause) for clause in text.split(","))
    return tuple(name[1] for name in names if name)


def unpack(package: Path, directory: Path) -> None:
    """Unpack all files of a package, owned by us, into *directory*."""
    run([find_program("dpkg-deb"), "-x", package, directory], timeout_s=FETCH_TIMEOUT_S)


def unpack_some(package: Path, directory: Path, want: Callable[[str], bool]) -> list[Path]:
    """
    Unpack the regular files of a package for whose path *want* is true.

    Raises
    ------
    ProcessError
        If dpkg-deb fails.
    """
    command: list[str | Path] = [find_program("dpkg-deb"), "--fsys-tarfile", package]
    unpacked: list[Path] = []
    with tempfile.TemporaryFile() as messages:
        try:
            with (
                start(command, stdout=PIPE, stderr=messages) as unpacker,
                tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive,
            ):
                unpacked = unpack_files(archive, directory, want)
            status = unpacker.returncode
        except tarfile.TarError:
            status = -1
        if status != 0:
            messages.seek(0)
            said = messages.read(MESSAGE_LIMIT_BYTES).decode(errors="replace").strip()
            raise ProcessError(f"{shlex.join(map(str, command))}: {said or 'not a package'}")
    return unpacked
