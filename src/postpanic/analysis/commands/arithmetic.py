"""``eval`` and ``ascii``: numbers in other spellings."""

from __future__ import annotations

import re

from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import find_symbol_vaddr
from postpanic.analysis.expressions import evaluate_number
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Shape

__all__ = ["ascii_text", "evaluate_line"]

_WORD = (1 << 64) - 1
_UNITS = {"k": 10, "m": 20, "g": 30}
_UNIT_NAMES = ((30, "GB"), (20, "MB"), (10, "KB"))
_OPERAND = r"~*(?:0[xX][0-9a-fA-F]+|[0-9a-fA-F]+|[A-Za-z_.$][\w.$]*)[kKmMgG]?"
_BINARY = re.compile(rf"\(?\s*({_OPERAND})\s*(<<|>>|[-+&|^*%/])\s*({_OPERAND})\s*\)?\Z")
_SINGLE = re.compile(rf"\(?\s*({_OPERAND})\s*\)?\Z")
_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9a-fA-F]+)([kKmMgG]?)\Z")

_RESULT = Shape(
    "result",
    (
        Column("value", Kind.HEX, hidden=True, help="The number, 64 bits."),
        Column("hexadecimal", title="hexadecimal", help="With its size where it is a multiple of 1024 bytes."),
        Column("decimal", title="decimal", help="Signed in parentheses where the highest bit is set."),
        Column("octal", title="octal", help="Octal digits."),
        Column("binary", title="binary", help="64 digits."),
        Column("bits_set", title="bits set", help="Numbers of the bits that are set (-b), the highest first."),
    ),
    Layout.FIELDS,
)


