"""File systems that are frozen: what writes to them waits until they are thawed."""

from __future__ import annotations

from dataclasses import dataclass

import drgn
from drgn import Object
from drgn.helpers.linux.list import list_for_each_entry

from postpanic.analysis.cells import decode, guarded, problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.hangs.picture import Picture, Thing

__all__ = ["Frozen", "find_frozen"]

_LEVELS = {1: "against writes", 2: "against page faults", 3: "inside the file system", 4: "completely"}
"""``SB_FREEZE_WRITE`` and on (``include/linux/fs.h``)."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A ``struct super_block`` that is frozen, and how far."""

    vaddr: int
    name: str
    level: str


def find_frozen(picture: Picture, thing: Thing) -> Frozen | None:
    """Find the frozen file system whose per-CPU rw-semaphore a thing is (``super_block.s_writers``)."""
    if thing.kind != "percpu-rwsem" or not thing.vaddr:
        return None
    prog = picture.scene.prog
    try:
        type_ = prog.type("struct super_block")
        start = int(drgn.offsetof(type_, "s_writers"))
        size = int(drgn.sizeof(type_.member("s_writers").type))
        head = Object(prog, "struct list_head", address=prog.symbol("super_blocks").address)
        blocks = list_for_each_entry("struct super_block", head.address_of_(), "s_list")
        for block in guarded(blocks, "list of file systems", picture.scene.problems):
            vaddr = int(block.value_())
            if 0 <= thing.vaddr - vaddr - start < size:
                level = _LEVELS.get(int(block.s_writers.frozen.value_()))
                return Frozen(vaddr, _name(block), level) if level is not None else None
    except UNREADABLE as exc:
        picture.scene.problems.append(problem("frozen file systems", exc))
    return None


def _name(block: Object) -> str:
    try:
        kind = decode(block.s_type.name.string_())
    except UNREADABLE:
        kind = ""
    return " ".join(part for part in (kind, decode(block.s_id.string_())) if part)
