"""
Facts on single lines of a report: process, registers, access, place in the source.

Each reader takes the text of a line and adds what it says to a dictionary of
facts; the first line that says something wins, as later ones are of later events.

References
----------
kernel/panic.c ``__warn``, lib/dump_stack.c ``dump_stack_print_info``; mm/kasan/report.c, mm/kfence/report.c,
kernel/kcsan/report.c; arch/x86/mm/fault.c ``show_fault_oops``; arch/arm64/mm/fault.c ``mem_abort_decode``.
"""

from __future__ import annotations

import re
from typing import Any

from postpanic.evidence.oops.model import Access

__all__ = [
    "Facts",
    "note",
    "read_code",
    "read_cpu_line",
    "read_error_code",
    "read_first_line",
    "read_kernel_offset",
    "read_registers",
    "read_riscv_cause",
    "read_sanitizer",
    "read_syndrome",
]

Facts = dict[str, Any]
"""Values by the names of the members of ``Report``."""

_CPU = re.compile(
    r"CPU: ?(\d{1,6}) (?:UID: ?\d{1,10} )?PID: ?(\d{1,10}),? [Cc]omm: (.{0,80}?) (?:Kdump: loaded )?"
    r"(?:Not tainted|Tainted: ?([A-Z \[\]=_,]{1,300})) {0,12}(?:-{3,30} {1,12})?(\S{0,128})"
)
_BUILD_ID = re.compile(r" ([0-9a-f]{40})\b")
_PID_OLD = re.compile(
    r"Pid: (\d{1,10}), comm: (.{0,60}?) (?:Not tainted|Tainted: ?([A-Z ]{1,40}?)) {1,12}"
    r"(?:-{3,30} {1,12})?\(?(\S{1,128})"
)
_WARNING = re.compile(r"WARNING: (?:CPU: (\d{1,6}) PID: (\d{1,10}) )?at ([\w./+-]{1,255}:\d{1,7})(?: (\S{1,255}))?")
_WARNING_NEW = re.compile(
    r"WARNING: (?:\[.{1,300}\] )?(?:([\w./+-]{1,255}:\d{1,7}) )?at ([^\s,]{1,255}), "
    r"CPU#(\d{1,6}): (.{1,64})/(\d{1,10})$"
)
_BUG_AT = re.compile(r"kernel BUG at ([^\s!]{1,255}:\d{1,7})")
_IN_SOURCE = re.compile(r" in ([\w./+-]{1,255}:\d{1,7})(?::\d{1,5})?")
_ERROR_CODE = re.compile(r"#PF: error_code\(0x([0-9a-f]{1,16})\)|Oops: ([0-9a-f]{1,16}) \[#|\bESR = 0x([0-9a-f]{1,16})")
_KERNEL_OFFSET = re.compile(
    r" {0,8}Kernel (?:Offset: |relocated by )(?:0x([0-9a-f]{1,16})(?: from (?:0x)?([0-9a-f]{1,16}))?|disabled)"
)
_HUNG = re.compile(r"(?:INFO: task |^(?!INFO))(.{0,80}):(\d{1,10}) (?:blocked|can't die).{0,40}? (\d{1,10}) seconds")
_LOCKUP = re.compile(r"CPU ?#?(\d{1,6}).{0,20}?(?: stuck for (\d{1,8})s)?(?:! \[(.{1,80}):(\d{1,10})\])?$")
_SLASH_PID = re.compile(r"(?:atomic: |code: |in_atomic\(\).{0,60}name: )(.{1,60})/(\d{1,10})(?![\dx])")
_HEX_TAIL = re.compile(
    r"(?:address:?|access at|fetch at|read at|write at|at|address \(\w{1,12}\):) ?:? ?\(?(0x)?([0-9a-f]{4,16})\b"
)
_GPF = re.compile(r"non-canonical address 0x([0-9a-f]{4,16})")
_SIZE = re.compile(r"^(Read|Write|read|write|Free)\b(?: of size (\d{1,10}))?(?: (?:at|of) addr ([0-9a-f]{4,16}))?")
_BY_TASK = re.compile(r"by task (.{0,120})/(\d{1,10})$")
_KFENCE_AT = re.compile(r"(?:read|write|memory|free|access) (?:at|of) 0x([0-9a-f]{4,16})")
_KCSAN_ACCESS = re.compile(
    r"^(?:race at unknown origin, with )?((?:assert no )?(?:read|write|accesses)(?:-write)?).{0,20} "
    r"to 0x([0-9a-f]{4,16}) of (\d{1,10}) bytes by (?:task|interrupt)"
)
_WNR = re.compile(r"WnR = ([01])")
_SYNDROME = re.compile(r"(?:ESR = 0x([0-9a-f]{1,16})|ESR: 0x([0-9a-f]{1,16})|Oops: ([0-9a-f]{1,16}) \[#)")
_CAUSE = re.compile(r"cause: ([0-9a-f]{8,16})\b")
_OBJECT = re.compile(r"belongs to the cache (\S{1,80}) of size (\d{1,10})")
_KFENCE_OBJECT = re.compile(r"size=(\d{1,10}), cache=([^\s\]]{1,80})")
_REGISTER = re.compile(r"\b([A-Za-z]{1,6}\d{0,2}) ?: {0,3}(?:[0-9a-f]{4}:)?\[?<?([0-9a-f]{8,16})\b")
_GPRS = re.compile(r"\b[0-9a-f]{8,16}\b")


