"""What the tables of ``bt`` look like."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import msgspec

from postpanic.analysis.commands.per_task import TASK_COLUMNS, TASK_LINE
from postpanic.analysis.stacks import arm64, x86_64
from postpanic.findings.table import Column, Kind, Layout, Shape

__all__ = [
    "ARM64_KERNEL_REGISTERS",
    "ARM64_USER_REGISTERS",
    "CONTENTS",
    "EXCEPTIONS",
    "FINDINGS",
    "MESSAGES",
    "OTHER_REGISTERS",
    "OVERFLOWS",
    "RAW",
    "REGISTERS",
    "REGISTERS_OF_OTHERS",
    "REGISTERS_OF_PROCESSOR",
    "STACKS",
    "SYMBOLIC",
    "SYMBOLIC_RAW",
    "TEXTS",
    "frames_shape",
    "tasks_shape",
]

_SHORT = {"rflags": "08x", "cs": "04x", "ss": "04x"}


def _register_column(name: str, place: int) -> Column:
    # R8 and R9 stand below names of three letters.
    title = f"{name.upper():>{3 if name[0] == 'r' else 0}}: "
    return Column(
        name,
        Kind.ADDRESS,
        help=f"Register {name}." if name != "orig_rax" else "Number of the system call; -1: none.",
        format=_SHORT.get(name, ""),
        prefix=("  " if place else "") + title,
    )


_COLUMNS_OF_REGISTERS = {
    name: _register_column(name, place) for row in x86_64.REGISTER_ROWS for place, name in enumerate(row)
}
# The registers of a note have no orig_rax, and the line begins with CS.
_COLUMNS_OF_REGISTERS["orig_rax"] = msgspec.structs.replace(
    _COLUMNS_OF_REGISTERS["orig_rax"], prefix="ORIG_RAX: ", suffix="  "
)
_COLUMNS_OF_REGISTERS["cs"] = msgspec.structs.replace(_COLUMNS_OF_REGISTERS["cs"], prefix="CS: ")

_ARM64_HELP = {
    "lr": "x30: where it returns to, without its authentication code.",
    "orig_x0": "x0 at the system call.",
    "syscallno": "Number of the system call; ffffffff: none.",
}


def _arm64_column(name: str) -> Column:
    return Column(
        name,
        Kind.HEX if name == "syscallno" else Kind.ADDRESS,
        help=_ARM64_HELP.get(name, f"Register {name}."),
        format="08x" if name == "pstate" else "",
        # Names of one digit stand below those of two.
        prefix=f"{name.upper():>3}: ",
    )


def _arm64_line(*rows: Sequence[str]) -> str:
    return "\n".join("  ".join(f"{{{name}}}" for name in row) for row in rows)


ARM64_KERNEL_REGISTERS = Shape(
    "arm64_registers",
    (
        *(_arm64_column(name) for row in arm64.REGISTER_ROWS for name in row),
        Column("pc_place", help="Instruction that was interrupted.", prefix="  [", suffix="]"),
        Column("lr_place", help="Where x30 returns to.", prefix="  [", suffix="]"),
    ),
    Layout.LINES,
    "{pc}{pc_place}\n{lr}{lr_place}\n{sp}  {pstate}\n" + _arm64_line(*arm64.REGISTER_ROWS[1:-1]),
    indent=4,
)
"""``struct pt_regs`` of arm64, three in a line as crash shows them."""
ARM64_USER_REGISTERS = msgspec.structs.replace(ARM64_KERNEL_REGISTERS, line=_arm64_line(*arm64.REGISTER_ROWS))
"""The same of user code, with the number of the system call."""

OTHER_REGISTERS = Shape(
    "other_registers",
    (Column("name", help="Name of the register."), Column("value", Kind.ADDRESS, help="What it held.")),
    Layout.LINES,
    "{name:>6}: {value}",
    indent=2,
)

REGISTERS = Shape(
    "registers",
    (
        Column("mode", help="What was interrupted: user or kernel."),
        Column("address", Kind.ADDRESS, help="Where they are saved (struct pt_regs); null: in a note of the dump."),
        Column("function", help="Function that was interrupted."),
        Column("offset", Kind.NUMBER, help="Where in the function, bytes."),
        Column("module", help="Module of the function."),
        *_COLUMNS_OF_REGISTERS.values(),
        Column("arm64", Kind.ROWS, help="Registers of arm64.", shape=ARM64_KERNEL_REGISTERS),
        Column("others", Kind.ROWS, help="Registers of other machines.", shape=OTHER_REGISTERS),
    ),
    Layout.LINES,
    "\n".join("".join(f"{{{name}}}" for name in row) for row in x86_64.REGISTER_ROWS),
    indent=4,
)
"""``struct pt_regs``; the line above them, with the interrupted instruction, is the table's title."""

REGISTERS_OF_OTHERS = msgspec.structs.replace(REGISTERS, line="", indent=0)
"""The registers of other machines."""

REGISTERS_OF_PROCESSOR = msgspec.structs.replace(REGISTERS, line="{rip}{rsp}{rflags}\n{cs}{ss}")
"""The same, where only what the processor pushed is known."""

CONTENTS = Shape(
    "contents",
    (
        Column("address", Kind.ADDRESS, help="Address of the first word."),
        Column("word0", Kind.ADDRESS, help="First word."),
        Column("word1", Kind.ADDRESS, help="Second word."),
        Column("text0", help="What the first word is: symbol, [slab cache], or its digits (-F)."),
        Column("text1", help="What the second word is."),
    ),
    Layout.LINES,
    "{address}: {word0} {word1}",
    indent=4,
)
SYMBOLIC = msgspec.structs.replace(CONTENTS, line="{address}: {text0:<16} {text1:<16}")
RAW = msgspec.structs.replace(CONTENTS, line="{address}:  {word0} {word1}", indent=0)
SYMBOLIC_RAW = msgspec.structs.replace(CONTENTS, line="{address}:  {text0:<16} {text1:<16}", indent=0)

