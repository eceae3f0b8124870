"""``swap``: swap devices and files."""

from __future__ import annotations

from drgn import Object
from drgn.helpers.linux.swap import for_each_swap_info, swap_is_file, swap_usage_in_pages

from postpanic.analysis.cells import cell, guarded, problem
from postpanic.analysis.commands.arguments import Arguments
from postpanic.analysis.commands.files import shared_paths
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.findings.table import Answer, Cell, Column, Kind, Problem, Shape

__all__ = ["swap"]

_DEVICES = Shape(
    "devices",
    (
        Column("swap_info", Kind.ADDRESS, title="SWAP_INFO_STRUCT", help="struct swap_info_struct *."),
        Column("type", title="TYPE", help="PARTITION or FILE.", width=9),
        Column("size", Kind.NUMBER, title="SIZE", suffix="k", help="Size, KiB.", width=9),
        Column("used", Kind.NUMBER, title="USED", suffix="k", help="What is in use, KiB.", width=9),
        Column("percent", Kind.NUMBER, title="PCT", suffix="%", help="Used of the size."),
        Column("priority", Kind.NUMBER, title="PRI", help="Priority; the highest is used first."),
        Column("file", title="FILENAME", help="Path of the device or file."),
    ),
)


@command(
    "swap",
    summary="swap device information",
    description="Show the swap devices and swap files, and how much of each is in use.",
    shapes=(_DEVICES,),
    examples=(Example("swap", "all of them"),),
)
def swap(workspace: Workspace, arguments: Arguments) -> Answer:  # noqa: ARG001
    """Show the swap devices."""
    problems: list[Problem] = []
    rows: list[tuple[Cell, ...]] = []
    try:
        devices = guarded(for_each_swap_info(workspace.prog), "swap devices", problems)
        rows += [_row(workspace, device) for device in devices]
    except UNREADABLE as exc:
        problems.append(problem("swap devices", exc))
    return Answer("swap", (_DEVICES.table(rows),), tuple(problems))


def _row(workspace: Workspace, device: Object) -> tuple[Cell, ...]:
    page_kib = workspace.memory.page_size_bytes >> 10
    size = cell(lambda: int(device.pages.value_()) * page_kib)
    used = cell(lambda: int(swap_usage_in_pages(device)) * page_kib)
    return (
        int(device.value_()),
        cell(lambda: "FILE" if swap_is_file(device) else "PARTITION"),
        size,
        used,
        used * 100 // size if isinstance(size, int) and isinstance(used, int) and size else None,
        cell(lambda: int(device.prio.value_())),
        cell(lambda: shared_paths(workspace).of_file(device.swap_file)),
    )
