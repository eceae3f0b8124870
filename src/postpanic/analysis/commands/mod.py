"""``mod``: loaded modules, and where what is known of them comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import drgn
from drgn import Object

from postpanic.analysis.cells import absent, cell, decode, guarded
from postpanic.analysis.commands.arguments import Arguments, Operand, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.taints import taint_letters
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.debug_files import DebugKind, DebugSource
from postpanic.analysis.module_list import each_module
from postpanic.analysis.workspace import Workspace
from postpanic.errors import UsageError
from postpanic.findings.absent import Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["mod"]

_SECTIONS = Shape(
    "sections",
    (
        Column("section", title="SECTION", help="Its name."),
        Column("address", Kind.ADDRESS, title="ADDRESS", help="Where it is."),
    ),
    indent=4,
)
_MODULES = Shape(
    "modules",
    (
        Column("module", Kind.ADDRESS, title="MODULE", align="^", help="Address of the struct module."),
        Column("name", title="NAME", help="Its name."),
        Column("base", Kind.ADDRESS, title="TEXT_BASE", align="^", help="Where its code begins."),
        Column("size_bytes", Kind.NUMBER, title="SIZE", help="Of all that stays in memory."),
        Column("object_file", title="OBJECT FILE", help="Where its debug information comes from."),
        Column("kind", hidden=True, help="real, synthesized or none."),
        Column("sections", Kind.ROWS, help="Its sections (-g).", shape=_SECTIONS),
    ),
)
_TAINTED = Shape(
    "tainted_modules",
    (
        Column("name", title="NAME", help="The module."),
        Column(
            "taints",
            title="TAINTS",
            help="Letters of its taints; (U) without a valid signature, where no letter says so.",
        ),
        Column("mask", Kind.HEX, hidden=True, help="module.taints."),
    ),
)
_UNTAINTED = Shape("tainted_modules", _TAINTED.columns, Layout.LINES, title="no tainted modules")
_KALLSYMS = "[CONFIG_KALLSYMS]"


@command(
    "mod",
    summary="loaded modules, and debug information for them",
    description=(
        "List the loaded modules. Their symbols, types and unwind tables are read from the dump, so nothing needs to "
        "be loaded; -s and -S take real debug information for modules that have none yet. Files for all modules are "
        "best given when the dump is opened."
    ),
    options=(
        Option(
            "-s", "load", "take debug information for this module: from FILE, or from the standard places", "MODULE"
        ),
        Option("-S", "load_all", "the same for all modules: from files in a directory, or from the standard places"),
        Option("-g", "sections", "where the sections of the modules are"),
        Option("-t", "taints", "modules with taints"),
        Option("-R", "anew", "read the list anew (a running kernel)"),
        Option("-d", "delete", "", value="MODULE", refused="what was loaded stays; open the dump again without it"),
        Option("-D", "delete_all", "", refused="what was loaded stays; open the dump again without it"),
        Option("-r", "readnow", "", refused="a choice of gdb's; debug information is read when it is needed"),
        Option("-o", "old", "", refused="crash's older way to load; there is one here"),
    ),
    operands=(Operand("file", "with -s an object file, with -S a directory"),),
    shapes=(_MODULES, _TAINTED),
    examples=(
        Example("mod", "all modules"),
        Example("mod -t", "those that taint the kernel"),
        Example("mod -S /tmp/debug", "real debug information from a directory"),
    ),
)
def mod(workspace: Workspace, arguments: Arguments) -> Answer:
    """List modules, or take debug information for them."""
    problems: list[Problem] = []
    if arguments.has("anew"):
        workspace.forget()
    if arguments.operands and not (arguments.has("load") or arguments.has("load_all")):
        raise UsageError("mod: a file is for -s or -S", hint="help mod")
    modules = list(guarded(each_module(workspace.prog), "list of modules", problems))
    if arguments.has("taints"):
        rows = [row for module in modules if (row := _taints(module)) is not None]
        table = _TAINTED.table(rows) if rows else _UNTAINTED.table()
        return Answer("mod", (table,), tuple(problems))
    name = arguments.get("load")
    if name is not None:
        modules = [module for module in modules if _name(module) == name]
        if not modules:
            raise UsageError(f"mod -s: no module {name} is loaded", hint="mod lists them")
    if name is not None or arguments.has("load_all"):
        place = Path(arguments.operands[0]) if arguments.operands else None
        if place is not None and not place.exists():
            raise UsageError(f"mod: {place}: no such file or directory")
        _load(workspace, [_name(module) for module in modules], place, problems)
    sources = {source.module: source for source in workspace.opened.sources}
    with_sections = arguments.has("sections")
    rows = [_row(workspace, module, sources, with_sections=with_sections) for module in modules]
    rows.sort(key=lambda row: row[2] if isinstance(row[2], int) else 1 << 64)
    return Answer("mod", (_MODULES.table(rows),), tuple(problems))


def _name(module: Object) -> str:
    try:
        return decode(module.name.string_())
    except UNREADABLE:
        return ""


def _row(
    workspace: Workspace, module: Object, sources: dict[str, DebugSource], *, with_sections: bool
) -> tuple[Cell, ...]:
    name = cell(lambda: decode(module.name.string_()))
    source = sources.get(str(name))
    kind = source.kind if source is not None else DebugKind.NONE
    shown = {
        DebugKind.REAL: str(source.file) if source is not None else "",
        DebugKind.SYNTHESIZED: "(synthesized from the dump)",
        DebugKind.NONE: "(not loaded)",
    }[kind]
    if kind is not DebugKind.REAL and _has_kallsyms(module):
        shown += f"  {_KALLSYMS}"
    try:
        base, size = _place(module)
        place: tuple[Cell, Cell] = (base, size)
    except UNREADABLE as exc:
        place = (absent(exc), absent(exc))
    sections = _SECTIONS.table(list(_sections(workspace, str(name)))) if with_sections else None
    return (int(module.value_()), name, *place, shown, kind.value, sections)


def _place(module: Object) -> tuple[int, int]:
    """Return where a module's code begins, and the size of what stays in memory."""
    try:
        # struct module_memory: ac3b43283923 (6.4).
        parts = module.mem.read_()
        kinds = {item.name: int(item.value) for item in module.prog_.type("enum mod_mem_type").enumerators or ()}
    except (AttributeError, LookupError):
        layout = module.core_layout
        return int(layout.base.value_()), int(layout.size.value_())
    first = kinds.get("MOD_INIT_TEXT", len(parts))
    size = sum(int(part.size.value_()) for part in list(parts)[:first])
    return int(parts[kinds.get("MOD_TEXT", 0)].base.value_()), size


