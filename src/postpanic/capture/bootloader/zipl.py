"""
zipl, the boot loader of s390x: ``/etc/zipl.conf``, or boot loader entries where that names none.

After every change ``zipl`` writes the boot record anew; until then the old command line is used.

Source: ``zipl.conf(5)`` and ``zipl(8)`` of s390-tools.
"""

from __future__ import annotations

import re

from postpanic.capture.bootloader.entries import find_entry_files, parse_entry, plan_kernel_cmdline, set_options
from postpanic.capture.bootloader.model import BOOTED, INSTALLED, BootEntry, Command, Edits, Evidence, Loader, Plan
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.words import find_values, replace_words

__all__ = ["ZIPL"]

CONFIG = "/etc/zipl.conf"
_PARAMETERS = re.compile(r"""^([ \t]*parameters[ \t]*=[ \t]*)("[^"\n]*"|'[^'\n]*'|[^\n]*)$""", re.MULTILINE)
_SECTION = re.compile(r"^[ \t]*\[([^\]\n]+)\]|^[ \t]*parameters[ \t]*=[ \t]*([^\n]*)$", re.MULTILINE)


def _detect(tree: BootTree) -> Evidence | None:
    program = tree.find_program("zipl")
    if tree.host.machine not in ("s390x", "") or not (program or tree.has(CONFIG)):
        return None
    reasons = tuple(path for path in (program, CONFIG) if path and tree.has(path))
    # Nothing else boots these machines, but it may boot a GRUB.
    return Evidence(BOOTED if tree.has(CONFIG) and not tree.has("/boot/grub2/grub.cfg") else INSTALLED, reasons)


def _read_entries(tree: BootTree) -> list[BootEntry]:
    entries, section = [], ""
    for name, value in _SECTION.findall(tree.read_text(CONFIG)):
        if name:
            section = name.strip()
        else:
            entries.append(BootEntry(CONFIG, section, value.strip().strip("\"'")))
    return entries + [parse_entry(path, tree.read_text(path)) for path in find_entry_files(tree, ("/boot",))]


def _plan(tree: BootTree, values: tuple[str, ...]) -> Plan:
    edits = Edits(tree)
    edits.change(CONFIG, lambda text: _PARAMETERS.sub(lambda match: match[1] + _edit(match[2], values), text))
    for path in find_entry_files(tree, ("/boot",)):
        edits.change(path, lambda text: set_options(text, values))
    plan_kernel_cmdline(edits, tree, values)
    files = [parse for parse in _read_entries(tree) if parse.where.startswith("/boot")]
    manual = []
    if values and not files and not _PARAMETERS.search(tree.read_text(CONFIG)):
        words = " ".join(f"crashkernel={value}" for value in values)
        manual.append(f'add to the section of {CONFIG} that is booted: parameters = "{words}"')
    commands = (Command(("zipl",)),) if edits.changed else ()
    return Plan("zipl", edits.changed, commands, manual=tuple(manual))


def _edit(value: str, values: tuple[str, ...]) -> str:
    if value[:1] in ('"', "'") and value[-1:] == value[:1] and len(value) > 1:
        return f"{value[0]}{replace_words(value[1:-1], values)}{value[0]}"
    edited = replace_words(value, values)
    return f'"{edited}"' if find_values(edited) and " " in edited else edited


ZIPL = Loader("zipl", "zipl", _detect, _read_entries, _plan)
