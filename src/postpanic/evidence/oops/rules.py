"""
How reports begin: the line of each kind, as the kernel prints it.

A rule has a *needle*, bytes that are cheap to look for in megabytes of text,
and a pattern that a line with the needle must match. The patterns come from the
kernel's own format strings; the place of each is in its comment.
"""

from __future__ import annotations

import re
from re import Match, Pattern

import msgspec

from postpanic.evidence.oops.kinds import Kind

__all__ = ["NEEDLES", "RULES", "Role", "Rule", "match_rule"]

from enum import StrEnum


class Role(StrEnum):
    """What a line of this kind does when a report is open already."""

    EVENT = "event"
    """It begins a report of its own."""
    DIE = "die"
    """The exception that carries the report before it (``Oops:``, ``invalid opcode:``), or an event."""
    HERALD = "herald"
    """Text that the kernel prints just before a WARNING, a BUG or a panic, and says what that means."""
    PANIC = "panic"
    """The end of the machine: belongs to the report before it."""
    NOTE = "note"
    """A line by itself: it never ends a report that is open."""
    MORE = "more"
    """One more line of a report of the same kind."""


class Rule(msgspec.Struct, frozen=True):
    """
    The first line of a kind of report.

    Parameters
    ----------
    needle : str
        Must be in the line.
    pattern : Pattern
        Searched in the message.
    kind : Kind
    variant : str
        Fixed; empty: the pattern's group ``v``, if it has one.
    role : Role
    """

    needle: str
    pattern: Pattern[str]
    kind: Kind
    variant: str = ""
    role: Role = Role.EVENT
    is_sought: bool = True
    is_anchored: bool = False


def _rule(needle: str, pattern: str, kind: Kind, variant: str = "", role: Role = Role.EVENT) -> Rule:
    return Rule(needle, re.compile(pattern), kind, variant, role, is_anchored=pattern.startswith("^"))


def _said(words: str, kind: Kind, variant: str = "") -> Rule:
    """Make a rule of words behind BUG, INFO or WARNING, for which the first pass looks anyway."""
    pattern = r"(?:BUG: (?<![\w\"'`=/]BUG: )|INFO: (?<![\w\"'`=/]INFO: )|WARNING: (?<![\w\"'`=/]WARNING: )).{0,120}?"
    return Rule(words, re.compile(pattern + re.escape(words)), kind, variant, is_sought=False)


_AT = r"^(?:\W{0,8}(?:[\w.-]{1,24}: ){0,2})"  # "[ ", "watchdog: ", "rcu: ", "NMI watchdog: " before the text
_BUG = r"BUG: (?<![\w\"'`=/]BUG: )"  # the word first: the search for a plain word is quick
_DIE = r"(?:^|Oops: |\] |: )"
_NUMBER = r"(?:, [^:]{1,80})?: ?[0-9a-f]{1,16} \[#\d{1,6}\]"

