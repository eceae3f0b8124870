"""
The exception tree, with the exit status of each branch.

::

    PostpanicError                 1   postpanic could not do it
    ├── ProcessError               1   a program we started failed
    ├── OutputError                1   what was to be written cannot be written
    │   ├── NoSpaceError           1   the disk is full, or the limit is reached
    │   └── OutputGoneError      141   the reader of the pipe went away
    ├── FileFaultError             2   the file is at fault
    │   ├── NotADumpError          2   no format that is known
    │   ├── TruncatedError         2   the file ends too early
    │   ├── CorruptError           2   a field holds what it must not
    │   ├── UnsupportedError       2   known, but not readable here
    │   └── MismatchError          2   two files that do not belong together
    ├── AbsentError                3   the page or the fact is not there
    │   ├── PageAbsentError        3   physical memory that the dump does not hold
    │   ├── TranslationError       3   a virtual address that no page table maps
    │   └── FactAbsentError        3   a symbol, type or table that the dump does not hold
    ├── NotReadyError              4   the machine is not ready to capture
    └── UsageError                64   what the user typed

Everything a user can cause ends in one of these. ``str(error)`` is the one
line that is shown (without the ``error[code]:`` prefix); the hint, when there
is one, says what to do. Errors that only one module raises are declared there,
derived from a class of this tree.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AbsentError",
    "CorruptError",
    "FactAbsentError",
    "FileFaultError",
    "MismatchError",
    "NoSpaceError",
    "NotADumpError",
    "NotReadyError",
    "OutputError",
    "OutputGoneError",
    "PageAbsentError",
    "PostpanicError",
    "ProcessError",
    "TranslationError",
    "TruncatedError",
    "UnsupportedError",
    "UsageError",
]


class PostpanicError(Exception):
    """
    Base of every error that postpanic raises on purpose.

    Parameters
    ----------
    message : str
        What is wrong, lower case, no full stop: the value found and the value
        allowed. Addresses and offsets in hex, sizes in decimal with the unit.
    where : str
        The file, and the place in it: ``vmcore+0x2010``. Empty: nowhere.
    hint : str
        What to do about it. Empty: nothing is known.
    """

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ProcessError(PostpanicError):
    """A program that postpanic started failed, was not found or took too long."""

    code = "process-failed"


class OutputError(PostpanicError):
    """What was to be written cannot be written: no permission, a failing disk, a file that is there already."""

    code = "output"


class NoSpaceError(OutputError):
    """The disk is full, a quota is used up, or the limit that the user set is reached."""

    code = "no-space"


class OutputGoneError(OutputError):
    """Nobody reads the pipe any more that the dump goes to."""

    code = "output-gone"
    exit_status = 141


class FileFaultError(PostpanicError):
    """The file is at fault."""

    code = "bad-file"
    exit_status = 2


class NotADumpError(FileFaultError):
    """The file is of no format that is known."""

    code = "not-a-dump"


class TruncatedError(FileFaultError):
    """The file, or a table in it, ends too early."""

    code = "truncated"


class CorruptError(FileFaultError):
    """A field holds a value that it must not hold."""

    code = "corrupt"


class UnsupportedError(FileFaultError):
    """The format or feature is known but cannot be read here."""

    code = "unsupported"


class MismatchError(FileFaultError):
    """Two files do not belong together: other build ID, other architecture."""

    code = "mismatch"


class AbsentError(PostpanicError):
    """The page or the fact is not there."""

    code = "absent"
    exit_status = 3


class PageAbsentError(AbsentError):
    """
    Physical memory that the dump does not hold.

    Attributes
    ----------
    paddr : int
        Physical address of the first byte that is missing.
    """

    code = "page-absent"

    def __init__(self, message: str, *, paddr: int, where: str = "", hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.paddr = paddr


class TranslationError(AbsentError):
    """
    A virtual address that no page table maps.

    Attributes
    ----------
    vaddr : int
        The virtual address, as it was asked for.
    """

    code = "not-mapped"

    def __init__(self, message: str, *, vaddr: int, where: str = "", hint: str = "") -> None:
        super().__init__(message, where=where, hint=hint)
        self.vaddr = vaddr


class FactAbsentError(AbsentError):
    """A symbol, type, table or note that the dump does not hold."""

    code = "fact-absent"


class NotReadyError(PostpanicError):
    """The machine is not ready to capture its crash."""

    code = "not-ready"
    exit_status = 4


class UsageError(PostpanicError):
    """What the user typed cannot be carried out."""

    code = "usage"
    exit_status = 64
