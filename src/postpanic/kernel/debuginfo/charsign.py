"""Whether plain ``char`` is signed, which BTF does not tell."""

from __future__ import annotations

from postpanic.errors import AbsentError
from postpanic.kernel.btf import Btf
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory

__all__ = ["detect_signed_char"]

_SIGNED_BY_ABI = ("x86_64", "i686")
_EVENT = "trace_event_fields_sched_switch"
_FIELD = b"prev_comm"
_FIELD_LIMIT = 16


def detect_signed_char(memory: KernelMemory, symbols: SymbolTable, btf: Btf) -> bool:
    """
    Tell whether plain ``char`` is signed.

    The kernel is built with ``-funsigned-char`` since 6.2 (3bc753c06dd0), whatever
    the machine's ABI says. ``struct trace_event_fields`` records it: the field
    ``prev_comm`` of the event ``sched_switch`` is an array of ``char``, and
    ``is_signed`` is what the compiler said of its element. Without that event
    the ABI decides.
    """
    try:
        layout = btf.find_struct("trace_event_fields")
        vaddr = symbols.find(_EVENT).vaddr
        for index in range(_FIELD_LIMIT):
            entry = vaddr + index * layout.size_bytes
            name = memory.read_u64(entry + layout.offset_of("name"))
            if not name:
                break
            if memory.read_c_string(name) == _FIELD:
                # A bool in 5.10, an int elsewhere: nonzero in the first byte.
                return memory.read_u8(entry + layout.offset_of("is_signed")) != 0
    except AbsentError:
        pass
    return memory.machine in _SIGNED_BY_ABI
