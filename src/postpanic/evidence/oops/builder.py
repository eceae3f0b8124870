"""
Collect one report line by line.

The builder is told every line of the report's printk caller and says whether
the line looks like part of a report, by which the caller knows when it is over.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from postpanic.evidence.lines import Line
from postpanic.evidence.oops import fields
from postpanic.evidence.oops.fields import note
from postpanic.evidence.oops.frames import parse_frames, symbol_of
from postpanic.evidence.oops.kinds import Kind
from postpanic.evidence.oops.model import Access, Lock, Section
from postpanic.evidence.oops.rules import Role, Rule
from postpanic.evidence.oops.traces import TraceReader

__all__ = ["ReportBuilder"]

_KEPT = 1024
"""Characters of a line that are kept: the kernel's own limit of a message."""

_MARKER = re.compile(r"<(/?)([#A-Z][\w# -]{1,24})>$")
_PC_AT = re.compile(
    r"(?:PC is at|EIP is at|NIP \[[0-9a-f]{8,16}\]|pc ?:|epc ?:|era ?:|Krnl PSW ?:|IP is at) {0,3}(.{0,400})"
)
_TASK_LINE = re.compile(
    r"(?:task:)?\S.{0,60}? {1,12}(?:state:)?[RSDTtZXPIKWN]\b.{0,20}(?:running task|stack:|0x[0-9a-f]| +\d)"
)
_MANY_TASKS = frozenset(
    {Kind.RCU_STALL, Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP, Kind.HUNG_TASK, Kind.CSD_LOCK, Kind.WORKQUEUE_LOCKUP}
)
"""Kinds that show other tasks and CPUs of their own accord."""

_FIRST_WORDS: dict[str, str] = {
    "RIP:": "_pc_line",
    "EIP:": "_pc_line",
    "IP:": "_pc_line",
    "PC": "_pc_at",
    "EIP": "_pc_at",
    "NIP": "_pc_at",
    "IP": "_pc_at",
    "pc": "_pc_at",
    "epc": "_pc_at",
    "era": "_pc_at",
    "Krnl": "_krnl",
    "Code:": "_code",
    "Instruction": "_instruction_dump",
    "CPU:": "_cpu",
    "Pid:": "_cpu",
    "Modules": "_modules",
    "Hardware": "_hardware",
    "Workqueue:": "_workqueue",
    "Call": "_call_trace",
    "Call-Trace:": "_call_trace",
    "Backtrace:": "_call_trace",
    "Trace:": "_call_trace",
    "backtrace:": "_call_trace",
    "backtrace": "_call_trace",
    "stack": "_stack_backtrace",
    "Stack:": "_neutral",
    "NMI": "_nmi",
    "Task": "_dump_cpu",
    "CPU": "_dump_cpu",
    "Sending": "_neutral",
    "Kernel": "_kernel",
    "---[": "_end",
    "Rebooting": "_end",
    "which": "_access",
    "Read": "_access",
    "Write": "_access",
    "Free": "_access",
    "read": "_race_access",
    "write": "_race_access",
    "read-write": "_race_access",
    "race": "_race_access",
    "Oops:": "_die",
    "Internal": "_die",
    "invalid": "_die",
    "#PF:": "_page_fault",
    "CR2:": "_registers",
    "KASAN:": "_kasan_range",
    "ESR": "_syndrome",
    "FAR": "_neutral",
    "Mem": "_neutral",
    "Process": "_process",
    "Last": "_section",
    "Second": "_section",
    "->": "_chain",
    "Showing": "_locks_held",
    "Tainted:": "_neutral",
    "Not": "_not_tainted",
    "comm": "_leak_comm",
    "WnR": "_syndrome",
    "CM": "_syndrome",
    "status:": "_riscv_cause",
}


