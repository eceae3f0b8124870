"""What ``postpanic crashkernel`` prints."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from postpanic.units import format_size

if TYPE_CHECKING:
    from postpanic.capture.bootloader.detect import DetectedLoader
    from postpanic.capture.bootloader.model import Plan
    from postpanic.capture.bootloader.record import ChangeRecord, UndoOutcome
    from postpanic.capture.bootloader.tree import BootTree
    from postpanic.capture.crashkernel.estimate import Estimate
    from postpanic.capture.crashkernel.parse import ParsedRequest
    from postpanic.capture.crashkernel.reservation import HostMemory, Reservation
    from postpanic.capture.crashkernel.shrink import ShrinkOutcome
    from postpanic.capture.host import Host

__all__ = [
    "print_applied",
    "print_check",
    "print_estimate",
    "print_plans",
    "print_record",
    "print_reservation",
    "print_shrunk",
    "print_undone",
]

_WIDTH = 13
_STRENGTHS = {3: "booted this machine", 2: "configured", 1: "installed"}


def print_reservation(
    reservation: Reservation,
    found: Sequence[DetectedLoader],
    record: ChangeRecord | None,
    host: Host,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say what is reserved, what was asked for, and what the boot loader will ask for."""
    if as_json:
        print(json.dumps(_reservation_json(reservation, found, record, host), indent=1))
        return
    if quiet:
        return
    is_tree = str(host.root) != "/"
    lines = [] if is_tree else _describe_reservation(reservation, host)
    for one in found:
        reasons = ", ".join(one.evidence.reasons)
        lines.append(("boot loader", f"{one.loader.name}, {_STRENGTHS[one.evidence.strength]}: {reasons}"))
        lines += [("next boot", text) for text in _describe_entries(one)]
    if not found:
        lines.append(("boot loader", "none that is known"))
    if record is not None:
        files = ", ".join(one.path for one in record.files) or "no files"
        lines.append(("undo", f"{' '.join(record.values) or 'none'} was set in {files}: --undo puts back what was"))
    _print_lines(lines)


def _describe_reservation(reservation: Reservation, host: Host) -> list[tuple[str, str]]:
    from postpanic.capture.crashkernel.reservation import explain_request

    size = reservation.reserved_bytes
    places = ", ".join(f"{place.start:#x}-{place.end - 1:#x}" for place in reservation.places)
    held = "nothing" if not size else format_size(size) + (f" at {places}" if places else "")
    lines = [("reserved", held if size is not None else "nothing: this kernel cannot have a capture kernel")]
    if reservation.cma_places:
        lines.append(("lent", reservation.cma_places))
    if size:
        lines.append(("loaded", "a capture kernel" if reservation.is_loaded else "nothing"))
    request = reservation.request
    asked = " ".join(f"crashkernel={word}" for word in request.words)
    if asked:
        lines.append(("asked for", asked))
    lines += [("means", text) for text in explain_request(request, host.machine)]
    if reservation.difference and size is not None:
        lines.append(("but", reservation.difference))
    if reservation.memory.total_bytes:
        lines.append(("memory", f"{format_size(reservation.memory.total_bytes)}: {reservation.memory.evidence}"))
    return lines


def _describe_entries(one: DetectedLoader) -> list[str]:
    """Say what the entries ask for, those that ask for the same in one line."""
    by_words: dict[str, list[str]] = {}
    for entry in one.entries:
        words = " ".join(f"crashkernel={value}" for value in entry.values) or "no crashkernel="
        by_words.setdefault(words, []).append(entry.title or entry.where)
    return [
        f"{words}: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
        for words, names in by_words.items()
    ]


