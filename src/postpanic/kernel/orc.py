"""
ORC: the kernel's own unwind tables on x86-64, and stack traces by them alone.

``.orc_unwind_ip`` says where code changes how its frame is found,
``.orc_unwind`` how. The layout of an entry's flags changed three times
(``arch/x86/include/asm/orc_types.h``); no two layouts allow the same tables, so
the table itself tells which it is:

======== ====== ====== ========= ======== ===================================
layout   bits 0-3, 4-7 type      more     change
======== ============= ========= ======== ===================================
V1       sp_reg bp_reg 8-9       10 end   4.14 (ee9f8fce9964)
V2       the same      8-9       10 signal, 11 end: 6.3 (ffb1b4a41016)
V3       the same      8-10      11 signal: 6.4 (fb799447ae29)
V4       renumbered    8-10      11 signal: 7.1
======== ============= ========= ======== ===================================
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from postpanic.errors import AbsentError, CorruptError, FactAbsentError
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.prologue import decode_frame_layout

__all__ = [
    "OrcEntry",
    "OrcLayout",
    "OrcRegister",
    "OrcTable",
    "OrcType",
    "StackFrame",
    "decode_orc",
    "read_orc",
    "unwind",
]

_ENTRY = np.dtype([("sp_offset", "<i2"), ("bp_offset", "<i2"), ("flags", "<u2")])
_LIMIT_BYTES = 32 << 20
_WORD = (1 << 64) - 1
_CODE_LIMIT_BYTES = 64 << 10
_DWARF_RBP = 6
MAX_FRAMES = 256


class OrcLayout(enum.Enum):
    """How the flags of an entry are laid out."""

    V1 = 1
    V2 = 2
    V3 = 3
    V4 = 4


class OrcType(enum.IntEnum):
    """``ORC_TYPE_*`` of 6.4 and newer."""

    UNDEFINED = 0
    END_OF_STACK = 1
    CALL = 2
    REGS = 3
    REGS_PARTIAL = 4


class OrcRegister(enum.IntEnum):
    """``ORC_REG_*`` as numbered before 7.1."""

    UNDEFINED = 0
    PREV_SP = 1
    DX = 2
    DI = 3
    BP = 4
    SP = 5
    R10 = 6
    R13 = 7
    BP_INDIRECT = 8
    SP_INDIRECT = 9
    AX = 10


_RENUMBERED = (
    OrcRegister.UNDEFINED,
    OrcRegister.AX,
    OrcRegister.DX,
    OrcRegister.SP,
    OrcRegister.BP,
    OrcRegister.DI,
    OrcRegister.R10,
    OrcRegister.R13,
    OrcRegister.PREV_SP,
    OrcRegister.SP_INDIRECT,
    OrcRegister.BP_INDIRECT,
)
"""``ORC_REG_*`` of 7.1 and newer, by number."""

_BP_REGISTERS = (OrcRegister.UNDEFINED, OrcRegister.PREV_SP, OrcRegister.BP)
"""What the previous frame pointer is ever found by."""


@dataclass(frozen=True, slots=True)
class OrcEntry:
    """How to find the caller from one stretch of code."""

    type: OrcType
    sp_register: OrcRegister
    sp_offset: int
    bp_register: OrcRegister
    bp_offset: int
    signal: bool
    """Whether the address is that of an interrupted instruction, not of a call."""


@dataclass(frozen=True, slots=True)
class OrcTable:
    """
    Decoded tables, by rising address.

    ``type``, ``sp_register`` and ``bp_register`` hold the values of
    :class:`OrcType` and :class:`OrcRegister`, whatever the layout.
    """

    layout: OrcLayout
    vaddrs: NDArray[np.uint64]
    type: NDArray[np.uint8]
    sp_register: NDArray[np.uint8]
    sp_offset: NDArray[np.int16]
    bp_register: NDArray[np.uint8]
    bp_offset: NDArray[np.int16]
    signal: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.vaddrs)

    def find(self, pc: int) -> OrcEntry:
        """
        Find the entry that covers an address.

        Raises
        ------
        FactAbsentError
            If none does.
        """
        row = int(np.searchsorted(self.vaddrs, np.uint64(pc & _WORD), side="right")) - 1
        if row < 0:
            raise FactAbsentError(f"no unwind entry covers {pc:#x}")
        return OrcEntry(
            OrcType(int(self.type[row])),
            OrcRegister(int(self.sp_register[row])),
            int(self.sp_offset[row]),
            OrcRegister(int(self.bp_register[row])),
            int(self.bp_offset[row]),
            bool(self.signal[row]),
        )


def decode_orc(
    ip_vaddr: int, ips: bytes, entries: bytes, *, where: str = "ORC", layout: OrcLayout | None = None
) -> OrcTable:
    """
    Decode the two tables.

    Parameters
    ----------
    ip_vaddr : int
        Address of ``.orc_unwind_ip``, to whose elements its values are relative.
    ips, entries : bytes
        Contents of ``.orc_unwind_ip`` and ``.orc_unwind``.
    layout : OrcLayout, optional
        The kernel's, for the tables of a module: a small one may be legal in several.

    Raises
    ------
    CorruptError
        If the sizes do not agree or no layout allows the entries.
    """
    if len(ips) % 4 or len(entries) % _ENTRY.itemsize or len(ips) // 4 != len(entries) // _ENTRY.itemsize:
        raise CorruptError(f"{len(ips)} bytes of addresses for {len(entries)} bytes of unwind entries", where=where)
    offsets = np.frombuffer(ips, dtype="<i4").astype(np.int64)
    vaddrs = (np.arange(len(offsets), dtype=np.int64) * 4 + offsets).view(np.uint64) + np.uint64(ip_vaddr)
    rows = np.frombuffer(entries, dtype=_ENTRY)
    layout = layout or _detect_layout(rows["flags"], where)
    kind, sp_register, bp_register, signal = _normalise(rows["flags"], layout)
    table = OrcTable(layout, vaddrs, kind, sp_register, rows["sp_offset"], bp_register, rows["bp_offset"], signal)
    if bool((vaddrs[1:] > vaddrs[:-1]).all()):
        return table
    # Where an end of one object file meets the beginning of the next, the real entry counts.
    order = np.lexsort((kind != OrcType.UNDEFINED, vaddrs))
    return OrcTable(
        layout,
        vaddrs[order],
        kind[order],
        sp_register[order],
        table.sp_offset[order],
        bp_register[order],
        table.bp_offset[order],
        signal[order],
    )


def read_orc(memory: KernelMemory, symbols: SymbolTable) -> OrcTable:
    """
    Read vmlinux's tables, between the symbols of ``include/asm-generic/vmlinux.lds.h``.

    Raises
    ------
    AbsentError
        If the kernel has none or the dump does not hold them.
    CorruptError
        If they are damaged.
    """
    blocks: list[bytes] = []
    start = 0
    for name in ("orc_unwind_ip", "orc_unwind"):
        start = int(symbols.find(f"__start_{name}").vaddr)
        size = int(symbols.find(f"__stop_{name}").vaddr) - start
        if not 0 < size <= _LIMIT_BYTES:
            raise FactAbsentError(f"the kernel's {name} has {size} bytes")
        blocks.append(memory.read(start, size))
    ip_vaddr = int(symbols.find("__start_orc_unwind_ip").vaddr)
    return decode_orc(ip_vaddr, *blocks, where=f"ORC at {ip_vaddr:#x}")


def _detect_layout(flags: NDArray[np.uint16], where: str) -> OrcLayout:
    """
    Find the one layout that allows every entry.

    A small table may be legal in several; then the one in which most frames are
    found by the stack pointer, as nearly all are.
    """
    counts = np.bincount(flags, minlength=1 << 16)
    values = np.flatnonzero(counts).astype(np.uint16)
    by_sp = {
        layout: int(counts[values[_normalise(values, layout)[1] == OrcRegister.SP]].sum())
        for layout in OrcLayout
        if _allows(layout, values)
    }
    best = [layout for layout, count in by_sp.items() if count == max(by_sp.values())]
    if len(best) != 1:
        what = "no known layout" if not best else "more than one layout"
        raise CorruptError(f"{what} of unwind entries allows these {len(flags)} entries", where=where)
    return best[0]


def _allows(layout: OrcLayout, flags: NDArray[np.uint16]) -> bool:
    kind, sp_register, bp_register, _ = _normalise(flags, layout)
    if layout is OrcLayout.V1:
        unused = flags >> 11
        no_frame = np.zeros(len(flags), dtype=np.bool_)
        raw_kind_ok = (flags >> 8) & 3 <= 2
    elif layout is OrcLayout.V2:
        unused = flags >> 12
        # Nothing unknown is a signal frame; in V1 the same bit ends the stack.
        no_frame = (flags & 0xF == 0) & (flags & 0xC00 == 0x400)
        raw_kind_ok = (flags >> 8) & 3 <= 2
    else:
        unused = flags >> 12
        no_frame = (kind <= OrcType.END_OF_STACK) & (flags & 0xFF != 0)
        no_frame |= (kind > OrcType.END_OF_STACK) & (flags & 0xF == 0)
        raw_kind_ok = (flags >> 8) & 7 <= OrcType.REGS_PARTIAL
    known = (sp_register < len(OrcRegister)) & np.isin(bp_register, _BP_REGISTERS)
    # The caller's stack pointer is never found by itself.
    known &= sp_register != OrcRegister.PREV_SP
    return bool((known & raw_kind_ok & ~no_frame & (unused == 0)).all())


def _normalise(
    flags: NDArray[np.uint16], layout: OrcLayout
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]:
    """Split flags into type, registers and the signal flag, in the terms of 6.4."""
    sp_register = (flags & 0xF).astype(np.uint8)
    bp_register = (flags >> 4 & 0xF).astype(np.uint8)
    if layout in (OrcLayout.V3, OrcLayout.V4):
        kind = (flags >> 8 & 7).astype(np.uint8)
        signal = flags & 0x800 != 0
    else:
        raw = (flags >> 8 & 3).astype(np.uint8)
        end = flags & (0x400 if layout is OrcLayout.V1 else 0x800) != 0
        kind = np.where(
            sp_register == 0, np.where(end, OrcType.END_OF_STACK, OrcType.UNDEFINED), raw + np.uint8(OrcType.CALL)
        ).astype(np.uint8)
        # Before the flag existed, register frames were taken for signal frames.
        signal = raw > 0 if layout is OrcLayout.V1 else flags & 0x400 != 0
    if layout is OrcLayout.V4:
        numbers = np.full(16, 0xFF, dtype=np.uint8)
        numbers[: len(_RENUMBERED)] = _RENUMBERED
        sp_register, bp_register = numbers[sp_register], numbers[bp_register]
    return kind, sp_register, bp_register, signal


@dataclass(frozen=True, slots=True)
class StackFrame:
    """One frame of a stack trace."""

    pc: int
    sp: int
    symbol: str
    """``name+0xoffset``; empty where no symbol covers the address."""
    stopped: str = ""
    """Why the trace ends here, in the last frame; empty at the stack's regular end."""
    regs_vaddr: int = 0
    """The ``struct pt_regs`` between this frame and its caller, which was interrupted; 0: the caller called."""


