"""``postpanic crash-test``: crash this machine on purpose, to see its capture work."""

from __future__ import annotations

import json
import os
import sys
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import NotReadyError, UsageError

if TYPE_CHECKING:
    from postpanic.capture.host import Host
    from postpanic.capture.kexec.verify import Expected, Verification

__all__ = ["command"]

KIND_NAMES = ("sysrq", "panic", "bug", "null", "softlockup", "hardlockup", "hung-task", "stack")
SYNC_TIMEOUT_S = 30.0


@click.command(cls=Verb, name="crash-test")
@click.option("--kind", type=click.Choice(KIND_NAMES), default="sysrq", help="How to crash; all but sysrq need LKDTM.")
@click.option("--force", is_flag=True, help="Crash although nothing good is loaded that could save the dump.")
@click.option("--yes-crash", "yes_node", metavar="NODE", help="Do not ask: this is the machine's name.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would happen, and do not crash.")
@click.option("--json", "as_json", is_flag=True, help="Print what was checked as JSON.")
def command(kind: str, force: bool, yes_node: str | None, dry_run: bool, as_json: bool) -> int:
    """
    Crash this machine on purpose, to see its capture work.

    The kernel panics, every process dies, and the capture kernel that is loaded
    saves the dump. Before that the capture kernel is verified, what the page
    cache holds is written to the disks, and the machine's name has to be typed
    in. Nothing else is stopped or unmounted: a crash is a crash.

        postpanic crash-test --dry-run
        postpanic crash-test
        postpanic crash-test --yes-crash "$(uname -n)"

    Without a capture kernel that passes verification it refuses; with --force
    it crashes all the same, and what becomes of the machine is up to
    kernel.panic.

    Kinds: sysrq (the SysRq command c); of the test module LKDTM, where the
    kernel has it: panic, bug, null (a null pointer), softlockup, hardlockup,
    hung-task, stack (a recursion). Those from bug to hung-task are panics only
    if the sysctl is set that makes them one.
    """
    from postpanic.capture.crashing import KINDS, check_kind, sync_disks, trigger_crash
    from postpanic.capture.host import Host
    from postpanic.capture.kexec.verify import verify

    host, node, chosen = Host.running(), os.uname().nodename, KINDS[kind]
    if yes_node is not None and yes_node != node:
        raise UsageError(f"--yes-crash {yes_node}: this machine is {node}", hint="is this the right terminal?")
    check_kind(host, chosen)
    verification = verify(host, _find_expected(host))
    if as_json:
        print(json.dumps(_encode(host, node, kind, verification), indent=2))
    else:
        _print_checks(verification)
        _print_plan(host, node, chosen.summary, verification)
    if verification.outcome != "good" and not force:
        if verification.outcome == "bad":
            message, hint = "no dump would come of it", "postpanic arm, or --force to crash all the same"
        else:
            message, hint = "whether a dump would come of it is not known", "--force to find out"
        raise NotReadyError(f"{message}: {verification.reasons[0]}", hint=hint)
    if dry_run:
        return 0
    if yes_node is None:
        _confirm(node)
    print("writing out the disks…", file=sys.stderr)
    if not sync_disks(SYNC_TIMEOUT_S):
        print(f"warning: not done within {SYNC_TIMEOUT_S:g} s, going on", file=sys.stderr)
    print(f"crashing {node} now", file=sys.stderr, flush=True)
    _drain_terminal()
    trigger_crash(host, chosen)
    return 1


def _find_expected(host: Host) -> Expected | None:
    """Return what postpanic has armed since the machine was booted; None: whatever is loaded is not ours to compare."""
    from postpanic.capture.arming.state import StatePaths, read_state
    from postpanic.capture.kexec.verify import Expected

    paths = StatePaths.of(host)
    state = read_state(paths.state)
    if state is None or state.boot_id != host.read_text("proc/sys/kernel/random/boot_id"):
        return None
    return Expected(Path(state.kernel), paths.image, state.command_line)


def _print_checks(verification: Verification) -> None:
    marks = {"good": "ok", "bad": "BAD", "unverified": "?"}
    for check in verification.checks:
        print(f"{marks[check.outcome]:>4}  {check.name:<14} {check.evidence}")


def _print_plan(host: Host, node: str, summary: str, verification: Verification) -> None:
    print(f"\n{node} ({host.release}) will crash: {summary}.")
    if verification.outcome == "good":
        print("The capture kernel saves the dump and does what it was told to do then.")
        if _has_late_capture(host):
            print("Panic notifiers run before it: crash_kexec_post_notifiers is on.")
        return
    panic_s = host.read_number("proc/sys/kernel/panic") or 0
    after = "stands still until somebody resets it" if panic_s == 0 else f"reboots after {max(panic_s, 0)} s"
    print(f"Nothing is known to save a dump; if nothing does, the machine {after} (kernel.panic is {panic_s}).")


def _has_late_capture(host: Host) -> bool:
    return host.read_text("sys/module/kernel/parameters/crash_kexec_post_notifiers") == "Y"


def _confirm(node: str) -> None:
    """
    Have the machine's name typed in.

    Raises
    ------
    UsageError
        If nobody is there, or another name was typed.
    """
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked: standard input is not a terminal", hint=f"--yes-crash {node}")
    print(f"Type the machine's name to crash it ({node}), anything else not to: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != node:
        raise UsageError("not crashed: that is not the machine's name")


def _drain_terminal() -> None:
    """Wait until a serial line has sent what was written; what its driver still holds is lost in the crash."""
    if sys.stderr.isatty():
        termios.tcdrain(sys.stderr.fileno())


def _encode(host: Host, node: str, kind: str, verification: Verification) -> dict[str, object]:
    return {
        "node": node,
        "release": host.release,
        "kind": kind,
        "outcome": verification.outcome,
        "checks": [
            {"name": check.name, "outcome": check.outcome, "evidence": check.evidence} for check in verification.checks
        ],
    }
