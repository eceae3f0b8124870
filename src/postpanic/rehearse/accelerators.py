"""
What runs a guest: hardware virtualisation where a boot proves that it works, software emulation everywhere else.

Sources: QEMU's manual (``-accel``, ``isa-debug-exit``); ``Documentation/virt/kvm/api.rst``.
"""

from __future__ import annotations

import functools
import os
import platform
import tempfile
from pathlib import Path
from typing import Literal

from postpanic.errors import ProcessError
from postpanic.process import find_program, run

__all__ = ["Accelerator", "detect_accelerator", "find_kvm_fault"]

Accelerator = Literal["kvm", "tcg"]

PROBE_TIMEOUT_S = 20.0
# mov $0x501,%dx; mov $0x2a,%al; out %al,(%dx); hlt: makes isa-debug-exit end QEMU with (0x2a << 1) | 1.
_PROBE_CODE = bytes.fromhex("ba0105 b02a ee f4")
_PROBE_STATUS = 85
_SAID_CHARACTERS = 160


def detect_accelerator(machine: str = "x86_64") -> Accelerator:
    """Tell what to run guests of a machine with: ``kvm`` if a guest really boots with it, else ``tcg``."""
    return "tcg" if find_kvm_fault(machine) else "kvm"


@functools.cache
def find_kvm_fault(machine: str = "x86_64", device: Path = Path("/dev/kvm")) -> str:
    """
    Say why guests of a machine do not run with KVM; empty: they do.

    A ``/dev/kvm`` that is there and can be opened may still fail on the first
    instruction, so a boot sector is run that ends QEMU with a status of its own.
    There is no such probe but for x86-64.
    """
    if {machine, platform.machine()} != {"x86_64"}:
        return f"guests of {machine} on {platform.machine()} are emulated"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return f"{device}: {(exc.strerror or str(exc)).lower()}"
    sector = _PROBE_CODE.ljust(510, b"\0") + b"\x55\xaa"
    try:
        with tempfile.NamedTemporaryFile(prefix="postpanic-probe-") as image:
            image.write(sector)
            image.flush()
            words = ["-M", "pc", "-accel", "kvm", "-cpu", "max", "-m", "32", "-nodefaults", "-display", "none"]
            words += ["-device", "isa-debug-exit", "-drive", f"file={image.name},format=raw,if=ide,readonly=on"]
            program = find_program("qemu-system-x86_64", hint="install qemu-system-x86")
            finished = run([program, *words], timeout_s=PROBE_TIMEOUT_S, check=False)
    except (ProcessError, OSError) as exc:
        return f"{device}: no guest boots with it: {exc}"
    if finished.returncode != _PROBE_STATUS:
        said = finished.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1][-_SAID_CHARACTERS:]
        return f"{device}: no guest boots with it: {said or f'qemu ended with status {finished.returncode}'}"
    return ""
