"""
PID 1 of the capture kernel: from the first mount to the last reboot.

Everything here has to work with nothing around it. What may fail happens in a
child (:mod:`postpanic.saver.supervisor`); what comes last (reboot) happens
even if all before it raised.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from postpanic.errors import PostpanicError
from postpanic.saver.console import Console
from postpanic.saver.kernel_messages import read_kernel_messages
from postpanic.saver.plan import FinalAction, SavePlan
from postpanic.saver.plan_json import read_plan
from postpanic.saver.supervisor import Rung, Tally, supervise
from postpanic.saver.watchdog import Watchdogs

__all__ = ["main"]

VMCORE = Path("/proc/vmcore")
_REBOOT_COMMANDS = {"reboot": 0x01234567, "poweroff": 0x4321FEDC, "halt": 0xCDEF0123}
"""``LINUX_REBOOT_CMD_RESTART``, ``_POWER_OFF`` and ``_HALT`` of ``include/uapi/linux/reboot.h``."""
_LAST_WAIT_S = 10.0
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}


def main(*, reboots: bool | None = None) -> None:
    """
    Be PID 1: save, then do with the machine what the plan says. Does not return.

    Parameters
    ----------
    reboots : bool, optional
        Whether it is ours to reboot; by default only if we are PID 1.
    """
    console = Console(appendix=read_kernel_messages)
    action: FinalAction = "reboot"
    try:
        action = _run(console)
    except BaseException as exc:  # noqa: BLE001 - there is nobody left to handle it, and a machine to bring back
        import traceback

        console.say(f"internal error: {type(exc).__name__}: {exc}")
        for line in traceback.format_exc().splitlines()[-12:]:
            console.say(f"  {line}")
    _end(action, console, reboots=os.getpid() == 1 if reboots is None else reboots)


def _run(console: Console) -> FinalAction:
    from postpanic.saver.mounting import mount_basics

    mount_basics()
    console.say(f"saver started, {_uptime_s():.1f} s after the capture kernel, {_free_mib()} MiB of memory free")
    plan = read_plan()
    watchdogs = Watchdogs(console.say)
    watchdogs.feed()
    if not VMCORE.exists():
        console.say("no /proc/vmcore: this is not a capture kernel, or it has no elfcorehdr=")
        return plan.after_failure
    until = time.monotonic() + plan.timeout_s
    least_mib = _free_mib()

    def tick() -> None:
        nonlocal least_mib
        watchdogs.feed()
        least_mib = min(least_mib, _free_mib())

    tally = supervise(plan, lambda *words: _be_saver(plan, console, until, *words), console, tick=tick)
    # What sizes the next reservation: looked at several times a second, so an estimate.
    console.say(f"{least_mib} MiB of memory were free at the least")
    _summarize(plan, tally, console)
    return plan.after_success if tally.complete else plan.after_failure


def _be_saver(
    plan: SavePlan,
    console: Console,
    until: float,
    rung: Rung,
    skip: frozenset[int],
    tell: Callable[[dict[str, object]], None],
) -> None:
    """Be the child that saves."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # noqa: TID251 - for a library that reads nothing else
    from postpanic.saver.hooks import run_hooks
    from postpanic.saver.preparation import Preparation

    preparation = Preparation(plan, console.say)
    preparation.start()
    from postpanic.saver.session import SaveOptions, TargetOutcome, save

    def report(outcome: TargetOutcome) -> None:
        tell(
            {
                "number": outcome.number,
                "state": outcome.state.value,
                "has_log": outcome.has_log,
                "place": outcome.place,
                "error": outcome.error,
            }
        )

    from postpanic.dumps.open import open_dump

    environment = {**_ENVIRONMENT, "POSTPANIC_VMCORE": str(VMCORE)}
    run_hooks(plan.before, console.say, environment)
    options = SaveOptions(log_only=rung.log_only, lean=rung.lean, skip=skip, until=until)
    with open_dump(VMCORE) as dump:
        outcome = save(
            plan,
            dump,
            console,
            preparation.make_target,
            options=options,
            report=report,
            alive=lambda: tell({"alive": True}),
        )
    run_hooks(plan.after, console.say, {**environment, "POSTPANIC_STATUS": "0" if outcome.is_complete else "1"})


def _summarize(plan: SavePlan, tally: Tally, console: Console) -> None:
    names = [target.name for target in (*plan.targets, *plan.fallbacks)]
    for number, place in sorted(tally.complete.items()):
        console.say(f"saved: {place or names[number]}")
    for number, place in sorted(tally.incomplete.items()):
        if number not in tally.complete:
            console.say(f"saved, incomplete: {place or names[number]}")
    for number, error in sorted(tally.errors.items()):
        if number not in tally.complete:
            console.say(f"failed: {names[number]}: {error}")
    if not tally.complete and not tally.incomplete:
        console.say("only the log is saved" if tally.logs else "nothing is saved")


def _end(action: FinalAction, console: Console, *, reboots: bool) -> None:
    """Do with the machine what is left to do."""
    if action == "shell":
        console.say("a Python prompt; what ends it reboots the machine")
        with contextlib.suppress(BaseException):
            import code

            code.interact(banner="", local={"__name__": "__console__"})
        action = "reboot"
    console.say({"reboot": "rebooting", "poweroff": "powering off", "halt": "halting"}[action])
    if not reboots:
        sys.exit(0)
    _reboot(action, console)


def _reboot(action: FinalAction, console: Console) -> None:
    """Call reboot(2); if that fails, end: without its PID 1 the kernel panics, and ``panic=`` reboots."""
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.reboot(_REBOOT_COMMANDS[action])
        console.say(f"reboot: {os.strerror(ctypes.get_errno())}")
    except BaseException as exc:  # noqa: BLE001 - one way is left
        console.say(f"reboot: {exc}")
    with contextlib.suppress(OSError):
        Path("/proc/sysrq-trigger").write_text("b")
    time.sleep(_LAST_WAIT_S)
    os._exit(1)


def _free_mib() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) >> 10
    return 0


def _uptime_s() -> float:
    with contextlib.suppress(OSError, ValueError, PostpanicError):
        return float(Path("/proc/uptime").read_text().split()[0])
    return 0.0