def _has_kallsyms(module: Object) -> bool:
    try:
        return bool(module.kallsyms)
    except UNREADABLE:
        return False


def _sections(workspace: Workspace, name: str) -> Iterator[tuple[Cell, ...]]:
    try:
        module = workspace.prog.module(name)
        places = dict(module.section_addresses) if isinstance(module, drgn.RelocatableModule) else {}
    except UNREADABLE:
        return
    yield from sorted(places.items(), key=lambda entry: entry[1])


def _taints(module: Object) -> tuple[Cell, ...] | None:
    try:
        mask = int(module.taints.value_())
        # gpgsig_ok and sig_ok: only in kernels that check signatures.
        signed = bool(module.sig_ok) if module.prog_.type("struct module").has_member("sig_ok") else True
    except UNREADABLE as exc:
        return (_name(module), absent(exc), absent(exc))
    if not mask:
        return None
    letters = taint_letters(mask)
    # Kernels with the letter E say it themselves.
    return (_name(module), letters if signed or "E" in letters else f"{letters}(U)", mask)


def _load(workspace: Workspace, names: Sequence[str], place: Path | None, problems: list[Problem]) -> None:
    """Take real debug information for modules that have none."""
    found: dict[str, DebugSource] = {}
    for name in names:
        module = workspace.prog.module(name)
        known = next((source for source in workspace.opened.sources if source.module == name), None)
        if known is not None and known.kind is not DebugKind.NONE:
            if known.kind is DebugKind.SYNTHESIZED:
                why = "it has synthesized debug information, which stays; give its file when the dump is opened"
                problems.append(Problem(f"module {name}: {why}", Reason.NOT_APPLICABLE))
            continue
        _try_files(workspace.prog, module, place)
        if module.debug_file_status == drgn.ModuleFileStatus.HAVE:
            path = module.debug_file_path
            found[name] = DebugSource(name, DebugKind.REAL, Path(path) if path else None)
        else:
            problems.append(Problem(f"module {name}: no debug information that belongs to it", Reason.NOT_PRESENT))
    opened = workspace.opened
    opened.sources = tuple(found.get(source.module, source) for source in opened.sources)


def _try_files(prog: drgn.Program, module: drgn.Module, place: Path | None) -> None:
    if place is None:
        try:
            prog.load_module_debug_info(module)
        except drgn.MissingDebugInfoError:
            return
    elif place.is_dir():
        stem = module.name.replace("_", "[_-]")
        for path in sorted([*place.rglob(f"{stem}.ko"), *place.rglob(f"{stem}.ko.debug")]):
            module.try_file(path)
    else:
        module.try_file(place)
