"""What ``postpanic arm`` prints: each thing with its evidence."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from postpanic.units import format_size

if TYPE_CHECKING:
    from postpanic.capture.arming.arm import ArmOutcome
    from postpanic.capture.arming.image import BuiltFile
    from postpanic.capture.arming.prepare import Prepared
    from postpanic.capture.policy import PolicyChange

__all__ = ["describe_change", "print_dry_run", "print_outcome"]

_WIDTH = 10
_METHODS = {"file": "kexec_file_load", "legacy": "kexec_load"}
_UNPROVEN = "that the capture kernel starts and reaches its targets: only a crash shows it (postpanic crash-test)"


def print_outcome(outcome: ArmOutcome, *, as_json: bool, quiet: bool) -> int:
    """Say what was done, and return the exit status."""
    if as_json:
        print(json.dumps(_outcome_json(outcome), indent=1))
        return 0
    prepared = outcome.prepared
    if not quiet:
        lines = _describe_prepared(prepared)
        lines.append(("image", _describe_image(outcome)))
        if outcome.built:
            lines += _describe_built(outcome.built)
        lines.append(("loaded", _describe_load(outcome)))
        lines += [("", remark) for remark in (outcome.load.remarks if outcome.load else ())]
        lines += [
            ("verified" if check.outcome == "good" else check.outcome, f"{check.name}: {check.evidence}")
            for check in outcome.verification.checks
        ]
        lines += [("policy", describe_change(change)) for change in outcome.policy if not change.problem]
        lines.append(("unproven", _UNPROVEN))
        _print_lines(lines)
    problems = [describe_change(change) for change in outcome.policy if change.problem]
    _print_warnings((*prepared.resolved.needs.warnings, *problems))
    if not quiet:
        print("ready: a crash will be captured")
    return 0


def print_dry_run(
    prepared: Prepared, built: BuiltFile, stale: list[str], path: Path | None, *, as_json: bool, quiet: bool
) -> int:
    """Say what would be done, or that an image was built, and return the exit status."""
    if as_json:
        found = _prepared_json(prepared) | {"image": _built_json(built), "stale": stale}
        print(json.dumps(found, indent=1))
        return 0
    if not quiet:
        lines = _describe_prepared(prepared)
        where = f"{path}, " if path else ""
        lines.append(
            ("image", f"{where}{format_size(len(built.content))}, {format_size(built.unpacked_bytes)} unpacked")
        )
        lines += _describe_built(built)
        lines += [("stale", reason) for reason in stale]
        _print_lines(lines)
    _print_warnings(prepared.resolved.needs.warnings)
    return 0


def describe_change(change: PolicyChange) -> str:
    """Say what became of a sysctl, in one line."""
    if change.problem:
        return f"{change.name}: {change.problem}"
    if change.before == change.after:
        return f"{change.name} = {change.after}"
    return f"{change.name} = {change.after}, was {change.before}"


def _describe_prepared(prepared: Prepared) -> list[tuple[str, str]]:
    kernel = prepared.kernel
    which = "the one that runs" if kernel.is_running else "not the one that runs"
    lines = [("kernel", f"{kernel.release}, {which}, {kernel.image}")]
    lines += [("target", line) for line in prepared.resolved.needs.evidence]
    devices = prepared.resolved.plan.devices
    lines.append(("drivers", "of all devices" if devices.bind_all else f"of {' '.join(devices.sysfs_paths)} alone"))
    lines.append(("cmdline", prepared.command_line.text))
    return lines


def _describe_image(outcome: ArmOutcome) -> str:
    if outcome.built is None:
        return f"{outcome.image}, {format_size(outcome.image.stat().st_size)}, nothing has changed"
    sizes = f"{format_size(len(outcome.built.content))}, {format_size(outcome.built.unpacked_bytes)} unpacked"
    return f"{outcome.image}, {sizes}, built: {', '.join(outcome.stale)}"


def _describe_built(built: BuiltFile) -> list[tuple[str, str]]:
    lines = [("modules", " ".join(built.modules) or "none: all is built in")]
    return lines + [("", line) for line in built.remarks]


def _describe_load(outcome: ArmOutcome) -> str:
    method = _METHODS.get(outcome.method, outcome.method)
    if outcome.load is None:
        return f"already, by {method}"
    if outcome.method == "legacy" and not outcome.load.handed:
        method += ", by the program kexec"
    return f"by {method}: {outcome.reload_reason}"


def _print_lines(lines: Iterable[tuple[str, str]]) -> None:
    last = ""
    for name, text in lines:
        print(f"{name if name != last else '':{_WIDTH}}{text}")
        last = name or last


def _print_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _prepared_json(prepared: Prepared) -> dict[str, object]:
    kernel, resolved = prepared.kernel, prepared.resolved
    from postpanic.saver.plan_json import encode_plan

    return {
        "kernel": {"release": kernel.release, "image": str(kernel.image), "is_running": kernel.is_running},
        "command_line": prepared.command_line.text,
        "plan": json.loads(encode_plan(resolved.plan)),
        "targets": list(resolved.needs.evidence),
        "warnings": list(resolved.needs.warnings),
    }


def _built_json(built: BuiltFile) -> dict[str, object]:
    return {
        "size_bytes": len(built.content),
        "unpacked_bytes": built.unpacked_bytes,
        "modules": list(built.modules),
        "remarks": list(built.remarks),
    }


def _outcome_json(outcome: ArmOutcome) -> dict[str, object]:
    return _prepared_json(outcome.prepared) | {
        "image": {"path": str(outcome.image)} | (_built_json(outcome.built) if outcome.built else {}),
        "stale": list(outcome.stale),
        "load": {
            "method": outcome.method,
            "now": outcome.load is not None,
            "reason": outcome.reload_reason,
            "remarks": list(outcome.load.remarks) if outcome.load else [],
        },
        "verification": {
            "outcome": outcome.verification.outcome,
            "checks": [
                {"name": check.name, "outcome": check.outcome, "evidence": check.evidence}
                for check in outcome.verification.checks
            ],
        },
        "policy": [
            {"name": change.name, "before": change.before, "after": change.after, "problem": change.problem}
            for change in outcome.policy
        ],
    }
