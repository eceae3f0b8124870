"""Records of persistent storage, and the crashes that are made of them, as values."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["Crash", "Quality", "Record", "RecordType"]


class RecordType(StrEnum):
    """
    What a record holds: ``pstore_type_names`` of the kernel's fs/pstore/platform.c.

    A type that is not among them (vendors have their own) is UNKNOWN; the name of the record tells it.
    """

    DMESG = "dmesg"
    MCE = "mce"
    CONSOLE = "console"
    FTRACE = "ftrace"
    RTAS = "rtas"
    POWERPC_OFW = "powerpc-ofw"
    POWERPC_COMMON = "powerpc-common"
    PMSG = "pmsg"
    POWERPC_OPAL = "powerpc-opal"
    CPER = "cper"
    """A record of the firmware's own in the store that ERST gives access to."""
    UNKNOWN = "unknown"


class Quality(msgspec.Struct, frozen=True):
    """
    How far what was stored can be trusted.

    Parameters
    ----------
    is_checked : bool
        Whether parity (ECC) covered it.
    corrected_bytes : int
        Bytes that parity has put right.
    bad_blocks : int
        Blocks that had more errors than parity can put right.
    notes : tuple of str
        What else speaks against it, one line each.
    """

    is_checked: bool = False
    corrected_bytes: int = 0
    bad_blocks: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether nothing is known against it."""
        return not (self.bad_blocks or self.notes)

    def __str__(self) -> str:
        """Spell it in a few words."""
        corrected = f"{self.corrected_bytes} {'byte' if self.corrected_bytes == 1 else 'bytes'} corrected"
        if self.bad_blocks:
            blocks = f"{self.bad_blocks} {'block' if self.bad_blocks == 1 else 'blocks'} beyond repair"
            return f"{blocks}, {corrected}" if self.corrected_bytes else blocks
        if self.corrected_bytes:
            return f"{corrected} by parity"
        if self.notes:
            return "damaged"
        return "good, by its parity" if self.is_checked else "nothing known against it"

    def joined(self, other: Quality) -> Quality:
        """Make the marks of two things that became one."""
        return Quality(
            self.is_checked or other.is_checked,
            self.corrected_bytes + other.corrected_bytes,
            self.bad_blocks + other.bad_blocks,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    def noted(self, *notes: str) -> Quality:
        """Add notes."""
        return msgspec.structs.replace(self, notes=(*self.notes, *notes))


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """
    One record.

    Parameters
    ----------
    type : RecordType
    backend : str
        As in the names of a mounted pstore: ``ramoops``, ``efi_pstore``, ``erst``, ``pstore_blk``; ``mtdoops``.
    name : str
        The name of its file in a mounted pstore, or what it would be.
    source : str
        Where it was read: a path, and the place in it (``+0x2000``) where it is part of an image.
    data : bytes
        What was recorded: decompressed, without the headers and notices of the storage.
    raw : bytes
        As it was stored.
    is_file : bool
        Whether *raw* is a whole file, and not a piece of an image.
    time_s : float, optional
        When it was written, seconds since 1970.
    id : int, optional
        The number in its name: of the record, not of the crash.
    reason : str
        Why the kernel wrote it: ``Panic``, ``Oops``, ``Emergency``, ``Shutdown`` …; empty: not said.
    count : int, optional
        Which dump since the boot, from 1.
    part : int, optional
        Which part of the dump, from 1: the newest text is in part 1.
    sequence : int, optional
        Which record of this storage, where the storage counts (mtdoops, pstore_blk).
    compression : str
        ``deflate``, ``zlib``, ``lzo``, ``lz4``, ``842``, ``zstd``; empty: none.
    release : str
        For ftrace: the kernel's version by the signature of the zone.
    quality : Quality
    """

    type: RecordType
    backend: str
    name: str
    source: str = ""
    data: bytes = b""
    raw: bytes = b""
    is_file: bool = False
    time_s: float | None = None
    id: int | None = None
    reason: str = ""
    count: int | None = None
    part: int | None = None
    sequence: int | None = None
    compression: str = ""
    release: str = ""
    quality: Quality = Quality()


class Crash(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the records of one event say together.

    Parameters
    ----------
    text : bytes
        The kernel log, oldest line first; empty where no record holds one.
    records : tuple of Record
        All that it was made of, in the order in which they were written as far as that is known.
    reasons : tuple of str
        ``Oops``, ``Panic`` …, in this order.
    backend : str
    time_s : float, optional
        Of the last dump, seconds since 1970.
    problems : tuple of str
        What is missing from it: parts, lines, blocks.
    quality : Quality
    """

    text: bytes = b""
    records: tuple[Record, ...] = ()
    reasons: tuple[str, ...] = ()
    backend: str = ""
    time_s: float | None = None
    problems: tuple[str, ...] = ()
    quality: Quality = Quality()