def note(facts: Facts, name: str, value: object) -> None:
    """Keep a fact unless it is empty or known already."""
    if value is not None and value != "" and name not in facts:
        facts[name] = value


def read_cpu_line(text: str, facts: Facts) -> bool:
    """
    Read ``CPU: 1 PID: 2 Comm: x Tainted: G 6.1.0 #1``, or what stood in its place before v3.10.

    Behind the name of the task stands whether a capture kernel is loaded (lib/dump_stack.c).

    >>> facts: Facts = {}
    >>> read_cpu_line("CPU: 1 PID: 2 Comm: a task Kdump: loaded Not tainted 6.1.0 #1", facts), facts["comm"]
    (True, 'a task')
    """
    match = _CPU.search(text)
    if match is not None:
        if "comm" not in facts:
            note(facts, "cpu", int(match[1]))
            note(facts, "pid", int(match[2]))
        facts["cpu_line_pid"] = match[2]
        note(facts, "comm", match[3])
        note(facts, "taint", _taint_letters(match[4] or ""))
        note(facts, "release", match[5])
        if (build_id := _BUILD_ID.search(text, match.end())) is not None:
            note(facts, "build_id", build_id[1])
        return True
    match = _PID_OLD.search(text)
    if match is None:
        return False
    facts["cpu_line_pid"] = match[1]
    note(facts, "pid", int(match[1]))
    note(facts, "comm", match[2])
    note(facts, "taint", _taint_letters(match[3] or ""))
    note(facts, "release", match[4])
    return True


def read_error_code(text: str) -> int | None:
    """
    Read x86's error code of a page fault, or arm64's exception syndrome, which two lines of a report have.

    >>> read_error_code("#PF: error_code(0x0002) - not-present page"), read_error_code("Oops: Oops: 0002 [#1] SMP")
    (2, 2)
    """
    match = _ERROR_CODE.search(text)
    return None if match is None else int(match[1] or match[2] or match[3], 16)


def read_kernel_offset(text: str) -> tuple[int, int | None] | None:
    """
    Read how far the kernel was moved, and from where, out of what it prints when it panics.

    The line is that of ``dump_kernel_offset()`` of each architecture: arch/x86/kernel/setup.c,
    arch/arm64/kernel/setup.c, arch/riscv/kernel/setup.c, arch/powerpc/kernel/setup-common.c,
    arch/mips/kernel/relocate.c, arch/loongarch/kernel/relocate.c (``Kernel relocated by``).

    >>> read_kernel_offset("Kernel Offset: 0x1a00000 from 0xffffffff81000000 (relocation range: ...)")
    (27262976, 18446744071578845184)
    >>> read_kernel_offset("Kernel Offset: disabled")
    (0, None)
    """
    match = _KERNEL_OFFSET.match(text)
    if match is None:
        return None
    offset, base = match.groups()
    return int(offset, 16) if offset else 0, int(base, 16) if base else None


def _taint_letters(text: str) -> str:
    if "=" in text:
        return "".join(re.findall(r"\[([A-Z])\]", text))
    return "".join(text.split())


