"""
What a word on the command line stands for: numbers, addresses, symbols, CPUs, tasks.

The rules are crash's: an address is hexadecimal with or without ``0x``, a
count is decimal unless it begins with ``0x``, a task is a decimal PID, a
hexadecimal ``struct task_struct`` address, a command name, or a regular
expression in single quotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from drgn import Object, Program
from drgn.helpers.linux.pid import find_task

from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.expressions import evaluate_number
from postpanic.analysis.tasks.lists import possible_cpus, read_tasks
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.table import Problem

__all__ = ["find_symbol_vaddr", "find_tasks", "parse_cpus", "parse_number", "parse_vaddr", "read_tasks"]

_HEX = re.compile(r"(?:0x)?[0-9a-fA-F]+\Z")
_SYMBOL = re.compile(r"([A-Za-z_.$][\w.$]*)(?:([+-])(0x[0-9a-fA-F]+|\d+))?\Z")
_MAX_CPUS = 1 << 20
_LOWEST_TASK = 1 << 32
"""Task structures lie in the kernel's half; a smaller number is a PID."""


def parse_number(text: str, what: str) -> int:
    """
    Parse a count or size: decimal, or hexadecimal with ``0x``; may be negative.

    Raises
    ------
    UsageError
        If it is not a number.
    """
    try:
        sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
        return sign * int(digits, 16 if digits.lower().startswith("0x") else 10)
    except ValueError:
        raise UsageError(f"{what}: {text!r} is not a number (decimal, or hexadecimal with 0x)") from None


def parse_vaddr(workspace: Workspace, text: str) -> int:
    """
    Parse an address: hexadecimal, ``symbol``, ``symbol+offset`` (decimal or 0x), or a C expression in parentheses.

    A word that is a hexadecimal number and a symbol too (``add``) is the
    number, as in crash. In an expression, a symbol that stands for itself is
    its address.

    Raises
    ------
    UsageError
        If it is none of them.
    FactAbsentError
        If there is no such symbol.
    FaultError
        If an expression leads to memory that cannot be read.
    """
    if text.startswith("("):
        return evaluate_number(workspace.prog, text)
    if _HEX.match(text):
        vaddr = int(text, 16)
        if vaddr >> 64:
            raise UsageError(f"address {text} is wider than 64 bits")
        return vaddr
    match = _SYMBOL.match(text)
    if match is None:
        raise UsageError(f"{text!r} is not an address", hint="hexadecimal, symbol, symbol+offset, (expression)")
    offset = int(match[3], 0) if match[3] else 0
    return find_symbol_vaddr(workspace.prog, match[1]) + (-offset if match[2] == "-" else offset)


def find_symbol_vaddr(prog: Program, name: str) -> int:
    """
    Find the address of a symbol.

    Raises
    ------
    FactAbsentError
        If neither the kernel nor a module has it.
    """
    try:
        return int(prog.symbol(name).address)
    except LookupError:
        raise FactAbsentError(f"no symbol {name}", hint=f"sym -q {name} finds names that contain it") from None


def parse_cpus(workspace: Workspace, text: str) -> list[int]:
    """
    Parse a set of CPUs: ``0``, ``0,2``, ``1-3``, ``a`` or ``all`` (the possible ones).

    Raises
    ------
    UsageError
        If it is not a set, or names a CPU that the machine does not have.
    """
    possible = possible_cpus(workspace)
    if text in {"a", "all", ""}:
        return list(possible)
    cpus: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"{text!r} is not a set of CPUs", hint="0,2-3 or all")
        numbers = range(int(first), min(int(last or first), _MAX_CPUS) + 1)
        missing = [cpu for cpu in (numbers[:1] or (int(first),)) if cpu not in possible]
        missing += [cpu for cpu in numbers[-1:] if cpu not in possible]
        if missing:
            raise UsageError(f"no CPU {missing[0]}; there are {possible[0]} to {possible[-1]}")
        cpus += [cpu for cpu in numbers if cpu in possible and cpu not in cpus]
    return cpus


def find_tasks(workspace: Workspace, words: Sequence[str], problems: list[Problem]) -> list[Object]:
    r"""
    Find the tasks that the words name, in the order of the words; no words: the task of the context.

    Parameters
    ----------
    words : sequence of str
        Decimal PID, hexadecimal ``struct task_struct`` address, command name
        (``\\name`` where a name looks like a number), ``'regular expression'``.

    Raises
    ------
    UsageError
        If a word names no task.
    """
    if not words:
        return [workspace.task]
    tasks: list[Object] = []
    for word in words:
        found = _find_tasks(workspace, word, problems)
        if not found:
            raise UsageError(f"no task {word}", hint="a PID, a task_struct address, a command name, or 'regex'")
        tasks += found
    return tasks


def _find_tasks(workspace: Workspace, word: str, problems: list[Problem]) -> list[Object]:
    prog = workspace.prog
    pid = _parse_pid(word)
    if pid is not None:
        try:
            task = find_task(prog, pid) if pid else None
        except UNREADABLE:
            task = None
        # PID 0 is one idle task per CPU, and none of them is in the tree of PIDs.
        return [task.read_()] if task else [task for task in read_tasks(workspace, problems) if _pid(task) == pid]
    if _HEX.match(word) and int(word, 16) >= _LOWEST_TASK:
        task = Object(prog, "struct task_struct *", int(word, 16))
        try:
            task.comm.string_()
        except UNREADABLE as exc:
            raise UsageError(f"no task at {word}: its memory cannot be read") from exc
        return [task]
    matches = _comm_matcher(word)
    return [task for task in read_tasks(workspace, problems) if matches(_comm(task))]


def _parse_pid(word: str) -> int | None:
    """Read a PID: decimal, or small and hexadecimal with ``0x``."""
    if not word.isdecimal() and not word.startswith("0x"):
        return None
    try:
        pid = int(word, 0) if word.startswith("0x") else int(word)
    except ValueError:
        return None
    return pid if pid < _LOWEST_TASK else None


def _comm_matcher(word: str) -> Callable[[str], bool]:
    if len(word) > 1 and word.startswith("'") and word.endswith("'"):
        try:
            pattern = re.compile(word[1:-1])
        except re.error as exc:
            raise UsageError(f"{word} is not a regular expression: {exc}") from None
        return lambda comm: pattern.search(comm) is not None
    # TASK_COMM_LEN: the kernel keeps 15 characters of a name.
    wanted = word.removeprefix("\\")[:15]
    return lambda comm: comm == wanted


def _pid(task: Object) -> int:
    try:
        return int(task.pid.value_())
    except UNREADABLE:
        return -1


def _comm(task: Object) -> str:
    try:
        return bytes(task.comm.string_()).decode("utf-8", "backslashreplace")
    except UNREADABLE:
        return ""
