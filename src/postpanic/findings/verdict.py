"""
What a crash was, and why it is believed: findings of detectors, and the verdict made of them.

A finding is one claim with the evidence that anyone can check: a command of the
prompt, and what stands in its output. A verdict is the claim that explains the
others, and says how sure it may be. Kinds are those of kernel reports
(:class:`postpanic.evidence.oops.kinds.Kind`), as text; causes are
:class:`Cause`.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = [
    "Cause",
    "Confidence",
    "Evidence",
    "Finding",
    "Link",
    "Missing",
    "Role",
    "Subject",
    "Verdict",
    "Victim",
]


class Role(StrEnum):
    """What a finding has to do with the crash."""

    CAUSE = "cause"
    """It explains the crash."""
    SYMPTOM = "symptom"
    """How the cause showed: the fault, the lockup that was noticed."""
    CONSEQUENCE = "consequence"
    """It came of the crash, or of what came before it."""
    BACKGROUND = "background"
    """Worth knowing; not shown to have to do with it."""


class Confidence(StrEnum):
    """How sure a claim is; each word is a promise that the test-suite counts."""

    PROVEN = "proven"
    """The dump holds all that is needed to see that it is so, and nothing was taken on trust."""
    LIKELY = "likely"
    """The evidence fits it and nothing else that is known."""
    POSSIBLE = "possible"
    """The evidence fits it, and other causes too."""
    UNKNOWN = "unknown"
    """Nothing is claimed."""

    @property
    def rank(self) -> int:
        """0 for the surest."""
        return _CONFIDENCES.index(self)


_CONFIDENCES = list(Confidence)


class Cause(StrEnum):
    """Why kernels crash; the spelling is what JSON shows."""

    NULL_POINTER = "null-pointer"
    """A pointer that is NULL was used."""
    WILD_POINTER = "wild-pointer"
    """A pointer that never was one: garbage, text, a non-canonical value."""
    USE_AFTER_FREE = "use-after-free"
    DOUBLE_FREE = "double-free"
    OUT_OF_BOUNDS = "out-of-bounds"
    """Something wrote beyond its own object."""
    UNINITIALIZED = "uninitialized"
    LIST_CORRUPTION = "list-corruption"
    MEMORY_CORRUPTION = "memory-corruption"
    """Memory holds what it should not; by whom is not known."""
    BIT_FLIP = "bit-flip"
    BAD_FUNCTION_POINTER = "bad-function-pointer"
    REFERENCE_COUNT = "reference-count"
    ASSERTION = "assertion"
    """The kernel's own check failed: BUG, WARN with panic_on_warn."""
    DIVISION_BY_ZERO = "division-by-zero"
    ARITHMETIC = "arithmetic"
    """A shift or a result that C says nothing about."""
    STACK_OVERFLOW = "stack-overflow"
    STACK_CORRUPTION = "stack-corruption"
    DEADLOCK = "deadlock"
    """Tasks wait for each other in a circle; or one for itself."""
    LOCK_MISUSE = "lock-misuse"
    """A lock, RCU or the data of a CPU is used against its rules."""
    DATA_RACE = "data-race"
    """Two access the same memory at once, and nothing orders them."""
    LEAKED_LOCK = "leaked-lock"
    """A lock that nobody will release: its holder is gone, or went on without releasing it."""
    LOST_WAKEUP = "lost-wakeup"
    """What is waited for never comes: nobody completes, ups, or answers."""
    LOST_IO = "lost-io"
    """A device did not answer."""
    BLOCKED_HOLDER = "blocked-holder"
    """A lock's holder sleeps on something else, which is at fault."""
    ENDLESS_LOOP = "endless-loop"
    """Code that does not come to an end, with or without a lock."""
    SLEEP_IN_ATOMIC = "sleep-in-atomic"
    OVERLOAD = "overload"
    """Nothing is wrong but that there is too much to do."""
    MEMORY_EXHAUSTED = "memory-exhausted"
    """By a process, or by all together."""
    MEMORY_LEAK = "memory-leak"
    """By the kernel: slab, vmalloc, pages that nobody frees."""
    FRAGMENTATION = "fragmentation"
    INIT_DIED = "init-died"
    NO_ROOT = "no-root"
    HARDWARE = "hardware"
    FILE_SYSTEM_DAMAGE = "file-system-damage"
    DELIBERATE = "deliberate"
    """Somebody asked for the crash."""
    UNKNOWN = "unknown"