class ReportBuilder(TraceReader):
    """
    A report that is being read.

    Parameters
    ----------
    rule : Rule
        What its first line matched.
    variant : str
    first : Line
    preamble : sequence of str
        The last lines of the same caller before it.
    """

    def __init__(self, rule: Rule, variant: str, first: Line, preamble: tuple[str, ...] = ()) -> None:
        super().__init__(rule.kind)
        if len(first.text) > _KEPT:
            first = msgspec.structs.replace(first, text=first.text[:_KEPT])
        self.role = rule.role
        self.variant = variant
        self.first = first
        self.preamble = preamble
        self.lines: list[str] = []
        self.locks: list[Lock] = []
        self.end = first.offset
        self.has_died = False
        self.has_waited = False
        self.panic_message = ""
        self.dropped = 0
        self.other_tasks = 0
        self._dumps = False
        fields.read_first_line(first.text, self.facts)

    # ---- lines

    def add(self, line: Line) -> bool:
        """Take one more line; tell whether it looks like part of a report."""
        text = line.text if len(line.text) <= _KEPT else line.text[:_KEPT]
        self.lines.append(text)
        self.end = line.offset
        return self.read(text)

    def read(self, text: str) -> bool:
        """Read what a line says."""
        if "+0x" in text or text.endswith("[inline]"):
            if self._expects != "lock":
                frames = parse_frames(text, self._context)
                if frames:
                    self._add_frames(frames)
                    return True
            if self._symbol_line(text):
                return True
        stripped = text.strip()
        if not stripped:
            return True
        if stripped[0] == "<" and (marker := _MARKER.match(stripped)):
            self._context = "" if marker[1] else marker[2]
            return True
        word = stripped.partition(" ")[0]
        handler = _FIRST_WORDS.get(word)
        if handler is not None:
            method: Callable[[str], bool] = getattr(self, handler)
            return method(stripped)
        return self._other(stripped, word)

    def _other(self, text: str, word: str) -> bool:
        if self._dumps and self._dumped(text):
            return True
        if word[-1] == ":" and len(word) <= 6 and word[0].isupper():
            return self._registers(text)
        if self._is_register_line(text):
            return self._registers(text)
        if self._section(text):
            return True
        if (
            "is trying to" in text
            or "changed the state" in text
            or text.endswith((" takes:", " taking:"))
            or "at: " in text
            or " holding" in text
        ):
            return self._lock_line(text)
        if "printk messages dropped" in text:
            self.dropped += 1
            return True
        if text.startswith(("WARNING: ", "refcount_t", "task:")) or "0x" in text:
            return self._late_line(text)
        return self._words(text)

    @staticmethod
    def _is_register_line(text: str) -> bool:
        if text[0] == "x" and text[1:3].isdigit() and text[3:4] == ":":
            # Of arm64, from x10 on; the others have a space before the colon.
            return True
        return (text[0] in "xrsgtaflcp" and " : " in text[:8]) or text.startswith(
            ("GPR", "r1", "MSR:", "sp :", "$ ", "pstate: ")
        )

    def _words(self, text: str) -> bool:
        if text.startswith(("=====", "-----", "CPU0", "----", "lock(", "<Interrupt>", "*** DEADLOCK")):
            return True
        if "locks held by" in text or "lock held by" in text or fields.read_details(text, self.facts):
            return True
        if self.kind is Kind.UBSAN and "problem" not in self.facts and not self.traces:
            self.facts["problem"] = text[:200]
            return True
        return _TASK_LINE.match(text) is not None and self._task_line(text)

    # ---- registers

    def _pc_at(self, text: str) -> bool:
        match = _PC_AT.match(text)
        if match is None:
            return text.startswith(("pc", "epc", "era", "NIP:")) and self._registers(text)
        if self._program_counter(match[1]) is None:
            fields.read_registers(text, self.registers)
        return True

    def _krnl(self, text: str) -> bool:
        if text.startswith("Krnl PSW"):
            self._program_counter(text)
        elif text.startswith("Krnl Code"):
            note(self.facts, "code", fields.read_code(text.partition(":")[2]))
        else:
            self._registers(text)
        return True

    def _registers(self, text: str) -> bool:
        if self._in_user or self.is_ended:
            return True
        return fields.read_registers(text, self.registers)

    def _code(self, text: str) -> bool:
        if self._in_user:
            return True
        code = fields.read_code(text[5:])
        note(self.facts, "code", code)
        if not code:
            note(self.facts, "code_problem", text[5:].strip())
        return True

    def _instruction_dump(self, text: str) -> bool:
        self._dumps = text.startswith("Instruction dump")
        return self._dumps

    def _dumped(self, text: str) -> bool:
        """Read the words that powerpc prints below ``Instruction dump:``."""
        code = fields.read_code(text)
        self._dumps = bool(code)
        if code:
            self.facts["code"] = f"{self.facts.get('code', '')} {code}".strip()[:_KEPT]
        return bool(code)

    # ---- what the report is about

    def _cpu(self, text: str) -> bool:
        known = self.facts.get("task")
        if not fields.read_cpu_line(text, self.facts):
            return text.startswith("CPU")
        task = self.facts["cpu_line_pid"]
        if known is None:
            self.facts["task"] = task
        elif (
            known != task
            and not self.is_panic
            and self._next_section is not Section.CPU
            and self.kind not in _MANY_TASKS
        ):
            self.other_tasks += 1
        return True

    def _process(self, text: str) -> bool:
        match = re.match(r"Process (.{1,60}) \(pid: (\d{1,10})", text)
        if match is not None:
            note(self.facts, "comm", match[1])
            note(self.facts, "pid", int(match[2]))
        return match is not None

    def _modules(self, text: str) -> bool:
        if text.startswith("Modules linked in:"):
            names = text[18:].partition("[last unloaded")[0].split()
            note(self.facts, "modules", tuple(names))
        return True

    def _hardware(self, text: str) -> bool:
        note(self.facts, "hardware", text.partition(":")[2].strip())
        return True

    def _workqueue(self, text: str) -> bool:
        note(self.facts, "workqueue", text.partition(":")[2].strip())
        return True

    def _access(self, text: str) -> bool:
        return fields.read_sanitizer(text, self.facts)

    def _race_access(self, text: str) -> bool:
        if not fields.read_sanitizer(text, self.facts):
            return False
        first = not any(trace.section is Section.MAIN for trace in self.traces)
        self._open_trace(text, Section.MAIN if first else Section.OTHER_ACCESS)
        return True

    def _page_fault(self, text: str) -> bool:
        note(self.facts, "error_code", fields.read_error_code(text))
        if "instruction fetch" in text:
            note(self.facts, "access", Access.EXECUTE)
        elif " write access" in text:
            note(self.facts, "access", Access.WRITE)
        elif " read access" in text:
            note(self.facts, "access", Access.READ)
        return True

    def _syndrome(self, text: str) -> bool:
        note(self.facts, "error_code", fields.read_error_code(text))
        fields.read_syndrome(text, self.facts)
        return True

    def _riscv_cause(self, text: str) -> bool:
        fields.read_riscv_cause(text, self.facts)
        self.registers.setdefault("status", 0)
        return True

    def _kasan_range(self, text: str) -> bool:
        match = re.match(r"KASAN: ([\w-]{1,40}) in range \[0x([0-9a-f]{1,16})-", text)
        if match is not None:
            note(self.facts, "kasan", match[1])
            note(self.facts, "kasan_address", int(match[2], 16))
        return True

    def _die(self, text: str) -> bool:
        match = re.match(r"(?:Oops: ){1,2}([0-9a-f]{4}) \[#(\d{1,6})\]", text)
        if match is not None:
            code = int(match[1], 16)
            note(self.facts, "die_count", match[2])
            if self.kind in {Kind.NULL_DEREFERENCE, Kind.PAGING_REQUEST}:
                access = Access.EXECUTE if code & 0x10 else Access.WRITE if code & 2 else Access.READ
                note(self.facts, "access", access)
        elif self.kind in {Kind.NULL_DEREFERENCE, Kind.PAGING_REQUEST}:
            fields.read_syndrome(text, self.facts)
        return "[#" in text or text.startswith(("Oops:", "Internal error:"))

    def _leak_comm(self, text: str) -> bool:
        match = re.match(r'comm "(.{0,60})", pid (\d{1,10})', text)
        if match is not None:
            note(self.facts, "comm", match[1])
            note(self.facts, "pid", int(match[2]))
        return match is not None

    def _not_tainted(self, text: str) -> bool:
        match = re.match(r"Not tainted (\S{1,128})", text)
        if match is not None:
            note(self.facts, "release", match[1])
        return match is not None

    # ---- locks

    def _symbol_line(self, text: str) -> bool:
        if "at: " in text or self._expects == "lock":
            return self._lock_line(text)
        return text.lstrip().startswith("(") and "{" in text

    def _lock_line(self, text: str) -> bool:
        if (
            "is trying to" in text
            or "changed the state of lock" in text
            or text.rstrip().endswith((" takes:", " taking:"))
        ):
            self._expects = "lock" if text.rstrip().endswith("at:") or "release" in text else "wanted"
            match = re.search(r"lock \((.{1,120}?)\)", text)
            self.facts["lock_name"] = match[1] if match is not None else ""
            return True
        symbol = symbol_of(text)
        if symbol is None:
            if " holding" in text:
                self._expects = "held"
            return True
        wanted = self._expects in {"lock", "wanted"}
        name = _lock_name(text) or self.facts.get("lock_name", "")
        if len(self.locks) < 64:
            self.locks.append(Lock(name, symbol.function, wanted))
        self._expects = "held"
        return True

    # ---- the end, and lines that belong to a herald

    def _kernel(self, text: str) -> bool:
        return text.startswith(("Kernel Offset", "Kernel panic", "Kernel stack"))

    def _end(self, text: str) -> bool:
        if text.startswith(("---[ end", "Rebooting in")):
            self.is_ended = True
            return True
        return False

    def _neutral(self, text: str) -> bool:
        return bool(text)

    def _late_line(self, text: str) -> bool:
        if fields.read_sanitizer(text, self.facts):
            return True
        if _TASK_LINE.match(text) is not None:
            return self._task_line(text)
        return text.startswith("The buggy address") or "[<" in text

    def swap_beginnings(self, other: ReportBuilder) -> None:
        """Exchange what was said before the exceptions: it turned out to be the other's."""
        self.kind, other.kind = other.kind, self.kind
        self.variant, other.variant = other.variant, self.variant
        self.first, other.first = other.first, self.first
        self.preamble, other.preamble = other.preamble, self.preamble
        for name in ("address", "access", "error_code"):
            mine, theirs = self.facts.pop(name, None), other.facts.pop(name, None)
            note(self.facts, name, theirs)
            note(other.facts, name, mine)

    def absorb(self, rule: Rule, text: str) -> None:
        """Take in a line that would begin a report, were it not a part of this one."""
        fields.read_first_line(text, self.facts)
        if rule.kind is Kind.PANIC:
            self.is_panic = True
            self.panic_message = self.panic_message or text.partition("not syncing: ")[2]
            self.is_ended = False
            if self._trace is not None:
                self._trace.is_over = True
        elif rule.role is Role.DIE:
            self._die(text.strip())
            self.has_died = True
            note(self.facts, "die", text)


def _lock_name(text: str) -> str:
    """Return the lock of a line like ``ffff8880 (&dev->lock){+.+.}-{3:3}, at: f+0x1/0x2``; empty: it names none."""
    before, brace, _ = text.partition(" at: ")[0].partition("{")
    if not brace or "(" not in before:
        return ""
    name = before.partition("(")[2].rstrip()
    return name.removesuffix(")")[:200] if name.count("(") < name.count(")") else name[:200]