def _reservation_json(
    reservation: Reservation, found: Sequence[DetectedLoader], record: ChangeRecord | None, host: Host
) -> dict[str, object]:
    return {
        "reserved_bytes": reservation.reserved_bytes,
        "places": [{"start": hex(place.start), "end": hex(place.end)} for place in reservation.places],
        "cma": reservation.cma_places,
        "loaded": reservation.is_loaded,
        "memory_bytes": reservation.memory.total_bytes,
        "request": _request_json(reservation.request, host.machine),
        "difference": reservation.difference,
        "boot_loaders": [_loader_json(one) for one in found],
        "last_change": None
        if record is None
        else {"values": list(record.values), "files": [one.path for one in record.files]},
    }


def _loader_json(one: DetectedLoader) -> dict[str, object]:
    return {
        "name": one.loader.name,
        "strength": _STRENGTHS[one.evidence.strength],
        "reasons": list(one.evidence.reasons),
        "entries": [
            {"where": entry.where, "title": entry.title, "crashkernel": list(entry.values)} for entry in one.entries
        ],
    }


def _request_json(request: ParsedRequest, machine: str) -> dict[str, object]:
    from postpanic.capture.crashkernel.reservation import explain_request

    return {
        "words": list(request.words),
        "used": request.used,
        "size_bytes": request.size_bytes,
        "base": hex(request.base) if request.base else None,
        "high": request.is_high,
        "low_bytes": request.low_bytes,
        "cma_bytes": request.cma_bytes,
        "problem": request.problem,
        "means": explain_request(request, machine),
    }


def print_check(request: ParsedRequest, memory: HostMemory, machine: str, *, as_json: bool, quiet: bool) -> None:
    """Say what the kernel makes of a value."""
    from postpanic.capture.crashkernel.reservation import explain_request

    if as_json:
        print(json.dumps({"memory_bytes": memory.total_bytes} | _request_json(request, machine), indent=1))
    elif not quiet:
        lines = [("memory", f"{format_size(memory.total_bytes)}: {memory.evidence}")]
        lines += [("means", text) for text in explain_request(request, machine)]
        for entry in request.ranges:
            end = format_size(entry.end_bytes) if entry.end_bytes is not None else "any"
            lines.append(("range", f"{format_size(entry.start_bytes)} to {end}: {format_size(entry.size_bytes)}"))
        _print_lines(lines)


def print_estimate(found: Estimate, *, as_json: bool, quiet: bool) -> None:
    """Say how much is needed, and of what it is made."""
    if as_json:
        value = {
            "least_bytes": found.least_bytes,
            "recommended_bytes": found.recommended_bytes,
            "words": list(found.words),
            "is_measured": found.is_measured,
            "parts": [
                {"name": part.name, "size_bytes": part.size_bytes, "evidence": part.evidence} for part in found.parts
            ],
            "alternatives": [{"words": words, "for": reason} for words, reason in found.alternatives],
            "remarks": list(found.remarks),
        }
        print(json.dumps(value, indent=1))
        return
    if not quiet:
        for part in found.parts:
            print(f"{part.name:{_WIDTH}}{part.size_bytes / (1 << 20):8.1f} MiB  {part.evidence}")
        how = "rehearsed" if found.is_measured else "estimated: no rehearsal says so"
        print(f"{'least':{_WIDTH}}{found.least_bytes / (1 << 20):8.1f} MiB  {how}")
        print(f"{'recommended':{_WIDTH}}{found.recommended_bytes / (1 << 20):8.1f} MiB  with room for the self-test")
        print("\n" + " ".join(f"crashkernel={word}" for word in found.words))
        for words, reason in found.alternatives:
            print(f"or {words}\n   {reason}")
    _print_warnings(found.remarks)


