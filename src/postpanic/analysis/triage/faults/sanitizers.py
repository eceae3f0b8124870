"""What sanitizers and the kernel's checks of pages and bounds report, with the stacks and places that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from postpanic.analysis.triage.faults.reports import find_line
from postpanic.analysis.triage.faults.uses import Culprit, find_culprit, module_in
from postpanic.analysis.triage.faults.wording import who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report, Section
from postpanic.evidence.oops.functions import part_of, plain_name
from postpanic.evidence.oops.kinds import Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_bad_page", "find_bounds", "find_sanitizer"]

_CAUSES = (
    ("use-after-free", Cause.USE_AFTER_FREE, "after it had been freed"),
    ("double-free", Cause.DOUBLE_FREE, "which had been freed already"),
    ("invalid-free", Cause.DOUBLE_FREE, "which is no object to free"),
    ("invalid free", Cause.DOUBLE_FREE, "which is no object to free"),
    ("out-of-bounds", Cause.OUT_OF_BOUNDS, "beyond its bounds"),
    ("memory corruption", Cause.OUT_OF_BOUNDS, "whose surroundings were written over"),
    ("null-ptr-deref", Cause.NULL_POINTER, "which is NULL"),
    ("wild-memory-access", Cause.WILD_POINTER, "which is no address"),
    ("user-memory-access", Cause.WILD_POINTER, "which is an address of a process"),
    ("uninit", Cause.UNINITIALIZED, "which was never set"),
    ("infoleak", Cause.UNINITIALIZED, "which was never set, and gave it away"),
    ("invalid read", Cause.WILD_POINTER, "which is no object's"),
    ("invalid write", Cause.WILD_POINTER, "which is no object's"),
)
_KINDS = frozenset({Kind.KASAN, Kind.KFENCE, Kind.KMSAN})


def _first_own(report: Report, section: Section) -> Culprit | None:
    """Find the innermost function of a trace that does not only serve."""
    for trace in report.traces:
        if trace.section is not section:
            continue
        for frame in trace.frames:
            name = plain_name(frame.function)
            if name and frame.is_reliable and (frame.module or part_of(name) is None):
                return Culprit(name, frame.module or "vmlinux")
    return None


@detector(
    "sanitizer",
    needs=(Need.REPORT,),
    about="what KASAN, KFENCE or KMSAN report: who used, allocated and freed the memory",
    depth=85,
    kinds=_KINDS,
)
def find_sanitizer(scene: Scene) -> Iterator[Finding]:
    """Read who used the memory, and who had allocated and freed it."""
    report = scene.first
    if report is None or report.kind not in _KINDS or not report.function:
        return
    blame = report.blame[0]
    culprit = Culprit(blame.function, module_in(report, blame))
    allocated, freed = _first_own(report, Section.ALLOCATED), _first_own(report, Section.FREED)
    known = _tell_cause(report, allocated, freed)
    if known is None:
        return
    cause, text, is_sure = known
    did = {"read": "read", "write": "wrote to"}.get(report.access or "", "used")
    at = f" {report.address:#x}" if report.address is not None else ""
    cache = report.details.get("cache", "")
    told = [f"allocated by {who(allocated)}" if allocated else "", f"freed by {who(freed)}" if freed else ""]
    story = ", ".join(part for part in told if part)
    yield Finding(
        detector="sanitizer",
        role=Role.CAUSE,
        cause=cause,
        sentence=(
            f"{who(culprit)} {did} memory{at}{f' of a {cache} object' if cache else ''} {text} "
            f"({report.variant or report.kind.value}){f'; it was {story}' if story else ''}."
        ),
        confidence=_how_sure(is_sure=is_sure, is_traced=bool(allocated or freed) or cause is Cause.NULL_POINTER),
        function=culprit.function,
        module=culprit.module,
        subject=Subject("object", cache, cache, report.address, text),
        evidence=(
            Evidence("the sanitizer's report", "log", report.message),
            *((Evidence("who allocated it", "log", allocated.function),) if allocated else ()),
            *((Evidence("who freed it", "log", freed.function),) if freed else ()),
        ),
        next_steps=(f"whereis {report.address:x}",) if report.address is not None and report.address >> 63 else (),
        explains=("reported", "bad-pointer", "freed-object"),
        time_s=report.time_s,
    )


def _tell_cause(report: Report, allocated: Culprit | None, freed: Culprit | None) -> tuple[Cause, str, bool] | None:
    """Tell what the report's name says, in words, and whether that is all that it can mean."""
    # The function's name stands behind it, and may have any of the words in it.
    variant = (report.variant or report.message.partition(" in ")[0]).lower()
    known = next(((cause, text) for key, cause, text in _CAUSES if key in variant), None)
    if known is not None:
        return (*known, True)
    if "invalid-access" not in variant:
        return None
    # Tags tell that it is not the pointer's memory, and nothing more: mm/kasan/report_tags.c.
    if freed is not None:
        return Cause.USE_AFTER_FREE, "whose tag it does not have, probably as it had been freed", False
    if allocated is not None:
        return Cause.OUT_OF_BOUNDS, "whose tag it does not have, probably beyond its bounds", False
    return Cause.WILD_POINTER, "whose tag it does not have", False


