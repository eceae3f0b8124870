"""``gdb``: a line for a real gdb."""

from __future__ import annotations

from postpanic.analysis.commands.arguments import Arguments, Operand
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.debug_files import DebugKind
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, ProcessError, UsageError
from postpanic.findings.table import Answer, Column, Layout, Shape
from postpanic.process import find_program, run

__all__ = ["gdb"]

_TIMEOUT_S = 300.0
_MOST_LINES = 200_000

_LINES = Shape("lines", (Column("line", help="One line of what gdb printed."),), Layout.LINES, "{line}")


@command(
    "gdb",
    summary="hand a line to gdb",
    description=(
        "Run one command of gdb on the kernel's debug information, real or synthesized: types, symbols and code of "
        "the file. gdb does not see the memory of the dump: p, struct and rd do. It must be installed."
    ),
    operands=(Operand("line", "a command of gdb with its words", many=True, required=True),),
    shapes=(_LINES,),
    examples=(
        Example("gdb ptype struct list_head", "a type"),
        Example("gdb info line schedule", "where a function comes from"),
    ),
    verbatim=True,
)
def gdb(workspace: Workspace, arguments: Arguments) -> Answer:
    """Hand a line to gdb."""
    line = arguments.source.strip()
    if not line:
        raise UsageError("gdb: line is missing", hint="help gdb")
    if "\n" in line:
        raise UsageError("gdb: one line at a time")
    program = find_program("gdb", hint="the commands of this prompt need no gdb: help lists them")
    sources = workspace.opened.sources
    if not sources or sources[0].file is None:
        raise FactAbsentError("no file has the kernel's debug information")
    file = sources[0].file
    offset = workspace.memory.kaslr_offset if sources[0].kind is not DebugKind.SYNTHESIZED else 0
    words = ["-nx", "-batch", "-ex", "set confirm off", "-ex", "set width 0"]
    words += ["-ex", f"symbol-file -o {offset:#x} {file}"] if offset else ["-ex", f"file {file}"]
    finished = run([program, *words, "-ex", line], timeout_s=_TIMEOUT_S, check=False)
    text = finished.stdout.decode("utf-8", "backslashreplace")
    complaint = finished.stderr.decode("utf-8", "backslashreplace").strip()
    if not text.strip() and complaint:
        raise ProcessError(f"gdb: {complaint.splitlines()[-1]}")
    lines = text.rstrip("\n").split("\n")[:_MOST_LINES] if text else []
    return Answer("gdb", (_LINES.table([(part,) for part in lines]),))
