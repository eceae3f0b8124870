"""A kernel report as values."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from postpanic.evidence.oops.kinds import FAMILIES, Family, Kind

__all__ = ["Access", "Blame", "Frame", "Lock", "Report", "Section", "Trace"]


class Access(StrEnum):
    """What the kernel was doing to the address."""

    READ = "read"
    WRITE = "write"
    EXECUTE = "execute"


class Section(StrEnum):
    """What a trace tells."""

    MAIN = "main"
    """Where it happened."""
    OTHER_ACCESS = "other-access"
    """The other side of a data race."""
    ALLOCATED = "allocated"
    FREED = "freed"
    RELATED_WORK = "related-work"
    STORED = "stored"
    """Where an uninitialised value was copied from."""
    LOCK = "lock"
    """How a lock was taken before."""
    PREEMPT = "preempt-disabled"
    TASK = "task"
    """A task that is shown beside the report."""
    CPU = "cpu"
    """A CPU that is shown beside the report (NMI backtrace)."""
    PANIC = "panic"
    """The trace of the panic that followed."""


class Frame(msgspec.Struct, frozen=True):
    """
    One line of a trace.

    Parameters
    ----------
    function : str
        As printed, with its suffixes (``.isra.0``, ``.cold``); empty: only an address is known.
    offset, size : int, optional
        Bytes into the function, and its length.
    module : str
    address : int, optional
    is_reliable : bool
        False for what the unwinder only found on the stack (``?``).
    is_inline : bool
    is_pc : bool
        The instruction pointer of a register dump inside the trace.
    context : str
        ``IRQ``, ``NMI``, ``TASK``, an exception stack, or empty.
    location : str
        ``file:line`` where the log was symbolised.
    module_build_id : str
        40 hexadecimal digits, where the kernel prints them (``CONFIG_STACKTRACE_BUILD_ID``); of the module.
    """

    function: str
    offset: int | None = None
    size: int | None = None
    module: str = ""
    address: int | None = None
    is_reliable: bool = True
    is_inline: bool = False
    is_pc: bool = False
    context: str = ""
    location: str = ""
    module_build_id: str = ""


class Trace(msgspec.Struct, frozen=True):
    """
    Frames, innermost first.

    Parameters
    ----------
    section : Section
    title : str
        The line that announced it.
    frames : tuple of Frame
    cpu : int, optional
    """

    section: Section
    title: str = ""
    frames: tuple[Frame, ...] = ()
    cpu: int | None = None


class Lock(msgspec.Struct, frozen=True):
    """A lock that the report names, and the function that takes or holds it."""

    name: str
    function: str
    is_wanted: bool = False


class Blame(msgspec.Struct, frozen=True):
    """A function that may be at fault: the ranking's first is the best guess."""

    function: str
    reason: str
    module: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """
    One report of the kernel.

    Parameters
    ----------
    kind : Kind
    variant : str
        More exactly: ``slab-use-after-free``, ``circular locking``, ``shift-out-of-bounds``.
    title : str
        One line of our own making, without addresses: the same for the same crash.
    message : str
        The kernel's line that began it.
    access : Access, optional
    address : int, optional
        What was accessed.
    size_bytes : int, optional
        Of the access.
    pid, cpu : int, optional
    comm : str
    release : str
        The kernel, as printed behind ``Not tainted``.
    build_id : str
        Of the kernel: 40 hexadecimal digits, where the kernel prints them (``CONFIG_STACKTRACE_BUILD_ID``).
    kaslr_offset : int, optional
        How far the kernel's text was moved, bytes: from the line ``Kernel Offset:`` of the same boot,
        which only a panic prints; 0 where that says ``disabled``.
    kaslr_base : int, optional
        Where the text would have been (``from 0xffffffff81000000``).
    taint : str
        Its letters.
    hardware, workqueue : str
    source : str
        ``file:line`` of a BUG, a WARNING or a sanitizer.
    condition : str
        What a WARNING or BUG says beside its place.
    modules : tuple of str
    registers : dict
        By the names the architecture prints.
    code : str
        The ``Code:`` bytes as printed, the trapping one in ``<>``.
    traces : tuple of Trace
    locks : tuple of Lock
    details : dict
        Further facts by name: ``cache``, ``object``, ``seconds``, ``die`` …
    is_panic : bool
        Whether the kernel panicked after it.
    is_notice : bool
        Whether the kernel survives such a thing by design: a killed process, a corrected error.
    panic_message : str
    damage : tuple of str
        Why the report cannot be trusted or is not whole; empty: nothing is known against it.
    blame : tuple of Blame
    consequence_of : int, optional
        Place in the list of the report that came first, when this one may follow from it.
    signature : str
        The same for the same crash, whatever text it was read from.
    architecture : str
    time_s : float, optional
    offset, end : int
        Bytes of the text that it was made from.
    lines : tuple of str
        Its messages.
    """

    kind: Kind
    variant: str = ""
    title: str = ""
    message: str = ""
    access: Access | None = None
    address: int | None = None
    size_bytes: int | None = None
    pid: int | None = None
    cpu: int | None = None
    comm: str = ""
    release: str = ""
    build_id: str = ""
    kaslr_offset: int | None = None
    kaslr_base: int | None = None
    taint: str = ""
    hardware: str = ""
    workqueue: str = ""
    source: str = ""
    condition: str = ""
    modules: tuple[str, ...] = ()
    registers: dict[str, int] = {}
    code: str = ""
    traces: tuple[Trace, ...] = ()
    locks: tuple[Lock, ...] = ()
    details: dict[str, str] = {}
    is_panic: bool = False
    is_notice: bool = False
    panic_message: str = ""
    damage: tuple[str, ...] = ()
    blame: tuple[Blame, ...] = ()
    consequence_of: int | None = None
    signature: str = ""
    architecture: str = ""
    time_s: float | None = None
    offset: int = 0
    end: int = 0
    lines: tuple[str, ...] = ()

    @property
    def family(self) -> Family:
        """The branch of the tree of kinds."""
        return FAMILIES[self.kind]

    @property
    def function(self) -> str:
        """The function that is blamed first, or an empty string."""
        return self.blame[0].function if self.blame else ""
