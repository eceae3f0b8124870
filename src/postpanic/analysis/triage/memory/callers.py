"""Which functions of a module call an allocator, by their code."""

from __future__ import annotations

from collections.abc import Sequence

from postpanic.analysis.code.instructions import Disassembler, Flow, Instruction
from postpanic.analysis.code.listing import CodeReader, Function
from postpanic.analysis.code.symbols import SymbolIndex, read_symbols
from postpanic.analysis.code.veneers import resolve_veneer
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.memory.slabs.values import Cache
from postpanic.analysis.triage.scene import Scene
from postpanic.analysis.workspace import Workspace
from postpanic.evidence.oops.functions import plain_name
from postpanic.findings.verdict import Evidence

__all__ = ["find_callers", "symbols_of"]


def symbols_of(workspace: Workspace) -> SymbolIndex:
    """Give the symbols of a session, those of modules among them."""
    return workspace.once("symbols", lambda: read_symbols(workspace.prog, workspace.memory))


def find_callers(
    scene: Scene, module: str, allocators: tuple[str, ...], cache: Cache | None
) -> list[tuple[str, Evidence]]:
    """Find the functions of a module that call an allocator, and, where the code tells it, for objects that fit."""
    workspace = scene.dump
    symbols = symbols_of(workspace)
    loaded = next((one for one in symbols.modules if one.name == module), None)
    if loaded is None:
        return []
    try:
        reader = CodeReader(workspace.prog, Disassembler(workspace.memory.machine), workspace.prog.read, symbols)
    except UNREADABLE:
        return []
    texts = [(start, end) for start, end, what in loaded.ranges if what in {"", "TEXT"}]
    found: dict[str, Evidence] = {}
    done: set[int] = set()
    for symbol in loaded.symbols[:4096]:
        if symbol.type not in "tT" or symbol.vaddr in done:
            continue
        if not any(start <= symbol.vaddr < end for start, end in texts):
            continue
        done.add(symbol.vaddr)
        function = reader.find_function(symbol.vaddr)
        if function is None:
            continue
        evidence = _calls_allocator(workspace, reader, function, allocators, cache)
        if evidence is not None:
            found.setdefault(plain_name(symbol.name), evidence)
    named = {name.removesuffix(".cold") for name in found}
    return [(name, found[name]) for name in found if name in named]


def _calls_allocator(
    workspace: Workspace, reader: CodeReader, function: Function, allocators: tuple[str, ...], cache: Cache | None
) -> Evidence | None:
    symbols = symbols_of(workspace)
    recent: list[Instruction] = []
    for instruction in reader.decode_function(function, []):
        if instruction.flow in {Flow.CALL, Flow.JUMP} and instruction.target is not None:
            target = resolve_veneer(workspace.memory, instruction.target)
            place = symbols.at(target)
            symbol = symbols.symbols[place] if place is not None else None
            if symbol is not None and symbol.vaddr == target and symbol.name.startswith(allocators):
                size = _size_argument(recent)
                if cache is None or size is None or cache.object_bytes // 2 < size <= cache.object_bytes:
                    what = f"{plain_name(function.name)} calls {symbol.name}"
                    what += f" for {size} bytes" if size and cache is not None else ""
                    shows = symbol.name if target == instruction.target else f"{instruction.target:x}"
                    return Evidence(what, f"dis {function.name}", shows, instruction.vaddr)
        recent.append(instruction)
        del recent[:-12]
    return None


def _size_argument(recent: Sequence[Instruction]) -> int | None:
    """
    Read the size that is passed: ``kmalloc_trace(cache, flags, size)`` has it third, ``__kmalloc(size, flags)`` first.

    Where it is a constant; else None.
    """
    for instruction in reversed(recent):
        words = instruction.operands.replace(",", " ").split()
        if instruction.mnemonic.startswith("mov") and len(words) == 2 and words[1] in {"%edx", "%rdx"}:
            return int(words[0][1:], 0) if words[0].startswith("$") else None
        if instruction.mnemonic == "mov" and len(words) == 2 and words[0] in {"w2", "x2"}:
            return int(words[1][1:], 0) if words[1].startswith("#") else None
        if instruction.flow is Flow.CALL:
            break
    return None
