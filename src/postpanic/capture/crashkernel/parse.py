"""
What the kernel makes of ``crashkernel=``.

The kernel's own rules, its oddities included: a word is found anywhere in the
command line (``strstr()``), the last one counts, a plain size comes before
``,high``, and a size below 1 is no error but no reservation.

Source: ``parse_crashkernel()`` and what it calls, ``kernel/crash_reserve.c``
(``kernel/crash_core.c`` before 6.9, ``kernel/kexec.c`` before 3.16); sizes:
``memparse()``, ``lib/cmdline.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from postpanic.units import MIB, format_size

__all__ = ["NAME", "ParsedRequest", "ParserFeatures", "RangeSize", "parse_command_line", "read_number"]

NAME = "crashkernel="
ROUND_BYTES = 128 * MIB
"""Ranges are compared with the size of memory rounded up to this."""

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_SHIFTS = {suffix: 10 * (power + 1) for power, suffix in enumerate("KMGTPE")}
_MASK = (1 << 64) - 1

Suffix = Literal["high", "low", "cma"]


@dataclass(frozen=True)
class ParserFeatures:
    """
    What a kernel's parser knows.

    Attributes
    ----------
    high : bool
        ``,high`` and ``,low``: x86-64 since 3.9, arm64 since 6.0, RISC-V since 6.6, LoongArch since 6.9.
    cma : bool
        ``,cma``, since 6.17.
    auto : str
        What ``auto`` stands for, of a distribution that has ``CONFIG_CRASH_AUTO_STR``; empty: no such word.
    """

    high: bool = True
    cma: bool = False
    auto: str = ""


@dataclass(frozen=True)
class RangeSize:
    """
    One ``START-END:SIZE``.

    Attributes
    ----------
    start_bytes, end_bytes : int
        Memory for which it is meant; no end: None.
    size_bytes : int
        What is reserved then.
    """

    start_bytes: int
    end_bytes: int | None
    size_bytes: int

    def holds(self, total_bytes: int) -> bool:
        """Tell whether this much memory is in the range."""
        return self.start_bytes <= total_bytes and (self.end_bytes is None or total_bytes < self.end_bytes)


@dataclass(frozen=True)
class ParsedRequest:
    """
    What is asked of the kernel.

    Attributes
    ----------
    words : tuple of str
        All ``crashkernel=`` of the command line, in their order.
    used : str
        The one that settles the size; empty: none.
    size_bytes : int
        To be reserved; 0: nothing is.
    base : int or None
        Where, if that is given.
    is_high : bool
        Whether above 4 GiB is tried first.
    low_bytes : int or None
        Of ``,low``; None: not given, and the kernel takes its default if the rest is above 4 GiB.
    cma_bytes : int
        Lent to processes until the crash, besides.
    ranges : tuple of RangeSize
        As far as the kernel reads them.
    problem : str
        Why nothing is reserved, in the kernel's sense; empty: something is.
    remarks : tuple of str
        What is worth knowing.
    """

    words: tuple[str, ...] = ()
    used: str = ""
    size_bytes: int = 0
    base: int | None = None
    is_high: bool = False
    low_bytes: int | None = None
    cma_bytes: int = 0
    ranges: tuple[RangeSize, ...] = ()
    problem: str = ""
    remarks: tuple[str, ...] = ()


class _RefusedError(Exception):
    """The kernel answers EINVAL; the text is why."""


def read_number(text: str, at: int = 0) -> tuple[int, int]:
    """
    Read a size as ``memparse()`` does.

    Returns
    -------
    tuple of int
        The value in bytes, and the place after it; *at* itself where there is none.

    >>> read_number("64M,2G"), read_number("0x10k@"), read_number("auto"), read_number("M")
    ((67108864, 3), (16384, 5), (0, 0), (0, 1))
    """
    found = _NUMBER.match(text, at)
    value, end = 0, at
    if found:
        digits, end = found[0], found.end()
        if digits[:2] in ("0x", "0X"):
            value = int(digits, 16)
        elif digits[0] == "0" and len(digits) > 1:
            octal = re.match(r"[0-7]+", digits)
            value, end = int(octal[0], 8) if octal else 0, at + (octal.end() if octal else 0)
        else:
            value = int(digits)
        value = min(value, _MASK)
    shift = _SHIFTS.get(text[end : end + 1].upper())
    return (value << shift & _MASK, end + 1) if shift else (value, end)


def parse_command_line(command_line: str, total_bytes: int, features: ParserFeatures | None = None) -> ParsedRequest:
    """
    Decode what a kernel with this command line and this much memory is asked to reserve.

    Parameters
    ----------
    total_bytes : int
        Memory of the machine, as the kernel counts it (``memblock_phys_mem_size()``).
    features : ParserFeatures, optional
        What this kernel's parser knows.
    """
    features = features or ParserFeatures()
    words = tuple(_find_words(command_line))
    if not words:
        return ParsedRequest(problem="the command line has no crashkernel=")
    known: tuple[Suffix, ...] = ("high", "low", *(("cma",) if features.cma else ()))
    plain = [word for word in words if not word.endswith(tuple(f",{suffix}" for suffix in known))]
    remarks = _list_remarks(words, plain, features)
    cma_bytes = _parse_suffix_or_zero(words, "cma") if features.cma else 0
    used = plain[-1] if plain else ""
    try:
        if plain:
            request = _parse_plain(used, total_bytes, features)
        else:
            request, used = _parse_high(words, features)
        if not request.size_bytes:
            raise _RefusedError(request.problem or "a size of 0")
        if request.size_bytes >= total_bytes:
            raise _RefusedError(f"{format_size(request.size_bytes)} of {format_size(total_bytes)} of memory")
    except _RefusedError as exc:
        ranges = _read_ranges(used, features)
        return ParsedRequest(words, used, ranges=ranges, cma_bytes=cma_bytes, problem=str(exc), remarks=remarks)
    return ParsedRequest(
        words,
        used,
        request.size_bytes,
        request.base,
        request.is_high,
        request.low_bytes,
        cma_bytes,
        _read_ranges(used, features),
        "",
        remarks,
    )


def _find_words(command_line: str) -> list[str]:
    """Find what follows each ``crashkernel=``, wherever it stands in a word, up to the next space."""
    return re.findall(r"(?=crashkernel=([^ \n]*))", command_line)


def _list_remarks(words: tuple[str, ...], plain: list[str], features: ParserFeatures) -> tuple[str, ...]:
    remarks = []
    high = [word for word in words if word.endswith((",high", ",low"))]
    if plain and high:
        remarks.append(f"{', '.join(high)}: not looked at, because {plain[-1]} is there")
    if len(plain) > 1:
        remarks.append(f"{', '.join(plain[:-1])}: not looked at, {plain[-1]} comes later")
    if plain and plain[-1].endswith(",cma") and not features.cma:
        remarks.append("this kernel does not know ,cma: it makes the whole request void")
    return tuple(remarks)


def _parse_plain(word: str, total_bytes: int, features: ParserFeatures) -> ParsedRequest:
    if features.auto and word.startswith("auto"):
        word = features.auto
    if ":" in word:
        return _parse_ranges(word, total_bytes)
    size, at = read_number(word)
    if at == 0:
        raise _RefusedError(_explain_no_number(word))
    base = None
    if word[at : at + 1] == "@":
        base, _ = read_number(word, at + 1)
    elif at < len(word):
        raise _RefusedError(f"{word[at]!r} after the size is not understood: {word}")
    # Offset 0 is the same to the kernel as no offset.
    return ParsedRequest(size_bytes=size, base=base or None)


def _explain_no_number(word: str) -> str:
    if word.startswith("auto"):
        return "auto is no size to this kernel"
    return f"a size is expected: {word}"


def _parse_ranges(word: str, total_bytes: int) -> ParsedRequest:
    total = -(-total_bytes // ROUND_BYTES) * ROUND_BYTES
    at, size = 0, 0
    while True:
        entry, at = _read_range(word, at)
        if entry.size_bytes >= total:
            raise _RefusedError(f"a size of {format_size(entry.size_bytes)} in a range is more than there is memory")
        if entry.holds(total):
            size = entry.size_bytes
            break
        if word[at : at + 1] != ",":
            break
        at += 1
    if not size:
        return ParsedRequest(problem=f"none of its ranges has {format_size(total)} of memory and a size")
    place = word.find("@", at)
    if place < 0:
        return ParsedRequest(size_bytes=size)
    base, end = read_number(word, place + 1)
    if end == place + 1:
        raise _RefusedError(f"an address is expected after @: {word}")
    return ParsedRequest(size_bytes=size, base=base or None)


def _read_range(word: str, at: int) -> tuple[RangeSize, int]:
    start, next_at = read_number(word, at)
    if next_at == at:
        raise _RefusedError(f"a size is expected at {word[at:]!r}")
    at = next_at
    if word[at : at + 1] != "-":
        raise _RefusedError(f"'-' is expected at {word[at:]!r}")
    at += 1
    end = None
    if word[at : at + 1] != ":":
        end, next_at = read_number(word, at)
        if next_at == at:
            raise _RefusedError(f"a size is expected at {word[at:]!r}")
        if end <= start:
            raise _RefusedError(f"a range ends where it begins, or before: {word}")
        at = next_at
    if word[at : at + 1] != ":":
        raise _RefusedError(f"':' is expected at {word[at:]!r}")
    at += 1
    size, next_at = read_number(word, at)
    if next_at == at:
        raise _RefusedError(f"a size is expected at {word[at:]!r}")
    return RangeSize(start, end, size), next_at


def _read_ranges(word: str, features: ParserFeatures) -> tuple[RangeSize, ...]:
    """Read all ranges, for people; the kernel stops at the one that fits."""
    if features.auto and word.startswith("auto"):
        word = features.auto
    ranges: list[RangeSize] = []
    at = 0
    while ":" in word:
        try:
            entry, at = _read_range(word, at)
        except _RefusedError:
            break
        ranges.append(entry)
        if word[at : at + 1] != ",":
            break
        at += 1
    return tuple(ranges)


def _parse_high(words: tuple[str, ...], features: ParserFeatures) -> tuple[ParsedRequest, str]:
    high = [word for word in words if word.endswith(",high")]
    if not features.high or not high:
        lacking = "this machine's kernel does not know ,high" if high else "no size without ,low or ,cma"
        raise _RefusedError(lacking)
    low = [word for word in words if word.endswith(",low")]
    size = _parse_suffix(high[-1], "high")
    low_bytes = _parse_suffix(low[-1], "low") if low else None
    return ParsedRequest(size_bytes=size, is_high=True, low_bytes=low_bytes), high[-1]


def _parse_suffix(word: str, suffix: Suffix) -> int:
    size, at = read_number(word)
    if at == 0:
        raise _RefusedError(f"a size is expected: {word}")
    if word[at:] != f",{suffix}":
        raise _RefusedError(f"{word[at:]!r} after the size is not understood: {word}")
    return size


def _parse_suffix_or_zero(words: tuple[str, ...], suffix: Suffix) -> int:
    found = [word for word in words if word.endswith(f",{suffix}")]
    try:
        return _parse_suffix(found[-1], suffix) if found else 0
    except _RefusedError:
        return 0
