"""Which boot loaders this machine has, and which of them boots it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from postpanic.capture.bootloader.bls import BLS
from postpanic.capture.bootloader.cmdline_txt import CMDLINE_TXT
from postpanic.capture.bootloader.extlinux import EXTLINUX
from postpanic.capture.bootloader.grub import GRUB
from postpanic.capture.bootloader.model import BOOTED, BootEntry, Evidence, Loader, Plan
from postpanic.capture.bootloader.ostree import OSTREE
from postpanic.capture.bootloader.systemd_boot import SYSTEMD_BOOT
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.uki import UKI
from postpanic.capture.bootloader.zipl import ZIPL
from postpanic.errors import FileFaultError, NotReadyError, UsageError

__all__ = ["LOADERS", "DetectedLoader", "choose_loaders", "detect_loaders", "find_rivals", "plan_unknown"]

LOADERS = (OSTREE, ZIPL, UKI, SYSTEMD_BOOT, BLS, GRUB, EXTLINUX, CMDLINE_TXT)
UNKNOWN = "unknown"
_KNOWN_BY_SIGHT = {
    "/boot/refind_linux.conf": "each quoted line of options",
    "/boot/limine.conf": "each cmdline:",
    "/boot/limine/limine.conf": "each cmdline:",
    "/boot/efi/limine.conf": "each cmdline:",
    "/etc/lilo.conf": 'append="…", then run lilo',
    "/etc/yaboot.conf": 'append="…", then run ybin',
    "/etc/default/flash-kernel": 'LINUX_KERNEL_CMDLINE="…", then run flash-kernel',
    "/boot/armbianEnv.txt": "extraargs=…",
    "/boot/uEnv.txt": "the line of the kernel's arguments",
    "/etc/elilo.conf": 'append="…"',
}
"""Configuration files of loaders that are not edited here, and where the words go."""


@dataclass(frozen=True)
class DetectedLoader:
    """
    A boot loader, and why it is taken to be there.

    Attributes
    ----------
    loader : Loader
    evidence : Evidence
    entries : tuple of BootEntry
        What it would boot.
    """

    loader: Loader
    evidence: Evidence
    entries: tuple[BootEntry, ...]


def detect_loaders(tree: BootTree, faults: list[str] | None = None) -> list[DetectedLoader]:
    """
    Find all boot loaders, the best founded first.

    Parameters
    ----------
    faults : list of str, optional
        Gets what could not be read; without it that is an error.

    Raises
    ------
    FileFaultError
        If a configuration may not be read.
    """
    found = []
    for loader in LOADERS:
        try:
            evidence = loader.detect(tree)
            if evidence is not None:
                found.append(DetectedLoader(loader, evidence, tuple(loader.read_entries(tree))))
        except FileFaultError as exc:
            if faults is None:
                raise
            faults.append(f"boot loader {loader.name}: {exc}")
    return sorted(found, key=lambda one: -one.evidence.strength)


def choose_loaders(found: list[DetectedLoader], wanted: str = "") -> list[DetectedLoader]:
    """
    Choose those that boot this machine.

    A chain is no choice: what systemd-boot starts may be unified images, which have
    their own command lines, so both are taken when this boot went through both.

    Raises
    ------
    UsageError
        If the one that is wanted is not there.
    NotReadyError
        If several could be it, and nothing says which.
    """
    if wanted:
        chosen = [one for one in found if one.loader.name == wanted]
        if not chosen:
            names = ", ".join(one.loader.name for one in found) or "none"
            raise UsageError(f"no boot loader {wanted} here: found {names}")
        return chosen
    if not found:
        return []
    booted = [one for one in found if one.evidence.strength == BOOTED]
    if booted:
        return [one for one in booted if one.entries] or booted[:1]
    best = [one for one in found if one.evidence.strength == found[0].evidence.strength]
    with_entries = [one for one in best if one.entries] or best
    # Both are made of files on one partition for one loader.
    if len(with_entries) > 1 and {one.loader.name for one in with_entries} != {"uki", "systemd-boot"}:
        several = "; ".join(f"{one.loader.name} ({one.evidence.reasons[0]})" for one in with_entries)
        raise NotReadyError(
            f"several boot loaders, and nothing says which one boots this machine: {several}",
            hint=f"--loader {with_entries[0].loader.name}",
        )
    return with_entries


def find_rivals(tree: BootTree) -> list[str]:
    """Find other programs that set ``crashkernel=`` by themselves, each with what it will do."""
    found = []
    # kdump(7) of openSUSE; Red Hat's auto_reset_crashkernel leaves alone what is not its own default.
    settings = tree.read_text("/etc/sysconfig/kdump")
    if re.search(r"""^KDUMP_UPDATE_BOOTLOADER=["']?(true|yes)""", settings, re.MULTILINE):
        found.append("/etc/sysconfig/kdump: with KDUMP_UPDATE_BOOTLOADER kdump.service may set its own value again")
    return found


def plan_unknown(tree: BootTree, values: tuple[str, ...]) -> Plan:
    """Say what is to be added by hand where the loader is not known."""
    words = " ".join(f"crashkernel={value}" for value in values)
    seen = [f"{path}: add to {where}: {words}" for path, where in _KNOWN_BY_SIGHT.items() if tree.has(path)]
    manual = seen or [f"add to the kernel's command line, where your boot loader has it: {words}"]
    return Plan(UNKNOWN, manual=tuple(manual))
