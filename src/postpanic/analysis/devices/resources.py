"""Trees of ``struct resource``: I/O ports and I/O memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Object

from postpanic.analysis.cells import decode, guarded
from postpanic.findings.table import Problem

__all__ = ["Resource", "read_resources"]


@dataclass(frozen=True, slots=True)
class Resource:
    """A range that belongs to something."""

    vaddr: int
    """``struct resource *``."""
    start: int
    end: int
    """The last number of it."""
    name: str
    depth: int
    """0 for those directly below the root."""


def read_resources(root: Object, what: str, problems: list[Problem]) -> Iterator[Resource]:
    """Walk all resources below a root (``ioport_resource``, ``iomem_resource``), in the order of ``/proc/ioports``."""
    walk = guarded(_walk(root), what, problems, key=lambda item: int(item[0].value_()))
    for resource, depth in walk:
        name = resource.name.read_()
        yield Resource(
            int(resource.value_()),
            int(resource.start.value_()),
            int(resource.end.value_()),
            decode(name.string_()) if name else "<BAD>",
            depth,
        )


def _walk(root: Object) -> Iterator[tuple[Object, int]]:
    pending = [(root.child.read_(), 0)]
    while pending:
        resource, depth = pending.pop()
        if not resource:
            continue
        yield resource, depth
        pending.append((resource.sibling.read_(), depth))
        pending.append((resource.child.read_(), depth + 1))
