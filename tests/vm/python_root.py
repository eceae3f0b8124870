"""The tree that capture images are made from: Debian 12's Python, numpy, zstandard and ssh, unpacked and never run."""

from __future__ import annotations

from pathlib import Path

from postpanic.rehearse.store import PackageStore
from tests.vm.host_disk import SUITES, resolve_packages
from tests.vm.lab import Lab

__all__ = ["fetch_python_root"]

PACKAGES = ("openssh-client", "python3", "python3-numpy", "python3-zstandard")


def fetch_python_root(lab: Lab) -> Path:
    """Return the tree, from the cache or unpacked now."""
    return PackageStore(lab.cache_dir, "unpacked").fetch(SUITES, " ".join(PACKAGES), resolve_packages)[1]