@command(
    "eval",
    summary="evaluate an expression or number",
    description=(
        "Show a number in all bases. Operators are + - & | ^ * % / << >>, numbers are decimal or hexadecimal (0x may "
        "be left out where it is obvious), may end in k, m or g and begin with ~; a symbol is its address. Any other "
        "expression is taken as C. Put | << >> in parentheses."
    ),
    options=(
        Option("-b", "bits", "show which bits are set"),
        Option("-l", "long", "take numbers as 64 bits wide, which they always are here"),
    ),
    operands=(Operand("expression", "number, symbol, or two of them with an operator", many=True, required=True),),
    shapes=(_RESULT,),
    examples=(
        Example("eval 128m", "a size in bytes"),
        Example("eval (1 << 32)", "a shift"),
        Example("eval jiffies + 8", "an address"),
    ),
)
def evaluate_line(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show a number in all bases."""
    text = " ".join(arguments.operands)
    value = _evaluate(workspace, text)
    return Answer("eval", (_RESULT.table([_result_row(value, bits=arguments.has("bits"))]),))


def _evaluate(workspace: Workspace, text: str) -> int:
    text = text.strip()
    if match := _BINARY.match(text):
        return _calculate(_operand(workspace, match[1]), match[2], _operand(workspace, match[3]))
    if (match := _SINGLE.match(text)) and not ("." in match[1] and _is_variable(workspace, match[1])):
        return _operand(workspace, match[1])
    return evaluate_number(workspace.prog, text)


def _operand(workspace: Workspace, text: str) -> int:
    bare = text.lstrip("~")
    value = _number_or_symbol(workspace, bare)
    return (~value if (len(text) - len(bare)) % 2 else value) & _WORD


def _number_or_symbol(workspace: Workspace, text: str) -> int:
    match = _NUMBER.match(text)
    if match is None or (not text[0].isdigit() and _is_symbol(workspace, text)):
        return find_symbol_vaddr(workspace.prog, text)
    digits, unit = match[1], match[2].lower()
    is_decimal = digits.isdecimal()
    value = int(digits, 10 if is_decimal else 16) << _UNITS.get(unit, 0)
    if value > _WORD:
        raise UsageError(f"{text} is wider than 64 bits")
    return value


def _is_symbol(workspace: Workspace, name: str) -> bool:
    try:
        find_symbol_vaddr(workspace.prog, name)
    except FactAbsentError:
        return False
    return True


def _is_variable(workspace: Workspace, text: str) -> bool:
    """Tell whether what has a dot is a member, and no symbol such as ``schedule.cold``."""
    return not _is_symbol(workspace, text) and _is_symbol(workspace, text.partition(".")[0])


def _calculate(left: int, sign: str, right: int) -> int:
    match sign:
        case "/" | "%" if not right:
            raise UsageError("eval: division by zero")
        case "+":
            result = left + right
        case "-":
            result = left - right
        case "*":
            result = left * right
        case "/":
            result = left // right
        case "%":
            result = left % right
        case "&":
            result = left & right
        case "|":
            result = left | right
        case "^":
            result = left ^ right
        case "<<":
            result = left << right if right < 64 else 0
        case _:
            result = left >> right if right < 64 else 0
    return result & _WORD


def _result_row(value: int, *, bits: bool) -> tuple[Cell, ...]:
    size = next(
        (f"  ({value >> shift}{name})" for shift, name in _UNIT_NAMES if value and not value % (1 << shift)), ""
    )
    signed = f"  ({value - (1 << 64)})" if value >> 63 else ""
    set_bits = " ".join(str(bit) for bit in range(63, -1, -1) if value >> bit & 1)
    return value, f"{value:x}{size}", f"{value}{signed}", f"{value:o}", f"{value:064b}", set_bits if bits else None


_CONTROL = (
    *(["NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "HT", "LF", "VT", "FF", "CR", "SO", "SI"]),
    *(["DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US"]),
)
_TEXT = Shape(
    "text",
    (
        Column("value", Kind.HEX, help="What was given."),
        Column("ascii", help="Its bytes, the lowest first; names of control characters in brackets."),
        Column("line", help="As it is shown."),
    ),
    Layout.LINES,
    "{line}",
)
_CHART = Shape("chart", (Column("line", help="One line of the chart."),), Layout.LINES, "{line}")


@command(
    "ascii",
    summary="translate hexadecimal numbers to ASCII",
    description="Show the bytes of 64-bit numbers as text, as they lie in memory; without one, a chart of ASCII.",
    operands=(Operand("value", "hexadecimal number", many=True),),
    shapes=(_TEXT, _CHART),
    examples=(Example("ascii 62696c2f7273752f", "the text in a number"),),
)
def ascii_text(workspace: Workspace, arguments: Arguments) -> Answer:  # noqa: ARG001 - a command's signature
    """Translate hexadecimal numbers to ASCII."""
    if not arguments.operands:
        return Answer("ascii", (_CHART.table([(line,) for line in _chart_lines()]),))
    rows: list[tuple[Cell, ...]] = []
    for word in arguments.operands:
        if not re.fullmatch(r"(?:0[xX])?[0-9a-fA-F]+", word) or int(word, 16) > _WORD:
            raise UsageError(f"{word!r} is not a hexadecimal number of 64 bits")
        value = int(word, 16)
        text = "".join(_spell_byte(code) for code in value.to_bytes(8, "little"))
        rows.append((value, text, f"{value:016x}: {text}"))
    return Answer("ascii", (_TEXT.table(rows),))


def _spell_byte(code: int) -> str:
    if code < 32:
        return f"<{_CONTROL[code]}>"
    if code == 127:
        return "<DEL>"
    return chr(code) if code < 127 else f"<{code:02x}>"


def _chart_lines() -> list[str]:
    lines = ["", "      0    1   2   3   4   5   6   7", "    +-------------------------------"]
    for low in range(16):
        cells = [_CONTROL[low], _CONTROL[low + 16], "SP" if not low else chr(32 + low)]
        cells += [chr(high * 16 + low) for high in range(3, 7)] + ["DEL" if low == 15 else chr(112 + low)]
        first = f"{cells[0]:>3} {cells[1]:>3} {cells[2]:>3}" if not low else f"{cells[0]:>3} {cells[1]:>3}  {cells[2]} "
        rest = "".join(f" {cell:>3}" if cell == "DEL" else f"  {cell} " for cell in cells[3:])
        lines.append(f"  {low:X} | {first}{rest}".rstrip())
    return [*lines, ""]
