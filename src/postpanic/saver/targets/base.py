"""What the saver asks of a target, whatever kind it is."""

from __future__ import annotations

from typing import Protocol

from postpanic.dumps.sink import Sink

__all__ = ["Target"]


class Target(Protocol):
    """
    A place that takes the files of one dump.

    Used by one thread at a time. Every method raises
    :class:`~postpanic.errors.PostpanicError`, above all
    :class:`~postpanic.errors.OutputError` and
    :class:`~postpanic.errors.NoSpaceError`, with the target's name as ``where``;
    none waits for longer than the plan's ``timeout_s`` without any progress, as
    far as the kernel lets it. After a failure :meth:`open` may be tried again.
    """

    name: str
    """For messages."""

    def open(self, dump_name: str) -> None:
        """
        Get hold of the target, and make the place for a new dump in it.

        Parameters
        ----------
        dump_name : str
            Of the dump's directory, ``NODE-20260131-235959``; where it is taken a number is added.
        """

    @property
    def place(self) -> str:
        """Where the dump is, for messages and for the next boot; empty before :meth:`open`."""

    @property
    def takes_small_files(self) -> bool:
        """Whether there is a place for anything but the dump; else :meth:`put` does nothing."""

    def put(self, name: str, content: bytes) -> None:
        """Write a small file beside the dump: whole or not at all, safe on return, in place of one of that name."""

    def open_dump(self, name: str) -> Sink:
        """
        Start the dump; what was written by an attempt before is dropped.

        The file carries the name ``NAME-incomplete`` until :meth:`commit`, where the target has names.
        """

    @property
    def dump_files(self) -> tuple[str, ...]:
        """Names of the files that make up the dump, in order, as a manifest lists them."""

    def read_back(self) -> str | None:
        """Give a path under which the finished dump can be opened for the self-test; None where it cannot be read."""

    def room_bytes(self) -> int | None:
        """Tell how much more can be written; None where that cannot be known."""

    def commit(self) -> None:
        """Give the dump its final name, safe from a power cut on return."""

    def rotate(self) -> list[str]:
        """Delete old dumps as the plan allows, and name those deleted; only called when the new one is safe."""

    def close(self) -> None:
        """Let go: unmount, disconnect. Never raises, may be called at any time."""
