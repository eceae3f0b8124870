"""
The letters of ``Tainted:``, spelled out.

References
----------
kernel/panic.c ``taint_flags``; Documentation/admin-guide/tainted-kernels.rst; older letters: include/linux/kernel.h.
"""

from __future__ import annotations

__all__ = ["spell_taint"]

_MEANINGS: dict[str, tuple[str, str]] = {
    "P": ("PROPRIETARY_MODULE", "a module with a proprietary licence was loaded"),
    "G": ("", "all modules that were loaded have a free licence"),
    "F": ("FORCED_MODULE", "a module was loaded by force, without a matching version"),
    "S": ("CPU_OUT_OF_SPEC", "the processor or its configuration is out of specification"),
    "R": ("FORCED_RMMOD", "a module was unloaded by force"),
    "M": ("MACHINE_CHECK", "the processor reported a machine check: suspect the hardware"),
    "B": ("BAD_PAGE", "a page was found in an impossible state before: memory was corrupted, or is faulty"),
    "U": ("USER", "a program of the user asked for the mark, or wrote to the kernel's memory or devices"),
    "D": ("DIE", "the kernel had an oops or BUG before this: this one may be a consequence"),
    "A": ("OVERRIDDEN_ACPI_TABLE", "an ACPI table was replaced"),
    "W": ("WARN", "the kernel issued a warning before"),
    "C": ("CRAP", "a staging driver was loaded"),
    "I": ("FIRMWARE_WORKAROUND", "a severe defect of the firmware was worked around"),
    "O": ("OOT_MODULE", "a module that is not part of the kernel's tree was loaded"),
    "E": ("UNSIGNED_MODULE", "a module without a valid signature was loaded"),
    "L": ("SOFTLOCKUP", "a soft lockup happened before"),
    "K": ("LIVEPATCH", "the kernel was patched while it ran"),
    "X": ("AUX", "the distribution's own mark"),
    "T": ("RANDSTRUCT", "the kernel was built with the layout of structures at random"),
    "N": ("TEST", "a test was run in the kernel (KUnit)"),
    "J": ("FWCTL", "the firmware's interface for debugging was used to change a device"),
}


def spell_taint(letters: str) -> list[tuple[str, str, str]]:
    """
    Spell the letters out: letter, the kernel's name of the flag, what it means.

    >>> spell_taint("G    W  OE")[1]
    ('W', 'WARN', 'the kernel issued a warning before')
    """
    known = dict.fromkeys(letter for letter in letters if not letter.isspace())
    return [(letter, *_MEANINGS.get(letter, ("", "not a letter of any kernel that is known"))) for letter in known]
