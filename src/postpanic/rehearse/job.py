"""
What the rehearsed machine is to do, as its PID 1 finds it.

The file is made on the host and read in the guest; it has no type of its own
there but JSON's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from postpanic.errors import CorruptError

__all__ = [
    "COLLECT_WORD",
    "HUNG_TASK",
    "IMAGE_PATH",
    "JOB_PATH",
    "KERNEL_PATH",
    "NMI",
    "OUT_OF_MEMORY",
    "PREFIX",
    "SHELL_WORD",
    "STRIKE_LINE",
    "GuestJob",
    "decode_job",
    "encode_job",
]

JOB_PATH = Path("/etc/postpanic/rehearsal.json")
KERNEL_PATH = "/rehearsal/kernel"
IMAGE_PATH = "/rehearsal/image"
COLLECT_WORD = "postpanic.rehearsal=collect"
"""On the kernel's command line: this boot brings out what the capture left."""
SHELL_WORD = "postpanic.rehearsal=shell"
"""This one gives its console to whoever looks."""
PREFIX = "rehearsal: "
"""Of all that the guest says on its console."""
NMI, OUT_OF_MEMORY, HUNG_TASK = "nmi", "out-of-memory", "hung-task"
"""Crashes that need more than a trigger: one from outside, one with all memory, one with a task that waits."""
STRIKE_LINE = "in the kernel"
"""Said by a machine that is to be crashed by a debugger."""


@dataclass(frozen=True, kw_only=True)
class GuestJob:
    """
    One rehearsal, inside.

    Attributes
    ----------
    machine : str
        As ``uname -m`` has it.
    command_line : str
        Of the capture kernel.
    method : str
        How it is loaded: ``auto``, ``file`` or ``legacy``.
    modules : tuple of str
        Files in the image, in order, that this kernel loads before anything else.
    crash : str
        A key of :data:`postpanic.capture.crashing.KINDS`, :data:`NMI` or :data:`OUT_OF_MEMORY`.
    needs_strike : bool
        Whether it is crashed by a debugger from outside; the first process stays in the kernel for it.
    settings : mapping
        Sysctls to set first, by name.
    free_bytes : mapping
        How much room each target has: number of the target in the plan, as text, to bytes; none: as it is.
    out_device : str
        Where the second boot writes what the capture left, as a tar archive.
    """

    machine: str
    command_line: str
    method: str = "auto"
    modules: tuple[str, ...] = ()
    crash: str = "sysrq"
    needs_strike: bool = False
    settings: Mapping[str, int] = field(default_factory=dict)
    free_bytes: Mapping[str, int] = field(default_factory=dict)
    out_device: str = ""


def encode_job(job: GuestJob) -> bytes:
    """Write a job as JSON."""
    return json.dumps(asdict(job), indent=1).encode()


def decode_job(data: bytes) -> GuestJob:
    """
    Read a job.

    Raises
    ------
    CorruptError
        If it is not one.
    """
    try:
        value = json.loads(data)
        value["modules"] = tuple(value["modules"])
        return GuestJob(**value)
    except (ValueError, TypeError, KeyError) as exc:
        raise CorruptError(f"is no rehearsal's job: {exc}", where=str(JOB_PATH)) from exc