_PANIC = _rule(
    "ernel panic - ", r"^(?!---\[ end).{0,200}?Kernel panic - not syncing", Kind.PANIC, role=Role.PANIC
)  # kernel/panic.c
_SANITIZERS = (
    # mm/kasan/report.c print_error_description()
    _rule("BUG: ", _BUG + r"KASAN: (?P<v>[\w-]{1,40})", Kind.KASAN),
    # mm/kfence/report.c
    _rule("BUG: ", _BUG + r"KFENCE: (?P<v>[\w -]{1,40}?) (?:in|at) ", Kind.KFENCE),
    # mm/kmsan/report.c
    _rule("BUG: ", _BUG + r"KMSAN: (?P<v>[\w-]{1,40})", Kind.KMSAN),
    # kernel/kcsan/report.c
    _rule("BUG: ", _BUG + r"KCSAN: (?P<v>[\w-]{1,20}(?:: race)?)", Kind.KCSAN),
    # lib/ubsan.c ubsan_prologue(); before v5.10 "Undefined behaviour"
    _rule("UBSAN: ", r"UBSAN: (?P<v>[\w -]{1,60}?) in ", Kind.UBSAN),
    # kernel/kmemleak.c
    _rule("BUG: ", _BUG + r"memory leak", Kind.MEMORY_LEAK),
    _rule("unreferenced object", r"^unreferenced object 0x[0-9a-f]{4,16} \(size", Kind.MEMORY_LEAK, role=Role.MORE),
)
_FAULTS = (
    # arch/x86/mm/fault.c show_fault_oops(), before and after v5.1; arch/powerpc/mm/fault.c bad_page_fault()
    _rule("BUG: ", _BUG + r"(?:unable to handle )?[kK]ernel NULL pointer dereference", Kind.NULL_DEREFERENCE),
    _rule("BUG: ", _BUG + r"[uU]nable to handle page fault", Kind.PAGING_REQUEST),
    _rule("nable to handle", r"[uU]nable to handle kernel NULL pointer dereference", Kind.NULL_DEREFERENCE),
    _rule("nable to handle", r"[uU]nable to handle (?:kernel|user)", Kind.PAGING_REQUEST),
    # arch/x86/kernel/traps.c; arch/x86/kernel/dumpstack.c __die()
    _rule(" [#", r"general protection fault" + _NUMBER, Kind.GENERAL_PROTECTION),
    _rule(" [#", r"general protection fault, (?:probably|maybe) for", Kind.GENERAL_PROTECTION),
    _rule(" [#", r"stack segment" + _NUMBER, Kind.STACK_SEGMENT),
    # arch/arm/mm/fault.c do_DataAbort(); arch/arm64/mm/fault.c, traps.c, entry-common.c
    _rule("nhandled", r"^(?:\W{0,4})Unhandled (?:fault|prefetch abort)(?:: | at 0x)", Kind.UNHANDLED_FAULT),
    _rule("lignment trap", r"^Alignment trap: not handling", Kind.ALIGNMENT),
    _rule("Bad mode in", r"^Bad mode in \S", Kind.BAD_MODE),
    _rule("nhandled", r"^Unhandled [\w() -]{1,60} exception on CPU", Kind.BAD_MODE),
    _rule("SError", r"^SError Interrupt on CPU", Kind.SERROR),
    _rule(" [#", r"^(?:\W{0,4})Internal error: .{0,200}\[#\d", Kind.INTERNAL_ERROR, role=Role.DIE),
    _rule(" [#", r"kernel stack overflow \(", Kind.STACK_OVERFLOW, role=Role.DIE),
    _rule("Insufficient stack", r"Insufficient stack space to handle exception", Kind.STACK_OVERFLOW),
    _rule("BUG: ", _BUG + r"[\w# -]{0,20}stack guard page was hit", Kind.STACK_OVERFLOW),
    _rule("overran", r"^Thread overran stack, or stack corrupted", Kind.STACK_OVERFLOW, role=Role.MORE),
    _rule("PANIC: ", r"PANIC: double fault", Kind.DOUBLE_FAULT),
    # arch/x86/mm/extable.c early_fixup_exception(); arch/s390/kernel/early.c
    _rule("PANIC: ", r"PANIC: (?P<v>early exception|Unsupported exit-code)", Kind.TRAP),
    # arch/s390/kernel/traps.c; arch/powerpc/kernel/traps.c
    _rule("ernel stack ", r"^Kernel stack (?:overflow(?:\.| in process)|pointer invalid)", Kind.STACK_OVERFLOW),
    _rule(" [#", _DIE + r"double fault" + _NUMBER, Kind.DOUBLE_FAULT, role=Role.DIE),
    _rule(" [#", r"divide error" + _NUMBER, Kind.DIVIDE_ERROR),
    _rule(" [#", r"invalid opcode" + _NUMBER, Kind.INVALID_OPCODE, role=Role.DIE),
    _rule(" [#", _DIE + r"int3" + _NUMBER, Kind.INT3),
    _rule(
        " [#",
        _DIE + r"(?P<v>bounds|overflow|invalid TSS|segment not present|alignment check|coprocessor segment overrun"
        r"|device not available|simd exception|fpu exception|debug|control protection|machine check)" + _NUMBER,
        Kind.TRAP,
    ),
    _rule("Oops", r"(?:^|[^\w])Oops(?:(?:: | - )(?P<v>[^\[]{0,100}))? ?\[#\d{1,6}\]", Kind.OOPS, role=Role.DIE),
    _rule(" [#", r"^Kernel BUG \[#\d", Kind.KERNEL_BUG, role=Role.DIE),
    _rule("Kernel bug", r"^Kernel bug detected\[#\d", Kind.KERNEL_BUG, role=Role.DIE),
    # die() of any architecture: s390's program checks with their code, mips and loongarch without one
    _rule(
        " [#",
        r"^\W{0,4}(?P<v>[A-Za-z][\w #/,.()'-]{2,60}): ?[0-9a-f]{1,16}(?: ilc:\d)? \[#\d{1,6}\]",
        Kind.TRAP,
        role=Role.DIE,
    ),
    _rule("[#", r"^(?P<v>[A-Z][\w #/,.!()'-]{2,60})\[#\d{1,6}\]:", Kind.TRAP, role=Role.DIE),
)
_ASSERTIONS = (
    # lib/bug.c
    _rule("ernel BUG at", r"[kK]ernel BUG at (?:\S{1,255}:\d|\S{1,255} \[verbose)", Kind.KERNEL_BUG),
    # mm/usercopy.c
    _rule("sercopy: ", r"usercopy: [kK]ernel memory", Kind.USERCOPY, role=Role.HERALD),
    _rule("sercopy: ", r"usercopy: Bad or missing usercopy whitelist", Kind.USERCOPY, role=Role.HERALD),
    # lib/list_debug.c
    _rule("corruption", r"^list_(?:add|del) corruption", Kind.LIST_CORRUPTION, role=Role.HERALD),
    # lib/string_helpers.c __fortify_panic()
    _rule("detected buffer overflow", r"detected buffer overflow in", Kind.KERNEL_BUG, "buffer overflow", Role.HERALD),
    _rule(
        "detected buffer overflow",
        r"^\w{1,20}: detected buffer overflow",
        Kind.KERNEL_BUG,
        "buffer overflow",
        Role.HERALD,
    ),
    _rule("refcount_t: ", r"^(?:\W{0,3})refcount_t: ", Kind.REFCOUNT, role=Role.HERALD),
    _rule("ODEBUG: ", r"^ODEBUG: ", Kind.ODEBUG, role=Role.HERALD),
    # rust/kernel/lib.rs panic()
    _rule("rust_kernel", r"^rust_kernel: panicked at ", Kind.RUST_PANIC, role=Role.HERALD),
    _rule("CFI failure", r"^CFI failure", Kind.CFI, role=Role.HERALD),
    # kernel/panic.c __warn(); the last form since v6.19
    _rule("WARNING: ", r"WARNING: CPU: \d{1,6} PID: \d{1,10} at ", Kind.WARNING),
    _rule("WARNING: ", r"WARNING: at \S{1,200}:\d", Kind.WARNING),
    _rule(
        "WARNING: ", r"WARNING: (?:\[.{1,300}\] )?(?:[\w./+-]{1,200}:\d{1,7} )?at [^\s,]{1,255}, CPU#\d", Kind.WARNING
    ),
)
_HANGS = (
    # kernel/watchdog.c
    _rule("BUG: ", r"BUG: soft lockup", Kind.SOFT_LOCKUP),
    _rule("ard LOCKUP", r"[dD]etected (?:\*?[hH]ard\*? LOCKUP)", Kind.HARD_LOCKUP),
    _rule("ard LOCKUP", r"self-detected hard LOCKUP|CPU \d{1,6} Hard LOCKUP", Kind.HARD_LOCKUP),
    # kernel/rcu/tree_stall.h, kernel/rcu/tasks.h
    _rule(
        "INFO: ",
        r"INFO: \w{1,30} (?:(?P<v>self-detected|expedited)|detected)(?: expedited)? stalls?",
        Kind.RCU_STALL,
    ),
    # kernel/hung_task.c check_hung_task()
    _rule("INFO: ", r"INFO: task .{1,80}:\d{1,10} blocked (?P<v>in I/O wait|for more than)", Kind.HUNG_TASK),
    _rule("blocked for more", r":\d{1,10} blocked for more than \d{1,9} seconds", Kind.HUNG_TASK),
    _rule("INFO: ", r"INFO: task .{1,80} can't die for more than", Kind.HUNG_TASK, "cannot die"),
    # kernel/workqueue.c
    _rule("BUG: ", _BUG + r"workqueue lockup", Kind.WORKQUEUE_LOCKUP),
    # kernel/smp.c csd_lock_wait_toolong()
    _rule("CSD lock", r"[dD]etected (?:non-responsive|.{0,40}) ?CSD lock", Kind.CSD_LOCK),
    _rule("unregister_netdevice", r"unregister_netdevice: waiting for", Kind.NETDEVICE_REFERENCE, role=Role.NOTE),
)
_LOCKS = (
    # kernel/locking/lockdep.c
    _said("possible circular locking", Kind.DEADLOCK, "circular"),
    _said("circular locking deadlock", Kind.DEADLOCK, "rt mutex"),
    _said("possible recursive locking", Kind.DEADLOCK, "recursive"),
    _said("possible irq lock inversion", Kind.DEADLOCK, "irq inversion"),
    _said("lock order detected", Kind.DEADLOCK, "irq order"),
    _said("Nested lock was not taken", Kind.LOCK_USAGE, "nested lock"),
    _said("inconsistent lock state", Kind.LOCK_STATE),
    _said("bad unlock balance", Kind.LOCK_USAGE, "bad unlock balance"),
    _said("bad contention detected", Kind.LOCK_USAGE, "bad contention"),
    _said("held lock freed", Kind.LOCK_USAGE, "held lock freed"),
    _said("still has locks held", Kind.LOCK_USAGE, "locks held"),
    _said("lock held when returning", Kind.LOCK_USAGE, "lock held"),
    _said("lock held at task exit", Kind.LOCK_USAGE, "lock held"),
    _said("nvalid wait context", Kind.LOCKDEP, "invalid wait context"),
    _said("uspicious RCU usage", Kind.RCU_USAGE),
    _said("uspicious rcu_dereference", Kind.RCU_USAGE),
    _said("trying to register non-static key", Kind.LOCKDEP, "non-static key"),
    _said(" too low!", Kind.LOCKDEP, "table full"),
    # kernel/sched/core.c
    _said("scheduling while atomic", Kind.ATOMIC_SLEEP, "scheduling"),
    _said("sleeping function called from", Kind.ATOMIC_SLEEP, "sleeping"),
    # lib/smp_processor_id.c
    _said("in preemptible", Kind.PREEMPTION),
    # kernel/locking/spinlock_debug.c
    _rule("BUG: ", _BUG + r"(?:spinlock|rwlock) (?P<v>[\w ]{1,30}) on CPU", Kind.SPINLOCK),
)
_MEMORY = (
    # mm/page_alloc.c bad_page(), mm/memory.c print_bad_pte()
    _rule("BUG: ", _BUG + r"Bad (?P<v>page state|page map|page cache)", Kind.BAD_PAGE),
    _rule("BUG: ", _BUG + r"Bad (?P<v>rss-counter state)", Kind.BAD_PAGE, role=Role.NOTE),
    _rule("BUG: ", _BUG + r"non-zero (?P<v>pgtables_bytes|nr_ptes|nr_pmds)", Kind.BAD_PAGE, role=Role.NOTE),
    # mm/slub.c slab_bug(), print_trailer()
    _rule("BUG ", r"(?:^|\W)BUG [\w:. -]{1,80} \((?:Not t|T)ainted[^)]{0,80}\): (?P<v>.{1,60})", Kind.SLAB),
    _rule("INFO: ", r"INFO: (?:Freed|Allocated) in \S{1,200} age=", Kind.SLAB, "object", Role.MORE),
    _rule("INFO: ", r"INFO: (?:Slab|Object) 0x[0-9a-f]", Kind.SLAB, "object", Role.MORE),
    _rule("allocation failure", r"page allocation failure", Kind.ALLOCATION_FAILURE),
    # mm/oom_kill.c
    _rule("oom-killer", r"invoked oom-killer", Kind.OUT_OF_MEMORY),
    _rule("ut of memory", r"Out of memory(?: \(\w{1,40}\))?: Kill(?:ed)? process", Kind.OUT_OF_MEMORY, role=Role.NOTE),
    _rule("ut of memory", r"cgroup out of memory: Kill(?:ed)? process", Kind.OUT_OF_MEMORY, "cgroup", Role.NOTE),
)
_HARDWARE = (
    # arch/x86/kernel/cpu/mce/core.c; drivers/firmware/efi/cper.c
    _rule("Machine Check", r"(?:CPU \d{1,6}|HARDWARE ERROR).{0,20}: Machine Check", Kind.MACHINE_CHECK, role=Role.MORE),
    _rule("HARDWARE ERROR", r"^HARDWARE ERROR", Kind.MACHINE_CHECK, role=Role.MORE),
    _rule("Hardware error from APEI", r"Hardware error from APEI", Kind.HARDWARE_ERROR),
    # arch/powerpc/kernel/mce.c, eeh.c; drivers/pci/pcie/aer.c; drivers/edac/edac_mc.c
    _rule("machine check (", r"^MCE: CPU\d{1,6}: machine check \(", Kind.MACHINE_CHECK, role=Role.NOTE),
    _rule("EEH: Fr", r"^EEH: Frozen P(?:HB|E)#", Kind.HARDWARE_ERROR, "EEH", Role.NOTE),
    _rule(
        "PCIe Bus Error",
        r"PCIe Bus Error: severity=Uncorrect(?:ed|able) \((?:Non-)?Fatal\)",
        Kind.HARDWARE_ERROR,
        "PCIe",
        Role.NOTE,
    ),
    _rule("EDAC MC", r"^EDAC MC\d{1,4}: .{0,40}\bUE\b", Kind.HARDWARE_ERROR, "memory", Role.NOTE),
    # arch/x86/kernel/nmi.c
    _rule("NMI: ", r"NMI: (?P<v>PCI system error|IOCK error|memory parity error)", Kind.NMI),
    _rule("NMI received", r"Uhhuh\. NMI received", Kind.NMI, "unknown"),
    _rule("An NMI occurred", r"hpwdt: An NMI occurred", Kind.NMI, "hpwdt"),
)
_OTHER = (
    _rule("rigger a crash", r"(?:sysrq|SysRq) ?: Trigger a crash", Kind.SYSRQ, role=Role.HERALD),
    # fs/open.c filp_close()
    _rule("file count is", r"VFS: Close: file count is (?:0|zero)", Kind.FILE_SYSTEM, "file count", Role.NOTE),
    _rule("Busy inodes", r"VFS: Busy inodes after unmount", Kind.FILE_SYSTEM, "busy inodes", Role.NOTE),
    _rule("BUG: ", _BUG + r"Dentry .{1,200} still in use", Kind.FILE_SYSTEM, "dentry in use", Role.NOTE),
    # modules that stop a thread for good: Lustre's LBUG(), the Solaris porting layer's spl_panic()
    _rule("LBUG", r"^LustreError: .{1,200}\) LBUG$", Kind.BUG, "LBUG"),
    _rule(
        "PANIC at ", r"^(?:SPL|ZFS|VERIFY)?\W{0,4}PANIC at [\w./-]{1,100}:\d{1,6}:", Kind.BUG, "assertion of a module"
    ),
    # arch/x86/kernel/unwind_frame.c, unwind_orc.c
    _rule(
        "WARNING: ",
        r"^WARNING: (?P<v>kernel stack frame pointer|kernel stack regs|stack recursion|can't access registers"
        r"|can't dereference|stack going in the wrong direction|unrecognized unwind stack type)",
        Kind.BUG,
        role=Role.NOTE,
    ),
    _rule("BUG: ", _AT + r"BUG: (?P<v>\S.{0,80})", Kind.BUG),
)

