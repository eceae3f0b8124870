"""The code that faulted with the instruction marked, and the registers of the moment with what they point to."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.decode.addresses import describe_value
from postpanic.analysis.memory.places import open_places
from postpanic.analysis.page.evidence import run_line
from postpanic.analysis.triage import Fault, Scene
from postpanic.findings.page import Line, Listing, Section
from postpanic.findings.table import Cell, Column, Kind, Shape

__all__ = ["describe_code", "describe_registers"]

_BEFORE, _AFTER = 24, 10
REGISTERS = Shape(
    "registers",
    (
        Column("name", title="REGISTER"),
        Column("value", Kind.ADDRESS, title="VALUE"),
        Column("meaning", title="WHAT IT IS"),
    ),
)
_NO_POINTERS = frozenset(
    {"cs", "ss", "ds", "es", "fs", "gs", "eflags", "rflags", "orig_rax", "pstate", "knlgs", "pkru"}
)


def describe_code(scene: Scene) -> Section | None:
    """Disassemble around the instruction that faulted; None: there was none, or it is not in code."""
    fault = scene.fault
    if fault is None or fault.pc is None or fault.place is None or not fault.place.function:
        return None
    try:
        records = run_line(scene.dump, f"dis {fault.place.start:#x} {_count(fault)}").table.records()
    except UNREADABLE:
        return None
    pc = fault.pc
    place = next((number for number, record in enumerate(records) if record["address"] == pc), None)
    if place is None:
        return None
    lines = tuple(
        Line(str(record["text"]), is_marked=record["address"] == pc)
        for record in records[max(0, place - _BEFORE) : place + _AFTER + 1]
    )
    module = f" [{fault.place.module}]" if fault.place.module else ""
    title = f"{fault.place.function}+{fault.place.offset:#x}{module}"
    return Section("code", "Code that faulted", listings=(Listing(title, lines),))


def _count(fault: Fault) -> int:
    # No instruction is shorter than a byte; the listing is cut afterwards.
    return (fault.place.offset if fault.place is not None else 0) + _AFTER + 1


def describe_registers(scene: Scene) -> Section | None:
    """List the registers of the fault; None: none are known."""
    fault = scene.fault
    if fault is None:
        return None
    rows = list(_rows(scene, fault))
    return Section("registers", "Registers of the moment", tables=(REGISTERS.table(rows),)) if rows else None


def _rows(scene: Scene, fault: Fault) -> Iterator[tuple[Cell, ...]]:
    for name, value in fault.registers.items():
        yield name, value, None if name in _NO_POINTERS else _meaning(scene, fault, value) or None


def _meaning(scene: Scene, fault: Fault, value: int) -> str:
    if scene.workspace is not None and value >> 47:
        try:
            place = open_places(scene.workspace).short(value)
        except UNREADABLE:
            place = None
        if place is not None:
            return str(place)
    return describe_value(value, fault.report.architecture)