class Evidence(msgspec.Struct, frozen=True):
    """
    One thing that can be seen in the dump.

    Parameters
    ----------
    what : str
        What it says: ``RBX is 0 in the instruction that faulted``.
    command : str
        A line for ``postpanic open DUMP -e``, which shows it; ``log`` for the kernel's log; empty: there is none.
    shows : str
        What stands in its output: the cell, or the line of the log.
    vaddr : int, optional
        Where it is in memory.
    """

    what: str
    command: str = ""
    shows: str = ""
    vaddr: int | None = None


class Link(msgspec.Struct, frozen=True):
    """
    One step of a chain: who waits for what, held by whom; or which value came from where.

    Parameters
    ----------
    source, relation, target : str
        ``cat (PID 81)`` · ``waits for`` · ``mutex journal_lock, held by sync (PID 90)``.
    is_certain : bool
        Whether the kernel itself records it.
    """

    source: str
    relation: str
    target: str
    is_certain: bool = True


class Subject(msgspec.Struct, frozen=True):
    """
    What it is about: an object, a lock, a task.

    Parameters
    ----------
    category : str
        ``object``, ``lock``, ``task``, ``memory``, ``device``, ``file system``.
    type : str
        C type or kind: ``struct inode``, ``mutex``, ``kmalloc-64``.
    name : str
        Symbol, slab cache, comm, device.
    vaddr : int, optional
    detail : str
        What state it is in: ``free, in slab kmalloc-64``.
    """

    category: str
    type: str = ""
    name: str = ""
    vaddr: int | None = None
    detail: str = ""


class Victim(msgspec.Struct, frozen=True):
    """A task that suffers without being at fault."""

    comm: str
    pid: int | None = None
    why: str = ""


class Missing(msgspec.Struct, frozen=True):
    """
    What could not be seen.

    Parameters
    ----------
    what : str
        ``the pages of processes``.
    why : str
        ``left out by the dump level (31)``.
    how : str
        How to get it next time: ``dump level 23 keeps them``.
    """

    what: str
    why: str = ""
    how: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """
    A claim of one detector.

    Parameters
    ----------
    detector : str
        Its name.
    role : Role
        What the detector takes it for; the ranking may lower a cause to a symptom.
    cause : Cause
    sentence : str
        The claim in one sentence, with names and values.
    confidence : Confidence
    function : str
        At fault, without suffixes (``.isra.0``); empty: not known.
    module : str
        Of the function; ``vmlinux`` for the kernel itself; empty: not known.
    subject : Subject, optional
    evidence : tuple of Evidence
    chain : tuple of Link
        In order; a deadlock's last leads back to the first.
    victims : tuple of Victim
    not_to_blame : tuple of str
        Whom the report names, and why that says nothing.
    refuted_by : str
        What would show that it is wrong.
    missing : tuple of Missing
    next_steps : tuple of str
        Lines for the prompt that look further.
    explains : tuple of str
        Kinds of reports and names of detectors whose findings follow from this one.
    time_s : float, optional
        When it began, by the kernel's log.
    """

    detector: str
    role: Role
    cause: Cause
    sentence: str
    confidence: Confidence
    function: str = ""
    module: str = ""
    subject: Subject | None = None
    evidence: tuple[Evidence, ...] = ()
    chain: tuple[Link, ...] = ()
    victims: tuple[Victim, ...] = ()
    not_to_blame: tuple[str, ...] = ()
    refuted_by: str = ""
    missing: tuple[Missing, ...] = ()
    next_steps: tuple[str, ...] = ()
    explains: tuple[str, ...] = ()
    time_s: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """
    What happened, in one claim, and everything that stands behind it.

    Parameters
    ----------
    kind : str
        What the kernel met first: a kind of report; empty: nothing is known.
    cause : Cause
    sentence : str
        The cause in one sentence.
    confidence : Confidence
    function, module : str
        At fault.
    subject : Subject, optional
    findings : tuple of Finding
        The one that the verdict is made of first, then by how much they tell.
    victims : tuple of Victim
    not_to_blame : tuple of str
        Whom the report names, and why that says nothing: ``khungtaskd: it only noticed``.
    next_steps : tuple of str
    missing : tuple of Missing
    signature : str
        The same for the same crash on every machine and build.
    source : str
        ``dump`` or ``log``.
    release : str
    panic_message : str
    """

    kind: str = ""
    cause: Cause = Cause.UNKNOWN
    sentence: str = ""
    confidence: Confidence = Confidence.UNKNOWN
    function: str = ""
    module: str = ""
    subject: Subject | None = None
    findings: tuple[Finding, ...] = ()
    victims: tuple[Victim, ...] = ()
    not_to_blame: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()
    signature: str = ""
    source: str = "dump"
    release: str = ""
    panic_message: str = ""
