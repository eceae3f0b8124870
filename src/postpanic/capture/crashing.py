"""
Crash the running kernel on purpose, by the ways that it offers itself.

Sources: ``Documentation/admin-guide/sysrq.rst`` (root may write any command to
``/proc/sysrq-trigger``, whatever ``kernel.sysrq`` allows at the keyboard),
``Documentation/fault-injection/provoke-crashes.rst`` (LKDTM).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from os import sync

from postpanic.capture.host import Host
from postpanic.errors import NotReadyError, PostpanicError

__all__ = ["KINDS", "CrashKind", "check_kind", "sync_disks", "trigger_crash"]

SYSRQ_TRIGGER = "proc/sysrq-trigger"
LKDTM_TRIGGER = "sys/kernel/debug/provoke-crash/DIRECT"
STILL_ALIVE_S = 5.0


@dataclass(frozen=True)
class CrashKind:
    """
    A way to crash.

    Attributes
    ----------
    summary : str
        What happens.
    trigger, command : str
        The file, and what is written to it.
    setting : str
        The sysctl without which it is not a panic.
    wait_s : float
        How long it may take.
    """

    name: str
    summary: str
    trigger: str
    command: str
    setting: str = ""
    wait_s: float = STILL_ALIVE_S


KINDS: dict[str, CrashKind] = {
    kind.name: kind
    for kind in (
        CrashKind("sysrq", "the SysRq command c, a panic in the writing process", SYSRQ_TRIGGER, "c"),
        CrashKind("panic", "a call of panic()", LKDTM_TRIGGER, "PANIC"),
        CrashKind("bug", "a BUG()", LKDTM_TRIGGER, "BUG", "kernel.panic_on_oops"),
        CrashKind("null", "a read through a null pointer", LKDTM_TRIGGER, "EXCEPTION", "kernel.panic_on_oops"),
        CrashKind(
            "softlockup", "a loop without scheduling", LKDTM_TRIGGER, "SOFTLOCKUP", "kernel.softlockup_panic", 90.0
        ),
        CrashKind(
            "hardlockup", "a loop without interrupts", LKDTM_TRIGGER, "HARDLOCKUP", "kernel.hardlockup_panic", 90.0
        ),
        CrashKind(
            "hung-task", "a task that sleeps for good", LKDTM_TRIGGER, "HUNG_TASK", "kernel.hung_task_panic", 600.0
        ),
        CrashKind("stack", "a recursion until the stack ends", LKDTM_TRIGGER, "EXHAUST_STACK"),
    )
}


def check_kind(host: Host, kind: CrashKind) -> None:
    """
    Find out whether the host can be crashed in this way, and would panic.

    Raises
    ------
    NotReadyError
        If it cannot, or would not.
    """
    if not host.is_root:
        raise NotReadyError("only root may crash the machine", hint="run it as root")
    if not host.path(kind.trigger).exists():
        raise NotReadyError(
            f"cannot crash by {kind.name}: /{kind.trigger} is not there",
            hint="modprobe lkdtm, and mount debugfs"
            if kind.trigger == LKDTM_TRIGGER
            else "CONFIG_MAGIC_SYSRQ is not set",
        )
    if kind.setting and not host.read_number(f"proc/sys/{kind.setting.replace('.', '/')}"):
        raise NotReadyError(
            f"{kind.summary} would not be a panic here: {kind.setting} is 0", hint=f"set {kind.setting}"
        )


def sync_disks(timeout_s: float) -> bool:
    """Write out what the page cache holds; False if that is not done in time, as with a disk that hangs."""
    worker = threading.Thread(target=sync, daemon=True)
    worker.start()
    worker.join(timeout_s)
    return not worker.is_alive()


def trigger_crash(host: Host, kind: CrashKind) -> None:
    """
    Crash. Does not return.

    Raises
    ------
    PostpanicError
        If the machine is still alive after all.
    """
    try:
        with host.path(kind.trigger).open("w") as stream:
            stream.write(kind.command)
    except OSError as exc:
        raise PostpanicError(f"cannot crash by {kind.name}: {exc.strerror}", where=f"/{kind.trigger}") from exc
    time.sleep(kind.wait_s)
    raise PostpanicError(f"still alive {kind.wait_s:g} s after the crash was triggered ({kind.name})", hint="see dmesg")