RULES: tuple[Rule, ...] = (
    _PANIC,
    *_SANITIZERS,
    *_FAULTS,
    *_ASSERTIONS,
    *_HANGS,
    *_LOCKS,
    *_MEMORY,
    *_HARDWARE,
    *_OTHER,
)
"""In order: the first that matches a line is taken."""


_COMMON = " etaoinrsl0123456789cdu:[]mphgb.x_-/kyfvw=,"
"""Bytes of logs, the frequent ones first."""


def _cut(needle: str) -> str:
    # bytes.find() looks at the last byte first: it is fast where that one is rare.
    def rarity(end: int) -> tuple[int, int]:
        place = _COMMON.find(needle[end - 1])
        return (place if place >= 0 else len(_COMMON), end)

    return needle[: max(range(min(6, len(needle)), len(needle) + 1), key=rarity)]


def _sought(needles: set[str]) -> tuple[bytes, ...]:
    cut = {_cut(needle) for needle in needles}
    # A needle that holds another is found with it.
    return tuple(sorted(n.encode() for n in cut if not any(o != n and o in n for o in cut)))


NEEDLES = _sought(
    {rule.needle for rule in RULES if rule.is_sought} | {"Linux version ", "Kernel Offset: ", "Kernel relocated by "}
)
"""What the first pass over the bytes looks for."""


