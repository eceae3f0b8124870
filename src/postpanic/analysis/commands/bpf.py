"""``bpf``: loaded BPF programs and maps."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from drgn import Object
from drgn.helpers.linux.timekeeping import ktime_get_boottime_seconds, ktime_get_real_seconds

from postpanic.analysis.bpf.instructions import INSTRUCTION_BYTES, decode_instructions
from postpanic.analysis.bpf.jited import disassemble
from postpanic.analysis.cells import absent, cell, decode, problem
from postpanic.analysis.commands.arguments import Arguments, Option
from postpanic.analysis.commands.output_style import DECIMAL, HEXADECIMAL, choose_style
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.values import parse_number
from postpanic.analysis.containers import idr_entries
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.objects.braces import MEMBERS
from postpanic.analysis.objects.members import members_table
from postpanic.analysis.objects.style import Style
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError, UsageError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["bpf"]

_MAX_INSTRUCTIONS = 1 << 20
"""``BPF_COMPLEXITY_LIMIT_INSNS``: a longer program is never loaded."""
_MAX_JITED_BYTES = 1 << 24
_MAX_USED_MAPS = 64
"""``MAX_USED_MAPS``."""

_DETAILS = Shape(
    "program_details",
    (
        Column("translated", Kind.NUMBER, prefix="XLATED: ", help="Bytes of its instructions."),
        Column("jited", Kind.NUMBER, prefix="JITED: ", help="Bytes of its machine code; 0: it is interpreted."),
        Column("locked", Kind.NUMBER, prefix="MEMLOCK: ", help="Bytes of memory that it holds."),
        Column("load_time", prefix="LOAD_TIME: ", help="When it was loaded, UTC."),
        Column("gpl", prefix="GPL_COMPATIBLE: ", help="Whether its licence is: yes or no."),
        Column("name", prefix='NAME: "', suffix='"', help="Its name."),
        Column("uid", Kind.NUMBER, prefix="UID: ", help="User ID of who loaded it."),
    ),
    Layout.LINES,
    "{translated}  {jited}  {locked}\n{load_time}\n{gpl}  {name}  {uid}",
    indent=5,
)
_BYTECODE = Shape(
    "bytecode",
    (
        Column("index", Kind.NUMBER, help="Number of the instruction."),
        Column("text", help="As the verifier spells it."),
        Column("bytes", prefix="\n        ", help="The instruction itself (-T)."),
    ),
    Layout.LINES,
    "{index:>4}: {text}{bytes}",
)
_MACHINE_CODE = Shape(
    "machine_code",
    (
        Column("address", Kind.ADDRESS, prefix="0x", help="Address of the instruction."),
        Column("text", help="The instruction."),
        Column("target", prefix=" <", suffix=">", help="What a call or jump leads to."),
    ),
    Layout.LINES,
    "{address}:  {text}{target}",
    indent=1,
)
_PROGRAM_COLUMNS = (
    Column("id", Kind.NUMBER, title="ID", help="Identifier.", width=4),
    Column("program", Kind.ADDRESS, title="BPF_PROG", help="struct bpf_prog *.", align="^"),
    Column("aux", Kind.ADDRESS, title="BPF_PROG_AUX", help="struct bpf_prog_aux *.", align="^"),
    Column("type", title="BPF_PROG_TYPE", help="Type, without BPF_PROG_TYPE_.", align="^"),
    Column("tag", title="TAG", help="Digest of its instructions.", align="^"),
    Column("maps", title="USED_MAPS", help="Identifiers of the maps that it uses.", align="^"),
)
_PROGRAMS = Shape(
    "programs",
    (
        *_PROGRAM_COLUMNS,
        Column("details", Kind.ROWS, shape=_DETAILS, help="More of it (-p, -P)."),
        Column("bytecode", Kind.ROWS, shape=_BYTECODE, help="Its instructions (-t, -T)."),
        Column("machine_code", Kind.ROWS, shape=_MACHINE_CODE, help="Its machine code (-j)."),
        Column("structures", Kind.ROWS, shape=MEMBERS, help="struct bpf_prog and struct bpf_prog_aux (-s)."),
    ),
)
_MAP_DETAILS = Shape(
    "map_details",
    (
        Column("key_size", Kind.NUMBER, prefix="KEY_SIZE: ", help="Bytes of a key."),
        Column("value_size", Kind.NUMBER, prefix="VALUE_SIZE: ", help="Bytes of a value."),
        Column("max_entries", Kind.NUMBER, prefix="MAX_ENTRIES: ", help="How many it can hold."),
        Column("locked", Kind.NUMBER, prefix="MEMLOCK: ", help="Bytes of memory that it was charged; until 5.10."),
        Column("name", prefix='NAME: "', suffix='"', help="Its name."),
        Column("uid", Kind.NUMBER, prefix="UID: ", help="User ID of who made it; until 5.10."),
    ),
    Layout.LINES,
    "{key_size}  {value_size}  {max_entries}  {locked}\n{name}  {uid}",
    indent=5,
)
_MAPS = Shape(
    "maps",
    (
        Column("id", Kind.NUMBER, title="ID", help="Identifier.", width=4),
        Column("map", Kind.ADDRESS, title="BPF_MAP", help="struct bpf_map *.", align="^"),
        Column("type", title="BPF_MAP_TYPE", help="Type, without BPF_MAP_TYPE_.", align="^"),
        Column("flags", Kind.HEX, title="MAP_FLAGS", help="map_flags.", format="08x"),
        Column("details", Kind.ROWS, shape=_MAP_DETAILS, help="More of it (-m, -M)."),
        Column("structures", Kind.ROWS, shape=MEMBERS, help="struct bpf_map (-s)."),
    ),
)


@command(
    "bpf",
    summary="extended Berkeley Packet Filter (eBPF)",
    description=(
        "Show the BPF programs and maps that are loaded. Instructions are spelled as the verifier of today spells "
        "them, machine code in the syntax of AT&T."
    ),
    options=(
        Option("-p", "program", "show more of one program", "ID"),
        Option("-P", "programs", "show more of all programs"),
        Option("-m", "map", "show more of one map", "ID"),
        Option("-M", "maps", "show more of all maps"),
        Option("-t", "translate", "with -p or -P: show the instructions"),
        Option("-T", "bytes", "with -p or -P: show the instructions and their bytes"),
        Option("-j", "jited", "with -p or -P: disassemble the machine code"),
        Option("-s", "structures", "show struct bpf_prog and bpf_prog_aux, or struct bpf_map"),
        HEXADECIMAL,
        DECIMAL,
    ),
    shapes=(_PROGRAMS, _MAPS),
    examples=(
        Example("bpf", "all programs and maps"),
        Example("bpf -p 20 -t", "a program, instruction by instruction"),
        Example("bpf -m 34", "a map"),
        Example("bpf -PM -jTs", "everything"),
    ),
)
def bpf(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show BPF programs and maps."""
    problems: list[Problem] = []
    of_programs = arguments.has("program") or arguments.has("programs")
    of_maps = arguments.has("map") or arguments.has("maps")
    for name, flag in (("translate", "-t"), ("bytes", "-T"), ("jited", "-j")):
        if arguments.has(name) and not of_programs:
            raise UsageError(f"bpf: {flag} needs -p or -P", hint="help bpf")
    if arguments.has("structures") and not (of_programs or of_maps):
        raise UsageError("bpf: -s needs -p, -P, -m or -M", hint="help bpf")
    request = _Request.parse(workspace, arguments)
    tables = []
    if of_programs or not of_maps:
        tables.append(_programs(workspace, arguments, request, problems, more=of_programs))
    if of_maps or not of_programs:
        tables.append(_maps(workspace, arguments, request, problems, more=of_maps))
    return Answer("bpf", tuple(tables), tuple(problems))


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked of each program and map."""

    translate: bool
    with_bytes: bool
    jited: bool
    structures: bool
    style: Style

    @classmethod
    def parse(cls, workspace: Workspace, arguments: Arguments) -> _Request:
        """Read the options."""
        style = choose_style(workspace, arguments)
        with_bytes = arguments.has("bytes")
        translate = arguments.has("translate") or with_bytes
        return cls(translate, with_bytes, arguments.has("jited"), arguments.has("structures"), style)


def _choose(entries: list[Object], word: str | None, find_id: Callable[[Object], int], what: str) -> list[Object]:
    """
    Keep the program or map of one identifier.

    Raises
    ------
    FactAbsentError
        If there is none.
    """
    if word is None:
        return entries
    wanted = parse_number(word, f"bpf: {what}")
    found = [entry for entry in entries if cell(lambda entry=entry: find_id(entry)) == wanted]  # type: ignore[misc]
    if not found:
        raise FactAbsentError(f"bpf: no {what} {wanted}", hint="bpf lists them")
    return found


def _programs(
    workspace: Workspace, arguments: Arguments, request: _Request, problems: list[Problem], *, more: bool
) -> Table:
    entries: list[Object] = []
    try:
        entries += [
            entry for _, entry in idr_entries(workspace.prog["prog_idr"], "struct bpf_prog", "BPF programs", problems)
        ]
    except UNREADABLE as exc:
        problems.append(problem("BPF programs", exc))
    chosen = _choose(entries, arguments.get("program"), lambda entry: int(entry.aux.id.value_()), "program")
    rows = []
    for entry in chosen:
        row = _program_row(entry)
        parts = _program_parts(workspace, entry, request) if more else (None, None, None, None)
        rows.append((*row, *parts))
    return _PROGRAMS.table(rows)


def _program_row(entry: Object) -> tuple[Cell, ...]:
    return (
        cell(lambda: int(entry.aux.id.value_())),
        int(entry.value_()),
        cell(lambda: int(entry.aux.value_())),
        cell(lambda: _enumerator(entry.type, "BPF_PROG_TYPE_")),
        cell(lambda: bytes(entry.prog_.read(entry.tag.address_ or 0, 8)).hex()),
        cell(lambda: ",".join(str(int(used.id.value_())) for used in _used_maps(entry))),
    )


def _enumerator(value: Object, prefix: str) -> str:
    return str(value.format_(type_name=False)).removeprefix(prefix)


def _used_maps(entry: Object) -> Iterator[Object]:
    aux = entry.aux.read_()
    for number in range(min(int(aux.used_map_cnt.value_()), _MAX_USED_MAPS)):
        yield aux.used_maps[number].read_()


def _program_parts(workspace: Workspace, entry: Object, request: _Request) -> tuple[Cell, ...]:
    return (
        _DETAILS.table([_detail_cells(workspace, entry)]),
        _bytecode(workspace, entry, with_bytes=request.with_bytes) if request.translate else None,
        _machine_code(workspace, entry) if request.jited else None,
        _structures((entry, entry.aux), request.style) if request.structures else None,
    )


def _detail_cells(workspace: Workspace, entry: Object) -> tuple[Cell, ...]:
    return (
        cell(lambda: int(entry.len.value_()) * INSTRUCTION_BYTES),
        cell(lambda: int(entry.jited_len.value_())),
        cell(lambda: int(entry.pages.value_()) * workspace.memory.page_size_bytes),
        cell(lambda: _load_time(entry.aux)),
        cell(lambda: "yes" if entry.gpl_compatible.value_() else "no"),
        cell(lambda: decode(entry.aux.name.string_()) or None),
        cell(lambda: int(entry.aux.user.uid.val.value_())),
    )


def _load_time(aux: Object) -> str:
    """Spell ``load_time``, which counts from the boot, as a date."""
    prog = aux.prog_
    booted_s = int(ktime_get_real_seconds(prog).value_()) - int(ktime_get_boottime_seconds(prog).value_())
    moment = dt.datetime.fromtimestamp(booted_s + int(aux.load_time.value_()) // 10**9, tz=dt.UTC)
    return f"{moment:%a %b %e %H:%M:%S %Y}"


def _bytecode(workspace: Workspace, entry: Object, *, with_bytes: bool) -> Cell:
    prog = workspace.prog
    try:
        count = int(entry.len.value_())
        if count > _MAX_INSTRUCTIONS:
            return Absent(Reason.DAMAGED, f"{count} instructions, at most {_MAX_INSTRUCTIONS} can be loaded")
        code = prog.read(entry.insnsi.address_ or 0, count * INSTRUCTION_BYTES)
        maps = {int(used.value_()): int(used.id.value_()) for used in _used_maps(entry)}
    except UNREADABLE as exc:
        return absent(exc)

    def name_constant(value: int) -> str:
        return f"map[id:{maps[value]}]" if value in maps else f"{value:#x}"

    found = decode_instructions(code, name_call=_call_namer(workspace), name_constant=name_constant)
    rows = [(line.index, line.text, line.encoded.hex(" ") if with_bytes else None) for line in found]
    return _BYTECODE.table(rows)


def _call_namer(workspace: Workspace) -> Callable[[int], str]:
    """Name the functions that calls lead to: the immediate counts from ``__bpf_call_base`` (``kernel/bpf/core.c``)."""
    try:
        base = workspace.prog.symbol("__bpf_call_base").address
    except LookupError:
        base = 0

    def name(immediate: int) -> str:
        text = _symbol(workspace, base + immediate) if base else ""
        return f"{text or 'unknown'}#{immediate}"

    return name


def _symbol(workspace: Workspace, vaddr: int) -> str:
    try:
        symbol = workspace.prog.symbol(vaddr)
    except LookupError:
        return ""
    offset = vaddr - symbol.address
    return f"{symbol.name}+{offset:#x}" if offset else str(symbol.name)


def _machine_code(workspace: Workspace, entry: Object) -> Cell:
    try:
        size = int(entry.jited_len.value_())
        if not size:
            return Absent(Reason.NOT_PRESENT, "it is interpreted, there is no machine code")
        if size > _MAX_JITED_BYTES:
            return Absent(Reason.DAMAGED, f"{size} bytes of machine code")
        vaddr = int(entry.bpf_func.value_())
        code = workspace.prog.read(vaddr, size)
    except UNREADABLE as exc:
        return absent(exc)
    lines = disassemble(workspace.memory.machine, code, vaddr, lambda target: _symbol(workspace, target))
    return _MACHINE_CODE.table([(line.vaddr, line.text, line.target) for line in lines])


def _structures(pointers: tuple[Object, ...], style: Style) -> Cell:
    try:
        return members_table([pointer[0] for pointer in pointers], style)
    except UNREADABLE as exc:
        return absent(exc)


def _maps(
    workspace: Workspace, arguments: Arguments, request: _Request, problems: list[Problem], *, more: bool
) -> Table:
    entries: list[Object] = []
    try:
        entries += [
            entry for _, entry in idr_entries(workspace.prog["map_idr"], "struct bpf_map", "BPF maps", problems)
        ]
    except UNREADABLE as exc:
        problems.append(problem("BPF maps", exc))
    rows = []
    for entry in _choose(entries, arguments.get("map"), lambda entry: int(entry.id.value_()), "map"):
        details = _MAP_DETAILS.table([_map_detail_cells(workspace, entry)]) if more else None
        structures = _structures((entry,), request.style) if more and request.structures else None
        rows.append((*_map_row(entry), details, structures))
    return _MAPS.table(rows)


def _map_row(entry: Object) -> tuple[Cell, ...]:
    return (
        cell(lambda: int(entry.id.value_())),
        int(entry.value_()),
        cell(lambda: _enumerator(entry.map_type, "BPF_MAP_TYPE_")),
        cell(lambda: int(entry.map_flags.value_())),
    )


def _map_detail_cells(workspace: Workspace, entry: Object) -> tuple[Cell, ...]:
    return (
        cell(lambda: int(entry.key_size.value_())),
        cell(lambda: int(entry.value_size.value_())),
        cell(lambda: int(entry.max_entries.value_())),
        _until_5_10(lambda: int(entry.memory.pages.value_()) * workspace.memory.page_size_bytes),
        cell(lambda: decode(entry.name.string_()) or None),
        _until_5_10(lambda: int(entry.memory.user.uid.val.value_())),
    )


def _until_5_10(compute: Callable[[], int]) -> Cell:
    """Read a member of ``struct bpf_map``: since 5.11 a map is charged to a control group, and belongs to no user."""
    try:
        return compute()
    except AttributeError:
        return Absent(Reason.NOT_PRESENT, "struct bpf_map has no such member")
    except UNREADABLE as exc:
        return absent(exc)