TEXTS = Shape(
    "text_addresses",
    (
        Column("slot", Kind.ADDRESS, help="Where on the stack it is."),
        Column("pc", Kind.ADDRESS, help="The address of code that is there."),
        Column("function", help="Its function."),
        Column("offset", Kind.NUMBER, help="Where in the function, bytes."),
        Column("module", help="Module of the function.", prefix=" [", suffix="]"),
        Column("call", Kind.BOOL, help="Whether a call instruction ends there, so that it can be a return address."),
    ),
    Layout.LINES,
    "  [{slot}] {function} at {pc}{module}",
)

EXCEPTIONS = Shape(
    "exceptions",
    (
        Column("mode", help="USER or KERNEL: what was interrupted."),
        Column("address", Kind.ADDRESS, help="Where the registers are (struct pt_regs)."),
        Column("registers", Kind.ROWS, help="The registers.", shape=REGISTERS),
    ),
    Layout.LINES,
    "\n  {mode}-MODE EXCEPTION FRAME AT: {address}",
)

STACKS = Shape(
    "stacks",
    (
        Column("cpu", Kind.NUMBER, help="CPU that the stack belongs to."),
        Column("stack", help="IRQ, NMI, DOUBLEFAULT, DEBUG, MCE or VC."),
        Column("title", help="What crash calls it."),
        Column("nothing", help="Says that no exception frame was found.", prefix="\n"),
        Column("exceptions", Kind.ROWS, help="What may be exception frames.", shape=EXCEPTIONS),
    ),
    Layout.LINES,
    "CPU {cpu} {title}:{nothing}",
    gap=True,
)

MESSAGES = Shape("messages", (Column("message", help="What was set."),), Layout.LINES, "{message}")

FINDINGS = Shape(
    "findings",
    (Column("finding", help="What is wrong with the stack."),),
    Layout.LINES,
    "possible stack overflow: {finding}",
    indent=2,
)
OVERFLOWS = Shape(
    "overflows",
    (*TASK_COLUMNS, Column("findings", Kind.ROWS, help="What is wrong.", shape=FINDINGS)),
    Layout.LINES,
    TASK_LINE,
    gap=True,
)


@cache
def frames_shape(offsets: str = "") -> Shape:
    """
    Shape of the frames of one stack.

    Parameters
    ----------
    offsets : str
        How the offset in the function is shown: ``d``, ``#x``, or empty: not at all.
    """
    return Shape(
        "frames",
        (
            Column(
                "left_stack",
                help="The stack that ended before this frame, where the trace went on to another.",
                prefix="--- <",
                suffix="> ---\n",
            ),
            Column("number", Kind.NUMBER, help="Number of the frame; null: an inlined function.", prefix="#"),
            Column("kind", help="frame, or inline: part of the frame below it."),
            Column("sp", Kind.ADDRESS, help="Where its return address is on the stack.", prefix=" [", suffix="]"),
            Column("function", help="Name of the function.", prefix=" "),
            Column("offset", Kind.NUMBER, help="Where in the function, bytes.", prefix="+", format=offsets),
            Column("pc", Kind.ADDRESS, help="Where it goes on, or was interrupted.", prefix=" at "),
            Column("module", help="Module of the function.", prefix=" [", suffix="]"),
            Column("reliable", Kind.BOOL, help="False: found by searching the stack, so it may be left over."),
            Column("stack", help="The stack it is on: task, IRQ, NMI …"),
            Column("mark", help="inline or not certain.", prefix=" (", suffix=")"),
            Column("file", help="Source file, where the debug information has it.", prefix="\n    "),
            Column("line", Kind.NUMBER, help="Line in it.", prefix=": "),
            Column("registers", Kind.ROWS, help="Registers that its caller was interrupted with.", shape=REGISTERS),
            Column("contents", Kind.ROWS, help="What lies on the stack up to the next frame (-f).", shape=CONTENTS),
        ),
        Layout.LINES,
        "{left_stack}{number:>3}{sp}{function}" + ("{offset}" if offsets else "") + "{pc}{module}{mark}{file}{line}",
    )


@cache
def tasks_shape(offsets: str = "", *, start: bool = False) -> Shape:
    """Shape of the table of tasks: what is found on the stack of each; *start* has a line of its own with -t."""
    return Shape(
        "tasks",
        (
            *TASK_COLUMNS,
            Column("state", help="State of the task, as in ps."),
            Column("problem", help="Why the trace is not whole, or not certain."),
            Column("start", help="First text address of -t.", prefix="              START: "),
            Column("at", Kind.ROWS, help="Registers of a note, where the trace begins there.", shape=REGISTERS),
            Column("frames", Kind.ROWS, help="The frames, innermost first.", shape=frames_shape(offsets)),
            Column("text_addresses", Kind.ROWS, help="Addresses of code on the stack (-t, -T).", shape=TEXTS),
            Column("raw", Kind.ROWS, help="The whole stack (-r).", shape=CONTENTS),
            Column("exceptions", Kind.ROWS, help="What may be exception frames (-e).", shape=EXCEPTIONS),
            Column("user", Kind.ROWS, help="Registers at the entry into the kernel (-t, -T).", shape=REGISTERS),
        ),
        Layout.LINES,
        TASK_LINE + ("\n{start}" if start else ""),
        gap=True,
    )
