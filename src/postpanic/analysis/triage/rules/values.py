"""
Values that C says nothing about, what Rust panics on, and calls that their target was not made for.

Sources: ``lib/ubsan.c``, ``kernel/cfi.c`` (``report_cfi_failure()``), ``rust/kernel/lib.rs``; the messages of Rust's
``core``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.rules.told import Rule, tell
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Finding

__all__ = ["find_rust_panic", "find_undefined", "find_wrong_call"]

_PLACE = re.compile(r"UBSAN: [\w '-]{1,60} in (?P<place>\S{1,200}:\d{1,6}):\d")
_TYPE = r"type '(?P<type>[^']{1,80})'"
_AT = re.compile(r"panicked at (?:'.{0,200}', )?(?P<place>[^\s:']{1,200}:\d{1,6})")
_CALLER = r"CFI failure at (?P<caller>[\w.]{1,120})\S{0,40}(?: \[[^\]]{1,60}\])? "
_FROM_ELSEWHERE = "a value that somebody else had made wrong"

_NUMBER = r"-?(?:0x[0-9a-f]{1,40}|\d{1,40})"


def _trap(words: str) -> re.Pattern[str]:
    return re.compile(rf"Internal error: UBSAN: {words}: [0-9a-f]{{8,16}} \[#")


_TRAPS = (
    Rule(
        _trap("array index out of bounds"),
        Cause.OUT_OF_BOUNDS,
        Confidence.LIKELY,
        "{who} uses an index in an array that ends before it; the kernel's check stopped it.",
        _FROM_ELSEWHERE,
    ),
    Rule(
        _trap("shift out of bounds"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} shifts a number otherwise than C has a result for.",
        _FROM_ELSEWHERE,
    ),
    Rule(
        _trap("integer (?P<what>addition|subtraction|multiplication) overflow"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} computes a number that does not fit into its type ({what}).",
        _FROM_ELSEWHERE,
    ),
    Rule(
        _trap("loading invalid value"),
        Cause.UNINITIALIZED,
        Confidence.POSSIBLE,
        "{who} reads a value that its type does not have: it was never set, or was written over.",
    ),
)
"""With CONFIG_UBSAN_TRAP there is no text, but what the instruction says: ``report_ubsan_failure()``."""
_UNDEFINED = (
    Rule(
        re.compile(rf"shift exponent (?P<value>{_NUMBER}) is (?:negative|too large)(?: for (?P<type>.{{1,60}}))?"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} shifts by {value}{place}, for which C has no result.",
        _FROM_ELSEWHERE,
        more=(_PLACE,),
    ),
    Rule(
        re.compile(rf"left shift of negative value (?P<value>{_NUMBER})"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} shifts {value} to the left{place}: of a negative number C has no result for that.",
        _FROM_ELSEWHERE,
        more=(_PLACE,),
    ),
    Rule(
        re.compile(
            rf"left shift of (?P<value>{_NUMBER}) by (?P<bits>{_NUMBER}) places cannot be represented in {_TYPE}"
        ),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} shifts {value} to the left by {bits}{place}, which does not fit into {type}.",
        _FROM_ELSEWHERE,
        more=(_PLACE,),
    ),
    Rule(
        re.compile(rf"negation of (?P<value>{_NUMBER}) cannot be represented in {_TYPE}"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} negates {value}{place}, which does not fit into {type}.",
        _FROM_ELSEWHERE,
        more=(_PLACE,),
    ),
    Rule(
        # The number that is printed is the divisor's: __ubsan_handle_divrem_overflow().
        re.compile(rf"division of {_NUMBER} by -1 cannot be represented in {_TYPE}"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} divides the smallest number by -1{place}, which does not fit into {type}.",
        _FROM_ELSEWHERE,
        more=(_PLACE,),
    ),
    Rule(
        re.compile(rf"(?P<value>{_NUMBER} [-+*/] {_NUMBER}) cannot be represented in {_TYPE}"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} computes {value}{place}, which does not fit into {type}.",
        _FROM_ELSEWHERE,
        more=(_PLACE,),
    ),
    Rule(
        re.compile(r"(?P<sign>signed|unsigned)[ -]integer[ -]overflow"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} computes a number{place} that does not fit into its {sign} type.",
        _FROM_ELSEWHERE,
        more=(_PLACE,),
    ),
    Rule(
        re.compile(r"division by zero"),
        Cause.DIVISION_BY_ZERO,
        Confidence.LIKELY,
        "{who} divides by zero{place}.",
        _FROM_ELSEWHERE,
        more=(_PLACE,),
    ),
    Rule(
        re.compile(rf"load of value (?P<value>\S{{1,40}}) is not a valid value for {_TYPE}"),
        Cause.UNINITIALIZED,
        Confidence.POSSIBLE,
        "{who} reads {value} as a {type}{place}, which none can be: it was never set, or was written over.",
        more=(_PLACE,),
    ),
    Rule(
        re.compile(rf"(?:member access within|load of|store to) null pointer of {_TYPE}"),
        Cause.NULL_POINTER,
        Confidence.LIKELY,
        "{who} uses a pointer to {type}{place} that is NULL.",
        more=(_PLACE,),
    ),
    Rule(
        # Since 4.15 %p is a hash of the address; this is no address of the kernel then: lib/vsprintf.c, ptr_to_id().
        re.compile(
            r"(?:member access within|load of|store to) misaligned address "
            rf"(?:(?P<pointer>ffff[0-9a-f]{{12}})|\S{{1,20}}) for {_TYPE}"
        ),
        Cause.WILD_POINTER,
        Confidence.POSSIBLE,
        "{who} uses {pointer} as a pointer to {type}{place}, which cannot lie there.",
        more=(_PLACE,),
    ),
    Rule(
        re.compile(r"(?:member access within|load of|store to) address \S{1,20} with insufficient space"),
        Cause.OUT_OF_BOUNDS,
        Confidence.POSSIBLE,
        "{who} uses memory as {type}{place} that is too small for it.",
        _FROM_ELSEWHERE,
        more=(_PLACE, re.compile(rf"for an object of {_TYPE}")),
    ),
    *_TRAPS,
)
_PANICKED = (
    Rule(
        re.compile(r"index out of bounds: the len is (?P<size>\d{1,20}) but the index is (?P<index>\d{1,20})"),
        Cause.OUT_OF_BOUNDS,
        Confidence.LIKELY,
        "{who} uses the index {index} in what has {size} elements{place}; Rust's check stopped it.",
        _FROM_ELSEWHERE,
        more=(_AT,),
    ),
    Rule(
        re.compile(r"attempt to (?P<what>add|subtract|multiply|negate|shift left|shift right) with overflow"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} computes a number{place} that does not fit into its type (attempt to {what}).",
        _FROM_ELSEWHERE,
        more=(_AT,),
    ),
    Rule(
        re.compile(r"attempt to (?:divide by zero|calculate the remainder with a divisor of zero)"),
        Cause.DIVISION_BY_ZERO,
        Confidence.LIKELY,
        "{who} divides by zero{place}.",
        _FROM_ELSEWHERE,
        more=(_AT,),
    ),
    Rule(
        _AT,
        Cause.ASSERTION,
        Confidence.POSSIBLE,
        "Code of Rust gave up{place}, in {who}: what it took for granted is not so.",
        _FROM_ELSEWHERE,
    ),
)
_CALLS = (
    Rule(
        # %pS of what no symbol covers is the address.
        re.compile(
            rf"{_CALLER}\(target: (?P<target>0x[0-9a-f]{{1,16}}); expected type: (?P<type>0x[0-9a-f]{{1,16}})\)"
        ),
        Cause.BAD_FUNCTION_POINTER,
        Confidence.LIKELY,
        "{who} calls {target}, which is no function.",
        "code that has no symbol",
        "target",
    ),
    Rule(
        re.compile(r"CFI failure \(target: (?P<target>0x[0-9a-f]{1,16})\)"),
        Cause.BAD_FUNCTION_POINTER,
        Confidence.LIKELY,
        "{who} calls {target}, which is no function.",
        "code that has no symbol",
        "target",
    ),
    Rule(
        re.compile(
            rf"{_CALLER}"
            r"\(target: (?P<target>[\w.]{1,120})\S{0,40}(?: \[[^\]]{1,60}\])?; "
            r"expected type: (?P<type>0x[0-9a-f]{1,16})\)"
        ),
        Cause.BAD_FUNCTION_POINTER,
        Confidence.LIKELY,
        "{who} calls {target}() through a pointer to functions of another type (its hash would be {type}).",
        "a function that is only declared otherwise than it is called",
        "target",
    ),
    Rule(
        re.compile(r"CFI failure \(target: (?P<target>[\w.]{1,120})"),
        Cause.BAD_FUNCTION_POINTER,
        Confidence.LIKELY,
        "{who} calls {target}() through a pointer to functions of another type.",
        "a function that is only declared otherwise than it is called",
        "target",
    ),
)


@detector(
    "undefined-value",
    needs=(Need.REPORT,),
    about="shifts, overflows and values that C says nothing about, as UBSAN says",
    depth=60,
    kinds=(Kind.UBSAN,),
)
def find_undefined(scene: Scene) -> Iterator[Finding]:
    """Say which value it was, and where in the source."""
    yield from tell(scene, "undefined-value", _UNDEFINED, reword=_reword)


@detector(
    "rust-panic",
    needs=(Need.REPORT,),
    about="what Rust's own checks stopped: indexes, overflows, divisions, what was taken for granted",
    depth=60,
    kinds=(Kind.RUST_PANIC,),
)
def find_rust_panic(scene: Scene) -> Iterator[Finding]:
    """Say which check it was, and where in the source."""
    yield from tell(scene, "rust-panic", _PANICKED, reword=_reword)


@detector(
    "wrong-call",
    needs=(Need.REPORT,),
    about="calls through pointers to functions of another type, as control-flow integrity says",
    depth=60,
    kinds=(Kind.CFI,),
)
def find_wrong_call(scene: Scene) -> Iterator[Finding]:
    """Name the caller and what it called."""
    yield from tell(scene, "wrong-call", _CALLS)


def _reword(words: dict[str, str]) -> None:
    place = words.get("place", "")
    words["place"] = f" ({place})" if place else ""
    pointer = words.get("pointer", "")
    words["pointer"] = f"0x{pointer}" if pointer else "an address"
    words["type"] = words.get("type") or "an object"
