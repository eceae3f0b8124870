"""
Lines of call traces, on every architecture.

::

     ? do_sys_open+0x10/0x20 [ext4]                         x86, arm64, riscv, s390 (new)
     [<ffffffff81234567>] ? do_sys_open+0x10/0x20           x86, arm64 before v4.10
     do_sys_open+0x10/0x20 fs/open.c:12                     symbolised
     do_open fs/open.c:10 [inline]
     [<c0101234>] (show_stack) from [<c0105678>] (dump_stack+0xa0/0xc0)     arm
     show_stack from dump_stack+0xa0/0xc0                                   arm since v5.18
     [c00000007a3efa20] [c00000000030a060] do_open+0x10/0x20 (unreliable)   powerpc
     ([<0000000000123456>] do_open+0x10/0x20)                               s390

References
----------
lib/vsprintf.c ``symbol_string``; kernel/kallsyms.c ``__sprint_symbol``;
arch/x86/kernel/dumpstack.c, arch/arm/kernel/traps.c, arch/powerpc/kernel/process.c, arch/s390/kernel/dumpstack.c.
"""

from __future__ import annotations

import re

from postpanic.evidence.oops.model import Frame

__all__ = ["SYMBOL", "base_name", "parse_frames", "symbol_of"]

_NAME = r"[A-Za-z_$.][\w$.]{0,255}"
_OFFSET = r"\+0x([0-9a-f]{1,16})/0x([0-9a-f]{1,16})"
_MODULE = r"(?: {1,4}\[([\w-]{1,64})(?: ([0-9a-f]{40})\b)?[^\]]{0,120}\])?"
_PLACE = r"(?: {1,4}([\w./+-]{1,255}:\d{1,7}))?"
_FRAME = re.compile(
    r"[ \t]{0,24}(?:<([A-Z]{2,6})>[ \t]{0,8})?(\()?((?:\[<?[0-9a-fx]{4,18}>?\][ \t]{0,4}){0,2})(\? )?"
    r"(\()?(" + _NAME + r")" + _OFFSET + r"\)?" + _MODULE + _PLACE + r"(.{0,40})"
)
_INLINE = re.compile(
    r"[ \t]{0,24}(?:\[<?[0-9a-fx]{4,18}>?\][ \t]{0,4}){0,2}(\? )?"
    r"([\w$.<>:]{1,255})(?:\+0x[0-9a-f]{1,16}/0x[0-9a-f]{1,16})? ([\w./+-]{1,255}:\d{1,7}) \[inline\]"
)
_FROM = re.compile(
    r"[ \t]{0,8}(?:\[<?([0-9a-f]{4,16})>?\] )?\(?("
    + _NAME
    + r")(?:\+0x([0-9a-f]{1,16})(?:/0x([0-9a-f]{1,16}))?)?"
    + r"(?: \[[\w-]{1,64}\])?\)? from (?:\[<?([0-9a-f]{4,16})>?\] )?\(?("
    + _NAME
    + r")"
    + _OFFSET
    + r"\)?"
    + _MODULE
    + r"\)?"
    + _PLACE
)
_ADDRESS_ONLY = re.compile(r"[ \t]{0,24}(?:\[<([0-9a-f]{8,16})>\] )?(\? )?0x([0-9a-f]{4,16})(?:/0x[0-9a-f]{1,16})?$")
_HEX = re.compile(r"[0-9a-f]{6,16}")
SYMBOL = re.compile(r"(?<![\w$.])(" + _NAME + r")" + _OFFSET + _MODULE + _PLACE)
"""A symbol with its offset and size, anywhere in a line."""


def parse_frames(text: str, context: str = "") -> list[Frame]:
    """
    Read one line of a trace; an empty list if it is none.

    Parameters
    ----------
    context : str
        The stack that the line is on, as the last marker said.

    >>> [(frame.function, frame.is_reliable) for frame in parse_frames(" ? do_sys_open+0x10/0x20 [ext4]")]
    [('do_sys_open', False)]
    """
    if "+0x" not in text:
        return _parse_plain(text, context)
    if " from " in text and (match := _FROM.match(text)):
        return _arm_frames(match, context)
    match = _FRAME.match(text)
    if match is None:
        return _parse_plain(text, context)
    marker, bracket, addresses, doubt, _, name, offset, size, module, build_id, place, rest = match.groups()
    if "[inline]" in rest and (inline := _parse_plain(text, context)):
        return inline
    if rest and not rest.startswith((" (unreliable)", " (discriminator", " ", ")")):
        return []
    address = None
    if addresses:
        found = _HEX.findall(addresses)
        address = int(found[-1], 16) if found else None
    reliable = not doubt and not bracket and "(unreliable)" not in rest
    return [
        Frame(
            name,
            int(offset, 16),
            int(size, 16),
            module or "",
            address,
            reliable,
            context=marker or context,
            location=place or "",
            module_build_id=build_id or "",
        )
    ]


def _arm_frames(match: re.Match[str], context: str) -> list[Frame]:
    callee_address, callee, _, _, address, name, offset, size, module, build_id, place = match.groups()
    inner = Frame(callee, address=_hex(callee_address), context=context)
    outer = Frame(
        name,
        int(offset, 16),
        int(size, 16),
        module or "",
        _hex(address),
        context=context,
        location=place or "",
        module_build_id=build_id or "",
    )
    return [inner, outer]


def _parse_plain(text: str, context: str) -> list[Frame]:
    if text.endswith("[inline]") and (match := _INLINE.match(text)):
        doubt, name, place = match.groups()
        return [Frame(name, is_reliable=not doubt, is_inline=True, context=context, location=place)]
    if "0x" in text and (match := _ADDRESS_ONLY.match(text)):
        _, doubt, address = match.groups()
        return [Frame("", address=int(address, 16), is_reliable=not doubt, context=context)]
    return []


def _hex(text: str | None) -> int | None:
    return int(text, 16) if text else None


def symbol_of(text: str) -> Frame | None:
    """Return the first symbol with an offset in a line, None if there is none."""
    match = SYMBOL.search(text)
    if match is None:
        return None
    name, offset, size, module, build_id, place = match.groups()
    return Frame(
        name, int(offset, 16), int(size, 16), module or "", location=place or "", module_build_id=build_id or ""
    )


def base_name(function: str) -> str:
    """
    Cut what the compiler put behind a function's name.

    >>> base_name("kfree_skb.part.0"), base_name("foo.isra.3.cold"), base_name(".sys_read")
    ('kfree_skb', 'foo', 'sys_read')
    """
    return function.lstrip(".").partition(".")[0] if function[:1] != "<" else function
