"""A machine check out of a few numbers, as somebody has them from a screen or another program's log."""

from __future__ import annotations

import re
from typing import NamedTuple

from msgspec.structs import replace

from postpanic.errors import UsageError
from postpanic.evidence.hardware.cper import error_of_check
from postpanic.evidence.hardware.machine_check import VENDORS
from postpanic.evidence.hardware.model import HardwareError, MachineCheck

__all__ = ["Processor", "decode_registers", "decode_status", "parse_cpu", "parse_registers"]

NO_BANK = -1
_POSITIONAL = ("status", "addr", "misc")
_NAMES = ("status", "addr", "misc", "bank", "mcgstatus", "mcgcap", "synd", "ipid", "cpu", "socket")


def decode_status(
    status: int,
    *,
    addr: int = 0,
    misc: int = 0,
    bank: int = NO_BANK,
    vendor: str = "",
    family: int = 0,
    model: int = 0,
    **registers: int,
) -> HardwareError:
    """
    Say what a machine check's registers mean.

    Parameters
    ----------
    status, addr, misc : int
        MCi_STATUS, MCi_ADDR, MCi_MISC.
    bank : int
        -1: not known.
    vendor : str
        ``Intel``, ``AMD`` …, in any case; empty: the architectural codes only, as Intel defines them.
    family, model : int
        Of the processor, extended; 0: not known.
    **registers : int
        Others by their names in :class:`MachineCheck`: ``ipid``, ``synd``, ``mcgcap``, ``mcgstatus``, ``cpu`` …

    Raises
    ------
    UsageError
        If the vendor is not known.
    """
    number = _vendor(vendor) if vendor else None
    check = MachineCheck(
        status=status, addr=addr, misc=misc, bank=bank, vendor=number, cpuid=_cpuid(family, model), **registers
    )
    error = error_of_check(check)
    return error if "cpu" in registers else replace(error, cpu=None)


class Processor(NamedTuple):
    """Which processor reported a machine check."""

    vendor: str = ""
    family: int = 0
    model: int = 0


def decode_registers(registers: dict[str, int], processor: Processor | None = None) -> HardwareError:
    """Say what registers mean that :func:`parse_registers` gave."""
    cpu = processor or Processor()
    return decode_status(vendor=cpu.vendor, family=cpu.family, model=cpu.model, **registers)


def parse_registers(text: str) -> dict[str, int]:
    """
    Read ``STATUS[,ADDR[,MISC]]``, or the registers by name.

    Raises
    ------
    UsageError
        If a number or a name is none.

    Examples
    --------
    >>> parse_registers("be00000000800400,1000")
    {'status': 13690942867214697472, 'addr': 4096}
    >>> parse_registers("bank=17,status=0xdc2040000000011b,ipid=9600050f00")["bank"]
    17
    """
    values: dict[str, int] = {}
    for place, part in enumerate(text.split(",")):
        name, equals, number = part.strip().partition("=")
        if not equals:
            if place >= len(_POSITIONAL):
                raise UsageError(f"too many numbers in {text!r}: STATUS,ADDR,MISC or NAME=NUMBER")
            name, number = _POSITIONAL[place], name
        name = name.lower()
        if name not in _NAMES:
            raise UsageError(f"no register is called {name!r}; there are {', '.join(_NAMES)}")
        values[name] = _number(name, number)
    if "status" not in values:
        raise UsageError(f"no status in {text!r}", hint="the first number is MCi_STATUS, or status=NUMBER")
    return values


def parse_cpu(text: str) -> Processor:
    """
    Read ``VENDOR[:FAMILY[:MODEL]]``; the numbers are decimal, or hexadecimal with ``0x``.

    Raises
    ------
    UsageError
        If the vendor is not known, or a number is none.

    Examples
    --------
    >>> parse_cpu("Intel:6:85")
    Processor(vendor='Intel', family=6, model=85)
    """
    vendor, *words = text.split(":")
    _vendor(vendor)
    if len(words) > 2:
        raise UsageError(f"too many parts in {text!r}: VENDOR:FAMILY:MODEL")
    numbers: list[int] = []
    for name, word in zip(("family", "model"), words, strict=False):
        if re.fullmatch(r"0x[0-9a-fA-F]{1,4}|\d{1,4}", word) is None:
            raise UsageError(f"the processor's {name} is {word!r}, must be a number")
        numbers.append(int(word, 16 if word.startswith("0x") else 10))
    return Processor(vendor, *numbers)


def _number(name: str, text: str) -> int:
    """Read a number: registers are hexadecimal, counts are decimal."""
    is_count = name in {"bank", "cpu", "socket"}
    pattern = r"\d{1,6}" if is_count else r"(?:0x)?[0-9a-fA-F]{1,16}"
    text = text.strip()
    if re.fullmatch(pattern, text) is None:
        raise UsageError(f"{name} is {text!r}, must be {'a decimal number' if is_count else 'up to 16 hex digits'}")
    return int(text, 10 if is_count else 16)


def _vendor(name: str) -> int:
    for number, known in VENDORS.items():
        if known.lower() == name.lower():
            return number
    raise UsageError(f"no maker of processors is called {name!r}; there are {', '.join(VENDORS.values())}")


def _cpuid(family: int, model: int) -> int:
    base, extended = (0xF, family - 0xF) if family > 0xF else (family, 0)
    return (extended & 0xFF) << 20 | (model >> 4 & 0xF) << 16 | (base & 0xF) << 8 | (model & 0xF) << 4
