"""
Places in the code that a line of a log names, and whether each is the instruction itself or a return address.

A return address points behind the call, often at the next statement: one byte is taken off before it is looked up.
Not so the instruction that trapped or was interrupted: the program counter of a register dump, and what a trace shows
behind the entry of an exception.

References
----------
lib/vsprintf.c ``symbol_string`` (``%pB`` is a return address, ``%pS`` is not), kernel/kallsyms.c ``__sprint_symbol``;
arch/x86/kernel/dumpstack.c ``show_iret_regs``, ``show_trace_log_lvl``; arch/arm64/kernel/stacktrace.c
``dump_backtrace_entry`` (``(P)`` program counter, ``(L)`` link register); arch/arm/kernel/traps.c
``dump_backtrace_entry``, arch/arm/kernel/entry-armv.S; arch/riscv/kernel/stacktrace.c ``walk_stackframe``;
arch/powerpc/kernel/process.c ``show_stack``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Spot", "SpotReader"]

_SYMBOL = re.compile(
    r"(?<![\w$.])([A-Za-z_$.][\w$.]{0,255})\+0x([0-9a-f]{1,16})/0x([0-9a-f]{1,16})"
    r"(?: {1,4}\[([\w-]{1,64})(?: ([0-9a-f]{40})\b)?[^\]]{0,120}\])?"
)
_LOCATED = re.compile(r" {1,4}\(?[\w./+-]{1,255}:\d{1,7}\b")
"""What stands behind a symbol of a log that was symbolised before."""
_PC = re.compile(
    r"\b(?:RIP|EIP|PC is at|EIP is at|IP is at|NIP|epc ?:|pc ?:|era ?:|ERA:|Krnl PSW|IP):?[^+]{0,300}$"
    r"|WARNING: .{0,300} $"
)
"""What stands before the symbol of an instruction."""
_RETURNS = re.compile(r"\b(?:LR|lr|ra|RA|rp|LR is at) ?(?:\[|:)")
_NIP = re.compile(r"\bNIP\b")
_ENTRY = re.compile(
    r"(?:asm_(?:exc|sysvec|common)_\w{1,60}|asm_\w{1,40}_interrupt|common_interrupt|apic_timer_interrupt"
    r"|(?:reboot|reschedule|call_function|call_function_single|irq_work|thermal|threshold|error|spurious)_interrupt"
    r"|ret_from_intr|page_fault|async_page_fault|general_protection|invalid_op|divide_error|stack_segment|double_fault"
    r"|nmi|int3|debug|error_code|error_entry|do_softirq_own_stack"
    r"|el1t?h?(?:_64)?_(?:irq|sync|error|fiq|dbg|da|ia|undef|sp_pc)|__(?:irq|dabt|pabt|und|fiq)_svc"
    r"|handle_exception|ret_from_exception|handle_(?:adel|ades|tlbl|tlbs|tlbm|ibe|dbe|ri|reserved|int)"
    r"|handle_tlb_(?:load|store|modify|protect)(?:_ptw)?|handle_vint"
    r"|pgm_check_handler|(?:io|ext|mcck)_int_handler)$"
)
"""Functions that exceptions enter the kernel by: the frame behind one was interrupted."""
_CHANGED_STACK = frozenset({"do_softirq_own_stack"})
_PERIOD = re.compile(r" <(?:EOI|<EOE|/IRQ|/NMI)>")
_FLAGS = re.compile(r" \(([A-Z]{1,4})\)")
_RAW = re.compile(
    r"\[<([0-9a-f]{8}|[0-9a-f]{16})>\](?: {1,4}(?:\? )?0x[0-9a-f]{1,16}(?:/0x[0-9a-f]{1,16})?)?(?P<bare>[ \t]{0,16}$)?"
)
_BARE = re.compile(r"[ \t]{1,24}(?:\? )?0x([0-9a-f]{8,16})(?:/0x[0-9a-f]{1,16})?[ \t]{0,16}$")
_BESIDE = re.compile(r"(?:\[<?|<)([0-9a-f]{8}|[0-9a-f]{16})>?\][^\w]{0,6}$")


class Spot(NamedTuple):
    """
    One place in the code, and where in the line it is named.

    Parameters
    ----------
    function : str
        Empty: only the address is known.
    address : int, optional
        As it was when the kernel ran.
    is_exact : bool
        Whether it is an instruction; else a return address.
    end : int
        Behind it, in the line.
    """

    function: str
    offset: int
    size: int | None
    module: str
    module_build_id: str
    address: int | None
    is_exact: bool
    end: int


class SpotReader:
    """Reads the lines of one printk caller, one after the other."""

    def __init__(self) -> None:
        self._before = ""

    def read(self, text: str) -> list[Spot]:
        """
        Find what a line names.

        >>> [(spot.function, spot.is_exact) for spot in SpotReader().read("RIP: 0010:do_open+0x10/0x20")]
        [('do_open', True)]
        """
        if "+0x" in text:
            spots = list(self._symbols(text))
            if spots:
                return spots
        if "[<" in text or text.endswith(_HEX_DIGITS):
            return list(self._raw(text))
        return []

    def _symbols(self, text: str) -> Iterator[Spot]:
        start = 0
        for match in _SYMBOL.finditer(text):
            name, offset, size, module, build_id = match.groups()
            before = text[start : match.start()]
            beside = _BESIDE.search(before)
            spot = Spot(
                name,
                int(offset, 16),
                int(size, 16),
                module or "",
                build_id or "",
                int(beside[1], 16) if beside is not None else None,
                self._is_exact(before, text[match.end() : match.end() + 8], int(offset, 16)),
                match.end(),
            )
            self._before = name
            start = match.end()
            if _LOCATED.match(text, start) is None:
                yield spot

    def _is_exact(self, before: str, behind: str, offset: int) -> bool:
        if offset == 0:
            # No return address is the start of a function; a pointer to one is.
            return True
        if (flags := _FLAGS.match(behind)) is not None:
            return "P" in flags[1]
        if _PC.search(before) is not None:
            self._before = ""
            return not _RETURNS.search(before) or _NIP.search(before) is not None
        entered = self._before
        if " from " in before and (callee := before.partition(" from ")[0]):
            # arm: what was called stands before, without an offset.
            entered = callee.rstrip(")> ").rpartition("(")[2].rpartition(" ")[2]
        return entered not in _CHANGED_STACK and _ENTRY.match(entered) is not None

    def _raw(self, text: str) -> Iterator[Spot]:
        for match in _RAW.finditer(text):
            if match["bare"] is not None:
                is_exact = _PC.search(text[: match.start()]) is not None
                yield Spot("", 0, None, "", "", int(match[1], 16), is_exact, match.end() - len(match["bare"]))
                return
        if (bare := _BARE.match(text)) is not None:
            yield Spot("", 0, None, "", "", int(bare[1], 16), is_exact=False, end=len(text.rstrip()))

    def forget(self) -> None:
        """Forget what was before: another trace begins."""
        self._before = ""


_HEX_DIGITS = tuple("0123456789abcdef")
