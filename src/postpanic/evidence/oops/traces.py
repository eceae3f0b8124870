"""The traces of a report: which section a frame belongs to, and where the program counter stood."""

from __future__ import annotations

import re

import msgspec

from postpanic.evidence.oops import fields
from postpanic.evidence.oops.fields import Facts, note
from postpanic.evidence.oops.frames import symbol_of
from postpanic.evidence.oops.kinds import Kind
from postpanic.evidence.oops.model import Frame, Section, Trace

__all__ = ["FRAMES_LIMIT", "TraceReader"]

FRAMES_LIMIT = 2048
"""Frames of one trace; a stack of 16 KiB holds no more words."""

_TRACES_LIMIT = 256
_RIP = re.compile(r"(?:RIP|EIP|IP): {0,2}(?:([0-9a-f]{4}):)?(.{0,400})")
_NMI_CPU = re.compile(r"NMI backtrace for cpu (\d{1,6})")
_DUMP_CPU = re.compile(
    r"(?:Task dump|CPU backtrace|Call trace|Backtrace|Stack dump).{0,12} (?:for|on) (?:CPU|cpu) {0,2}(\d{1,6})"
)
_CHAIN = re.compile(r"-> #\d{1,3} \(")
_SECTIONS: tuple[tuple[str, Section], ...] = (
    ("Allocated by task", Section.ALLOCATED),
    ("Allocated:", Section.ALLOCATED),
    ("allocated by task", Section.ALLOCATED),
    ("Freed by task", Section.FREED),
    ("Freed:", Section.FREED),
    ("freed by task", Section.FREED),
    ("Last potentially related work creation", Section.RELATED_WORK),
    ("Second to last potentially related work creation", Section.RELATED_WORK),
    ("Last call_rcu", Section.RELATED_WORK),
    ("Uninit was stored to memory at", Section.STORED),
    ("Uninit was created at", Section.ALLOCATED),
    ("Local variable", Section.ALLOCATED),
    ("Memory was marked uninitialized", Section.FREED),
    ("page last allocated via", Section.ALLOCATED),
    ("page last free", Section.FREED),
    ("page allocated via order", Section.ALLOCATED),
    ("page has been migrated", Section.RELATED_WORK),
    ("origin:", Section.ALLOCATED),
    ("Preemption disabled at", Section.PREEMPT),
    ("Modules linked in", Section.MAIN),
)


class _TraceBuilder:
    """A trace that is being read."""

    __slots__ = ("cpu", "frames", "is_over", "section", "title")

    def __init__(self, section: Section, title: str = "", cpu: int | None = None) -> None:
        self.section = section
        self.title = title
        self.cpu = cpu
        self.frames: list[Frame] = []
        self.is_over = False

    def freeze(self) -> Trace:
        return Trace(self.section, self.title, tuple(self.frames), self.cpu)