def _by_needle() -> tuple[tuple[str, tuple[tuple[int, Rule], ...]], ...]:
    found: dict[str, list[tuple[int, Rule]]] = {}
    for place, rule in enumerate(RULES):
        if rule.is_sought:
            found.setdefault(rule.needle, []).append((place, rule))
    return tuple((needle, tuple(ranked)) for needle, ranked in found.items())


_BY_NEEDLE = _by_needle()
_SPEAKERS = ("BUG: ", "INFO: ", "WARNING: ")
_SAID_RULES = tuple((place, rule) for place, rule in enumerate(RULES) if not rule.is_sought)
_FIRST_SAID = _SAID_RULES[0][0]


def match_rule(text: str) -> tuple[Rule, str] | None:
    """
    Tell which kind of report a message begins, with its variant; None: no report.

    >>> rule, variant = match_rule("BUG: KASAN: slab-use-after-free in foo+0x1/0x2")
    >>> rule.kind.value, variant
    ('kasan', 'slab-use-after-free')
    >>> match_rule("WARNING: /etc/ssh/moduli does not exist, using fixed modulus")
    """
    best = len(RULES)
    found: Match[str] | None = None
    for needle, ranked in _BY_NEEDLE:
        if needle in text:
            for place, rule in ranked:
                if place > best:
                    break
                match = rule.pattern.match(text) if rule.is_anchored else rule.pattern.search(text)
                if match is not None:
                    best, found = place, match
                    break
    if best > _FIRST_SAID and any(speaker in text for speaker in _SPEAKERS):
        for place, rule in _SAID_RULES:
            if place > best:
                break
            if rule.needle in text and (match := rule.pattern.search(text)) is not None:
                best, found = place, match
                break
    if found is None:
        return None
    rule = RULES[best]
    variant = rule.variant
    if not variant and "v" in rule.pattern.groupindex:
        variant = (found["v"] or "").strip()
    return rule, variant
