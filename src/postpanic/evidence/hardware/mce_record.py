"""
The binary record of a machine check, ``struct mce``.

It reaches us out of the firmware's store (ERST: pstore's type ``mce``), out of
``/dev/mcelog``, and out of memory. The structure only grew at its end, so that
a shorter record is an older kernel's.

References
----------
arch/x86/include/uapi/asm/mce.h; arch/x86/kernel/cpu/mce/apei.c ``apei_write_mce``. The ends of the older versions:
mcgcap (v2.6.31), synd and ipid (v4.10), ppin (v4.20), microcode (v5.1), kflags (v5.7).
"""

from __future__ import annotations

import struct

from postpanic.errors import TruncatedError
from postpanic.evidence.hardware.model import MachineCheck

__all__ = ["LEAST_BYTES", "RECORD_BYTES", "decode_mce_record"]

_FIXED = struct.Struct("<7Q4BI4B")
"""Up to ``finished``; what follows came later."""
_TAKEN = ("status", "misc", "addr", "mcgstatus", "ip", "tsc", "time_s", "vendor", "inject_flags", "severity")
_FIXED_MEMBERS = (*_TAKEN, "pad", "cpuid", "cs", "bank", "cpu", "finished")
_NEWER: tuple[tuple[str, str], ...] = (
    ("extcpu", "I"),
    ("socketid", "I"),
    ("apicid", "I"),
    ("mcgcap", "Q"),
    ("synd", "Q"),
    ("ipid", "Q"),
    ("ppin", "Q"),
    ("microcode", "I"),
)

LEAST_BYTES = 88
"""Up to ``mcgcap``: what kernels wrote that were the first to keep records in the firmware's store (v2.6.36)."""

RECORD_BYTES = 128
"""``sizeof(struct mce)`` since v5.7."""


def decode_mce_record(data: bytes, *, where: str = "") -> MachineCheck:
    """
    Decode ``struct mce``, of whichever kernel; little-endian.

    Parameters
    ----------
    data : bytes
        The record; bytes behind the newest member that is known are ignored.
    where : str
        Named in the error.

    Raises
    ------
    TruncatedError
        If there are fewer bytes than every kernel writes.
    """
    if len(data) < LEAST_BYTES:
        raise TruncatedError(
            f"the machine check record is cut short: {len(data)} of at least {LEAST_BYTES} bytes", where=where
        )
    fixed: dict[str, int] = dict(zip(_FIXED_MEMBERS, _FIXED.unpack_from(data), strict=True))
    newer = _newer(data)
    return MachineCheck(
        **{name: fixed[name] for name in _TAKEN},
        cpuid=fixed["cpuid"],
        cs=fixed["cs"],
        bank=fixed["bank"],
        cpu=newer.get("extcpu", fixed["cpu"]),
        socket=newer.get("socketid"),
        apic=newer.get("apicid"),
        mcgcap=newer.get("mcgcap", 0),
        synd=newer.get("synd", 0),
        ipid=newer.get("ipid", 0),
        ppin=newer.get("ppin", 0),
        microcode=newer.get("microcode", 0),
    )


def _newer(data: bytes) -> dict[str, int]:
    """Read the members that came later, as far as the record goes; each is aligned to its size."""
    found: dict[str, int] = {}
    offset = _FIXED.size
    for name, code in _NEWER:
        size = struct.calcsize(f"<{code}")
        offset = -(-offset // size) * size
        if offset + size > len(data):
            break
        found[name] = struct.unpack_from(f"<{code}", data, offset)[0]
        offset += size
    return found
