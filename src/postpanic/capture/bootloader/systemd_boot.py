"""
systemd-boot: entries on the firmware's partition, made by ``kernel-install`` or by hand.

The entries that are there are edited, since ``kernel-install`` would make only
those anew whose kernels it knows; kernels to come take their command line from
``/etc/kernel/cmdline``, or without it from the kernel that runs.

Source: ``kernel-install(8)``, ``src/kernel-install/90-loaderentry.install.in`` of systemd.
"""

from __future__ import annotations

from postpanic.capture.bootloader.entries import (
    KERNEL_CMDLINE,
    find_entry_files,
    parse_entry,
    plan_kernel_cmdline,
    set_options,
)
from postpanic.capture.bootloader.grub import has_blscfg
from postpanic.capture.bootloader.model import (
    BOOTED,
    CONFIGURED,
    INSTALLED,
    BootEntry,
    Edits,
    Evidence,
    Loader,
    Plan,
)
from postpanic.capture.bootloader.tree import BootTree

__all__ = ["PARTITIONS", "SYSTEMD_BOOT"]

PARTITIONS = ("/boot", "/efi", "/boot/efi")
_CONFIG = "loader/loader.conf"


def _detect(tree: BootTree) -> Evidence | None:
    info = tree.read_efi_text("LoaderInfo")
    binaries = [
        path
        for place in PARTITIONS
        for path in tree.list_files(f"{place}/EFI/systemd", ".efi")
        if path.rsplit("/", 1)[1].lower().startswith("systemd-boot")
    ]
    # GRUB can read the same entries; its own module has them then.
    files = [] if has_blscfg(tree) else find_entry_files(tree, PARTITIONS)
    configs = [f"{place}/{_CONFIG}" for place in PARTITIONS if tree.has(f"{place}/{_CONFIG}")]
    reasons = [*binaries[:1], *configs[:1]]
    reasons += [f"{files[0].rsplit('/', 1)[0]}: {len(files)} entries"] if files else []
    strength = CONFIGURED if files else INSTALLED
    if info.startswith("systemd-boot"):
        reasons.append(f"EFI variable LoaderInfo: {info}")
        strength = BOOTED
    elif info or not (binaries or configs or files):
        # Another one has booted, or this one is not there.
        strength = INSTALLED
    return Evidence(strength, tuple(reasons)) if reasons else None


def _read_entries(tree: BootTree) -> list[BootEntry]:
    return [parse_entry(path, tree.read_text(path)) for path in find_entry_files(tree, PARTITIONS)]


def _plan(tree: BootTree, values: tuple[str, ...]) -> Plan:
    edits = Edits(tree)
    files = find_entry_files(tree, PARTITIONS)
    for path in files:
        text = tree.read_text(path)
        if not parse_entry(path, text).command_line and "\nefi" in f"\n{text}":
            # It starts another program of the firmware, not a kernel of ours.
            continue
        edits.write_text(path, set_options(text, values))
    plan_kernel_cmdline(edits, tree, values)
    remarks = []
    if files and not tree.has(KERNEL_CMDLINE):
        remarks.append(f"there is no {KERNEL_CMDLINE}: kernels to come take the command line of the one that runs")
    return Plan("systemd-boot", edits.changed, remarks=tuple(remarks))


SYSTEMD_BOOT = Loader("systemd-boot", "systemd-boot", _detect, _read_entries, _plan)
