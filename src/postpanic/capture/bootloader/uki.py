"""
Unified kernel images: the command line is inside, made from ``/etc/kernel/cmdline`` or dracut's configuration.

Where the image is made here it is made anew. Where it came ready, an addon for
systemd's stub brings the words, if ``ukify`` is installed; with Secure Boot the
addon must be signed.

Sources: ``ukify(1)``, ``systemd-stub(7)``, ``kernel-install(8)``; ``dracut.conf(5)``; ``mkinitcpio(8)``;
sections: Microsoft's *PE Format*.
"""

from __future__ import annotations

import re
import struct

from postpanic.capture.bootloader.entries import KERNEL_CMDLINE, plan_kernel_cmdline
from postpanic.capture.bootloader.model import BOOTED, CONFIGURED, BootEntry, Command, Edits, Evidence, Loader, Plan
from postpanic.capture.bootloader.systemd_boot import PARTITIONS
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.words import assign_words, edit_line, find_values, is_assigned

__all__ = ["ADDON", "UKI", "read_section"]

ADDON = "loader/addons/postpanic-crashkernel.addon.efi"
UKIFY_CONFIGS = ("/etc/kernel/uki.conf", "/etc/systemd/ukify.conf")
CMDLINE_DIR = "/etc/cmdline.d"
DRACUT_CONF = "/etc/dracut.conf"
_SECTION_BYTES = 40
_HEADER_BYTES = 64 << 10
_CMDLINE_LIMIT_BYTES = 64 << 10


def read_section(tree: BootTree, path: str, name: bytes) -> bytes | None:
    """Read a section of a PE file; None if it is no such file, or has none of that name."""
    found = tree.find(path)
    if found is None:
        return None
    try:
        with found.open("rb") as stream:
            head = stream.read(_HEADER_BYTES)
            place = _find_section(head, name)
            if place is None or place[1] > _CMDLINE_LIMIT_BYTES:
                return None
            stream.seek(place[0])
            return stream.read(place[1])
    except (OSError, struct.error):
        return None


def _find_section(head: bytes, name: bytes) -> tuple[int, int] | None:
    if head[:2] != b"MZ":
        return None
    (pe_at,) = struct.unpack_from("<I", head, 0x3C)
    if head[pe_at : pe_at + 4] != b"PE\0\0":
        return None
    count, optional_bytes = *struct.unpack_from("<H", head, pe_at + 6), *struct.unpack_from("<H", head, pe_at + 20)
    at = pe_at + 24 + optional_bytes
    for number in range(min(count, 96)):
        entry = head[at + number * _SECTION_BYTES : at + (number + 1) * _SECTION_BYTES]
        if len(entry) == _SECTION_BYTES and entry[:8].rstrip(b"\0") == name:
            virtual_bytes, _, raw_bytes, raw_at = struct.unpack_from("<IIII", entry, 8)
            return raw_at, min(virtual_bytes, raw_bytes)
    return None


def _find_images(tree: BootTree) -> list[str]:
    found: dict[object, str] = {}
    for place in PARTITIONS:
        for path in tree.list_files(f"{place}/EFI/Linux", ".efi"):
            found.setdefault(tree.find(path), path)
    return list(found.values())


def _detect(tree: BootTree) -> Evidence | None:
    images, info = _find_images(tree), tree.read_efi_text("StubInfo")
    reasons = [f"{path}" for path in images[:1]]
    if info:
        reasons.append(f"EFI variable StubInfo: {info}")
    if not images:
        return None
    return Evidence(BOOTED if info else CONFIGURED, tuple(reasons))


def _read_entries(tree: BootTree) -> list[BootEntry]:
    entries = []
    for path in _find_images(tree):
        inside = read_section(tree, path, b".cmdline")
        line = inside.rstrip(b"\0").decode(errors="replace").strip() if inside is not None else ""
        added = [_read_addon(tree, addon) for addon in _list_addons(tree, path)]
        entries.append(BootEntry(path, "", " ".join(filter(None, (line, *added)))))
    return entries


def _list_addons(tree: BootTree, image: str) -> list[str]:
    shared = [path for place in PARTITIONS for path in tree.list_files(f"{place}/loader/addons", ".addon.efi")]
    own = tree.list_files(f"{image}.extra.d", ".addon.efi")
    by_file = {tree.find(path): path for path in reversed([*shared, *own])}
    return sorted(by_file.values())


def _read_addon(tree: BootTree, path: str) -> str:
    inside = read_section(tree, path, b".cmdline") or b""
    return inside.rstrip(b"\0").decode(errors="replace").strip()


