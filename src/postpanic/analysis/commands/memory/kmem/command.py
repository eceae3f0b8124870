"""The command ``kmem``: which of its answers is wanted."""

from __future__ import annotations

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.memory.kmem import slabs
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer

__all__ = ["kmem"]

_OPTIONS = (
    Option("-s", "slabs", "slab caches, with the objects that they have in use"),
    Option(
        "-S", "slab_objects", "slab caches with all slabs and objects; of these CPUs only", value="CPUS", attached=True
    ),
    Option("-r", "accumulated", "slab caches, those of memory cgroups added to their root caches"),
    Option("-I", "ignore", "with -s, -S and -r: leave these caches out", value="CACHE[,CACHE]"),
)


@command(
    "kmem",
    summary="kernel memory",
    description="Show what kernel memory is used for.",
    options=_OPTIONS,
    operands=(Operand("address", "address, or name of a slab cache", many=True),),
    shapes=(slabs.CACHES, slabs.NAMES, slabs.DETAILS),
    examples=(Example("kmem -s", "slab caches"),),
)
def kmem(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show what kernel memory is used for."""
    if arguments.has("slabs") or arguments.has("slab_objects") or arguments.has("accumulated"):
        return slabs.show_caches(workspace, arguments)
    raise UsageError("kmem: what is to be shown?", hint="help kmem")
