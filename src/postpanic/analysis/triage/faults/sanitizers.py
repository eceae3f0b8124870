"""What sanitizers, page checks and hardware report of themselves: with the stacks and places that they name."""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.analysis.triage.faults.uses import Culprit, module_in
from postpanic.analysis.triage.faults.wording import who
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.hardware.model import Verdict
from postpanic.evidence.oops import Report, Section
from postpanic.evidence.oops.functions import part_of, plain_name
from postpanic.evidence.oops.kinds import Family, Kind
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Role, Subject

__all__ = ["find_bad_page", "find_hardware", "find_sanitizer"]

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
    variant = f"{report.variant} {report.message}".lower()
    known = next(((cause, text) for key, cause, text in _CAUSES if key in variant), None)
    if known is None:
        return
    cause, text = known
    blame = report.blame[0]
    culprit = Culprit(blame.function, module_in(report, blame))
    allocated, freed = _first_own(report, Section.ALLOCATED), _first_own(report, Section.FREED)
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
        confidence=Confidence.PROVEN if allocated or freed or cause is Cause.NULL_POINTER else Confidence.LIKELY,
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


@detector(
    "hardware",
    needs=(Need.REPORT,),
    about="what hardware and firmware say of themselves",
    depth=90,
    families=(Family.HARDWARE,),
)
def find_hardware(scene: Scene) -> Iterator[Finding]:
    """Name the part that failed, where an error that cannot be corrected ended it all."""
    report = scene.first
    if report is None or report.family is not Family.HARDWARE:
        return
    worst = max(scene.hardware_errors, key=lambda error: error.severity.rank, default=None)
    if worst is None or report.kind is Kind.NMI:
        return
    place = f", {worst.place}" if worst.place else ""
    is_hardware = worst.verdict is not Verdict.SOFTWARE
    yield Finding(
        detector="hardware",
        role=Role.CAUSE,
        cause=Cause.HARDWARE,
        sentence=f"Hardware failed ({worst.part.value}, {worst.severity.value}): {worst.what}{place}.",
        confidence=Confidence.LIKELY if is_hardware else Confidence.POSSIBLE,
        subject=Subject("device", worst.part.value, "", None, worst.severity.value),
        evidence=(Evidence("the machine's own report", "log", report.message),),
        refuted_by="an error that was injected, or software that used the part wrongly",
        next_steps=("log | grep -i -e 'hardware error' -e mce -e edac",),
        explains=("reported", "bad-pointer", "bit-flip"),
        time_s=report.time_s,
    )
