"""Undo what arming did."""

from __future__ import annotations

from dataclasses import dataclass, field

from postpanic.capture.arming.state import StatePaths, hold_state
from postpanic.capture.host import Host
from postpanic.capture.kexec.load import unload
from postpanic.capture.policy import PolicyChange, undo_policy
from postpanic.errors import NotReadyError

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
    if not host.is_root:
        raise NotReadyError("only root may disarm the machine", hint="run it as root")
    paths = StatePaths.of(host)
    with hold_state(paths):
        return DisarmOutcome(unload(host), tuple(undo_policy(host, paths.policy)))
