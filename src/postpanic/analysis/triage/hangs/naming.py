"""The words for tasks, locks and code in findings about hangs."""

from __future__ import annotations

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.places import open_places
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.workspace import Workspace
from postpanic.findings.verdict import Subject, Victim

__all__ = ["Namer", "function_of", "module_of", "seconds"]


def function_of(frame: Frame | None) -> str:
    """Name the function of a frame, without what the compiler put behind it; empty: not known."""
    if frame is None or frame.place is None:
        return ""
    return frame.place.function.partition(".")[0]


def module_of(frame: Frame | None) -> str:
    """Name the module of a frame's function; empty: not known."""
    if frame is None or frame.place is None or not frame.place.function:
        return ""
    return frame.place.module or "vmlinux"


def seconds(nanoseconds: int | None) -> str:
    """Say how long something takes by now; empty: not known."""
    return f"{nanoseconds / 1e9:.0f} s" if nanoseconds is not None else ""


class Namer:
    """
    Names what is in a dump.

    Parameters
    ----------
    workspace : Workspace
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def task(self, facts: TaskFacts) -> str:
        """Name a task: ``cat (PID 81)``."""
        try:
            return f"{facts.comm} (PID {facts.pid})"
        except UNREADABLE:
            return f"task {facts.vaddr:x}"

    def pid(self, facts: TaskFacts) -> str:
        """Give what commands take for the task: its PID, else its address."""
        try:
            return str(facts.pid)
        except UNREADABLE:
            return f"{facts.vaddr:x}"

    def victim(self, facts: TaskFacts, why: str) -> Victim:
        """Make a victim of a task."""
        try:
            return Victim(facts.comm, facts.pid, why)
        except UNREADABLE:
            return Victim(f"task {facts.vaddr:x}", None, why)

    def symbol(self, vaddr: int) -> str:
        """Name a variable or function by its symbol; empty: there is none."""
        try:
            symbol = self._workspace.prog.symbol(vaddr)
        except LookupError:
            return ""
        offset = vaddr - int(symbol.address)
        if symbol.size and offset >= symbol.size:
            return ""
        return f"{symbol.name}+{offset:#x}" if offset else str(symbol.name)

    def module_at(self, vaddr: int) -> str:
        """Name the module that an address of code or data belongs to; empty: none, or the kernel itself."""
        try:
            module = self._workspace.prog.module(vaddr)
        except LookupError:
            return ""
        name = str(module.name)
        return "" if name == "kernel" else name

    def holding(self, vaddr: int) -> str:
        """Say what an address is in: ``kmalloc-96 object ffff…``; empty: nobody knows."""
        try:
            place = open_places(self._workspace).short(vaddr)
        except UNREADABLE:
            return ""
        if place is None or place.kind == "symbol":
            return ""
        module = self.module_at(vaddr)
        return f"data of module {module}" if module else place.text

    def thing(self, kind: str, vaddr: int) -> str:
        """Name a lock or another thing that is waited for: ``mutex left``, ``mutex ffff… of harbour``."""
        if not vaddr:
            return f"a {kind}"
        symbol = self.symbol(vaddr)
        if symbol:
            return f"{kind} {symbol}"
        # Not every kernel keeps the names of modules' variables.
        module = self.module_at(vaddr)
        return f"{kind} {vaddr:x}{f' of {module}' if module else ''}"

    def subject(self, category: str, kind: str, vaddr: int, detail: str = "") -> Subject:
        """Make a subject of a thing in memory."""
        where = self.holding(vaddr) if vaddr else ""
        detail = "; ".join(part for part in (detail, f"in {where}" if where else "") if part)
        return Subject(category, kind, self.symbol(vaddr) if vaddr else "", vaddr or None, detail)
