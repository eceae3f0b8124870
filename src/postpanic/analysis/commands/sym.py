"""``sym``: symbols and addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from drgn import Program

from postpanic.analysis.code.symbols import KernelSymbol, LoadedModule, SymbolIndex, read_symbols
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, is_hex
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_vaddr
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Shape

__all__ = ["source_of", "sym", "workspace_symbols"]

_SYMBOLS = Shape(
    "symbols",
    (
        Column("address", Kind.ADDRESS, format="x", help="Of the symbol, or the one that was given."),
        Column("type", prefix="(", suffix=")", help="The letter of nm; ? where nothing tells."),
        Column("name", help="The symbol."),
        Column("offset", Kind.NUMBER, help="Bytes from the symbol."),
        Column("module", help="Name of the module; empty: the kernel."),
        Column("file", help="Source file, where the debug information tells."),
        Column("line", Kind.NUMBER, help="Line in it."),
        Column("text", help="As it is shown."),
    ),
    Layout.LINES,
    "{text}",
)
_HEX = re.compile(r"(?:0x)?[0-9a-fA-F]+\Z")
_OFFSET = re.compile(r"(.+?)([+-](?:0x[0-9a-fA-F]+|\d+))?\Z")
_NEAR = 8


@command(
    "sym",
    summary="translate symbols to addresses and back",
    description=(
        "Show the address of a symbol, or the symbol of an address, with its letter: T and t are text, D B R data, "
        "lower case local ones. All symbols of a name are shown. The file and line are those of the debug information; "
        "what is synthesized has none.\n\nWith -m, -q looks in that module alone."
    ),
    options=(
        Option("-l", "all", "show all symbols"),
        Option("-M", "modules", "show the symbols of all modules"),
        Option("-m", "module", "show the symbols of this module", "MODULE"),
        Option("-p", "previous", "show the symbol before, too"),
        Option("-n", "next", "show the symbol behind, too"),
        Option("-q", "text", "search for names that contain this", "TEXT"),
        HEXADECIMAL,
        DECIMAL,
    ),
    operands=(Operand("symbol", "symbol, symbol+offset, hexadecimal address or (expression)", many=True),),
    shapes=(_SYMBOLS,),
    examples=(
        Example("sym jiffies", "the address of a symbol"),
        Example("sym ffffffff81a00d34", "the symbol of an address"),
        Example("sym -q panic", "all symbols that have panic in their name"),
        Example("sym -m ext4", "the symbols of a module"),
    ),
)
def sym(workspace: Workspace, arguments: Arguments) -> Answer:
    """Translate symbols to addresses and back."""
    index = workspace_symbols(workspace)
    hexadecimal = is_hex(workspace, arguments)
    if not arguments.operands and not any(arguments.has(name) for name in ("all", "modules", "module", "text")):
        raise UsageError("sym: symbol is missing", hint="help sym")
    rows: list[tuple[Cell, ...]] = []
    if any(arguments.has(name) for name in ("all", "modules", "module")):
        rows += _list_rows(index, arguments)
    elif arguments.has("text"):
        text = arguments.get("text") or ""
        rows += [_row(symbol, symbol.vaddr) for symbol in index.containing(text)]
    for word in arguments.operands:
        rows += _find(workspace, index, word, arguments, is_hex=hexadecimal)
    return Answer("sym", (_SYMBOLS.table(rows),), tuple(index.problems))


def workspace_symbols(workspace: Workspace) -> SymbolIndex:
    """Read all symbols of the kernel and its modules, once."""

    def read() -> SymbolIndex:
        workspace.progress("reading symbols")
        return read_symbols(workspace.prog, workspace.memory)

    return workspace.once("all symbols", read)


def source_of(prog: Program, vaddr: int) -> tuple[str, int] | None:
    """Find the source file and line of an address of code; None where the debug information does not tell."""
    try:
        places = prog.source_location(vaddr)
    except (LookupError, ValueError):
        return None
    return (places[0].filename, places[0].line) if len(places) and places[0].filename else None


def _row(
    symbol: KernelSymbol, vaddr: int, *, source: tuple[str, int] | None = None, is_hex: bool = False
) -> tuple[Cell, ...]:
    offset = vaddr - symbol.vaddr
    text = f"{vaddr:x} ({symbol.type}) {symbol.name}"
    if offset:
        text += f"+{offset:#x}" if is_hex else f"+{offset}"
    if symbol.module:
        text += f" [{symbol.module}]"
    if source is not None:
        text += f" {source[0]}: {source[1]}"
    file, line = source if source is not None else (None, None)
    return vaddr, symbol.type, symbol.name, offset, symbol.module, file, line, text


def _list_rows(index: SymbolIndex, arguments: Arguments) -> Iterator[tuple[Cell, ...]]:
    wanted = arguments.get("text")
    if arguments.has("all"):
        own = (symbol for symbol in index.symbols if not symbol.module)
        yield from (_row(symbol, symbol.vaddr) for symbol in own if wanted is None or wanted in symbol.name)
    modules: Sequence[LoadedModule] = index.modules
    if arguments.has("module"):
        name = (arguments.get("module") or "").replace("-", "_")
        modules = [module for module in modules if module.name == name]
        if not modules:
            raise FactAbsentError(f"no module {name}", hint="mod lists them")
    for module in sorted(modules, key=lambda module: module.ranges[:1]):
        yield from _module_rows(module, wanted)


def _module_rows(module: LoadedModule, wanted: str | None) -> Iterator[tuple[Cell, ...]]:
    """Show the symbols of a module, part by part as crash does; with *wanted*, those alone that contain it."""
    rest = sorted(module.symbols, key=lambda symbol: symbol.vaddr)
    shown: Iterable[KernelSymbol]
    if wanted is not None:
        yield from (_row(symbol, symbol.vaddr) for symbol in rest if wanted in symbol.name)
        return
    for start, end, part in module.ranges:
        what = f"MODULE {part}" if part else "MODULE"
        yield _mark(start, f"{what} START", module.name)
        shown = [symbol for symbol in rest if start <= symbol.vaddr < end]
        yield from (_row(_bare(symbol), symbol.vaddr) for symbol in shown)
        yield _mark(end, f"{what} END", module.name)
    others = [symbol for symbol in rest if not any(start <= symbol.vaddr < end for start, end, _ in module.ranges)]
    yield from (_row(symbol, symbol.vaddr) for symbol in others)


def _bare(symbol: KernelSymbol) -> KernelSymbol:
    # Between the marks of a module crash does not repeat its name.
    return KernelSymbol(symbol.vaddr, symbol.type, symbol.name)


def _mark(vaddr: int, what: str, module: str) -> tuple[Cell, ...]:
    return vaddr, "", what, 0, module, None, None, f"{vaddr:x} {what}: {module}"


def _find(
    workspace: Workspace, index: SymbolIndex, word: str, arguments: Arguments, *, is_hex: bool
) -> Iterator[tuple[Cell, ...]]:
    for place, vaddr in _places(workspace, index, word):
        symbol = index.symbols[place]
        near = [index.neighbour(place, step) if arguments.has(name) else None for name, step in _STEPS]
        for other in (near[0], symbol, near[1]):
            if other is not None:
                at = vaddr if other is symbol else other.vaddr
                yield _row(other, at, source=_source(workspace.prog, other, at), is_hex=is_hex)


_STEPS = (("previous", -1), ("next", 1))


def _source(prog: Program, symbol: KernelSymbol, vaddr: int) -> tuple[str, int] | None:
    return source_of(prog, vaddr) if symbol.type in "TtWw" else None


def _places(workspace: Workspace, index: SymbolIndex, word: str) -> Iterator[tuple[int, int]]:
    """Find the symbols that a word names, each with the address."""
    named = index.named(word)
    if named:
        yield from ((place, index.symbols[place].vaddr) for place in named)
        return
    match = _OFFSET.match(word)
    if match is not None and match[2] and (named := index.named(match[1])):
        for place in named:
            vaddr = index.symbols[place].vaddr + int(match[2], 0)
            yield index.at(vaddr) or place, vaddr
        return
    if not _HEX.match(word) and not word.startswith("("):
        raise FactAbsentError(f"no symbol {word}", hint=_near(index, word))
    vaddr = parse_vaddr(workspace, word)
    found = index.at(vaddr)
    if found is None:
        raise FactAbsentError(f"no symbol at {vaddr:x}")
    if vaddr >> 47 == (1 << 17) - 1 and not _is_inside(workspace.prog, index, found, vaddr):
        raise FactAbsentError(f"no symbol at {vaddr:x}: it lies behind {index.symbols[found].name}")
    yield found, vaddr


def _is_inside(prog: Program, index: SymbolIndex, place: int, vaddr: int) -> bool:
    """Tell whether an address may belong to the symbol before it: in the image, or in the same module."""
    symbol = index.symbols[place]
    if symbol.module:
        return index.in_module(vaddr) == symbol.module
    try:
        end = int(prog.symbol("_end").address)
    except LookupError:
        return True
    return vaddr < end


def _near(index: SymbolIndex, word: str) -> str:
    names = list(dict.fromkeys(symbol.name for symbol in index.containing(word)))
    if not names:
        return ""
    shown = ", ".join(names[:_NEAR])
    return f"names that contain it: {shown}{' and more, sym -q shows them' if len(names) > _NEAR else ''}"
