"""
Systems of ostree: the entries belong to deployments, and ``rpm-ostree kargs`` makes a new one.

Nothing is edited here: the entries are generated, and an edit would be lost with the next deployment.
"""

from __future__ import annotations

from postpanic.capture.bootloader.entries import find_entry_files, parse_entry
from postpanic.capture.bootloader.model import (
    BOOTED,
    CONFIGURED,
    BootEntry,
    Command,
    Evidence,
    Loader,
    Plan,
)
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.words import replace_words

__all__ = ["OSTREE"]

_BOOTED = "/run/ostree-booted"
_PLACES = ("/boot", "/boot/efi", "/efi")


def _detect(tree: BootTree) -> Evidence | None:
    files = find_entry_files(tree, _PLACES, ostree=True)
    reasons = [f"{path}" for path in (_BOOTED,) if tree.has(path)]
    if files:
        reasons.append(files[-1])
    if not reasons:
        return None
    return Evidence(BOOTED if tree.has(_BOOTED) else CONFIGURED, tuple(reasons))


def _read_entries(tree: BootTree) -> list[BootEntry]:
    # The highest number is the deployment that is booted next.
    files = sorted(find_entry_files(tree, _PLACES, ostree=True), reverse=True)
    return [parse_entry(path, tree.read_text(path)) for path in files]


def _plan(tree: BootTree, values: tuple[str, ...]) -> Plan:
    entries = _read_entries(tree)
    found = entries[0].values if entries else ()
    if found == values:
        return Plan("ostree")
    line = entries[0].command_line if entries else ""
    preview = ((line, replace_words(line, values)),)
    if not tree.find_program("rpm-ostree"):
        words = " ".join(f"crashkernel={value}" for value in values) or "no crashkernel="
        manual = (f"ostree admin kargs edit-in-place, or the image's own /usr/lib/bootc/kargs.d: {words}",)
        return Plan("ostree", preview=preview, manual=manual)
    commands = (Command(_spell_kargs(found, values)),)
    undo = (Command(_spell_kargs(values, found)),)
    return Plan("ostree", commands=commands, undo_commands=undo, preview=preview)


def _spell_kargs(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    away = (f"--delete-if-present=crashkernel={value}" for value in old)
    return ("rpm-ostree", "kargs", *away, *(f"--append=crashkernel={value}" for value in new))


OSTREE = Loader("ostree", "rpm-ostree", _detect, _read_entries, _plan)
