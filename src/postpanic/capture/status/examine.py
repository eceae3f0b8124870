"""All conditions, one after the other."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

from postpanic.capture.status.image import check_boot, check_image
from postpanic.capture.status.kernel_options import check_kernel
from postpanic.capture.status.loaded import check_loaded, find_loader
from postpanic.capture.status.machine import check_encryption, check_kaslr, check_watchdogs
from postpanic.capture.status.model import Check, Fact, StatusReport
from postpanic.capture.status.other_evidence import check_other_evidence
from postpanic.capture.status.panic_policy import check_panic
from postpanic.capture.status.rehearsal import check_rehearsal
from postpanic.capture.status.reservation import check_reservation
from postpanic.capture.status.security import check_security
from postpanic.capture.status.subject import Subject
from postpanic.capture.status.targets import check_targets
from postpanic.errors import PostpanicError

__all__ = ["GROUPS", "examine"]

GROUPS: dict[str, Callable[[Subject], Iterator[Check]]] = {
    "reservation": check_reservation,
    "capture kernel": check_loaded,
    "image": check_image,
    "targets": check_targets,
    "boot": check_boot,
    "security": check_security,
    "kernel": check_kernel,
    "panic": check_panic,
    "watchdogs": check_watchdogs,
    "encryption": check_encryption,
    "other evidence": check_other_evidence,
    "analysis": check_kaslr,
    "rehearsal": check_rehearsal,
}
"""The groups, in the order in which they are shown."""


def examine(subject: Subject) -> StatusReport:
    """
    Look at everything.

    Nothing that the host's state causes is raised: it is what a check found.
    """
    checks: list[Check] = []
    for group, check in GROUPS.items():
        try:
            checks += check(subject)
        except (PostpanicError, OSError) as exc:
            where = getattr(exc, "where", "") or getattr(exc, "filename", "") or group
            checks.append(Check(group, "rest", "unknown", str(exc), (Fact(str(where), str(exc)),)))
    return StatusReport(_read_node(subject), subject.host.release, find_loader(subject), tuple(checks))


def _read_node(subject: Subject) -> str:
    if subject.is_running:
        return platform.node()
    return subject.host.read_text("etc/hostname") or ""
