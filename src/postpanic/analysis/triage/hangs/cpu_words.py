"""CPUs in words and as evidence."""

from __future__ import annotations

from collections.abc import Sequence

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.hangs.cpus import Cpu
from postpanic.analysis.triage.hangs.naming import function_of, module_of
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.findings.verdict import Evidence, Subject, Victim

__all__ = ["cpu_evidence", "evidence_of", "lock_name", "lock_subject", "name_cpu", "spin_victims", "where"]


def lock_name(picture: Picture, cpu: Cpu) -> str:
    """Name the lock that a CPU spins on."""
    return picture.names.thing(cpu.spin_kind or "spinlock", cpu.spins_on)


def where(frame: Frame | None) -> str:
    """Name a function and its module: ``f() [module]``."""
    function, module = function_of(frame), module_of(frame)
    if not function:
        return "somewhere"
    return f"{function}()" + (f" [{module}]" if module not in {"", "vmlinux"} else "")


def name_cpu(picture: Picture, cpu: Cpu) -> str:
    """Name a CPU and its task: ``CPU 0 (cat (PID 81))``."""
    return f"CPU {cpu.number} ({picture.names.task(cpu.facts)})"


def cpu_evidence(picture: Picture, cpu: Cpu, what: str = "") -> Evidence:
    """Give the stack that shows what a CPU was at."""
    doing = f"spins on {lock_name(picture, cpu)}" if cpu.spin_kind else f"was in {cpu.innermost or cpu.mode.value}()"
    return Evidence(what or f"{name_cpu(picture, cpu)} {doing}", f"bt -c {cpu.number}", cpu.innermost, cpu.facts.vaddr)


def _lock_word(picture: Picture, cpu: Cpu) -> Evidence | None:
    try:
        word = picture.workspace.memory.read_u32(cpu.spins_on) if cpu.spins_on else None
    except UNREADABLE:
        word = None
    if word is None:
        return None
    held = "locked" if word & 0xFF else "not locked"
    return Evidence(
        f"the word of {lock_name(picture, cpu)} is {word:#x}: {held}",
        f"rd -32 {cpu.spins_on:x}",
        f"{word:08x}",
        cpu.spins_on,
    )


def lock_subject(picture: Picture, cpu: Cpu) -> Subject:
    """Make the lock that a CPU spins on the subject of a finding."""
    return picture.names.subject("lock", cpu.spin_kind or "spinlock", cpu.spins_on)


def spin_victims(picture: Picture, spinning: Sequence[Cpu], guilty: Sequence[int]) -> tuple[Victim, ...]:
    """Give the tasks whose CPUs spin, but for some."""
    return tuple(
        picture.names.victim(cpu.facts, f"spins on {lock_name(picture, cpu)} on CPU {cpu.number}")
        for cpu in spinning
        if cpu.number not in guilty
    )


def evidence_of(picture: Picture, cpus: Sequence[Cpu]) -> tuple[Evidence, ...]:
    """Give the stacks of CPUs, and the words of the locks that they spin on."""
    found: list[Evidence] = []
    for cpu in cpus:
        found.append(cpu_evidence(picture, cpu))
        word = _lock_word(picture, cpu) if cpu.spin_kind else None
        found += [word] if word is not None else []
    return tuple(found)
