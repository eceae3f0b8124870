"""Words that name one object, or its copies on several CPUs: ``address``, ``symbol:cpus``."""

from __future__ import annotations

from dataclasses import dataclass

from drgn.helpers.linux.sched import task_cpu

from postpanic.analysis.commands.values import parse_cpus, parse_vaddr
from postpanic.analysis.expressions import evaluate_number
from postpanic.analysis.expressions.per_cpu import find_per_cpu_vaddr
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError

__all__ = ["Target", "find_cpus", "find_targets", "find_vaddr", "split_cpus"]


@dataclass(frozen=True, slots=True)
class Target:
    """An object's address, and the CPU whose copy it is."""

    vaddr: int
    cpu: int | None = None

    @property
    def title(self) -> str | None:
        """What crash writes above the copy of one CPU."""
        return None if self.cpu is None else f"[{self.cpu}]: {self.vaddr:x}"


def split_cpus(text: str) -> tuple[str, str | None]:
    """
    Split ``word:cpus``; None where no colon stands outside of parentheses.

    >>> split_cpus("irq_stat:0-1")
    ('irq_stat', '0-1')
    """
    word, colon, cpus = text.rpartition(":")
    if not colon or ")" in cpus or "?" in word:
        return text, None
    return word, cpus


def find_cpus(workspace: Workspace, text: str) -> list[int]:
    """Parse the CPUs behind a colon: nothing is the CPU of the current task."""
    return [int(task_cpu(workspace.task))] if not text else parse_cpus(workspace, text)


def find_targets(workspace: Workspace, text: str) -> list[Target]:
    """
    Find the addresses that a word names.

    Raises
    ------
    UsageError
        If it is no address, or names a CPU that is not there.
    FactAbsentError
        If there is no such symbol.
    """
    word, cpus = split_cpus(text)
    vaddr = find_vaddr(workspace, word)
    if cpus is None:
        return [Target(vaddr)]
    return [Target(find_per_cpu_vaddr(workspace.prog, vaddr, cpu), cpu) for cpu in find_cpus(workspace, cpus)]


def find_vaddr(workspace: Workspace, word: str) -> int:
    """Find the address that a word names: as :func:`parse_vaddr` does, and C expressions without parentheses."""
    try:
        return parse_vaddr(workspace, word)
    except (FactAbsentError, UsageError):
        # init_task.tasks, &init_task: as good as in parentheses.
        if not any(sign in word for sign in (".", "->", "&", "[")):
            raise
        return evaluate_number(workspace.prog, word)
