"""A program of the kernel's source that judges ours: scripts/decode_stacktrace.sh, from Debian's package of it."""

from __future__ import annotations

import tarfile
from pathlib import Path

from postpanic.errors import FactAbsentError
from postpanic.rehearse.cache import build_once
from postpanic.rehearse.packages import Archive, unpack_some
from postpanic.rehearse.store import PackageStore
from tests.vm.lab import default_cache_dir

__all__ = ["fetch_decode_stacktrace"]

PACKAGE = "linux-source-6.1"
SUITES = ("bookworm", "bookworm-security")
SCRIPT = "decode_stacktrace.sh"


def fetch_decode_stacktrace() -> Path:
    """
    Return the script, fetching 140 MB when it is first wanted: only it is kept.

    Raises
    ------
    ProcessError, FactAbsentError
        If it is not in the cache and cannot be had.
    """
    directory = default_cache_dir()
    archive = PackageStore(directory, "programs").open_archive(SUITES)

    def build(target: Path) -> None:
        _unpack_script(archive, target)

    return build_once(directory / "programs", f"{PACKAGE}-{SCRIPT}", build) / SCRIPT


def _unpack_script(archive: Archive, target: Path) -> None:
    archive.update()
    package = archive.fetch(archive.find(PACKAGE.replace(".", r"\."))[-1], target)
    found = unpack_some(package, target, lambda path: path.endswith(".tar.xz"))
    package.unlink()
    with tarfile.open(found[0]) as source:
        for member in source:
            if member.name.endswith(f"/scripts/{SCRIPT}") and (file := source.extractfile(member)) is not None:
                script = target / SCRIPT
                script.write_bytes(file.read())
                script.chmod(0o755)
                found[0].unlink()
                return
    raise FactAbsentError(f"package {PACKAGE} has no {SCRIPT}")