def _how_sure(*, is_sure: bool, is_traced: bool) -> Confidence:
    if not is_sure:
        return Confidence.LIKELY if is_traced else Confidence.POSSIBLE
    return Confidence.PROVEN if is_traced else Confidence.LIKELY


@detector(
    "bad-page",
    needs=(Need.REPORT,),
    about="pages and page tables whose state cannot be",
    depth=40,
    kinds=(Kind.BAD_PAGE,),
)
def find_bad_page(scene: Scene) -> Iterator[Finding]:
    """Say what is wrong with the page."""
    report = scene.first
    if report is None or report.kind is not Kind.BAD_PAGE:
        return
    reason = next((line for line in report.lines if "dumped because" in line or "bad because" in line), "")
    blame = report.blame[0] if report.blame else None
    by = f" when {blame.function} came to it" if blame is not None else ""
    yield Finding(
        detector="bad-page",
        role=Role.CAUSE,
        cause=Cause.MEMORY_CORRUPTION,
        sentence=(
            f"The kernel found a {(report.variant or 'page').replace('page ', 'page ')} that cannot be{by}: "
            f"{reason.strip() or report.message}; who left it so is not known."
        ),
        confidence=Confidence.POSSIBLE,
        function=blame.function if blame is not None else "",
        module=module_in(report, blame) if blame is not None else "",
        evidence=(Evidence("the kernel's report", "log", report.message),),
        refuted_by="a reference dropped once too often, which shows here only",
        next_steps=("log | grep -A 30 'Bad page'", "kmem -i"),
        explains=("reported",),
        time_s=report.time_s,
    )


_BOUNDS = (
    (
        re.compile(
            r"[kK]ernel memory (?P<how>exposure|overwrite) attempt detected (?:to|from) (?P<what>.{1,80}?) "
            r"\(offset (?P<offset>\d{1,20}), size (?P<size>\d{1,20})\)"
        ),
        "copied {size} bytes at offset {offset} of {what} {to} a process, which reaches beyond it",
    ),
    (
        # Before 4.16.
        re.compile(
            r"kernel memory (?P<how>exposure|overwrite) attempt detected (?:to|from) "
            r"(?P<what>[0-9a-f]{8,16} \([^)]{1,60}\)) \((?P<size>\d{1,20}) bytes\)"
        ),
        "copied {size} bytes {to} a process, at {what}, which ends before them",
    ),
    (
        re.compile(r"detected buffer overflow in (?P<call>\w{1,40})|(?P<other>\w{1,40}): detected buffer overflow"),
        "called {call} to write beyond the end of a variable or member",
    ),
    (
        re.compile(
            r"(?P<call>\w{1,40}): detected field-spanning write \(size (?P<size>\d{1,20})\) of single field "
            r'"(?P<what>.{1,80}?)"'
        ),
        "called {call} to write {size} bytes over the end of {what}",
    ),
    (
        re.compile(r"index (?P<index>-?\d{1,20}) is out of range for type '(?P<what>.{1,80}?)'"),
        "used the index {index} in an array of type {what}, which ends before it",
    ),
)


@detector(
    "bounds-check",
    needs=(Need.REPORT,),
    about="checks of sizes and indexes that failed: copies to and from processes, fortified functions, UBSAN",
    depth=65,
    kinds=(Kind.USERCOPY, Kind.KERNEL_BUG, Kind.WARNING, Kind.UBSAN),
)
def find_bounds(scene: Scene) -> Iterator[Finding]:
    """Read what was too long, and who asked for it."""
    report, culprit = scene.first, find_culprit(scene)
    if report is None or culprit is None:
        return
    for pattern, text in _BOUNDS:
        match = find_line(scene, pattern)
        if match is None:
            continue
        words = {name: value for name, value in match.groupdict().items() if value}
        words.setdefault("call", words.get("other", "a function"))
        words["to"] = "to" if words.get("how") == "exposure" else "from"
        yield Finding(
            detector="bounds-check",
            role=Role.CAUSE,
            cause=Cause.OUT_OF_BOUNDS,
            sentence=f"{who(culprit)} {text.format(**words)}; the kernel's check stopped it.",
            confidence=Confidence.LIKELY,
            function=culprit.function,
            module=culprit.module,
            subject=Subject("object", words.get("what", ""), "", None, match[0]),
            evidence=(Evidence("the kernel's check", "log", match[0]),),
            refuted_by="a size that somebody else had made wrong",
            explains=("reported", "assertion", "bad-pointer"),
            time_s=report.time_s,
        )
        return