def print_plans(
    plans: Sequence[Plan], values: Sequence[str], others: Sequence[DetectedLoader], *, as_json: bool, quiet: bool
) -> None:
    """Show the difference."""
    if as_json:
        print(json.dumps(_plans_json(plans, values), indent=1))
        return
    for plan in plans:
        if not quiet:
            for edit in plan.edits:
                print(edit.spell_diff(), end="")
            for before, after in plan.preview:
                print(f"-{before}\n+{after}")
            for command in plan.commands:
                print(f"then run: {shlex.join(command.words)}")
            for line in plan.manual:
                print(f"by hand: {line}")
            if plan.is_empty:
                print(f"{plan.loader}: nothing to change")
        _print_warnings(plan.remarks)
    # One that is installed and boots nothing is no choice.
    live = [one for one in others if one.evidence.strength > 1 or one.entries]
    _print_warnings(
        f"boot loader {one.loader.name} is there, too ({one.evidence.reasons[0]}), and is left alone: see --loader"
        for one in live
    )


def _plans_json(plans: Sequence[Plan], values: Sequence[str]) -> dict[str, object]:
    return {
        "values": list(values),
        "plans": [
            {
                "loader": plan.loader,
                "changes": [{"path": edit.path, "diff": edit.spell_diff()} for edit in plan.edits],
                "preview": [{"before": before, "after": after} for before, after in plan.preview],
                "commands": [list(command.words) for command in plan.commands],
                "by_hand": list(plan.manual),
                "remarks": list(plan.remarks),
            }
            for plan in plans
        ],
    }


def print_applied(plans: Sequence[Plan], record: ChangeRecord, tree: BootTree, *, as_json: bool, quiet: bool) -> None:
    """Say what was written, and what is left to do."""
    if as_json:
        done = {"written": [one.path for one in record.files], "kept_in": str(record.directory)}
        print(json.dumps(_plans_json(plans, record.values) | done, indent=1))
    elif not quiet:
        root = "" if tree.is_running else f" --root {tree.host.root}"
        print(f"done; postpanic crashkernel --undo{root} puts it back")
        if tree.is_running:
            print("it takes effect with the next boot")
        else:
            for words in record.commands:
                print(f"to be run in the tree: {shlex.join(words)}")


def print_record(record: ChangeRecord | None, *, as_json: bool) -> None:
    """Say what would be undone."""
    if as_json:
        files = [] if record is None else [{"path": one.path, "existed": bool(one.backup)} for one in record.files]
        print(json.dumps({"files": files, "commands": [] if record is None else list(record.undo_commands)}, indent=1))
    elif record is None:
        print("nothing to undo")
    else:
        for one in record.files:
            print(f"{one.path}: {'put back' if one.backup else 'taken away'}")
        for words in record.undo_commands:
            print(f"then run, where that is needed: {shlex.join(words)}")


def print_undone(outcome: UndoOutcome, tree: BootTree, *, as_json: bool, quiet: bool) -> None:
    """Say what was put back."""
    if as_json:
        value = {
            "restored": list(outcome.restored),
            "removed": list(outcome.removed),
            "commands": [list(words) for words in outcome.commands],
        }
        print(json.dumps(value, indent=1))
        return
    if quiet:
        return
    for path in outcome.restored:
        print(f"{path}: as it was")
    for path in outcome.removed:
        print(f"{path}: taken away")
    for words in outcome.commands:
        print(f"{'ran' if tree.is_running else 'to be run in the tree'}: {shlex.join(words)}")


def print_shrunk(outcome: ShrinkOutcome, *, reloaded: bool, as_json: bool, quiet: bool) -> None:
    """Say what was given back."""
    if as_json:
        value = {"before_bytes": outcome.before_bytes, "after_bytes": outcome.after_bytes, "reloaded": reloaded}
        print(json.dumps(value, indent=1))
    elif not quiet:
        print(f"reserved: {format_size(outcome.after_bytes)}, were {format_size(outcome.before_bytes)}")
        if reloaded:
            print("the capture kernel is loaded again")


def _print_lines(lines: Iterable[tuple[str, str]]) -> None:
    last = ""
    for name, text in lines:
        print(f"{name if name != last else '':{_WIDTH}}{text}")
        last = name


def _print_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
