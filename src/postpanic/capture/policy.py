"""
What the kernel takes for a reason to panic: the sysctls, set, remembered and put back.

Sources: ``Documentation/admin-guide/sysctl/kernel.rst`` and ``vm.rst``; that a
kernel lacks one (built without its detector, too old) is no error.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.host import Host
from postpanic.errors import CorruptError, NotReadyError, OutputError, UsageError

__all__ = ["SETTINGS", "PolicyChange", "Setting", "apply_policy", "read_policy", "undo_policy"]

STATE_VERSION = 1
STATE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Setting:
    """
    A sysctl that has to do with panics.

    Attributes
    ----------
    name : str
        As sysctl(8) has it.
    summary : str
        What it does.
    minimum, maximum : int
        What it may be set to.
    """

    name: str
    summary: str
    minimum: int = 0
    maximum: int = 1


_INT_MAX = (1 << 31) - 1

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("kernel.panic", "seconds from a panic to a reboot; 0: never, below 0: at once", -_INT_MAX, _INT_MAX),
        Setting("kernel.panic_on_oops", "an oops is a panic"),
        Setting("kernel.oops_limit", "this many oopses are a panic; 0: no limit (6.2)", 0, _INT_MAX),
        Setting("kernel.panic_on_warn", "a warning is a panic"),
        Setting("kernel.warn_limit", "this many warnings are a panic; 0: no limit (6.2)", 0, _INT_MAX),
        Setting("kernel.panic_on_rcu_stall", "a stall of RCU is a panic"),
        Setting("kernel.max_rcu_stall_to_panic", "after this many stalls of RCU", 0, _INT_MAX),
        Setting("kernel.softlockup_panic", "a processor that does not schedule is a panic", 0, _INT_MAX),
        Setting("kernel.hardlockup_panic", "a processor that takes no interrupts is a panic"),
        Setting("kernel.hung_task_panic", "a task that hangs is a panic; since 6.18 how many at once", 0, _INT_MAX),
        Setting("kernel.hung_task_timeout_secs", "after this many seconds; 0: never looked for", 0, _INT_MAX),
        Setting("kernel.panic_on_io_nmi", "an NMI for an I/O error is a panic"),
        Setting("kernel.panic_on_unrecovered_nmi", "an NMI for an error that cannot be mended is a panic"),
        Setting("kernel.unknown_nmi_panic", "an NMI that nobody knows is a panic: hypervisors and buttons send one"),
        Setting("kernel.panic_on_stackoverflow", "an overflow of a kernel stack is a panic (32 bits, some machines)"),
        Setting("vm.panic_on_oom", "being out of memory is a panic; 2: also within a cgroup or policy", 0, 2),
        Setting(
            "kernel.panic_print", "bits of what to print before; delays the capture only with notifiers first", 0, 0xFF
        ),
        Setting("kernel.softlockup_all_cpu_backtrace", "a soft lockup prints all processors' stacks"),
        Setting("kernel.hardlockup_all_cpu_backtrace", "a hard lockup prints all processors' stacks"),
        Setting("kernel.oops_all_cpu_backtrace", "an oops prints all processors' stacks"),
        Setting("kernel.hung_task_all_cpu_backtrace", "a hung task prints all processors' stacks"),
        Setting("kernel.nmi_watchdog", "look for processors that take no interrupts"),
        Setting("kernel.watchdog_thresh", "seconds until they count; soft lockups take twice as long", 0, 60),
        Setting(
            "kernel.sysrq",
            "bits of what the SysRq keys may do; 1: everything, 8: crash is not among the others",
            0,
            511,
        ),
    )
}


@dataclass(frozen=True)
class PolicyChange:
    """
    What became of one setting.

    Attributes
    ----------
    before, after : int or None
        None where the kernel has no such setting, or where it could not be read.
    problem : str
        Why it is not as it was asked for; empty when it is.
    """

    name: str
    before: int | None
    after: int | None
    problem: str = ""


def read_policy(host: Host) -> dict[str, int | None]:
    """Read every setting that is known; None for those that this kernel lacks."""
    return {name: host.read_number(_place(name)) for name in SETTINGS}


def apply_policy(host: Host, wanted: Mapping[str, int], state_file: Path) -> list[PolicyChange]:
    """
    Set what is asked for, and remember what was before.

    What is remembered is what was there before postpanic first touched a
    setting, however often this is called; a setting that is no longer asked
    for is put back.

    Parameters
    ----------
    wanted : mapping
        Name and value.
    state_file : Path
        Written before anything is set; parents are made.

    Raises
    ------
    UsageError
        If a setting is not known, or its value not possible.
    OutputError
        If the state cannot be written; nothing is set then.
    CorruptError
        If the state of an earlier call cannot be read.
    """
    for name, value in wanted.items():
        check_setting(name, value)
    first = _read_state(state_file)
    dropped = {name: value for name, value in first.items() if name not in wanted}
    found = {name: host.read_number(_place(name)) for name in wanted}
    first = {name: value for name, value in first.items() if name in wanted}
    first |= {
        name: value
        for name, value in found.items()
        if value is not None and name not in first and value != wanted[name]
    }
    # What is put back below is only forgotten after it is.
    _write_state(state_file, first | dropped)
    changes = [_set(host, name, value) for name, value in [*dropped.items(), *wanted.items()]]
    _write_state(state_file, first)
    return changes


def undo_policy(host: Host, state_file: Path) -> list[PolicyChange]:
    """
    Put every setting back that :func:`apply_policy` has changed, and forget it.

    Raises
    ------
    CorruptError
        If the state cannot be read.
    OutputError
        If it cannot be forgotten.
    """
    changes = [_set(host, name, value) for name, value in _read_state(state_file).items()]
    try:
        state_file.unlink(missing_ok=True)
    except OSError as exc:
        raise OutputError(f"cannot remove: {exc.strerror}", where=str(state_file)) from exc
    return changes


def check_setting(name: str, value: int) -> None:
    """
    Judge one setting.

    Raises
    ------
    UsageError
        If it is not known, or the value not possible.
    """
    setting = SETTINGS.get(name)
    if setting is None:
        import difflib

        near = difflib.get_close_matches(name, SETTINGS, 1)
        raise UsageError(f"no setting of the panic policy: {name}", hint=f"did you mean {near[0]}?" if near else "")
    if not setting.minimum <= value <= setting.maximum:
        raise UsageError(f"{name}: {value} is not possible, {setting.minimum} to {setting.maximum} are")


def _set(host: Host, name: str, value: int) -> PolicyChange:
    before = host.read_number(_place(name))
    if before is None:
        return PolicyChange(name, None, None, "this kernel has no such setting")
    if before == value:
        return PolicyChange(name, before, before)
    try:
        # Not O_CREAT: /proc would refuse, and a copy of one must not grow settings.
        fd = os.open(host.path(_place(name)), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, f"{value}\n".encode())
            with contextlib.suppress(OSError):
                os.ftruncate(fd, len(f"{value}\n"))
        finally:
            os.close(fd)
    except PermissionError as exc:
        raise NotReadyError(f"{name}: may not be set", hint="run it as root") from exc
    except OSError as exc:
        return PolicyChange(name, before, before, f"cannot be set to {value}: {exc.strerror}")
    after = host.read_number(_place(name))
    return PolicyChange(name, before, after, "" if after == value else f"set to {value}, is {after}")


def _place(name: str) -> str:
    return f"proc/sys/{name.replace('.', '/')}"


def _read_state(path: Path) -> dict[str, int]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(STATE_LIMIT_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise CorruptError(f"cannot read: {exc.strerror}", where=str(path)) from exc
    try:
        state = json.loads(raw)
        before = state["before"] if state["version"] == STATE_VERSION else None
        if not isinstance(before, dict):
            raise TypeError("of another version")
        return {name: value for name, value in before.items() if name in SETTINGS and type(value) is int}
    except (ValueError, KeyError, TypeError) as exc:
        raise CorruptError(
            "the panic policy of before is not readable",
            where=str(path),
            hint="remove the file; a reboot undoes the policy",
        ) from exc


def _write_state(path: Path, before: Mapping[str, int]) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as stream:
            json.dump({"version": STATE_VERSION, "before": dict(before)}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as exc:
        raise OutputError(f"cannot write: {exc.strerror}", where=str(path)) from exc
