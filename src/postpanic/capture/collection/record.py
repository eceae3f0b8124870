"""What was found out about a dump when it was collected: ``collected.json``, beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from postpanic.capture.arming.state import write_atomically

__all__ = ["RECORD_NAME", "DumpRecord", "Verdict", "read_record", "write_record"]

RECORD_NAME = "collected.json"
SCHEMA_VERSION = 1
_LIMIT_BYTES = 1 << 18
_FLAGS = ("untold", "untriaged")

Verdict = Literal["good", "bad", "unverified"]


@dataclass(frozen=True, kw_only=True)
class DumpRecord:
    """
    What is known of a dump.

    Attributes
    ----------
    when : str
        It was collected: ISO 8601, UTC.
    verdict : str
        ``good``: every file is as its manifest says, and the dump is whole; ``bad``; ``unverified``: there is no
        manifest, or no dump.
    faults : tuple of str
        What is wrong, a phrase each.
    title, kind, signature : str
        Of the report in its log that came first; empty: there is none.
    release : str
        Of the kernel that crashed.
    untold : bool
        Whether somebody is yet to be told of it.
    untriaged : bool
        Whether its cause is yet to be looked for.
    """

    when: str
    verdict: Verdict
    faults: tuple[str, ...] = ()
    title: str = ""
    kind: str = ""
    signature: str = ""
    release: str = ""
    untold: bool = False
    untriaged: bool = False
    schema_version: int = SCHEMA_VERSION


def read_record(directory: Path) -> DumpRecord | None:
    """Read what is known of the dump in a directory; None if there is nothing, or nothing that can be used."""
    try:
        with (directory / RECORD_NAME).open("rb") as stream:
            value = json.loads(stream.read(_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
        return None
    known = {one.name for one in fields(DumpRecord)}
    values = {name: item for name, item in value.items() if name in known}
    faults = values.pop("faults", [])
    texts = [item for name, item in values.items() if name not in ("schema_version", *_FLAGS)]
    if (
        not isinstance(faults, list)
        or not all(isinstance(values.get(name, False), bool) for name in _FLAGS)
        or not all(isinstance(one, str) for one in (*faults, *texts))
    ):
        return None
    try:
        return DumpRecord(**values, faults=tuple(faults))
    except TypeError:
        return None


def write_record(directory: Path, record: DumpRecord) -> None:
    """
    Write it.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    content = (json.dumps(asdict(record), indent=1, sort_keys=True) + "\n").encode()
    write_atomically(directory / RECORD_NAME, content, 0o600)
