"""
What a strict expert would say of each scenario: the truth files.

``truth.toml`` of a scenario has:

``kinds``
    Kinds of report, any of which is right (:class:`postpanic.evidence.oops.kinds.Kind`).
``causes``
    Any of which is right (:class:`postpanic.findings.verdict.Cause`).
``functions``
    Any of which may be blamed; none: no function is at fault.
``module``
    Of the function; ``vmlinux``, or empty where none is at fault.
``[subject]``
    ``category``, ``type``, ``name``: the object, lock or task; what is left out is not asked for.
``victims``
    Tasks that suffer without being at fault.
``not_blamed``
    Functions and tasks that the report names and that are not at fault.
``says``
    Lists of alternatives; one of each list is in the sentence.
``may_be_proven``
    Whether a dump can show it beyond doubt.
``[lab]``
    ``boot``: words for the kernel's command line; ``timeout_s``; ``disk_iops``;
    ``recipe``: a scenario of :mod:`tests.vm.recipes` whose dump it is.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["SCENARIOS_DIR", "Truth", "list_truths"]

SCENARIOS_DIR = Path(__file__).parent / "scenarios" / "triage"
_KEYS = {"kinds", "causes", "functions", "module", "subject", "victims", "not_blamed", "says", "may_be_proven", "lab"}
_LAB_KEYS = {"boot", "timeout_s", "disk_iops", "recipe"}


@dataclass(frozen=True, eq=False)
class Truth:
    """A scenario, and what is true of it."""

    directory: Path
    kinds: tuple[str, ...]
    causes: tuple[str, ...]
    functions: tuple[str, ...] = ()
    module: str = ""
    subject: dict[str, str] = field(default_factory=dict)
    victims: tuple[str, ...] = ()
    not_blamed: tuple[str, ...] = ()
    says: tuple[tuple[str, ...], ...] = ()
    may_be_proven: bool = False
    boot: str = ""
    timeout_s: float = 30.0
    disk_iops: int = 0
    recipe: str = ""

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.directory.name

    @cached_property
    def sources(self) -> list[Path]:
        """All that decides what the dump is like."""
        return sorted(path for path in self.directory.iterdir() if path.name != "truth.toml")

    @cached_property
    def module_sources(self) -> list[Path]:
        return [path for path in self.sources if path.suffix == ".c" and "MODULE_LICENSE" in path.read_text()]

    @cached_property
    def program_sources(self) -> list[Path]:
        return [path for path in self.sources if path.suffix == ".c" and path not in self.module_sources]


def read_truth(directory: Path) -> Truth:
    """Read a scenario's truth file; a word that is not known is an error."""
    content: dict[str, Any] = tomllib.loads((directory / "truth.toml").read_text())
    unknown = (content.keys() - _KEYS) | (content.get("lab", {}).keys() - _LAB_KEYS)
    if unknown:
        raise ValueError(f"{directory.name}: truth.toml has {sorted(unknown)}")
    lab = content.get("lab", {})
    return Truth(
        directory,
        kinds=tuple(content["kinds"]),
        causes=tuple(content["causes"]),
        functions=tuple(content.get("functions", ())),
        module=content.get("module", ""),
        subject=dict(content.get("subject", {})),
        victims=tuple(content.get("victims", ())),
        not_blamed=tuple(content.get("not_blamed", ())),
        says=tuple(tuple(group) for group in content.get("says", ())),
        may_be_proven=content.get("may_be_proven", False),
        boot=lab.get("boot", ""),
        timeout_s=lab.get("timeout_s", 30.0),
        disk_iops=lab.get("disk_iops", 0),
        recipe=lab.get("recipe", ""),
    )


def list_truths() -> list[Truth]:
    """Return all scenarios, by name."""
    return [read_truth(path.parent) for path in sorted(SCENARIOS_DIR.glob("*/truth.toml"))]
