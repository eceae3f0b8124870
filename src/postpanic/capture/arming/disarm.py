"""Undo what arming did."""

from __future__ import annotations

from dataclasses import dataclass, field

from postpanic.capture.arming.state import StatePaths
from postpanic.capture.host import Host
from postpanic.capture.kexec.load import unload
from postpanic.capture.policy import PolicyChange, undo_policy

__all__ = ["DisarmOutcome", "disarm"]


@dataclass(frozen=True)
class DisarmOutcome:
    """
    What was undone.

    Attributes
    ----------
    unloaded : bool
        Whether there was something to unload.
    policy : tuple of PolicyChange
        What became of the sysctls.
    """

    unloaded: bool
    policy: tuple[PolicyChange, ...] = field(default=())


def disarm(host: Host) -> DisarmOutcome:
    """
    Take the capture kernel away, and put the panic policy back.

    The image stays: arming again is quick.

    Raises
    ------
    NotReadyError
        If the kernel does not let go of it.
    """
    unloaded = unload(host)
    return DisarmOutcome(unloaded, tuple(undo_policy(host, StatePaths.of(host).policy)))
