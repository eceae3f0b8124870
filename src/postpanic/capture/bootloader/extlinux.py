"""
``extlinux.conf``: U-Boot's menu, and EXTLINUX itself.

It is written by hand, by ``u-boot-update`` (Debian's u-boot-menu) from shell
files, or by ``update-extlinux`` (Alpine).

Sources: U-Boot's ``doc/README.pxe`` (keys are read in any case); ``u-boot-update(8)``; ``update-extlinux.conf``.
"""

from __future__ import annotations

import re

from postpanic.capture.bootloader.entries import KERNEL_CMDLINE, plan_kernel_cmdline
from postpanic.capture.bootloader.model import (
    BOOTED,
    CONFIGURED,
    INSTALLED,
    BootEntry,
    Command,
    Edits,
    Evidence,
    Loader,
    Plan,
)
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.words import assign_words, edit_line, find_assignments, replace_words

__all__ = ["EXTLINUX"]

CONFIGS = (
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/firmware/extlinux/extlinux.conf",
    "/boot/efi/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
)
U_BOOT_DEFAULTS = "/etc/default/u-boot"
U_BOOT_DIR = "/etc/u-boot-menu/conf.d"
_PACKAGES_DIR = "/usr/share/u-boot-menu/conf.d"
_READ_CONFIG = "/usr/share/u-boot-menu/read-config"
ALPINE = "/etc/update-extlinux.conf"
_VARIABLE = "U_BOOT_PARAMETERS"
_APPEND = r"[ \t]*(?i:append)[ \t]+"
_LINE = re.compile(r"^[ \t]*(?i:(label|menu[ \t]+label|append))[ \t]+(.*)$", re.MULTILINE)


def _find_configs(tree: BootTree) -> list[str]:
    found: dict[object, str] = {}
    for path in CONFIGS:
        if tree.has(path):
            found.setdefault(tree.find(path), path)
    return list(found.values())


def _detect(tree: BootTree) -> Evidence | None:
    configs = _find_configs(tree)
    programs = [path for name in ("u-boot-update", "update-extlinux") if (path := tree.find_program(name))]
    if not configs and not programs:
        return None
    firmware = tree.host.path("proc/device-tree/chosen/u-boot,version")
    booted = bool(configs) and firmware.exists()
    reasons = [*configs, *programs, *(["/proc/device-tree/chosen/u-boot,version"] if booted else [])]
    return Evidence(BOOTED if booted else CONFIGURED if configs else INSTALLED, tuple(reasons))


def _read_entries(tree: BootTree) -> list[BootEntry]:
    entries = []
    for path in _find_configs(tree):
        title = ""
        for key, value in _LINE.findall(tree.read_text(path)):
            if key.lower() == "append":
                entries.append(BootEntry(path, title, value.strip()))
            else:
                title = value.strip()
    return entries


def _plan(tree: BootTree, values: tuple[str, ...]) -> Plan:
    edits = Edits(tree)
    configs = tuple(_find_configs(tree))
    if tree.find_program("u-boot-update"):
        _plan_u_boot(edits, tree, values)
        command = Command(("u-boot-update",), configs[:1])
    elif tree.find_program("update-extlinux") and tree.has(ALPINE):
        edits.change(ALPINE, lambda text: assign_words(text, "default_kernel_opts", values))
        command = Command(("update-extlinux",), configs[:1])
    else:
        for path in configs:
            edits.change(path, lambda text: edit_line(text, _APPEND, values))
        return Plan("extlinux", edits.changed, manual=_find_lacking(tree, configs, values))
    return Plan("extlinux", edits.changed, (command,) if edits.changed else ())


def _find_lacking(tree: BootTree, configs: tuple[str, ...], values: tuple[str, ...]) -> tuple[str, ...]:
    """Find a configuration whose entries have no command line of their own."""
    words = " ".join(f"crashkernel={value}" for value in values)
    lacking = [path for path in configs if values and not re.search(rf"(?m)^{_APPEND}", tree.read_text(path))]
    return tuple(f"add a line to each label of {path}: append {words}" for path in lacking)


def _plan_u_boot(edits: Edits, tree: BootTree, values: tuple[str, ...]) -> None:
    """Edit the file that settles the parameters: the last that assigns them does."""
    script = tree.read_text(tree.find_program("u-boot-update")) + tree.read_text(_READ_CONFIG)
    places = [U_BOOT_DEFAULTS]
    if U_BOOT_DIR in script:
        places += tree.list_files(_PACKAGES_DIR, ".conf") + tree.list_files(U_BOOT_DIR, ".conf")
    given = {path: _find_parameters(tree.read_text(path)) for path in places}
    settling = next((path for path in reversed(places) if given[path]), "")
    if settling.startswith("/etc/"):
        edits.change(settling, lambda text: _assign(text, values))
        return
    if not settling and KERNEL_CMDLINE in script and tree.has(KERNEL_CMDLINE):
        plan_kernel_cmdline(edits, tree, values)
        return
    default = given[settling] if settling else _find_default(script)
    line = replace_words(default, values)
    if line == default:
        return
    place = f"{U_BOOT_DIR}/zz-postpanic.conf" if settling else U_BOOT_DEFAULTS
    kept = edits.read_text(place)
    gap = "" if not kept or kept.endswith("\n") else "\n"
    edits.write_text(place, f'{kept}{gap}{_VARIABLE}="{line}"\n')


def _find_parameters(text: str) -> str:
    """Return what a file assigns, without its quotes; empty: nothing."""
    found = find_assignments(text, _VARIABLE)
    return found[-1][2].strip("\"'") if found else ""


def _assign(text: str, values: tuple[str, ...]) -> str:
    return assign_words(text, _VARIABLE, values)


def _find_default(script: str) -> str:
    """Find the parameters that the program has for those who say nothing."""
    found = re.search(rf"{_VARIABLE}=\"?\$\{{{_VARIABLE}:-([^}}]*)\}}", script)
    return found[1].strip("\"'") if found else "ro quiet"


EXTLINUX = Loader("extlinux", "extlinux.conf (U-Boot, EXTLINUX)", _detect, _read_entries, _plan)
