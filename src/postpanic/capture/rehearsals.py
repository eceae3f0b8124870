"""
What is remembered of the last rehearsal: ``rehearsal.json``, beside the image.

A rehearsal proves one configuration: this kernel, this image, this command
line, this reservation, these targets. Its fingerprint is made of their contents,
not of times and places, so that it is the same for a host and for a copy of its
files; when one of them changes the proof is one of something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from postpanic.capture.arming.state import write_atomically

__all__ = ["REHEARSAL_NAME", "Rehearsal", "find_changes", "read_rehearsal", "take_fingerprint", "write_rehearsal"]

REHEARSAL_NAME = "rehearsal.json"
SCHEMA_VERSION = 1
_LIMIT_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_LISTS = ("kinds", "unproven", "runs")

Verdict = Literal["proven", "broken"]


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """
    How a rehearsal ended.

    Attributes
    ----------
    when : str
        ISO 8601, UTC: ``2026-11-21T19:41:07Z``.
    verdict : str
        ``proven``, or ``broken``.
    broken_link : str
        What broke, in a phrase; empty: nothing.
    kinds : tuple of str
        Crashes that were tried, as ``crash-test`` names them.
    fingerprint : dict
        As :func:`take_fingerprint` makes it.
    needed_bytes : int
        The smallest reservation that was found to work; 0: not looked for.
    peak_bytes : int
        The most memory that the capture kernel had in use; 0: not known.
    dump_bytes : int
        Of the dump.
    seconds : float
        From the panic to the dump on its target.
    unproven : tuple of str
        What a rehearsal cannot show.
    runs : tuple of str
        Each that was made, and what came of it, where there was more than one.
    """

    when: str
    verdict: Verdict
    broken_link: str = ""
    kinds: tuple[str, ...] = ()
    fingerprint: dict[str, str] = field(default_factory=dict)
    needed_bytes: int = 0
    peak_bytes: int = 0
    dump_bytes: int = 0
    seconds: float = 0.0
    unproven: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION


def take_fingerprint(
    kernel: Path, image: Path | bytes, command_line: str, targets: Sequence[str], reserved_bytes: int
) -> dict[str, str]:
    """
    Make a digest of each thing that a rehearsal proves, by what it is called in messages.

    Parameters
    ----------
    kernel : Path
        Its bootable file; a file that cannot be read has an empty digest.
    targets : sequence of str
        What tells them from others: as the resolved configuration describes them.
    """
    return {
        "the kernel": _digest_file(kernel),
        "the image": _digest_file(image) if isinstance(image, Path) else hashlib.sha256(image).hexdigest(),
        "the command line": hashlib.sha256(command_line.encode(errors="surrogateescape")).hexdigest(),
        "the targets": hashlib.sha256("\0".join(targets).encode(errors="surrogateescape")).hexdigest(),
        "the reservation": str(reserved_bytes),
    }


def find_changes(rehearsal: Rehearsal, now: Mapping[str, str]) -> list[str]:
    """Name what is not as it was rehearsed."""
    names = dict.fromkeys((*rehearsal.fingerprint, *now))
    return [name for name in names if rehearsal.fingerprint.get(name) != now.get(name)]


def read_rehearsal(path: Path) -> Rehearsal | None:
    """Read what is remembered; None if there is nothing, or nothing that can be used."""
    try:
        with path.open("rb") as stream:
            value = json.loads(stream.read(_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
        return None
    known = {one.name: one.type for one in fields(Rehearsal)}
    values = {name: item for name, item in value.items() if name in known}
    if value.get("verdict") not in {"proven", "broken"} or not all(map(_is_sound, values, values.values())):
        return None
    for name in _LISTS:
        values[name] = tuple(values.get(name, ()))
    try:
        return Rehearsal(**values)
    except TypeError:
        return None


def write_rehearsal(path: Path, rehearsal: Rehearsal) -> None:
    """
    Remember.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_atomically(path, (json.dumps(asdict(rehearsal), indent=1, sort_keys=True) + "\n").encode())


def _is_sound(name: str, item: object) -> bool:
    if name in _LISTS:
        return isinstance(item, list) and all(isinstance(one, str) for one in item)
    if name == "fingerprint":
        return isinstance(item, dict) and all(isinstance(one, str) for pair in item.items() for one in pair)
    if name in {"when", "verdict", "broken_link"}:
        return isinstance(item, str)
    return isinstance(item, int | float) and not isinstance(item, bool) and item >= 0


def _digest_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()
