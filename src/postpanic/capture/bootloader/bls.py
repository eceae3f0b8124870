"""
GRUB that reads entries of the Boot Loader Specification: Fedora, Red Hat and its kin, what ``grubby`` edits.

The options are in the entries, or in ``kernelopts`` of GRUB's environment
block, which is 1024 bytes, filled up with ``#``. Kernels to come take theirs
from ``/etc/kernel/cmdline``, ``/etc/default/grub`` or the kernel that runs.

Sources: ``blscfg`` in Fedora's GRUB, ``10_linux.in`` and ``20-grub.install`` of its package;
``grub-core/lib/envblk.c`` (``GRUB_ENVBLK_SIGNATURE``).
"""

from __future__ import annotations

import re

from postpanic.capture.bootloader.entries import find_entry_files, parse_entry, plan_kernel_cmdline, set_options
from postpanic.capture.bootloader.grub import DEFAULTS, VARIABLES, has_blscfg
from postpanic.capture.bootloader.model import BOOTED, CONFIGURED, BootEntry, Edits, Evidence, Loader, Plan
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.words import assign_words, find_values, replace_words
from postpanic.errors import CorruptError

__all__ = ["BLS", "set_environment"]

SIGNATURE = "# GRUB Environment Block\n"
_ENVIRONMENTS = ("/boot/grub2/grubenv", "/boot/grub/grubenv")
_KERNELOPTS = re.compile(r"^kernelopts=(.*)$", re.MULTILINE)


def set_environment(text: str, values: tuple[str, ...], *, where: str = "") -> str:
    """
    Change ``crashkernel=`` in ``kernelopts`` of an environment block, whose size stays.

    Raises
    ------
    CorruptError
        If it is no environment block, or there is no room.
    """
    if not text.startswith(SIGNATURE):
        raise CorruptError("not an environment block of GRUB", where=where)
    edited = _KERNELOPTS.sub(lambda match: f"kernelopts={replace_words(match[1], values)}", text, count=1)
    if edited == text:
        return text
    size = len(text.encode(errors="surrogateescape"))
    body = edited.rstrip("#")
    room = size - len(body.encode(errors="surrogateescape"))
    if room < 0:
        raise CorruptError(f"no room in the {size} bytes of the environment block for {' '.join(values)}", where=where)
    return body + "#" * room


def _find_environment(tree: BootTree) -> str:
    found = (path for path in _ENVIRONMENTS if tree.has(path))
    return next((path for path in found if _KERNELOPTS.search(tree.read_text(path))), "")


def _detect(tree: BootTree) -> Evidence | None:
    files = find_entry_files(tree, ("/boot",))
    if not files or not has_blscfg(tree):
        return None
    reasons = [f"{files[0].rsplit('/', 1)[0]}: {len(files)} entries", "blscfg in GRUB's configuration"]
    info = tree.read_efi_text("LoaderInfo")
    if info.startswith("GRUB"):
        reasons.append(f"EFI variable LoaderInfo: {info}")
    booted = "BOOT_IMAGE=(" in tree.host.read_command_line()
    return Evidence(BOOTED if booted or info.startswith("GRUB") else CONFIGURED, tuple(reasons))


def _read_entries(tree: BootTree) -> list[BootEntry]:
    environment = _find_environment(tree)
    options = _KERNELOPTS.search(tree.read_text(environment)) if environment else None
    entries = []
    for path in find_entry_files(tree, ("/boot",)):
        entry = parse_entry(path, tree.read_text(path))
        line = entry.command_line.replace("$kernelopts", options[1]) if options else entry.command_line
        entries.append(BootEntry(path, entry.title, line))
    return entries


def _plan(tree: BootTree, values: tuple[str, ...]) -> Plan:
    edits, remarks = Edits(tree), []
    environment = _find_environment(tree)
    uses_environment = False
    for path in find_entry_files(tree, ("/boot",)):
        text = tree.read_text(path)
        by_environment = environment and "$kernelopts" in parse_entry(path, text).command_line
        uses_environment |= bool(by_environment)
        edits.write_text(path, set_options(text, () if by_environment else values))
    if uses_environment:
        edits.change(environment, lambda text: set_environment(text, values, where=environment))
    elif environment and find_values(tree.read_text(environment)):
        remarks.append(f"{environment} has a crashkernel= that no entry uses")
    plan_kernel_cmdline(edits, tree, values)
    if tree.has(DEFAULTS):
        edits.change(DEFAULTS, lambda text: _set_defaults(text, values))
    return Plan("bls", edits.changed, remarks=tuple(remarks))


def _set_defaults(text: str, values: tuple[str, ...]) -> str:
    for name in VARIABLES:
        text = assign_words(text, name, values if name == VARIABLES[0] else ())
    return text


BLS = Loader("bls", "GRUB with boot loader entries", _detect, _read_entries, _plan)
