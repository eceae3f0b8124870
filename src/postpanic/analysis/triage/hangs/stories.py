"""What each kind of root of a hang is: cause, culprit and one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.triage.hangs.devices import Pending, are_requests_known, oldest_requests
from postpanic.analysis.triage.hangs.freezing import find_frozen
from postpanic.analysis.triage.hangs.leaks import Leak, find_leak
from postpanic.analysis.triage.hangs.naming import function_of, module_of, seconds
from postpanic.analysis.triage.hangs.picture import Picture, Thing
from postpanic.analysis.triage.hangs.roots import Chain, RootKind
from postpanic.analysis.triage.hangs.sleeping import LOCKS, Sleep
from postpanic.analysis.triage.hangs.steps import describe_sleep, describe_thing, place_of, thing_subject
from postpanic.findings.verdict import Cause, Confidence, Evidence, Missing, Subject

__all__ = ["Story", "tell"]

_SLOW_S = 2.0
"""A device whose oldest request is younger answers."""


@dataclass(frozen=True, slots=True)
class Story:
    """The claim about one root."""

    cause: Cause
    sentence: str
    confidence: Confidence
    function: str = ""
    module: str = ""
    subject: Subject | None = None
    evidence: tuple[Evidence, ...] = ()
    refuted_by: str = ""
    missing: tuple[Missing, ...] = ()
    next_steps: tuple[str, ...] = ()


def tell(picture: Picture, chain: Chain) -> Story:
    """Tell what the root of a chain is."""
    return _TELLERS[chain.root.kind](picture, chain)


def _waiter(chain: Chain) -> Sleep:
    """Give the last that waits for the thing the chain ends at."""
    return chain.steps[-1][0]


def _holding(picture: Picture, chain: Chain) -> str:
    """Say what the last that waits holds up: `` (with mutex left held)``; empty: nothing."""
    if len(chain.steps) < 2:
        return ""
    before = chain.steps[-2][0]
    thing = picture.thing_of(before.facts.vaddr)
    if thing is None or thing.kind == "task":
        return ""
    what = describe_thing(picture, thing, before)
    if thing.kind in LOCKS:
        return f", holding {what},"
    return f", at work on {what}," if thing.kind == "work" else f", on which {what} depends,"


def _crowd(picture: Picture, chain: Chain, named: Sleep | None = None) -> str:
    """Say who waits behind the root, where that is not the root itself or named already."""
    first = chain.steps[0][0].facts
    last = (named or chain.steps[-1][0]).facts
    if first.vaddr == last.vaddr:
        return ""
    return f", and {picture.names.task(first)} waits behind it"


def _gone(picture: Picture, chain: Chain) -> Story:
    root, waiter = chain.root, _waiter(chain)
    thing = root.thing or Thing("lock", 0)
    what = describe_thing(picture, thing)
    leak = find_leak(picture, thing, waiter)
    text, evidence = _fate(picture, thing)
    leaked = f"; {leak.function}() [{leak.module}] can return without giving it back" if leak is not None else ""
    return Story(
        Cause.LEAKED_LOCK,
        f"Nobody will release {what}: {text}{leaked}; {describe_sleep(picture, waiter)}.",
        Confidence.POSSIBLE if thing.gone == "unknown" else Confidence.LIKELY,
        leak.function if leak is not None else "",
        leak.module if leak is not None else module_of(waiter.own),
        thing_subject(picture, thing),
        (evidence, *_leak_evidence(leak)),
        refuted_by="a task that is not on the list of tasks, and still runs",
        next_steps=(f"kmem -s {thing.owner:x}",),
    )


def _fate(picture: Picture, thing: Thing) -> tuple[str, Evidence]:
    """Say why the owner that a lock records will not release it, and what shows that."""
    facts = picture.tasks.get(thing.owner)
    if facts is not None:
        who = picture.names.task(facts)
        itself = ", which itself waits for it," if thing.owner in thing.waiters else ""
        text = (
            f"the owner it records, {who}{itself} is in no code that holds it: it went on without releasing it, "
            "or one that exited did, whose task_struct it has now"
        )
        what = f"{who}, whom the lock records, is in no function that holds it"
        return text, Evidence(what, f"bt {picture.names.pid(facts)}", facts.comm, facts.vaddr)
    said = _last_words(picture, thing)
    by = f" {said}," if said else ""
    fates = {
        "unlisted": "is on no list of tasks any more",
        "unknown": "is not among the tasks that could be read",
    }
    fate = fates.get(thing.gone, "has exited, and its task_struct is free")
    text = f"its owner,{by} task {thing.owner:x}, {fate}"
    what = f"the owner that the lock records, {thing.owner:x}, is no task"
    return text, Evidence(what, f"kmem -s {thing.owner:x}", "task_struct", thing.owner)


def _last_words(picture: Picture, thing: Thing) -> str:
    """Read what the memory of a task that is gone still says of it."""
    if thing.gone == "reused":
        return ""
    try:
        from drgn import Object

        from postpanic.analysis.cells import decode

        task = Object(picture.scene.prog, "struct task_struct *", thing.owner)
        comm, pid = decode(task.comm.string_()), int(task.pid.value_())
    except UNREADABLE:
        return ""
    return f"{comm} (PID {pid})" if comm.isprintable() and comm and 0 < pid < 1 << 22 else ""


def _leak_evidence(leak: Leak | None) -> tuple[Evidence, ...]:
    if leak is None:
        return ()
    return (
        Evidence(
            f"{leak.function}() takes the lock ({leak.take}) and can return at {leak.returns:x} without giving it back",
            f"dis -r {leak.returns:x}",
            # What it calls may be out of reach, and a veneer be called instead.
            leak.function,
            leak.returns,
        ),
    )


def _went_on(picture: Picture, chain: Chain) -> Story:
    root, waiter = chain.root, _waiter(chain)
    thing = picture.thing_of(waiter.facts.vaddr) or root.thing or Thing("lock", 0)
    what = describe_thing(picture, thing)
    leak = find_leak(picture, thing, waiter)
    if root.cpu is not None:
        doing = f"runs {root.cpu.mode.value}"
    else:
        doing = f"waits{place_of(root.sleep)}" if root.sleep is not None and root.sleep.own is not None else "sleeps"
    if picture.state(root.facts) in {"ZO", "DE"}:
        doing = "has exited"
    holder = picture.names.task(root.facts)
    leaked = f"; {leak.function}() [{leak.module}] can return without giving it back" if leak is not None else ""
    evidence = Evidence(
        f"{holder} owns the lock and {doing}: it is past the code that took it",
        f"bt {picture.names.pid(root.facts)}",
        root.facts.comm,
        root.facts.vaddr,
    )
    return Story(
        Cause.LEAKED_LOCK,
        f"Nobody will release {what}: {holder} took it and went on without releasing it (it {doing}){leaked}; "
        f"{describe_sleep(picture, waiter)}.",
        Confidence.LIKELY,
        leak.function if leak is not None else "",
        leak.module if leak is not None else module_of(waiter.own),
        thing_subject(picture, thing),
        (evidence, *_leak_evidence(leak)),
        refuted_by="a lock that is kept on purpose until the task calls the kernel again",
    )


def _unheld(picture: Picture, chain: Chain) -> Story:
    root, waiter = chain.root, _waiter(chain)
    thing = root.thing or Thing("lock", 0)
    frozen = find_frozen(picture, thing)
    if frozen is not None:
        return Story(
            Cause.LEAKED_LOCK,
            f"The file system {frozen.name} is frozen ({frozen.level}) and nobody thaws it: "
            f"{describe_sleep(picture, waiter)}{_crowd(picture, chain)}.",
            Confidence.LIKELY,
            "freeze_super",
            "vmlinux",
            Subject("file system", "struct super_block", frozen.name, frozen.vaddr, f"frozen: {frozen.level}"),
            (
                Evidence(
                    "the file system is frozen",
                    f"struct super_block.s_writers.frozen {frozen.vaddr:x}",
                    "frozen",
                    frozen.vaddr,
                ),
            ),
            refuted_by="a snapshot or backup under way that thaws it when it is done",
            next_steps=(f"struct super_block.s_id,s_writers {frozen.vaddr:x}",),
        )
    what = describe_thing(picture, thing)
    leak = find_leak(picture, thing, waiter)
    leaked = f": {leak.function}() [{leak.module}] takes it and can return without giving it back" if leak else ""
    cause = Cause.LEAKED_LOCK if leak is not None or thing.kind != "semaphore" else Cause.LOST_WAKEUP
    return Story(
        cause,
        f"Nobody releases {what} ({thing.state}), and who took it is not recorded for sure{leaked}; "
        f"{describe_sleep(picture, waiter)}{_crowd(picture, chain)}.",
        Confidence.LIKELY if leak is not None else Confidence.POSSIBLE,
        leak.function if leak is not None else function_of(waiter.own),
        leak.module if leak is not None else module_of(waiter.own),
        thing_subject(picture, thing),
        _leak_evidence(leak),
        refuted_by="a task that holds the lock, and is about to release it",
    )


def _never(picture: Picture, chain: Chain) -> Story:
    root, waiter = chain.root, _waiter(chain)
    thing = root.thing or Thing("", 0)
    what = describe_thing(picture, thing, waiter)
    waited = seconds(picture.waited_ns(waiter.facts))
    since = f" since {waited}" if waited else ""
    ends = {"completion": "nobody completes it", "waitqueue": "no wake-up came that let it go on"}
    end = ends.get(thing.kind, "nobody wakes it")
    return Story(
        Cause.LOST_WAKEUP,
        f"{picture.names.task(waiter.facts)}{_holding(picture, chain)} waits{place_of(waiter)} for {what}{since}, "
        f"and {end}{_crowd(picture, chain)}.",
        Confidence.LIKELY,
        function_of(waiter.own),
        module_of(waiter.own),
        thing_subject(picture, thing),
        refuted_by="something that is still going to wake it: a timer, a device, a program",
        next_steps=(f"bt -f {picture.names.pid(waiter.facts)}",),
    )


def _io(picture: Picture, chain: Chain) -> Story:
    waiter = _waiter(chain)
    requests = oldest_requests(picture)
    if not requests:
        is_known = are_requests_known(picture)
        disks = "and no disk has a request under way" if is_known else "and which disk has it is not to be seen"
        return Story(
            Cause.LOST_IO,
            f"{picture.names.task(waiter.facts)}{_holding(picture, chain)} waits{place_of(waiter)} for input or output "
            f"that does not end, {disks}{_crowd(picture, chain)}.",
            Confidence.POSSIBLE,
            function_of(waiter.own) if is_known else "",
            module_of(waiter.own) if is_known else "",
            refuted_by="a device that does not use requests",
            next_steps=("dev -d",),
        )
    oldest = requests[0]
    if oldest.age_s < _SLOW_S:
        return _slow(picture, chain, oldest)
    driver = f"{oldest.function}() [{oldest.module}] took it" if oldest.function else "its driver has it"
    return Story(
        Cause.LOST_IO,
        f"Device {oldest.device} did not answer: a {oldest.operation} of {oldest.size_bytes} bytes at sector "
        f"{oldest.sector} is under way since {oldest.age_s:.0f} s ({driver}); {describe_sleep(picture, waiter)}"
        f"{_crowd(picture, chain)}.",
        Confidence.LIKELY if oldest.age_s >= 5 else Confidence.POSSIBLE,
        oldest.function,
        oldest.module,
        Subject("device", "struct gendisk", oldest.device, oldest.vaddr, f"{oldest.count} requests under way"),
        (Evidence(f"{oldest.count} requests are under way on {oldest.device}", "dev -d", oldest.device, oldest.vaddr),),
        refuted_by="requests that end, only slowly",
        next_steps=("dev -d", f"struct request {oldest.request:x}"),
    )


def _slow(picture: Picture, chain: Chain, oldest: Pending) -> Story:
    """Tell of a device that answers, but has more to do than it can: no request is old."""
    waiter = _waiter(chain)
    return Story(
        Cause.OVERLOAD,
        f"Device {oldest.device} is slow: {oldest.count} requests are under way, none for longer than "
        f"{oldest.age_s:.0f} s; {describe_sleep(picture, waiter)}{_crowd(picture, chain)}.",
        Confidence.POSSIBLE,
        "",
        "",
        Subject("device", "struct gendisk", oldest.device, oldest.vaddr, f"{oldest.count} requests under way"),
        (Evidence(f"{oldest.count} requests are under way on {oldest.device}", "dev -d", oldest.device, oldest.vaddr),),
        refuted_by="requests that are submitted again and again",
        next_steps=("dev -d",),
    )


def _rcu(picture: Picture, chain: Chain) -> Story:
    waiter = _waiter(chain)
    return Story(
        Cause.LOST_WAKEUP,
        f"{picture.names.task(waiter.facts)} waits{place_of(waiter)} for a grace period of "
        f"{(waiter.kind or 'rcu').upper()} that does not end, and no CPU or task is seen to keep it"
        f"{_crowd(picture, chain)}.",
        Confidence.POSSIBLE,
        function_of(waiter.own),
        module_of(waiter.own),
        refuted_by="a reader that the dump does not show",
    )


def _asleep(picture: Picture, chain: Chain) -> Story:
    root, waiter = chain.root, _waiter(chain)
    if len(chain.steps) < 2 or root.sleep is None:
        return Story(
            Cause.LOST_WAKEUP,
            f"{picture.names.task(waiter.facts)} sleeps{place_of(waiter)} for a fixed time, not to be interrupted, "
            "and nobody waits for it.",
            Confidence.POSSIBLE,
            function_of(waiter.own),
            module_of(waiter.own),
        )
    before = chain.steps[-2][0]
    thing = picture.thing_of(before.facts.vaddr) or Thing("lock", 0)
    return _asleep_story(picture, chain, root.sleep, thing)


def _asleep_story(picture: Picture, chain: Chain, sleep: Sleep, thing: Thing) -> Story:
    waiter = next((one for one, holder in chain.steps if holder is not None and holder.task == sleep.facts.vaddr), None)
    waiter = waiter or _waiter(chain)
    names = picture.names
    what = describe_thing(picture, thing)
    holder = names.task(sleep.facts)
    known = next((one for one in thing.holders if one.task == sleep.facts.vaddr), None)
    why = f" ({known.how}, by its code)" if known is not None and not known.certain else ""
    verb = "holds" if thing.kind not in {"work", "task", "rcu", "cpu"} else "keeps up"
    doing = describe_sleep(picture, sleep).removeprefix(holder).strip()
    return Story(
        Cause.BLOCKED_HOLDER,
        f"{holder} {verb} {what}{why} and {doing}; {names.task(waiter.facts)} waits{place_of(waiter)} for it"
        f"{_crowd(picture, chain, waiter)}.",
        Confidence.LIKELY,
        function_of(sleep.own),
        module_of(sleep.own),
        thing_subject(picture, thing),
        (
            Evidence(
                f"{holder} sleeps while it {verb} {what}",
                f"bt {names.pid(sleep.facts)}",
                function_of(sleep.own),
                sleep.facts.vaddr,
            ),
        ),
        refuted_by="a sleep that ends soon",
        next_steps=(f"bt {names.pid(sleep.facts)}",),
    )


def _run(picture: Picture, chain: Chain) -> Story:
    root, waiter = chain.root, _waiter(chain)
    own = root.cpu.own_of_task if root.cpu is not None else None
    function, module = function_of(own), module_of(own)
    thing = picture.thing_of(waiter.facts.vaddr) or Thing("lock", 0)
    holder = picture.names.task(root.facts)
    where = f" in {function}() [{module}]" if function else ""
    number = root.cpu.number if root.cpu is not None else 0
    return Story(
        Cause.ENDLESS_LOOP,
        f"{holder} runs on CPU {number}{where} while {picture.names.task(waiter.facts)} waits{place_of(waiter)} for "
        f"{describe_thing(picture, thing)}, which only it can give{_crowd(picture, chain)}.",
        Confidence.LIKELY,
        function,
        module,
        thing_subject(picture, thing),
        (
            Evidence(
                f"{holder} was running{where}",
                f"bt {picture.names.pid(root.facts)}",
                function or holder,
                root.facts.vaddr,
            ),
        ),
        refuted_by="work that is only much, and ends",
    )


def _starved(picture: Picture, chain: Chain) -> Story:
    root, waiter = chain.root, _waiter(chain)
    holder = picture.names.task(root.facts)
    running = {cpu: task for task, cpu in picture.scene.stacks.running.items()}
    try:
        cpu = root.facts.cpu
        other = picture.tasks.get(running.get(cpu, 0))
    except UNREADABLE:
        cpu, other = -1, None
    taken = f"; {picture.names.task(other)} has CPU {cpu}" if other is not None else ""
    own = root.sleep.own if root.sleep is not None else None
    return Story(
        Cause.OVERLOAD,
        f"{holder} could run and does not come to it{taken}; {picture.names.task(waiter.facts)} waits"
        f"{place_of(waiter)} for what it holds{_crowd(picture, chain)}.",
        Confidence.POSSIBLE,
        function_of(own),
        module_of(own),
        refuted_by="a scheduler that was about to let it run",
        next_steps=("runq",),
    )


def _no_worker(picture: Picture, chain: Chain) -> Story:
    waiter = _waiter(chain)
    thing = picture.thing_of(waiter.facts.vaddr) or Thing("work", 0)
    is_known = picture.queues is not None
    if not is_known:
        picture.scene.miss("which worker runs what", "the workqueues cannot be found")
    worker = "which no worker runs" if is_known else "and whether a worker runs it is not to be seen"
    return Story(
        Cause.LOST_WAKEUP,
        f"{picture.names.task(waiter.facts)} waits{place_of(waiter)} for {describe_thing(picture, thing)}, {worker}"
        f"{_crowd(picture, chain)}.",
        Confidence.POSSIBLE,
        function_of(waiter.own) if is_known else "",
        module_of(waiter.own) if is_known else "",
        thing_subject(picture, thing),
        refuted_by="a worker that is about to take it up",
        next_steps=("wq",),
    )


_TELLERS: dict[RootKind, Callable[[Picture, Chain], Story]] = {
    RootKind.GONE: _gone,
    RootKind.WENT_ON: _went_on,
    RootKind.UNHELD: _unheld,
    RootKind.NEVER: _never,
    RootKind.IO: _io,
    RootKind.RCU: _rcu,
    RootKind.ASLEEP: _asleep,
    RootKind.RUNNING: _run,
    RootKind.STARVED: _starved,
    RootKind.NO_WORKER: _no_worker,
}
