"""What a cache keeps beside the files, so that opening from it reads almost nothing of the dump."""

from __future__ import annotations

import json
from dataclasses import dataclass

from postpanic.errors import CorruptError
from postpanic.kernel.debuginfo.module_layout import ModuleLayout

__all__ = ["CacheState", "decode_cache_state", "encode_cache_state"]


@dataclass(frozen=True, slots=True)
class CacheState:
    """
    Facts about one kernel build.

    ``modules_head`` is the link-time address of ``LIST_HEAD(modules)``, 0 where
    it is not known; ``module_layout`` None where the kernel has no modules or no
    types.
    """

    counts: dict[str, int]
    notes: list[str]
    module_layout: ModuleLayout | None
    modules_head: int


def encode_cache_state(state: CacheState) -> bytes:
    """Encode the facts as JSON."""
    layout = state.module_layout
    return json.dumps(
        {
            "counts": state.counts,
            "notes": state.notes,
            "module_layout": None if layout is None else layout.to_json(),
            "modules_head": state.modules_head,
        }
    ).encode()


def decode_cache_state(data: bytes | None) -> CacheState | None:
    """Decode the facts; None where there are none or they are not what was written."""
    if data is None:
        return None
    try:
        values = json.loads(data)
        counts, notes, head = values["counts"], values["notes"], values["modules_head"]
        if not isinstance(counts, dict) or not isinstance(notes, list) or type(head) is not int:
            return None
        if not 0 <= head < 1 << 64 or any(type(count) is not int for count in counts.values()):
            return None
        layout = values["module_layout"]
        return CacheState(
            {str(name): count for name, count in counts.items()},
            [str(note) for note in notes],
            None if layout is None else ModuleLayout.from_json(layout),
            head,
        )
    except (ValueError, TypeError, KeyError, CorruptError):
        return None