def _plan(tree: BootTree, values: tuple[str, ...]) -> Plan:
    entries = _read_entries(tree)
    edits = Edits(tree)
    command = _plan_sources(edits, tree, values)
    if command is None:
        return _plan_addon(tree, values, entries)
    if not edits.changed and all(entry.values == values for entry in entries):
        return Plan("uki")
    preview = () if edits.changed else tuple((entry.command_line, " ".join(values)) for entry in entries[:1])
    return Plan("uki", edits.changed, (command,), preview=preview, remarks=_secure_boot_remark(tree))


def _plan_sources(edits: Edits, tree: BootTree, values: tuple[str, ...]) -> Command | None:
    """Edit what the images here are made from; None: it is not known, or they came ready."""
    pieces = tree.list_files(CMDLINE_DIR, ".conf")
    dracut = [DRACUT_CONF, *tree.list_files("/etc/dracut.conf.d", ".conf")]
    lines = [path for path in dracut if is_assigned(tree.read_text(path), "kernel_cmdline")]
    if tree.find_program("mkinitcpio") and (tree.has(KERNEL_CMDLINE) or pieces):
        if tree.has(KERNEL_CMDLINE):
            plan_kernel_cmdline(edits, tree, values)
        else:
            _plan_pieces(edits, tree, pieces, values)
        return Command(("mkinitcpio", "-P"))
    if tree.find_program("dracut") and lines:
        for path in lines:
            given = values if path == lines[-1] else ()
            edits.change(path, lambda text, given=given: assign_words(text, "kernel_cmdline", given))  # type: ignore[misc]
        return Command(("dracut", "--regenerate-all", "--force"))
    if not tree.find_program("kernel-install"):
        return None
    configured = [path for path in UKIFY_CONFIGS if re.search(r"(?m)^Cmdline=[^@\s]", tree.read_text(path))]
    if configured:
        edits.change(configured[0], lambda text: edit_line(text, "Cmdline=", values))
    elif tree.has(KERNEL_CMDLINE):
        plan_kernel_cmdline(edits, tree, values)
    else:
        return None
    return _spell_kernel_install(tree)


def _plan_pieces(edits: Edits, tree: BootTree, pieces: list[str], values: tuple[str, ...]) -> None:
    asked = [path for path in pieces if find_values(tree.read_text(path))]
    target = (asked or [f"{CMDLINE_DIR}/postpanic.conf"])[-1]
    for path in asked:
        edits.change(path, lambda text: edit_line(text, "(?=[^#])", ()))
    words = " ".join(f"crashkernel={value}" for value in values)
    if words:
        kept = edits.read_text(target)
        gap = "" if not kept or kept.endswith("\n") else "\n"
        edits.write_text(target, f"{kept}{gap}{words}\n")


def _spell_kernel_install(tree: BootTree) -> Command:
    program = tree.find_program("kernel-install")
    # Since systemd 255; the program is a binary since 250, a script before.
    if b"add-all" in (tree.read(program) or b""):
        return Command(("kernel-install", "add-all"))
    release = tree.host.release
    return Command(("kernel-install", "add", release, f"/usr/lib/modules/{release}/vmlinuz"))


def _plan_addon(tree: BootTree, values: tuple[str, ...], entries: list[BootEntry]) -> Plan:
    words = " ".join(f"crashkernel={value}" for value in values)
    place = next((place for place in PARTITIONS if tree.list_files(f"{place}/EFI/Linux", ".efi")), PARTITIONS[0])
    path = f"{place}/{ADDON}"
    if entries and all(entry.values == values for entry in entries):
        return Plan("uki")
    preview = tuple((entry.command_line, f"{entry.command_line} {words}".strip()) for entry in entries[:1])
    if not values:
        manual = (f"the command line is inside of {entries[0].where if entries else 'the image'}: make it anew",)
        return Plan("uki", preview=preview, manual=manual)
    if not tree.find_program("ukify"):
        manual = (f"add to the command line of the unified kernel image: {words}",)
        return Plan("uki", preview=preview, manual=manual)
    command = Command(("ukify", "build", f"--cmdline={words}", f"--output={path}"), (path,))
    # Undone by taking the addon away.
    return Plan("uki", commands=(command,), undo_commands=(), preview=preview, remarks=_secure_boot_remark(tree))


def _secure_boot_remark(tree: BootTree) -> tuple[str, ...]:
    if not tree.host.read_secure_boot():
        return ()
    return ("Secure Boot is on: what is made must be signed, or the firmware refuses it",)


UKI = Loader("uki", "unified kernel images", _detect, _read_entries, _plan)
