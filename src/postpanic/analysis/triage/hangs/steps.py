"""One step of a chain of waits, in words and as evidence."""

from __future__ import annotations

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.locks import Holder
from postpanic.analysis.triage.hangs.naming import function_of, module_of, seconds
from postpanic.analysis.triage.hangs.picture import Picture, Thing
from postpanic.analysis.triage.hangs.sleeping import LOCKS, Sleep
from postpanic.findings.verdict import Evidence, Link, Subject

__all__ = [
    "describe_holder",
    "describe_sleep",
    "describe_thing",
    "lock_evidence",
    "place_of",
    "stack_evidence",
    "step_link",
    "thing_subject",
]

_TYPES = {
    "mutex": "struct mutex",
    "rwsem": "struct rw_semaphore",
    "semaphore": "struct semaphore",
    "percpu-rwsem": "struct percpu_rw_semaphore",
    "completion": "struct completion",
    "waitqueue": "struct wait_queue_head",
}
_SHOWN = {"mutex": "owner", "rwsem": "count,owner", "semaphore": "count", "completion": "done", "percpu-rwsem": "block"}


def place_of(sleep: Sleep) -> str:
    """Say whose code waits: `` in f() [module]``; empty: not known."""
    function, module = function_of(sleep.own), module_of(sleep.own)
    if not function:
        return ""
    return f" in {function}()" + (f" [{module}]" if module != "vmlinux" else "")


def describe_thing(picture: Picture, thing: Thing, sleep: Sleep | None = None) -> str:
    """Name what is waited for: ``mutex left``, ``work item f()``, ``RCU``."""
    names = picture.names
    if thing.kind in {"rcu", "srcu"}:
        return f"a grace period of {thing.kind.upper()}"
    if thing.kind == "work":
        return thing.state or _describe_work(picture, thing)
    if thing.kind == "task":
        facts = picture.tasks.get(thing.vaddr)
        return f"the end of {names.task(facts)}" if facts is not None else "the end of a kernel thread"
    if thing.kind == "cpu":
        return "another CPU"
    if thing.kind in {"io", "queue freeze"}:
        return "input or output to end" if thing.kind == "io" else "the requests of a block queue to drain"
    if thing.kind == "server":
        return "the answer of a file system's server"
    if thing.kind in {"waitqueue", "completion"} and not thing.vaddr:
        return f"a {thing.kind}"
    if thing.kind in _TYPES:
        return names.thing("wait queue" if thing.kind == "waitqueue" else thing.kind, thing.vaddr)
    if thing.kind == "sleep":
        return "its time to pass"
    return f"a {thing.kind}" if thing.kind else (f"a wake-up ({sleep.function})" if sleep is not None else "a wake-up")


def _describe_work(picture: Picture, thing: Thing) -> str:
    try:
        offset = picture.scene.prog.type("struct work_struct").member("func").offset
        function = picture.workspace.memory.read_u64(thing.vaddr + offset) if thing.vaddr else 0
    except UNREADABLE:
        function = 0
    name = picture.names.symbol(function) if function else ""
    return f"work item {name}()" if name else "a work item"


def describe_sleep(picture: Picture, sleep: Sleep) -> str:
    """Say what a task waits for and where: ``cat (PID 81) waits in f() [m] for mutex left``."""
    thing = picture.thing_of(sleep.facts.vaddr)
    what = describe_thing(picture, thing, sleep) if thing is not None else "a wake-up"
    if sleep.kind == "sleep":
        return f"{picture.names.task(sleep.facts)} sleeps for a time{place_of(sleep)}"
    return f"{picture.names.task(sleep.facts)} waits{place_of(sleep)} for {what}"


def step_link(picture: Picture, sleep: Sleep, holder: Holder | None) -> Link:
    """Make the link of one task that waits."""
    thing = picture.thing_of(sleep.facts.vaddr)
    source = picture.names.task(sleep.facts)
    what = describe_thing(picture, thing, sleep) if thing is not None else "a wake-up"
    relation = f"waits{place_of(sleep)} for"
    if holder is None or holder.task not in picture.tasks:
        return Link(source, relation, what)
    return Link(source, relation, f"{what}{describe_holder(picture, thing, holder)}", holder.certain)


def describe_holder(picture: Picture, thing: Thing | None, holder: Holder) -> str:
    """Say who keeps a thing from coming: ``, held by cat (PID 81)``, ``: kworker (PID 9) runs the item``."""
    who = picture.names.task(picture.tasks[holder.task])
    if thing is not None and thing.kind in LOCKS:
        return f", held by {who}"
    return f": {who} {holder.how}"


def stack_evidence(picture: Picture, sleep: Sleep) -> Evidence:
    """Give the stack that shows where a task waits."""
    waited = seconds(picture.waited_ns(sleep.facts))
    name = function_of(sleep.own) or sleep.function
    what = describe_sleep(picture, sleep) + (f"; it has not run for {waited}" if waited else "")
    return Evidence(what, f"bt {picture.names.pid(sleep.facts)}", name, sleep.facts.vaddr)


def lock_evidence(picture: Picture, thing: Thing) -> Evidence | None:
    """Give the command that shows the state of a lock; None: it has no address or no type."""
    if thing.kind not in _SHOWN or not thing.vaddr:
        return None
    name = describe_thing(picture, thing)
    word = picture.owner_word(thing)
    if thing.holders and word is not None:
        holder = picture.tasks[thing.holders[0].task]
        verb = "holds" if thing.holders[0].certain else "was the last known to take"
        what = f"{picture.names.task(holder)} {verb} {name} ({thing.state}): its owner is task {holder.vaddr:x}"
        return Evidence(what, f"rd {word[0]:x}", f"{word[1]:016x}", thing.vaddr)
    command = f"struct {_TYPES[thing.kind].removeprefix('struct ')}.{_SHOWN[thing.kind]} {thing.vaddr:x}"
    return Evidence(f"{name}: {thing.state or 'its state'}", command, _SHOWN[thing.kind].split(",")[0], thing.vaddr)


def thing_subject(picture: Picture, thing: Thing) -> Subject:
    """Make what is waited for the subject of a finding."""
    if thing.kind in {"rcu", "srcu"}:
        return Subject("object", thing.kind, describe_thing(picture, thing))
    type_ = _TYPES.get(thing.kind, thing.kind)
    kind = thing.kind if thing.kind in LOCKS else type_
    return picture.names.subject("lock" if thing.kind in LOCKS else "object", kind, thing.vaddr, thing.state)
