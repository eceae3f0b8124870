"""A value that is not there, and why."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["Absent", "Reason"]


class Reason(StrEnum):
    """Why a value is missing; the spelling is what JSON shows."""

    EXCLUDED = "excluded"
    """The page was left out of the dump by its dump level."""
    NOT_PRESENT = "not-present"
    """The kernel does not have it: no such symbol, member, structure or page."""
    UNREADABLE = "unreadable"
    """The address is not mapped, or the page cannot be read or decoded."""
    NO_TYPE = "no-type-information"
    """Nothing describes the type that is needed."""
    DAMAGED = "damaged"
    """It was read, and cannot be true."""
    NOT_APPLICABLE = "not-applicable"
    """The question makes no sense here."""


class Absent(msgspec.Struct, frozen=True):
    """
    A missing cell.

    Parameters
    ----------
    reason : Reason
    detail : str
        One line for people: which address, member or symbol.
    """

    reason: Reason
    detail: str = ""

    @property
    def mark(self) -> str:
        """What stands in the cell of a text table: short and in brackets, never to be taken for a value."""
        return _MARKS[self.reason]


_MARKS = {
    Reason.EXCLUDED: "(excluded)",
    Reason.NOT_PRESENT: "(none)",
    Reason.UNREADABLE: "(unreadable)",
    Reason.NO_TYPE: "(no type)",
    Reason.DAMAGED: "(damaged)",
    Reason.NOT_APPLICABLE: "-",
}