_PT_REGS = {"r13": 16, "bp": 32, "r10": 56, "ax": 80, "dx": 96, "di": 112, "ip": 128, "cs": 136, "sp": 152}
"""Offsets in ``struct pt_regs`` of x86-64 (``arch/x86/include/asm/ptrace.h``)."""
_PT_REGS_SIZE_BYTES = 168
_IRET_OFFSET = _PT_REGS["ip"]
_USER_MODE = 3

_REGISTER_NAMES = {
    OrcRegister.BP: "bp",
    OrcRegister.SP: "sp",
    OrcRegister.BP_INDIRECT: "bp",
    OrcRegister.SP_INDIRECT: "sp",
    OrcRegister.R10: "r10",
    OrcRegister.R13: "r13",
    OrcRegister.DX: "dx",
    OrcRegister.DI: "di",
    OrcRegister.AX: "ax",
}


class _EndError(Exception):
    """The trace ends; the message says why, or is empty for the regular end."""


def unwind(
    memory: KernelMemory,
    table: OrcTable,
    symbols: SymbolTable | None,
    *,
    pc: int,
    sp: int,
    fp: int = 0,
    interrupted: bool = True,
) -> list[StackFrame]:
    """
    Follow a stack from its innermost frame out.

    Parameters
    ----------
    pc, sp, fp : int
        The registers ``rip``, ``rsp`` and ``rbp``.
    interrupted : bool
        Whether *pc* is an interrupted instruction; False: a return address.

    Returns
    -------
    list of StackFrame
        At least the innermost; at most 256. Nothing is raised: the last frame
        says why it is the last.
    """
    registers = {"ip": pc & _WORD, "sp": sp & _WORD, "bp": fp & _WORD}
    frames: list[StackFrame] = []
    why = f"more than {MAX_FRAMES} frames"
    while len(frames) < MAX_FRAMES:
        here = StackFrame(registers["ip"], registers["sp"], _symbolise(symbols, registers["ip"], interrupted))
        frames.append(here)
        try:
            entry = table.find(registers["ip"] - (0 if interrupted else 1))
            if entry.type == OrcType.REGS:
                frames[-1] = replace(here, regs_vaddr=_frame_vaddr(memory, entry, registers))
            if entry.type == OrcType.UNDEFINED:
                registers, interrupted = _step_by_code(memory, symbols, registers), False
            else:
                registers, interrupted = _step(memory, entry, registers)
        except _EndError as end:
            why = str(end)
            break
        except AbsentError as error:
            why = str(error)
            break
    frames[-1] = replace(frames[-1], stopped=why)
    return frames


