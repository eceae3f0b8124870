"""
A page about one crash, as values: the verdict, facts, sections with tables and pictures, the output of the evidence.

Whoever makes a page knows what is on it, not what it looks like; whoever renders
it knows nothing of dumps.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from postpanic.findings.absent import Absent
from postpanic.findings.table import Answer, Table
from postpanic.findings.verdict import Verdict

__all__ = [
    "Arrow",
    "Bar",
    "Bars",
    "Fact",
    "Graph",
    "Line",
    "Listing",
    "Mark",
    "Node",
    "Output",
    "Page",
    "Picture",
    "Section",
    "Timeline",
]


class Fact(msgspec.Struct, frozen=True):
    """
    One thing that an engineer wants to know.

    Parameters
    ----------
    name : str
    value : str or Absent
    command : str
        A line of the prompt that shows it; empty: there is none.
    """

    name: str
    value: str | Absent
    command: str = ""


class Line(msgspec.Struct, frozen=True):
    """
    A line of a listing.

    Parameters
    ----------
    text : str
    is_marked : bool
        What the listing is shown for.
    level : str
        Of a line of the log: ``emerg`` … ``debug``; empty: none.
    """

    text: str
    is_marked: bool = False
    level: str = ""


class Listing(msgspec.Struct, frozen=True):
    """Lines of equal width: code, a log, a stack."""

    title: str
    lines: tuple[Line, ...]
    note: str = ""


class Bar(msgspec.Struct, frozen=True):
    """A part of a whole, or one of several sizes; *text* is its value as people read it."""

    label: str
    value: float
    text: str
    is_marked: bool = False


class Bars(msgspec.Struct, frozen=True, tag=True):
    """Sizes side by side."""

    title: str
    bars: tuple[Bar, ...]
    unit: str = ""


class Node(msgspec.Struct, frozen=True):
    """A task, lock, CPU or device; *category* settles its shape, *is_marked* that it is at fault."""

    name: str
    label: str
    category: str = "task"
    is_marked: bool = False


class Arrow(msgspec.Struct, frozen=True):
    """From the one that waits to what it waits for; or from a lock to its holder."""

    source: str
    target: str
    label: str = ""
    is_certain: bool = True


class Graph(msgspec.Struct, frozen=True, tag=True):
    """Who waits for whom."""

    title: str
    nodes: tuple[Node, ...]
    arrows: tuple[Arrow, ...]


class Mark(msgspec.Struct, frozen=True):
    """A moment of a timeline."""

    time_s: float
    label: str


class Timeline(msgspec.Struct, frozen=True, tag=True):
    """
    Messages over time.

    Parameters
    ----------
    title : str
    series : dict
        Times of messages by their level, seconds since boot.
    marks : tuple of Mark
    """

    title: str
    series: dict[str, tuple[float, ...]]
    marks: tuple[Mark, ...] = ()


Picture: TypeAlias = Bars | Graph | Timeline


class Section(msgspec.Struct, frozen=True):
    """
    A part of the page.

    Parameters
    ----------
    name : str
        Its anchor: lower case, words joined by ``-``.
    title : str
    note : str
        A sentence below the title.
    pictures, tables, listings
    is_open : bool
        Whether it is shown at once; else when the reader opens it.
    """

    name: str
    title: str
    note: str = ""
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    listings: tuple[Listing, ...] = ()
    is_open: bool = True


class Output(msgspec.Struct, frozen=True):
    """
    What a command of the prompt answers: evidence of findings.

    Parameters
    ----------
    command : str
    answer : Answer, optional
    lines : tuple of Line
        In place of an answer, where there is only text: the log.
    shows : tuple of str
        What findings point to in it; lines that hold one of them are marked.
    note : str
        Why there is nothing.
    """

    command: str
    answer: Answer | None = None
    lines: tuple[Line, ...] = ()
    shows: tuple[str, ...] = ()
    note: str = ""


class Page(msgspec.Struct, frozen=True):
    """
    The page.

    Parameters
    ----------
    title : str
    verdict : Verdict
    facts : tuple of Fact
    sections : tuple of Section
    evidence : tuple of Output
    made_of : str
        The file that it was made of.
    private_names : tuple of str
        Names that tell whose machine it is: of the host, of user programs.
    """

    title: str
    verdict: Verdict
    facts: tuple[Fact, ...] = ()
    sections: tuple[Section, ...] = ()
    evidence: tuple[Output, ...] = ()
    made_of: str = ""
    private_names: tuple[str, ...] = ()