class TraceReader:
    """
    Traces that are being read, line by line.

    Parameters
    ----------
    kind : Kind
        Of the report that they belong to.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.facts: Facts = {}
        self.registers: dict[str, int] = {}
        self.traces: list[_TraceBuilder] = []
        self.pc: Frame | None = None
        self.is_ended = False
        self.is_panic = False
        self.mixed: list[str] = []
        self._trace: _TraceBuilder | None = None
        self._pending_pc: Frame | None = None
        self._context = ""
        self._in_user = False
        self._expects = ""
        self._next_section: Section | None = None
        self._next_cpu: int | None = None

    def _open_trace(self, title: str, section: Section | None = None, cpu: int | None = None) -> None:
        if section is None:
            section = self._next_section or self._default_section()
            cpu = self._next_cpu if cpu is None else cpu
        self._next_section = None
        self._next_cpu = None
        self._context = ""
        self._in_user = False
        trace = _TraceBuilder(section, title, cpu)
        if self._pending_pc is not None:
            trace.frames.append(self._pending_pc)
            self._pending_pc = None
        self._trace = trace
        if len(self.traces) < _TRACES_LIMIT:
            self.traces.append(trace)

    def _default_section(self) -> Section:
        if self.is_panic and any(trace.section is Section.MAIN and len(trace.frames) > 1 for trace in self.traces):
            return Section.PANIC
        return Section.MAIN

    def _add_frames(self, frames: list[Frame]) -> None:
        if self._in_user:
            self._trace = None
            self._in_user = False
        if self._trace is None or self._trace.is_over:
            self._open_trace("")
        trace = self._trace
        if trace is None or len(trace.frames) >= FRAMES_LIMIT:
            return
        if len(frames) == 2 and trace.frames and trace.frames[-1].function == frames[0].function:
            frames = frames[1:]
        if frames[0].context != self._context and frames[0].context:
            self._context = frames[0].context
        trace.frames.extend(frames)

    def _call_trace(self, text: str) -> bool:
        lowered = text.lower()
        if not lowered.startswith(("call trace", "call-trace", "backtrace", "trace:", "call backtrace")):
            return False
        if (
            self._trace is not None
            and not self._trace.frames
            and self._trace in self.traces
            and self._next_section is None
        ):
            # The section was announced before (Allocated by …): this is only its heading.
            self._trace.is_over = False
            if self._trace.section not in {Section.MAIN, Section.PREEMPT}:
                return True
        self._open_trace(text)
        return True

    def _stack_backtrace(self, text: str) -> bool:
        if not text.startswith("stack backtrace"):
            return False
        self._next_section = Section.MAIN
        self._trace = None
        self._expects = ""
        return True

    def _section(self, text: str) -> bool:
        for start, section in _SECTIONS:
            if text.startswith(start) or (start == "allocated by task" and start in text):
                fields.read_sanitizer(text, self.facts)
                self._open_trace(text, section)
                return True
        if text.endswith(("was registered at:", "irq-safe at:", "irq-unsafe at:", "-safe at:", "-unsafe at:")):
            self._open_trace(text, Section.LOCK)
            return True
        return False

    def _chain(self, text: str) -> bool:
        if _CHAIN.match(text) is None:
            return False
        self._open_trace(text, Section.LOCK)
        return True

    def _nmi(self, text: str) -> bool:
        match = _NMI_CPU.match(text)
        if match is None:
            return False
        self._trace = None
        self._pending_pc = None
        self._in_user = False
        self._next_section = Section.CPU
        self._next_cpu = int(match[1])
        return True

    def _dump_cpu(self, text: str) -> bool:
        match = _DUMP_CPU.match(text)
        if match is not None:
            self._trace = None
            self._next_section = Section.CPU
            self._next_cpu = int(match[1])
            return True
        return False

    def _task_line(self, text: str) -> bool:
        self._trace = None
        if self.kind is not Kind.HUNG_TASK or any(trace.frames for trace in self.traces):
            self._next_section = Section.TASK
        note(self.facts, "task_line", text)
        return True

    def _locks_held(self, text: str) -> bool:
        self._trace = None
        self._next_section = Section.TASK
        self._expects = "held"
        return "all locks held" in text

    def _pc_line(self, text: str) -> bool:
        match = _RIP.match(text)
        if match is None:
            return False
        segment, rest = match.groups()
        if segment in {"0033", "0023", "002b", "0073"}:
            self._in_user = True
            if self._trace is not None:
                self._trace.is_over = True
            return True
        self._in_user = False
        self._program_counter(rest, is_early=text.startswith("IP:"))
        return True

    def _program_counter(self, text: str, *, is_early: bool = False) -> Frame | None:
        if self.is_ended:
            return None
        symbol = symbol_of(text)
        if symbol is None:
            match = re.search(r"0x([0-9a-f]{1,16})|\[<([0-9a-f]{8,16})>\]", text)
            if match is not None:
                note(self.facts, "pc_address", int(match[1] or match[2], 16))
            return None
        frame = msgspec.structs.replace(symbol, is_pc=True, context=self._context)
        if self._trace is not None and self._trace.frames and not self._trace.is_over and not is_early:
            self._trace.frames.append(frame)
            return frame
        if self.pc is None and self._next_section in {None, Section.MAIN}:
            self.pc = frame
        self._pending_pc = frame
        return frame

    def borrow(self, other: TraceReader) -> None:
        """Take the traces of the report that broke into this one before it had any."""
        self.traces = other.traces
        self.pc = self.pc or other.pc
        self.mixed.clear()

    def freeze_traces(self) -> tuple[Trace, ...]:
        """Return the traces, the program counter as a trace of its own where it led none."""
        traces = [trace.freeze() for trace in self.traces if trace.frames]
        pc = self.pc
        if pc is not None and not any(f.is_pc and f.function == pc.function for trace in traces for f in trace.frames):
            traces.insert(0, Trace(Section.MAIN, "", (pc,)))
        return tuple(traces)