def _symbolise(symbols: SymbolTable | None, pc: int, interrupted: bool) -> str:
    if symbols is None:
        return ""
    try:
        symbol, offset = symbols.at(pc - (0 if interrupted else 1))
    except FactAbsentError:
        return ""
    return f"{symbol.name}+{offset + (0 if interrupted else 1):#x}"


def _step(memory: KernelMemory, entry: OrcEntry, registers: dict[str, int]) -> tuple[dict[str, int], bool]:
    """Go from one frame to its caller; gives the caller's registers and whether it was interrupted."""
    if entry.type == OrcType.END_OF_STACK:
        raise _EndError
    frame = _frame_vaddr(memory, entry, registers)
    if entry.type == OrcType.CALL:
        caller = {"ip": memory.read_u64((frame - 8) & _WORD), "sp": frame}
        caller["bp"] = _caller_bp(memory, entry, registers, frame)
        if frame <= registers["sp"] and entry.sp_register in (OrcRegister.SP, OrcRegister.BP):
            raise _EndError(f"the stack does not rise: {frame:#x} after {registers['sp']:#x}")
        return caller, False
    if entry.type == OrcType.REGS:
        data = memory.read(frame, _PT_REGS_SIZE_BYTES)
        caller = {name: int.from_bytes(data[at : at + 8], "little") for name, at in _PT_REGS.items()}
    else:
        data = memory.read(frame, _PT_REGS_SIZE_BYTES - _IRET_OFFSET)
        caller = {
            name: int.from_bytes(data[(at := _PT_REGS[name] - _IRET_OFFSET) : at + 8], "little")
            for name in ("ip", "cs", "sp")
        }
        caller["bp"] = _caller_bp(memory, entry, registers, frame)
    if caller.pop("cs") & _USER_MODE:
        raise _EndError
    return caller, True