def read_first_line(text: str, facts: Facts) -> None:
    """Read what the line that begins a report says beside its kind."""
    if "WARNING: " in text:
        _read_warning(text, facts)
    if (match := _BUG_AT.search(text)) or ("UBSAN" in text and (match := _IN_SOURCE.search(text))):
        note(facts, "source", match[1])
    if (match := _HUNG.search(text)) is not None:
        note(facts, "comm", match[1])
        note(facts, "pid", int(match[2]))
        note(facts, "seconds", match[3])
    elif "lockup" in text or "LOCKUP" in text:
        _read_lockup(text, facts)
    if (match := _SLASH_PID.search(text)) is not None:
        note(facts, "comm", match[1])
        note(facts, "pid", int(match[2]))
    _read_address(text, facts)
    read_details(text, facts)


def _read_warning(text: str, facts: Facts) -> None:
    match = _WARNING_NEW.search(text)
    if match is not None:
        source, _, cpu, comm, pid = match.groups()
        note(facts, "source", source)
        note(facts, "cpu", int(cpu))
        note(facts, "comm", comm)
        note(facts, "pid", int(pid))
        return
    match = _WARNING.search(text)
    if match is not None:
        cpu, pid, source, _ = match.groups()
        note(facts, "source", source)
        if cpu is not None:
            note(facts, "cpu", int(cpu))
            note(facts, "pid", int(pid))


def _read_lockup(text: str, facts: Facts) -> None:
    match = _LOCKUP.search(text)
    if match is not None:
        cpu, seconds, comm, pid = match.groups()
        note(facts, "cpu", int(cpu))
        note(facts, "seconds", seconds)
        note(facts, "comm", comm)
        note(facts, "pid", int(pid) if pid else None)


def _read_address(text: str, facts: Facts) -> None:
    lower = text.lower()
    if "unable to handle" in lower or "dereference" in lower or "nhandled fault" in text or "KASAN" in text:
        matches = _HEX_TAIL.findall(text)
        if matches:
            note(facts, "address", int(matches[-1][1], 16))
        elif "(null)" in text:
            note(facts, "address", 0)
        if " write to " in text or "on write" in text or "write access" in text:
            note(facts, "access", Access.WRITE)
        elif " read from " in text or "on read" in text or "read access" in text:
            note(facts, "access", Access.READ)
        elif "execut" in text or "instruction fetch" in text:
            note(facts, "access", Access.EXECUTE)
    match = _GPF.search(text)
    if match is not None:
        note(facts, "address", int(match[1], 16))
    if "KFENCE" in text:
        note(facts, "access", Access.WRITE if " write " in text else Access.READ if " read " in text else None)


def read_sanitizer(text: str, facts: Facts) -> bool:
    """Read the access, the address and the object that KASAN, KFENCE and KCSAN describe."""
    match = _SIZE.match(text)
    if match is not None and ("task" in text or "addr" in text):
        what, size, address = match.groups()
        note(facts, "access", {"r": Access.READ, "w": Access.WRITE}.get(what[0].lower()))
        note(facts, "size_bytes", int(size) if size else None)
        note(facts, "address", int(address, 16) if address else None)
        by_task = _BY_TASK.search(text)
        if by_task is not None:
            note(facts, "sanitizer_task", (by_task[1], int(by_task[2])))
        return True
    match = _KCSAN_ACCESS.match(text)
    if match is not None:
        what, address, size = match.groups()
        note(facts, "access", Access.WRITE if "write" in what else Access.READ)
        note(facts, "address", int(address, 16))
        note(facts, "size_bytes", int(size))
        return True
    match = _KFENCE_AT.search(text)
    if match is not None:
        note(facts, "address", int(match[1], 16))
        return True
    return _read_object(text, facts)


def _read_object(text: str, facts: Facts) -> bool:
    match = _OBJECT.search(text)
    if match is not None:
        note(facts, "cache", match[1])
        note(facts, "object_size", match[2])
        return True
    match = _KFENCE_OBJECT.search(text)
    if match is not None:
        note(facts, "cache", match[2])
        note(facts, "object_size", match[1])
        return True
    return False


def read_syndrome(text: str, facts: Facts) -> None:
    """Read what was done to the address from arm's fault status or arm64's exception syndrome."""
    match = _WNR.search(text)
    if match is not None:
        note(facts, "access", Access.WRITE if match[1] == "1" else Access.READ)
        return
    match = _SYNDROME.search(text)
    if match is None:
        return
    digits = match[1] or match[2] or match[3]
    syndrome = int(digits, 16)
    exception_class = syndrome >> 26 & 0x3F
    if len(digits) < 8:  # arm: FSR_WRITE, bit 11
        note(facts, "access", Access.WRITE if syndrome & 0x800 else Access.READ)
    elif exception_class in {0x20, 0x21}:  # arm64: ESR_ELx_EC_IABT_*
        note(facts, "access", Access.EXECUTE)
    elif exception_class in {0x24, 0x25}:  # arm64: ESR_ELx_EC_DABT_*, ESR_ELx_WNR
        note(facts, "access", Access.WRITE if syndrome & 0x40 else Access.READ)


