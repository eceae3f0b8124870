"""
Decode the addresses of kallsyms.

There are four encodings, and nothing but the result tells them apart (commits
that changed them: 2213e9a66bb8, 4.6; 64e166099b69, 6.11; 01157ddc58dc, 6.15;
a081b5789255, 7.0):

- ``ABSOLUTE``: 64-bit addresses;
- ``BASE_PERCPU``: 32-bit numbers; 0 and above are absolute values (per-CPU
  variables), below 0 addresses: base - 1 - number;
- ``BASE``: 32-bit unsigned distances from a base;
- ``PLACE``: 32-bit signed distances from the entry itself.

VMCOREINFO's ``SYMBOL(_stext)`` is the touchstone: the encoding that gives it to
the symbol ``_stext`` is the one.
"""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

__all__ = ["AddressEncoding", "decode_addresses"]

_WORD = (1 << 64) - 1


class AddressEncoding(enum.Enum):
    """How kallsyms keeps addresses."""

    ABSOLUTE = "addresses"
    BASE_PERCPU = "offsets from a base, per-CPU symbols absolute"
    BASE = "offsets from a base"
    PLACE = "offsets from the entry itself"


def decode_addresses(encoding: AddressEncoding, entries: NDArray[np.generic], anchor: int) -> NDArray[np.uint64]:
    """
    Decode all entries.

    Parameters
    ----------
    encoding : AddressEncoding
        How to.
    entries : ndarray
        uint64 for ``ABSOLUTE``, else int32.
    anchor : int
        ``kallsyms_relative_base``, for ``PLACE`` the address of the first entry;
        for ``ABSOLUTE`` it is not used.
    """
    if encoding is AddressEncoding.ABSOLUTE:
        return entries.astype(np.uint64)
    base = np.uint64(anchor & _WORD)
    if encoding is AddressEncoding.BASE:
        return base + entries.view(np.uint32).astype(np.uint64)
    # Two's complement: adding the sign-extended number modulo 2^64 subtracts.
    signed = entries.astype(np.int64).view(np.uint64)
    if encoding is AddressEncoding.PLACE:
        return base + signed + np.arange(len(entries), dtype=np.uint64) * np.uint64(4)
    relative = np.uint64((anchor - 1) & _WORD) - signed
    return np.where(entries.astype(np.int64) >= 0, signed, relative)
