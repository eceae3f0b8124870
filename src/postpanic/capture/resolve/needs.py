"""What the image must have so that the saver reaches its targets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from postpanic.saver.plan import NetworkPlan

__all__ = ["FoundNetwork", "ImageFile", "Needs", "merge_needs"]


@dataclass(frozen=True)
class ImageFile:
    """
    A file of this machine that goes into the image.

    Attributes
    ----------
    path : str
        In the image.
    source : Path
        Here.
    """

    path: str
    source: Path


@dataclass(frozen=True)
class Needs:
    """
    What one or several targets need.

    Attributes
    ----------
    modules : tuple of str
        Names, in no order; those that are built in or unknown may be among them.
    places : tuple of Path
        Directories in sysfs of the devices; what is above them is needed too.
    programs : tuple of str
        Programs of this machine, by path or name.
    evidence : tuple of str
        How each target will be found, a line each.
    warnings : tuple of str
        What may go wrong all the same.
    has_ssh, has_https : bool
        What the image needs for them.
    """

    modules: tuple[str, ...] = ()
    places: tuple[Path, ...] = ()
    files: tuple[ImageFile, ...] = ()
    programs: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    has_ssh: bool = False
    has_https: bool = False


@dataclass(frozen=True)
class FoundNetwork:
    """
    How the servers are reached.

    Attributes
    ----------
    plan : NetworkPlan
    modules : tuple of str
        Names of the modules of the cards and of what is made of them.
    sysfs_paths : tuple of str
        Of the cards, below ``/sys/devices``.
    devices : tuple of Path
        The cards' directories in sysfs, whose drivers are not yet among *modules* for another kernel.
    """

    plan: NetworkPlan
    modules: tuple[str, ...] = ()
    sysfs_paths: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    devices: tuple[Path, ...] = ()


def merge_needs(parts: Iterable[Needs]) -> Needs:
    """Put the needs of several together, each thing once, in the order of the parts."""
    parts = list(parts)
    return Needs(
        modules=tuple(dict.fromkeys(name for part in parts for name in part.modules)),
        places=tuple(dict.fromkeys(place for part in parts for place in part.places)),
        files=tuple(dict.fromkeys(one for part in parts for one in part.files)),
        programs=tuple(dict.fromkeys(name for part in parts for name in part.programs)),
        evidence=tuple(dict.fromkeys(line for part in parts for line in part.evidence)),
        warnings=tuple(dict.fromkeys(line for part in parts for line in part.warnings)),
        has_ssh=any(part.has_ssh for part in parts),
        has_https=any(part.has_https for part in parts),
    )