def read_riscv_cause(text: str, facts: Facts) -> None:
    """Read what was done to the address from riscv's ``scause``."""
    match = _CAUSE.search(text)
    if match is not None:
        cause = int(match[1], 16)
        note(facts, "access", {12: Access.EXECUTE, 13: Access.READ, 15: Access.WRITE}.get(cause))


_DETAILS: tuple[tuple[str, re.Pattern[str], tuple[str, ...]], ...] = (
    ("pid: ", re.compile(r"in_atomic\(\): .{0,80}pid: (?P<pid>\d{1,10}), name: (?P<comm>.{1,60})$"), ("pid", "comm")),
    ("jiffies", re.compile(r"detected by (?P<detected_by_cpu>\d{1,6})"), ("detected_by_cpu",)),
    ("jiffies", re.compile(r"\bt=(?P<jiffies>\d{1,12}) jiffies"), ("jiffies",)),
    (
        "Kill",
        re.compile(r"Kill(?:ed)? process (?P<victim_pid>\d{1,10}) \((?P<victim>.{1,60}?)\)"),
        ("victim_pid", "victim"),
    ),
    (
        "Bank",
        re.compile(r"Machine Check.{0,40} Bank (?P<mce_bank>\d{1,4}): (?P<mce_status>[0-9a-f]{1,16})"),
        ("mce_bank", "mce_status"),
    ),
    ("ADDR ", re.compile(r"\bADDR (?P<mce_address>[0-9a-f]{1,16})"), ("mce_address",)),
    ("MISC ", re.compile(r"\bMISC (?P<mce_misc>[0-9a-f]{1,16})"), ("mce_misc",)),
    (
        "PROCESSOR ",
        re.compile(r"\bPROCESSOR (?P<mce_processor>\S{1,40}) TIME (?P<mce_time>\d{1,20})"),
        ("mce_processor", "mce_time"),
    ),
    ("RIP", re.compile(r"RIP (?:!INEXACT! )?(?P<mce_ip>[0-9a-f]{1,4}:<[0-9a-f]{1,16}>.{0,80})"), ("mce_ip",)),
)
"""A word that must be in the line, a pattern, and the names of what it finds."""

DETAIL_NAMES = tuple(name for _, _, names in _DETAILS for name in names if name not in {"pid", "comm"})
"""Names of the facts that only some kinds have."""


def read_details(text: str, facts: Facts) -> bool:
    """Read what stalls, the out-of-memory killer and machine checks say of themselves; False if nothing is said."""
    found = False
    for word, pattern, names in _DETAILS:
        if word in text and (match := pattern.search(text)) is not None:
            found = True
            for name in names:
                note(facts, name, int(match[name]) if name == "pid" else match[name])
    return found


def read_registers(text: str, registers: dict[str, int]) -> bool:
    """
    Read a line of registers into a dictionary; False if it is none.

    >>> registers: dict[str, int] = {}
    >>> read_registers("RAX: 0000000000000010 RBX: ffff888000000000", registers), registers["RAX"]
    (True, 16)
    """
    if text.startswith("GPR") and text[3:5].isdigit():
        first = int(text[3:5])
        for place, value in enumerate(_GPRS.findall(text[6:])):
            registers.setdefault(f"GPR{first + place:02d}", int(value, 16))
        return True
    found = _REGISTER.findall(text)
    for name, value in found:
        registers.setdefault(name, int(value, 16))
    return bool(found)


def read_code(text: str) -> str:
    """Return the bytes of a ``Code:`` line, or an empty string if it has none."""
    words = text.split()
    return " ".join(words) if words and all(_is_code_word(word) for word in words) else ""


_CODE_WORD = re.compile(r"[<(]?(?:[0-9a-f]{2}|[0-9a-f]{4}|[0-9a-f]{8}|\*{2,8}|\?{2,8}|x{2,8}|X{2,8})[>)]?$")


def _is_code_word(word: str) -> bool:
    return _CODE_WORD.match(word) is not None
