"""
GRUB with a ``grub.cfg`` that is made from ``/etc/default/grub``.

``grub-mkconfig`` reads ``/etc/default/grub``, and where a distribution has
taught it so (Debian, Ubuntu, openSUSE) the files of ``/etc/default/grub.d``
after it: whether it does is read in the script itself. Entries for rescue get
``GRUB_CMDLINE_LINUX`` alone, the others ``GRUB_CMDLINE_LINUX_DEFAULT`` behind it.

Source: ``util/grub-mkconfig.in`` and ``util/grub.d/10_linux.in`` of GRUB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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
from postpanic.capture.bootloader.words import assign_words, find_assignments, find_values, is_assigned

__all__ = ["DEFAULTS", "DROP_IN", "GRUB", "find_config", "has_blscfg"]

DEFAULTS = "/etc/default/grub"
DROP_IN_DIR = "/etc/default/grub.d"
DROP_IN = f"{DROP_IN_DIR}/zz-postpanic.cfg"
VARIABLES = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT")

_MAKERS = ("grub-mkconfig", "grub2-mkconfig")
_MADE = "BEGIN /etc/grub.d/"
_PLACES = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
_FIRMWARE_DIRS = ("/boot/efi/EFI", "/efi/EFI", "/boot/EFI")
_LINUX = re.compile(r"^[ \t]*linux(?:16|efi)?[ \t]+(\S+)[ \t]*(.*)$")
_ENTRY = re.compile(r"""^[ \t]*menuentry[ \t]+(?:'([^']*)'|"([^"]*)")""")
_XEN = re.compile(r"^[ \t]*multiboot2?[ \t]+\S*xen", re.MULTILINE)

_DROP_IN_TEXT = """\
# Made by "postpanic crashkernel", and taken away by "postpanic crashkernel --undo".
# What other files ask for is taken out first: the kernel would choose among them.
"""


def find_config(tree: BootTree) -> str:
    """Find the configuration that ``grub-mkconfig`` has made; empty if there is none."""
    # On the firmware's partition there may be a stub that leads to the real one: it must stay as it is.
    firmware = [f"{place}/{name}/grub.cfg" for place in _FIRMWARE_DIRS for name in tree.list_names(place)]
    found = [path for path in (*_PLACES, *firmware) if tree.has(path)]
    made = [path for path in found if _MADE in tree.read_text(path)]
    return next(iter(made), "")


def has_blscfg(tree: BootTree) -> bool:
    """Tell whether GRUB takes its entries from ``loader/entries``: Fedora's and Red Hat's ``blscfg``."""
    config = find_config(tree)
    if config and re.search(r"^[ \t]*blscfg\b", tree.read_text(config), re.MULTILINE):
        return True
    asked = re.findall(r"^[ \t]*GRUB_ENABLE_BLSCFG=[\"']?(\w+)", tree.read_text(DEFAULTS), re.MULTILINE)
    return asked[-1:] == ["true"]


def _detect(tree: BootTree) -> Evidence | None:
    if has_blscfg(tree):
        return None
    reasons, strength = [], 0
    maker, config = tree.find_program(*_MAKERS), find_config(tree)
    for path, found in ((maker, INSTALLED), (DEFAULTS, INSTALLED), (config, CONFIGURED)):
        if path and tree.has(path):
            reasons.append(path)
            strength = max(strength, found)
    info = tree.read_efi_text("LoaderInfo")
    if info.startswith("GRUB"):
        reasons.append(f"EFI variable LoaderInfo: {info}")
        strength = BOOTED
    if config and _is_booted(tree):
        reasons.append("BOOT_IMAGE= in /proc/cmdline")
        strength = BOOTED
    return Evidence(strength, tuple(reasons)) if reasons else None


def _is_booted(tree: BootTree) -> bool:
    found = re.search(r"(?:^| )BOOT_IMAGE=(\S+)", tree.host.read_command_line())
    return found is not None and found[1].startswith(("/", "(")) and not tree.read_efi_text("StubInfo")


def _read_entries(tree: BootTree) -> list[BootEntry]:
    config, title = find_config(tree), ""
    entries = []
    for line in tree.read_text(config).splitlines() if config else ():
        if found := _ENTRY.match(line):
            title = found[1] or found[2] or ""
        elif found := _LINUX.match(line):
            entries.append(BootEntry(config, title, found[2]))
    return entries


def _plan(tree: BootTree, values: tuple[str, ...]) -> Plan:
    edits = Edits(tree)
    maker = tree.find_program(*_MAKERS)
    if _reads_drop_ins(tree, maker):
        _plan_drop_in(edits, tree, values)
    else:
        edits.write_text(DEFAULTS, set_defaults(tree.read_text(DEFAULTS), values))
    config = find_config(tree)
    manual, remarks, commands = [], [], []
    updater = tree.find_program("update-grub")
    if updater and config:
        commands.append(Command((updater.rsplit("/", 1)[1],), (config,)))
    elif maker and config:
        commands.append(Command((maker.rsplit("/", 1)[1], "-o", config), (config,)))
    else:
        missing = "no grub.cfg that grub-mkconfig has made" if maker else "grub-mkconfig is not installed"
        manual.append(f"make grub.cfg anew: {missing}")
    if config and _XEN.search(tree.read_text(config)):
        remarks.append("entries with Xen: its own command line needs crashkernel= too (GRUB_CMDLINE_XEN)")
    changed = edits.changed
    return Plan("grub", changed, tuple(commands) if changed else (), None, (), tuple(manual), tuple(remarks))


def set_defaults(text: str, values: Sequence[str]) -> str:
    """Change ``/etc/default/grub``: the words go where there are some, else to the usual entries' variable."""
    first, usual = VARIABLES
    at_first = any(find_values(match) for match in _spell_values(text, first))
    at_usual = any(find_values(match) for match in _spell_values(text, usual))
    # Without the usual entries' variable nothing is added to it: the file may keep all in the other one.
    target = first if (at_first and not at_usual) or not is_assigned(text, usual) else usual
    for name in VARIABLES:
        text = assign_words(text, name, values if name == target else ())
    return text


def _spell_values(text: str, name: str) -> list[str]:
    return [match[2] for match in find_assignments(text, name)]


def _reads_drop_ins(tree: BootTree, maker: str) -> bool:
    return bool(maker) and "default/grub.d" in tree.read_text(maker)


def _plan_drop_in(edits: Edits, tree: BootTree, values: tuple[str, ...]) -> None:
    others = [path for path in (DEFAULTS, *tree.list_files(DROP_IN_DIR, ".cfg")) if path != DROP_IN]
    asked = any(_spell_words(tree.read_text(path)) for path in others)
    if not values and not asked and not tree.has(DROP_IN):
        return
    lines = [_DROP_IN_TEXT]
    lines += [f"{name}=\"$(printf '%s' \"${name}\" | sed -E 's/(^| )crashkernel=[^ ]*//g')\"\n" for name in VARIABLES]
    if values:
        words = " ".join(f"crashkernel={value}" for value in values)
        lines.append(f'{VARIABLES[1]}="${VARIABLES[1]} {words}"\n')
    edits.write_text(DROP_IN, "".join(lines))


def _spell_words(text: str) -> list[str]:
    return [word for name in VARIABLES for value in _spell_values(text, name) for word in find_values(value)]


GRUB = Loader("grub", "GRUB", _detect, _read_entries, _plan)
