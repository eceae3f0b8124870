"""
A process that came back from the kernel with preemption off: its next page fault is taken for one of the kernel's.

On arm64 the kernel handles no fault of a process that must not sleep
(``faulthandler_disabled()`` in ``do_page_fault()``, ``arch/arm64/mm/fault.c``), and so
reports one of user code as its own. What was left behind is most often a spinlock. The
same comes of page faults that were turned off (``pagefault_disable()``, ``include/linux/uaccess.h``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from drgn import Object

from postpanic.analysis.cells import problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.triage.hangs.leaks import Leak, list_leaks, open_picture
from postpanic.analysis.triage.hangs.naming import function_of
from postpanic.analysis.triage.hangs.picture import Picture
from postpanic.analysis.triage.registry import Need, detector
from postpanic.analysis.triage.scene import Scene
from postpanic.evidence.oops import Report
from postpanic.evidence.oops.kinds import Family
from postpanic.findings.verdict import Cause, Confidence, Evidence, Finding, Link, Role

__all__ = ["counter_evidence", "find_returned_atomic"]

_FROM_USER = frozenset({0x20, 0x24})
"""``ESR_ELx_EC_IABT_LOW``, ``ESR_ELx_EC_DABT_LOW``: aborts of instructions and data, of a lower exception level."""
_CLASS_SHIFT = 26
_SYNDROME = re.compile(r"ESR = 0x([0-9a-f]{1,16})")
_UNHANDLED = "__do_kernel_fault"
_SPINNING = ("spinlock", "rwlock")
_MOST_MODULES = 400
_COUNT = "thread_info.preempt_count"
_FAULTS_OFF = "pagefault_disabled"


@detector(
    "returned-atomic",
    needs=(Need.REPORT, Need.MEMORY, Need.TASKS),
    about="a page fault of user code that the kernel did not handle, as preemption was off: what was left locked",
    depth=70,
    families=(Family.MEMORY_ACCESS,),
)
def find_returned_atomic(scene: Scene) -> Iterator[Finding]:
    """Find the lock that a process took to user space, and whose code took it."""
    report = scene.first
    if report is None or scene.dump.memory.machine != "aarch64" or not _is_of_user(report):
        return
    facts = scene.find_task(report.pid, report.comm) or scene.panic_task
    if facts is None:
        return
    try:
        names = [function_of(frame) for frame in scene.trace(facts).frames]
    except UNREADABLE as exc:
        scene.problems.append(problem("the stack of the task that faulted", exc))
        return
    if _UNHANDLED in names:
        yield _tell(open_picture(scene), facts, report)


def _is_of_user(report: Report) -> bool:
    found = next((match for line in report.lines if (match := _SYNDROME.search(line))), None)
    return found is not None and int(found[1], 16) >> _CLASS_SHIFT & 0x3F in _FROM_USER


def _tell(picture: Picture, facts: TaskFacts, report: Report) -> Finding:
    # Where page faults are off, that alone is enough, and no lock is asked for.
    are_faults_off = bool(_read_counter(facts.task, _FAULTS_OFF))
    leaks = [] if are_faults_off else list(_find_locked(picture))
    partial = [each for each in leaks if each[1].is_partial] or leaks
    # Several that nothing tells apart are nobody's.
    kind, leak, vaddr = partial[0] if len({each[2] for each in partial}) == 1 else ("", None, 0)
    who = picture.names.task(facts)
    evidence = [
        Evidence("a fault of user code, which the kernel took for its own", "log", report.message),
        Evidence(
            f"{who} was in user space and faulted there", f"bt {picture.names.pid(facts)}", _UNHANDLED, facts.vaddr
        ),
        counter_evidence(facts.task, who),
    ]
    off = "page faults turned off" if are_faults_off else "preemption off"
    sentence = f"{who} came back to user space with {off}, so that its next page fault was not handled"
    if leak is None:
        tail = "what an earlier system call took or turned off, and did not give back, is not to be seen"
    else:
        lock = picture.names.thing(kind, vaddr)
        tail = f"{lock} is taken and was not released: {leak.function}() [{leak.module}] can return with it"
        evidence += [
            Evidence(f"{lock} is taken", f"rd {vaddr:x}", f"{vaddr:x}", vaddr),
            Evidence(f"{leak.function}() ends with it here", f"dis -r {leak.returns:x}", leak.function),
        ]
    return Finding(
        detector="returned-atomic",
        role=Role.CAUSE,
        cause=Cause.LEAKED_LOCK,
        sentence=f"{sentence}: {tail}.",
        confidence=Confidence.LIKELY if leak is not None else Confidence.POSSIBLE,
        function=leak.function if leak is not None else "",
        module=leak.module if leak is not None else "",
        subject=picture.names.subject("lock", kind, vaddr) if leak is not None else None,
        evidence=tuple(evidence),
        chain=(Link(f"{leak.function}()", "can return with", picture.names.thing(kind, vaddr), is_certain=False),)
        if leak is not None
        else (),
        refuted_by="another function that turns preemption or page faults off and returns",
        next_steps=(f"dis {leak.function}",) if leak is not None else ("mod -t",),
        explains=("reported", "bad-pointer", "called-panic"),
        time_s=report.time_s,
    )


def counter_evidence(task: Object, who: str) -> Evidence:
    """
    Show why the kernel handled no page fault of a task.

    Parameters
    ----------
    task : Object
        ``struct task_struct *``
    who : str
        Its name.
    """
    faults_off = _read_counter(task, _FAULTS_OFF)
    count = _read_counter(task, _COUNT)
    held = "not to be read" if count is None else f"{count:#x}"
    # panic() turns preemption off, too: kernel/panic.c.
    says = f"{who} probably may not be preempted: its count is {held} now, but the panic adds to it"
    path = _COUNT
    if faults_off:
        says, path = f"{who} has its page faults turned off (pagefault_disabled is {faults_off})", _FAULTS_OFF
    vaddr = int(task.value_())
    return Evidence(says, f"struct task_struct.{path} {vaddr:x}", path.rpartition(".")[2], vaddr)


def _read_counter(task: Object, path: str) -> int | None:
    """Read 32 bits: on arm64 the upper half of preempt_count is another thing (``asm/thread_info.h``)."""
    value = task
    try:
        for name in path.split("."):
            value = value.member_(name)
        return int(value.value_()) & 0xFFFFFFFF
    except UNREADABLE:
        return None


def _find_locked(picture: Picture) -> Iterator[tuple[str, Leak, int]]:
    """Find the spinlocks of modules that are taken, and that a function can leave so."""
    memory = picture.workspace.memory
    modules = [str(each.name) for each in picture.scene.prog.modules() if each.name != "kernel"]
    for module in modules[:_MOST_MODULES]:
        for kind in _SPINNING:
            for leak, vaddr in list_leaks(picture, kind, module):
                try:
                    is_taken = memory.read_u32(vaddr) != 0
                except UNREADABLE:
                    continue
                if is_taken:
                    yield kind, leak, vaddr
