"""
Files that hold binary records of hardware errors.

Such are the records of a firmware's store, of which pstore shows machine checks
as ``mce-erst-NUMBER``, and what firmware left for the next boot, which the
kernel shows as ``/sys/firmware/acpi/tables/data/BERT``.
"""

from __future__ import annotations

import re
import struct

from postpanic.errors import FileFaultError
from postpanic.evidence.hardware.cper import decode_cper, decode_error_status, error_of_check, errors_of
from postpanic.evidence.hardware.mce_record import LEAST_BYTES, decode_mce_record
from postpanic.evidence.hardware.model import HardwareError

__all__ = ["FILE_LIMIT", "decode_record_file", "is_record_file"]

FILE_LIMIT = 16 << 20
"""Bytes of a file that are looked at; stores of firmware have less than one MiB."""

_RECORDS_LIMIT = 4096
_HEADER_BYTES = 128
_SIGNATURE = b"CPER"
_SIGNATURE_END = b"\xff\xff\xff\xff"
_MCE_NAME = re.compile(r"mce-[a-z_]{1,32}-\d{1,20}(?:\.bin)?")
_MCE_MOST_BYTES = 4096
_BLOCK = struct.Struct("<5I")


def is_record_file(data: bytes, name: str) -> bool:
    r"""
    Tell whether a file holds binary records.

    Parameters
    ----------
    data : bytes
        Its first bytes, 20 or more.
    name : str
        Its name without directories: a machine check has no signature of its own.

    Examples
    --------
    >>> is_record_file(b"CPER" + bytes(2) + b"\xff" * 4, "x"), is_record_file(b"CPER is an acronym", "notes.txt")
    (True, False)
    """
    if data[:4] == _SIGNATURE and data[6:10] == _SIGNATURE_END:
        return True
    return _MCE_NAME.fullmatch(name) is not None or name == "BERT"


def decode_record_file(data: bytes, name: str) -> list[HardwareError]:
    """
    Give the errors of a file of binary records.

    Parameters
    ----------
    data : bytes
    name : str
        As for :func:`is_record_file`; named in errors.

    Raises
    ------
    FileFaultError
        If the first record cannot be decoded; one that is damaged behind it ends the list.
    """
    if data[:4] == _SIGNATURE:
        return _records(data, name)
    if name == "BERT":
        return _blocks(data, name)
    if len(data) > _MCE_MOST_BYTES or len(data) < LEAST_BYTES:
        raise FileFaultError(
            f"a machine check has {LEAST_BYTES} to {_MCE_MOST_BYTES} bytes, this has {len(data)}", where=name
        )
    return [error_of_check(decode_mce_record(data, where=name))]


def _records(data: bytes, name: str) -> list[HardwareError]:
    errors: list[HardwareError] = []
    place = 0
    for number in range(_RECORDS_LIMIT):
        length = max(int.from_bytes(data[place + 20 : place + 24], "little"), _HEADER_BYTES)
        try:
            errors += errors_of(decode_cper(data[place : place + length], where=f"{name}+{place:#x}"))
        except FileFaultError:
            if not number:
                raise
            break
        place = data.find(_SIGNATURE, place + length)
        if place < 0:
            break
    return errors


def _blocks(data: bytes, name: str) -> list[HardwareError]:
    errors: list[HardwareError] = []
    place = 0
    for number in range(_RECORDS_LIMIT):
        length = _BLOCK.size + int.from_bytes(data[place + 12 : place + 16], "little")
        try:
            errors += errors_of(decode_error_status(data[place : place + length], where=f"{name}+{place:#x}"))
        except FileFaultError:
            if not number:
                raise
            break
        place += length
        if place + _BLOCK.size > len(data):
            break
    return errors
