"""
What can be made to go wrong in a rehearsal, on purpose.

A fault begins when the machine crashes, and is over when what was saved is
looked at: the host before the crash knows nothing of it.

Sources: QEMU's manual (``throttling.*``); ``docs/devel/blkdebug.rst`` in QEMU's source.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from postpanic.errors import UsageError
from postpanic.rehearse.links import Link
from postpanic.saver.plan import HookPlan, SavePlan, TargetPlan

__all__ = ["FAULT_KINDS", "Fault", "FaultKind", "excuse", "parse_faults", "plan_kill", "spell_drive"]

FaultKind = Literal["disk-error", "disk-hang", "saver-killed"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

_DISKS = frozenset({"file", "raw"})
_OF_DISKS = frozenset({"disk-error", "disk-hang"})
_KILL_PATH = "/bin/rehearsal-kill"
_KILL_ONCE = """#!{interpreter} -SsB
import os
try:
    os.close(os.open("/run/rehearsal-killed", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    raise SystemExit
os.kill(os.getppid(), 9)
"""
_ERRORS = """\
[inject-error]
event = "none"
iotype = "write"
errno = "5"
once = "off"
"""
_CRAWL = ",throttling.iops-total=1,throttling.bps-total=65536"


@dataclass(frozen=True)
class Fault:
    """
    One fault.

    Attributes
    ----------
    kind : str
        ``disk-error``: every write fails with EIO. ``disk-hang``: one request a second. ``saver-killed``: the saver's
        process is killed as it begins.
    target : int
        Number of the target whose disk it is; -1: it concerns no target.
    """

    kind: FaultKind
    target: int = -1


def parse_faults(words: Sequence[str], kinds: Sequence[str]) -> tuple[Fault, ...]:
    """
    Read ``KIND`` or ``KIND=NUMBER``, the number being that of a target, the first unless said.

    Parameters
    ----------
    kinds : sequence of str
        Of the targets: ``file``, ``raw`` or one of servers.

    Raises
    ------
    UsageError
        If there is no such fault, or the target has no disk.
    """
    found: list[Fault] = []
    for word in words:
        name, equals, number = word.partition("=")
        kind = next((one for one in FAULT_KINDS if one == name), None)
        if kind is None:
            raise UsageError(f"--fault {word}: must be one of {', '.join(FAULT_KINDS)}")
        if kind not in _OF_DISKS:
            if equals:
                raise UsageError(f"--fault {word}: {kind} is not of one target")
            found.append(Fault(kind))
            continue
        if equals and not (number.isascii() and number.isdigit()):
            raise UsageError(f"--fault {word}: must be KIND=NUMBER, as {kind}=0")
        target = int(number or 0)
        if target >= len(kinds) or kinds[target] not in _DISKS:
            raise UsageError(f"--fault {word}: target {target} is no disk")
        found.append(Fault(kind, target))
    return tuple(found)


def plan_kill(plan: SavePlan, interpreter: str) -> tuple[SavePlan, dict[str, bytes]]:
    """Put a hook into the plan that kills the saver once; returns the files that it needs, too."""
    hook = HookPlan(command=(_KILL_PATH,), timeout_s=30.0)
    return replace(plan, before=(hook, *plan.before)), {_KILL_PATH: _KILL_ONCE.format(interpreter=interpreter).encode()}


def spell_drive(path: Path, form: str, kinds: Collection[FaultKind]) -> str:
    """
    Spell file, format and faults of a disk, as QEMU's ``-drive`` has them.

    Parameters
    ----------
    form : str
        ``raw`` or ``qcow2``.
    """
    name = str(path)
    if "disk-error" in kinds:
        rules = path.with_name(f"{path.name}.blkdebug")
        rules.write_text(_ERRORS)
        name = f"blkdebug:{rules}:{path}"
    return f"file={name},format={form}" + (_CRAWL if "disk-hang" in kinds else "")


def excuse(links: Sequence[Link], faults: Sequence[Fault], targets: Sequence[TargetPlan]) -> list[Link]:
    """Take what broke by a fault for no fault of the configuration, where the dump is whole somewhere else."""
    names = {
        f"{link} {targets[fault.target].name}"
        for fault in faults
        if fault.target >= 0
        for link in ("target", "self-test", "dump")
    }
    if not any(link.name.startswith("dump ") and link.state == "held" for link in links):
        return list(links)
    return [
        replace(link, state="faulted", mend="") if link.name in names and link.state == "broken" else link
        for link in links
    ]
