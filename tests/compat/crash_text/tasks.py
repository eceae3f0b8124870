"""crash's text about tasks: ``ps``, ``bt``, ``task``, ``set``, ``files``, ``vm``, ``runq``."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.compat.crash_text.lines import Header, UnknownLineError, grab, read_header, split_tasks, table_rows

__all__ = [
    "Area",
    "Context",
    "Frame",
    "LastRun",
    "OpenFile",
    "Process",
    "RunQueue",
    "Stack",
    "TaskFiles",
    "TaskMemory",
    "Times",
    "parse_bt",
    "parse_files",
    "parse_last_run",
    "parse_members",
    "parse_ps",
    "parse_raw_stack",
    "parse_related",
    "parse_runq",
    "parse_set",
    "parse_state_counts",
    "parse_times",
    "parse_vm",
]

_PS = "PID PPID CPU TASK ST %MEM VSZ RSS COMM"
_REGISTER = re.compile(r"\b(ORIG_RAX|[A-Z][A-Z0-9]+): +([0-9a-f]+)")


class Process(NamedTuple):
    """A row of ``ps``; sizes in KiB, ``task`` is the stack pointer with ``-s`` (0: running)."""

    is_active: bool
    pid: int
    ppid: int
    cpu: int
    task: int
    state: str
    memory_percent: float
    vsz_kib: int
    rss_kib: int
    comm: str


def parse_ps(text: str, *, stack_pointers: bool = False) -> list[Process]:
    heading = _PS.replace("TASK", "KSTACKP") if stack_pointers else _PS
    found = []
    for line in table_rows("ps", text.splitlines(), heading):
        row = grab(
            "ps",
            r"(>?) *(-?\d+) +(-?\d+) +(\d+) +([0-9a-f]{16}|--) +(\S\S) +([\d.]+) +(\d+) +(\d+) +(\[?.*?\]?)",
            line,
        )
        numbers = (int(row[2]), int(row[3]), int(row[4]), int(row[5].replace("--", "0"), 16))
        found.append(Process(row[1] == ">", *numbers, row[6], float(row[7]), int(row[8]), int(row[9]), row[10]))
    return found


def parse_state_counts(text: str) -> dict[str, int]:
    """Read ``ps -S``."""
    rows = (grab("ps -S", r"  (\w\w): (\d+)", line) for line in text.splitlines())
    return {row[1]: int(row[2]) for row in rows}


class LastRun(NamedTuple):
    """A row of ``ps -l`` or ``ps -m``."""

    time: str
    state: str
    header: Header


def parse_last_run(text: str) -> list[LastRun]:
    found = []
    for line in text.splitlines():
        row = grab("ps -l", r"\[(.*?)\] \[(\w\w)\]  (PID: .*)", line)
        header = read_header(row[3])
        assert header is not None, line
        found.append(LastRun(row[1].strip(), row[2], header))
    return found


class Times(NamedTuple):
    """What ``ps -t`` says of a task: as crash spells it, nanoseconds."""

    header: Header
    run_time: str
    start_time: int
    utime: int
    stime: int


def parse_times(text: str) -> list[Times]:
    found = []
    for header, lines in split_tasks("ps -t", text):
        rows = dict(line.strip().split(": ", 1) for line in lines)
        if set(rows) != {"RUN TIME", "START TIME", "UTIME", "STIME"}:
            raise UnknownLineError("ps -t", repr(rows))
        found.append(Times(header, rows["RUN TIME"], *(int(rows[key]) for key in ("START TIME", "UTIME", "STIME"))))
    return found


def parse_related(text: str, nothing: str = "") -> list[tuple[Header, list[Header]]]:
    """
    Read the chains of ``ps -p``, ``ps -c`` and ``ps -g``: a task, and the tasks below it.

    Parameters
    ----------
    nothing : str
        What stands there when there are none: ``no children``.
    """
    found: list[tuple[Header, list[Header]]] = []
    for line in text.splitlines():
        header = read_header(line.strip())
        if not line.strip() or line.strip() == f"({nothing})":
            continue
        if header is None:
            raise UnknownLineError("ps", line)
        if line.startswith("PID"):
            found.append((header, []))
        else:
            found[-1][1].append(header)
    return found


class Frame(NamedTuple):
    """A frame of ``bt``: its number (None with ``-t``), stack address, function and offset, text address."""

    number: int | None
    sp: int
    function: str
    offset: int | None
    pc: int
    module: str


class Stack(NamedTuple):
    """
    The backtrace of a task.

    Attributes
    ----------
    frames : list of Frame
        In order, of all stacks.
    marks : list of str
        Names of the stacks that lie between them, ``<NMI exception stack>`` and such, and notes.
    registers : list of dict
        Of the exception frames, in order.
    """

    header: Header
    frames: list[Frame]
    marks: list[str]
    registers: list[dict[str, int]]


_FRAME = re.compile(
    r"(?: *#(\d+)| ) \[([0-9a-f]{16})\] (\S+?)(?:\+(\d+|0x[0-9a-f]+))? at ([0-9a-f]{16})(?: \[(\w+)\])?$"
)
_START = re.compile(r" +START: (\S+?)(?:\+\d+)? at ([0-9a-f]{16})(?: \[(\w+)\])?$")
_MARK = re.compile(r"---? <.*> ---$|bt: .*|\(active\)| +\[exception RIP: .*\]| +\(inline\).*|\(no .*\)| *KERNEL-MODE.*")


def parse_bt(text: str) -> list[Stack]:
    """Read ``bt``, also of many tasks, also with ``-s``, ``-t`` and ``-T``."""
    stacks = []
    for header, lines in split_tasks("bt", text):
        stack = Stack(header, [], [], [])
        for line in lines:
            _add_line(stack, line)
        stacks.append(stack)
    return stacks


def _add_line(stack: Stack, line: str) -> None:
    if frame := _FRAME.match(line):
        number = int(frame[1]) if frame[1] else None
        offset = int(frame[4], 0) if frame[4] else None
        stack.frames.append(Frame(number, int(frame[2], 16), frame[3], offset, int(frame[5], 16), frame[6] or ""))
    elif _START.match(line) or _MARK.match(line):
        stack.marks.append(line.strip())
    elif found := _REGISTER.findall(line):
        if re.sub(_REGISTER, "", line).strip():
            raise UnknownLineError("bt", line)
        if found[0][0] == "RIP":
            stack.registers.append({})
        stack.registers[-1].update({name: int(value, 16) for name, value in found})
    else:
        raise UnknownLineError("bt", line)


def parse_raw_stack(text: str) -> dict[int, int]:
    """Read the words of ``bt -f``: 64-bit values by their addresses."""
    words: dict[int, int] = {}
    for line in text.splitlines():
        found = re.fullmatch(r"    ([0-9a-f]{16}): ([0-9a-f]{16}) (?:([0-9a-f]{16}) )?", line)
        if found is None:
            continue
        words[int(found[1], 16)] = int(found[2], 16)
        if found[3]:
            words[int(found[1], 16) + 8] = int(found[3], 16)
    return words


def parse_members(text: str) -> list[tuple[Header, dict[str, str]]]:
    """Read ``foreach task -R``: simple members by name, as crash spells their values."""
    found = []
    for header, lines in split_tasks("task", text):
        rows = [grab("task", r"  (\w+) = (.*?),?", line) for line in lines]
        found.append((header, {row[1]: row[2] for row in rows}))
    return found


class Context(NamedTuple):
    """What ``set`` says."""

    pid: int
    comm: str
    task: int
    thread_info: int
    cpu: int
    state: str


def parse_set(text: str) -> list[Context]:
    """Read ``set``, also of many tasks."""
    found = []
    rows: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or read_header(line):
            continue
        key, value = grab("set", r" *([A-Z]+): (.*?) *", line).groups()
        rows[key] = value
        if key == "STATE":
            task = grab("set", r"([0-9a-f]{16})  (?:\(\d+ of \d+\)  )?\[THREAD_INFO: ([0-9a-f]{16})\]", rows["TASK"])
            found.append(
                Context(
                    int(rows["PID"]),
                    rows["COMMAND"].strip('"'),
                    int(task[1], 16),
                    int(task[2], 16),
                    int(rows["CPU"]),
                    rows["STATE"],
                )
            )
            rows = {}
    return found


class OpenFile(NamedTuple):
    """A row of ``files``; with ``-c`` the fields are inode, mapping and number of pages."""

    fd: int
    file: int
    dentry: int
    inode: int
    type: str
    path: str


class TaskFiles(NamedTuple):
    """What ``files`` says of a task."""

    header: Header
    root: str
    cwd: str
    files: list[OpenFile]


_FD_HEADINGS = ("FD FILE DENTRY INODE TYPE PATH", "FD INODE I_MAPPING NRPAGES TYPE PATH")


def parse_files(text: str) -> list[TaskFiles]:
    """Read ``files`` and ``files -c``, also of many tasks."""
    found = []
    for header, lines in split_tasks("files", text):
        # A task that has exited has no directories.
        where = re.fullmatch(r"ROOT: (.*?) +CWD: (.*?) *", lines[0])
        files = []
        for line in lines[1 if where else 0 :]:
            if line == "No open files" or " ".join(line.split()) in _FD_HEADINGS:
                continue
            row = grab("files", r" *(\d+) ([0-9a-f]+) +([0-9a-f?]+) +([0-9a-f]+) +(\w+) *(.*?)", line)
            file, dentry = int(row[2], 16), int(row[3].replace("?", "0"), 16)
            # NRPAGES is decimal.
            last = int(row[4], 16 if len(row[4]) == 16 else 10)
            files.append(OpenFile(int(row[1]), file, dentry, last, row[5], row[6]))
        found.append(TaskFiles(header, where[1] if where else "", where[2] if where else "", files))
    return found


class Area(NamedTuple):
    """A row of ``vm``."""

    vma: int
    start: int
    end: int
    flags: int
    file: str


class TaskMemory(NamedTuple):
    """What ``vm`` says of a task; sizes in KiB."""

    header: Header
    mm: int
    pgd: int
    rss_kib: int
    total_kib: int
    areas: list[Area]


def parse_vm(text: str) -> list[TaskMemory]:
    """Read ``vm``, also of many tasks."""
    found = []
    for header, lines in split_tasks("vm", text):
        rows = table_rows("vm", lines, "MM PGD RSS TOTAL_VM")
        first = grab("vm", r" *([0-9a-f]+) +([0-9a-f]+) +(\d+)k +(\d+)k *", next(rows))
        areas = []
        for line in table_rows("vm", rows, "VMA START END FLAGS FILE") if len(lines) > 2 else ():
            row = grab("vm", r"([0-9a-f]{16}) +([0-9a-f]+) +([0-9a-f]+) +([0-9a-f]+) ?(.*?) *", line)
            vma, start, end, flags = (int(row[index], 16) for index in (1, 2, 3, 4))
            areas.append(Area(vma, start, end, flags, row[5]))
        found.append(TaskMemory(header, int(first[1], 16), int(first[2], 16), int(first[3]), int(first[4]), areas))
    return found


class RunQueue(NamedTuple):
    """What ``runq`` says of a CPU; a queued task is its priority, PID, address and name."""

    cpu: int
    runqueue: int
    current: Header
    rt_array: int
    cfs_root: int
    rt: list[tuple[int, int, int, str]]
    cfs: list[tuple[int, int, int, str]]


_RUNQ_TASK = r'PID: (\d+) +TASK: ([0-9a-f]{16}) +COMMAND: "(.*)"'


def parse_runq(text: str) -> list[RunQueue]:
    found: list[RunQueue] = []
    queue: list[tuple[int, int, int, str]] = []
    lines = iter([line for line in text.splitlines() if line.strip()])
    for line in lines:
        if row := re.fullmatch(r"CPU (\d+) RUNQUEUE: ([0-9a-f]{16})", line):
            cpu, runqueue = int(row[1]), int(row[2], 16)
            row = grab("runq", rf"  CURRENT: {_RUNQ_TASK}", next(lines))
            current = Header(int(row[1]), int(row[2], 16), cpu, row[3])
            rt_array = int(grab("runq", r"  RT PRIO_ARRAY: ([0-9a-f]{16})", next(lines))[1], 16)
            found.append(RunQueue(cpu, runqueue, current, rt_array, 0, [], []))
            queue = found[-1].rt
        elif row := re.fullmatch(r"  CFS RB_ROOT: ([0-9a-f]{16})", line):
            found[-1] = found[-1]._replace(cfs_root=int(row[1], 16))
            queue = found[-1].cfs
        elif line.strip() != "[no tasks queued]":
            row = grab("runq", rf" +\[ *(\d+)\] {_RUNQ_TASK}", line)
            queue.append((int(row[1]), int(row[2]), int(row[3], 16), row[4]))
    return found
