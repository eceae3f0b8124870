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
_FROM_ELSEWHERE = "a value that somebody else had made wrong"

_UNDEFINED = (
    Rule(
        re.compile(r"shift exponent (?P<value>-?\d{1,40}) is (?:negative|too large)(?: for (?P<type>.{1,60}))?"),
        Cause.ARITHMETIC,
        Confidence.LIKELY,
        "{who} shifts by {value}{place}, for which C has no result.",
        _FROM_ELSEWHERE,
        more=(_PLACE,),
    ),
    Rule(
        re.compile(rf"(?P<value>-?\d{{1,40}} [-+*/] -?\d{{1,40}}) cannot be represented in {_TYPE}"),
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
        re.compile(rf"(?:member access within|load of|store to) misaligned address (?P<value>\S{{1,20}}) for {_TYPE}"),
        Cause.WILD_POINTER,
        Confidence.POSSIBLE,
        "{who} uses {value} as a pointer to {type}{place}, which cannot lie there.",
        more=(_PLACE,),
    ),
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
        re.compile(
            r"CFI failure at (?P<caller>[\w.]{1,120})\S{0,40}(?: \[[^\]]{1,60}\])? "
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
