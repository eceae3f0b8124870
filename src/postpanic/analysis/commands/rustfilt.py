"""``rustfilt``: names of Rust, as they are in the source."""

from __future__ import annotations

import re
from collections.abc import Sequence

from postpanic.analysis.commands.arguments import Arguments, Operand
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.table import Answer, Column, Layout, Shape
from postpanic.process import find_program, run

__all__ = ["demangle", "rustfilt"]

TIMEOUT_S = 10.0

_NAMES = Shape(
    "names",
    (
        Column("symbol", hidden=True, help="The symbol as it was given."),
        Column("name", help="What it is called in the source."),
    ),
    Layout.LINES,
    "{name}",
)


@command(
    "rustfilt",
    summary="demangle symbols of Rust",
    description="Spell the names of functions of Rust as in their source, with c++filt of the binutils.",
    operands=(Operand("symbol", "a symbol as sym shows it: _R...", many=True, required=True),),
    shapes=(_NAMES,),
    examples=(Example("rustfilt _RNvNtCshc5sK6KjdJJ_6kernel5print11call_printk", "kernel::print::call_printk"),),
)
def rustfilt(workspace: Workspace, arguments: Arguments) -> Answer:  # noqa: ARG001 - symbols are text
    """Demangle symbols."""
    symbols = arguments.operands
    if any(not symbol.isprintable() or not symbol.isascii() for symbol in symbols):
        raise UsageError("rustfilt: a symbol is printable ASCII")
    return Answer("rustfilt", (_NAMES.table(list(zip(symbols, demangle(symbols), strict=True))),))


def demangle(symbols: Sequence[str]) -> list[str]:
    """
    Spell symbols of Rust as in their source; what is none stays as it is.

    Raises
    ------
    ProcessError
        If there is no c++filt.
    """
    program = find_program("c++filt", hint="install binutils")
    # The symbols go in by standard input, so that none is taken for an option.
    finished = run([program, "--format=rust"], stdin="\n".join([*symbols, ""]).encode(), timeout_s=TIMEOUT_S)
    # The hash of a crate tells two of one name apart, which the kernel does not have.
    text = re.sub(r"\[[0-9a-f]+\](?=::)", "", finished.stdout.decode(errors="backslashreplace"))
    return text.splitlines()
