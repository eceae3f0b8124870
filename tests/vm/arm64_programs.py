"""Debian's arm64 programs, unpacked and run under user-mode emulation: nothing of them is installed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from postpanic.rehearse.packages import Archive
from postpanic.rehearse.programs import UnpackedProgram, resolve_libraries
from postpanic.rehearse.store import Bundle, PackageStore

__all__ = ["fetch_emulator", "fetch_makedumpfile"]

EMULATOR = "usr/bin/qemu-aarch64-static"
LOADER = "ld-linux-aarch64.so.1"
MAKEDUMPFILE = "usr/bin/makedumpfile"


def fetch_makedumpfile(directory: Path) -> UnpackedProgram:
    """Return Debian's newest makedumpfile for arm64, which can filter dumps of arm64 alone."""
    emulator = fetch_emulator(directory)
    packages = PackageStore(directory, "unpacked", "arm64")
    bundle, entry = packages.fetch(("sid",), "makedumpfile", resolve_libraries)
    program = entry / MAKEDUMPFILE
    loader = next(path for path in sorted(entry.rglob(LOADER)) if path.is_file())
    libraries = entry / "usr/lib/aarch64-linux-gnu"
    command = (str(emulator), str(loader), "--library-path", str(libraries), str(program))
    return UnpackedProgram(program, bundle.main.version, command)


def fetch_emulator(directory: Path) -> Path:
    """Return QEMU's emulator of arm64 programs, of the host's architecture and without libraries."""
    suites = ("bookworm", "bookworm-security")
    _, entry = PackageStore(directory, "unpacked").fetch(suites, "qemu-user-static", _resolve_alone)
    return entry / EMULATOR


def _resolve_alone(archive: Archive, name: str) -> Bundle:
    package = replace(archive.find(re.escape(name))[-1], depends=())
    return Bundle(package, (package,))