def _step_by_code(memory: KernelMemory, symbols: SymbolTable | None, registers: dict[str, int]) -> dict[str, int]:
    """Go to the caller of a function without unwind entries, by the function's own code."""
    end = _EndError(f"the kernel has no unwind information for {registers['ip']:#x}")
    if symbols is None:
        raise end
    symbol, offset = symbols.at(registers["ip"])
    if not 0 < symbol.size_bytes <= _CODE_LIMIT_BYTES:
        raise end
    layout = decode_frame_layout(memory.read(symbol.vaddr, symbol.size_bytes))
    if layout is None:
        raise end
    row = layout.at(offset)
    frame = (registers["sp"] + row.cfa_offset) & _WORD
    caller = {"ip": memory.read_u64((frame - 8) & _WORD), "sp": frame, "bp": registers["bp"]}
    for register, below in row.saved:
        if register == _DWARF_RBP:
            caller["bp"] = memory.read_u64((frame - below) & _WORD)
    return caller


def _frame_vaddr(memory: KernelMemory, entry: OrcEntry, registers: dict[str, int]) -> int:
    name = _REGISTER_NAMES.get(entry.sp_register, "")
    if name not in registers:
        raise _EndError(f"register {name or entry.sp_register.name} is not known at {registers['ip']:#x}")
    base = registers[name]
    if entry.sp_register == OrcRegister.BP_INDIRECT:
        return memory.read_u64((base + entry.sp_offset) & _WORD)
    if entry.sp_register == OrcRegister.SP_INDIRECT:
        # The saved pointer is at the top; the offset counts from it (87ccc826bf1c).
        return (memory.read_u64(base) + entry.sp_offset) & _WORD
    return (base + entry.sp_offset) & _WORD


def _caller_bp(memory: KernelMemory, entry: OrcEntry, registers: dict[str, int], frame: int) -> int:
    if entry.bp_register == OrcRegister.PREV_SP:
        return memory.read_u64((frame + entry.bp_offset) & _WORD)
    if entry.bp_register == OrcRegister.BP:
        return memory.read_u64((registers["bp"] + entry.bp_offset) & _WORD)
    return registers["bp"]
