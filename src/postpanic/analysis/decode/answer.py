"""Reports with their locations, code and facts spelled out: the answer of ``decode``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from postpanic.analysis.decode.addresses import describe_address, describe_value
from postpanic.analysis.decode.codebytes import decode_code, decode_krnl_code, machine_of
from postpanic.analysis.decode.context import LogContext, find_context
from postpanic.analysis.decode.errorcodes import find_error_codes
from postpanic.analysis.decode.kernel import KernelSymbols
from postpanic.analysis.decode.listing import Listing, list_code
from postpanic.analysis.decode.locate import Found, Locator, Notes
from postpanic.analysis.decode.operands import read_more_registers
from postpanic.analysis.decode.spots import Spot, SpotReader
from postpanic.analysis.decode.store import SymbolStore
from postpanic.analysis.decode.taint import spell_taint
from postpanic.evidence.hardware import explain_reports, find_hardware_errors, hardware_answer
from postpanic.evidence.hardware.answer import SHAPES as HARDWARE_SHAPES
from postpanic.evidence.lines import split_line
from postpanic.evidence.oops import find_reports
from postpanic.evidence.oops.answer import SHAPES as OOPS_SHAPES
from postpanic.evidence.oops.answer import answer_of
from postpanic.evidence.oops.model import Frame, Report, Trace
from postpanic.evidence.sources import Text, plain_text
from postpanic.findings.absent import Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape, Table

__all__ = ["SHAPES", "decode_reports", "decode_text"]

INSTRUCTIONS = Shape(
    "instructions",
    (
        Column("mark", help="=> before the instruction that trapped"),
        Column("place", help="function+offset"),
        Column("data", help="the bytes, as they lie in memory"),
        Column("text", help="the instruction"),
    ),
    heading=False,
    title="Code:",
    indent=2,
)
MEANINGS = Shape(
    "meanings",
    (
        Column("name", title="WHAT"),
        Column("value", title="VALUE"),
        Column("meaning", title="MEANING"),
    ),
    title="Meanings:",
    indent=2,
)
SYMBOLS = Shape(
    "symbols",
    (
        Column("module", title="MODULE", help="vmlinux: the kernel itself"),
        Column("file", title="FILE"),
        Column("build_id", title="BUILD ID"),
        Column("has_lines", Kind.BOOL, title="LINES", help="whether it has source lines"),
        Column("problem", title="PROBLEM", help="why there is no file"),
    ),
    title="Symbols:",
)
_ADDED: tuple[tuple[str, Column], ...] = (
    ("address", Column("address_kind", title="ADDRESS IS", help="NULL, poison, text, a part of memory …")),
    (
        "code",
        Column("operand", title="INSTRUCTION", help="what the one that trapped did, and with which registers"),
    ),
    ("code", Column("code_problem", title="NO CODE", help="why the kernel printed no code")),
    ("blame", Column("meanings", Kind.ROWS, shape=MEANINGS)),
    ("blame", Column("instructions", Kind.ROWS, shape=INSTRUCTIONS)),
)
"""Columns, and the column of the reports that each comes behind (rows: before)."""


def _widened(shape: Shape) -> Shape:
    columns: list[Column] = []
    for column in shape.columns:
        added = [new for place, new in _ADDED if place == column.name]
        columns += [*added, column] if column.kind is Kind.ROWS else [column, *added]
    return Shape(shape.name, tuple(columns), layout=Layout.FIELDS)


REPORTS = _widened(OOPS_SHAPES[0])
SHAPES = (REPORTS, *HARDWARE_SHAPES, SYMBOLS)
"""Of all tables of the answer."""
_MOST_INLINE = 64
_JUMPED = re.compile(r"(?:RIP: 0010:|EIP: |PC is at |pc : |epc : )(?:\[<)?(?:0x)?([0-9a-f]{1,16})(?:>\])?[ \t]{0,16}$")
"""A program counter that is in no function."""
_CONTROL = re.compile(
    r"(?:CR\d|DR\d|PKRU|EFLAGS|ORIG_RAX|[C-GS]S|RIP|EIP|pc|epc|status|cause|badaddr|pstate|MSR|CR|XER)$"
)
"""Registers whose values are no pointers and no data."""


def decode_text(text: Text, store: SymbolStore, context: LogContext | None = None) -> Answer:
    """
    Find the reports of a text, and the errors of the hardware, and say what is in them.

    Parameters
    ----------
    text : bytes or mmap
        Of any kind that :func:`~postpanic.evidence.sources.plain_text` takes.
    context : LogContext, optional
        What is known of the kernel; None: it is read from the text.

    Raises
    ------
    FileFaultError
        If a file that the user named cannot be used.
    """
    plain = plain_text(text)
    errors = find_hardware_errors(plain)
    reports = explain_reports(find_reports(plain), errors)
    answer = decode_reports(reports, store, context if context is not None else find_context(plain))
    if not errors:
        return answer
    # Tables without a row say nothing: what failed in hardware is often all that there is.
    first = [table for table in answer.tables[:1] if table.rows]
    tables = (*first, *hardware_answer(errors).tables, *answer.tables[1:])
    return Answer(answer.command, tables, answer.problems)


def decode_reports(reports: Sequence[Report], store: SymbolStore, context: LogContext | None = None) -> Answer:
    """
    Locate, disassemble and spell out what reports say.

    Parameters
    ----------
    context : LogContext, optional
        What the rest of the log says of the kernel, where a report does not.

    Raises
    ------
    FileFaultError
        If a file that the user named cannot be used.
    """
    context = context or LogContext()
    notes = Notes()
    decoded = [_Decoder(report, store, context, notes) for report in reports]
    plain = answer_of([one.located for one in decoded], "decode")
    names = [column.name for column in plain.table.shape.columns]
    rows = [
        tuple({**dict(zip(names, row, strict=True)), **one.cells}[column.name] for column in REPORTS.columns)
        for one, row in zip(decoded, plain.table.rows, strict=True)
    ]
    tables = [REPORTS.table(rows), *plain.tables[1:]]
    if used := list(_used_symbols(decoded)):
        tables.append(SYMBOLS.table(used))
    problems = (Problem(note, Reason.NOT_PRESENT) for note in notes)
    return Answer("decode", tuple(tables), (*plain.problems, *problems))


def _used_symbols(decoded: Sequence[_Decoder]) -> Iterator[tuple[Cell, ...]]:
    for kernel in {id(one.kernel): one.kernel for one in decoded}.values():
        for name, path, build_id, has_lines in kernel.loaded():
            yield name or "vmlinux", path, build_id or None, has_lines, None
        for name, reason in kernel.missing():
            yield name, None, None, False, reason


class _Decoder:
    """One report."""

    def __init__(self, report: Report, store: SymbolStore, context: LogContext, notes: Notes) -> None:
        self._report = report
        self._notes = notes
        is_same = not report.release or report.release == context.release
        build_id = report.build_id or (context.build_id if is_same else "")
        chosen = store.find(report.release or context.release, build_id)
        for remark in chosen.remarks:
            notes.add(remark)
        self._locator: Locator = chosen.locator
        self._slide = report.kaslr_offset if report.kaslr_offset is not None else context.slide if is_same else None
        self._spots = self._read_spots()
        self._machine = machine_of(
            report.architecture or self._locator.kernel.machine, report.code, report.release or context.release
        )
        self._registers = {**read_more_registers(report.lines, self._machine), **report.registers}
        self.located: Report = msgspec.structs.replace(
            report, traces=tuple(self._locate_trace(trace) for trace in report.traces)
        )
        self.cells: dict[str, Cell] = self._make_cells()

    @property
    def kernel(self) -> KernelSymbols:
        """Whose symbols the report was decoded with."""
        return self._locator.kernel

    # ---- locations

    def _read_spots(self) -> dict[tuple[str, int | None, int | None, str], Spot]:
        """Read from the lines which places are instructions: a trace has no room for it."""
        found: dict[tuple[str, int | None, int | None, str], Spot] = {}
        readers: dict[str, SpotReader] = {}
        for text in self._report.lines:
            line = split_line(text)[0]
            for spot in readers.setdefault("", SpotReader()).read(line.text):
                key = spot.function, spot.offset, spot.size, spot.module
                if key not in found or spot.is_exact:
                    found[key] = spot
                if self._slide is None:
                    self._slide = self._locator.slide_of(spot)
        return found

    def _spot(self, frame: Frame) -> Spot:
        known = self._spots.get((frame.function, frame.offset, frame.size, frame.module))
        is_exact = frame.is_pc or (known is not None and known.is_exact)
        return Spot(
            frame.function,
            frame.offset or 0,
            frame.size,
            frame.module,
            frame.module_build_id,
            frame.address,
            is_exact,
            0,
        )

    def _locate_trace(self, trace: Trace) -> Trace:
        frames = tuple(new for frame in trace.frames for new in self._locate_frame(frame))
        return msgspec.structs.replace(trace, frames=frames)

    def _locate_frame(self, frame: Frame) -> Iterator[Frame]:
        """Give a frame its location, and put what was inlined there before it."""
        is_located = frame.is_inline or frame.location
        if is_located or (frame.function and frame.offset is None) or (not frame.function and frame.address is None):
            yield frame
            return
        found = self._locator.locate(self._spot(frame), self._slide)
        self._notes.add(found.reason)
        place = found.place
        if place is None or not place.lines:
            yield self._named(frame, found, found.text)
            return
        for line in place.lines[:-1][:_MOST_INLINE]:
            yield msgspec.structs.replace(
                frame, function=line.function or "?", offset=None, size=None, address=None,
                is_inline=True, is_pc=False, location=str(line),
            )  # fmt: skip
        yield self._named(frame, found, str(place.lines[-1]))

    def _named(self, frame: Frame, found: Found, location: str) -> Frame:
        if frame.function or (place := found.place) is None:
            return msgspec.structs.replace(frame, location=location)
        return msgspec.structs.replace(
            frame,
            function=place.symbol.name,
            offset=place.vaddr - place.symbol.vaddr,
            size=self._locator.kernel.size_of(place.symbol),
            location=location,
        )

    # ---- code and meanings

    def _make_cells(self) -> dict[str, Cell]:
        report = self._report
        listing = self._list_code()
        kind = describe_address(report.address, self._machine) if report.address is not None else ""
        meanings = list(self._meanings())
        return {
            "address_kind": kind or None,
            "operand": (listing.judgement if listing is not None else "") or None,
            "code_problem": (listing.problem if listing is not None else self._why_no_code()) or None,
            "meanings": MEANINGS.table(meanings) if meanings else None,
            "instructions": _instructions(listing) if listing is not None else None,
        }

    def _list_code(self) -> Listing | None:
        code = decode_code(self._report.code, self._machine) if self._report.code else None
        if self._machine == "s390x":
            code = decode_krnl_code(self._report.lines) or code
        if code is None:
            return None
        pc = next((frame for trace in self._report.traces for frame in trace.frames if frame.is_pc), None)
        spot = self._spot(pc) if pc is not None else None
        place = self._locator.locate(spot, self._slide).place if spot is not None else None
        return list_code(code, spot, place, self._locator.kernel, self._registers, self._report.address)

    def _why_no_code(self) -> str:
        """Say why the kernel printed no code: mostly because it had jumped to where there is none."""
        said = self._report.details.get("code_problem", "")
        if not said:
            return ""
        target = next((match for line in self._report.lines if (match := _JUMPED.search(line))), None)
        if target is None:
            return said
        vaddr = int(target[1], 16)
        kind = describe_address(vaddr, self._machine)
        return f"{said}; the kernel jumped to {vaddr:#x}" + (f" ({kind})" if kind else "")

    def _meanings(self) -> Iterator[tuple[Cell, ...]]:
        report = self._report
        for code in find_error_codes(report.lines, self._machine):
            yield code.name, f"{code.value:#x}", code.meaning
        for letter, name, meaning in spell_taint(report.taint):
            yield f"taint {letter}", name or None, meaning
        for name, value in self._registers.items():
            if value < 1 << 64 and not _CONTROL.match(name) and (meaning := self._register_meaning(value)):
                yield name, f"{value:#x}", meaning

    def _register_meaning(self, value: int) -> str:
        if meaning := describe_value(value, self._machine):
            return meaning
        if self._slide is None or value >> 63 == 0:
            return ""
        symbol = self._locator.kernel.symbol_at(value - self._slide)
        if symbol is None:
            return ""
        offset = value - self._slide - symbol.vaddr
        return f"{symbol.name}+{offset:#x}" if offset else symbol.name


def _instructions(listing: Listing) -> Table:
    return INSTRUCTIONS.table(
        [
            ("=>" if one.is_trap else None, one.place or None, one.data.hex(" "), one.text)
            for one in listing.instructions
        ]
    )
