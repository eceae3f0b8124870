"""
Entries of the Boot Loader Specification: ``loader/entries/*.conf``.

Source: ``uapi-group.org/specifications/specs/boot_loader_specification``: lines of
a key, white space and a value; ``options`` may come several times, and are joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from postpanic.capture.bootloader.model import BootEntry, Edits
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.words import find_values, replace_words

__all__ = ["KERNEL_CMDLINE", "find_entry_files", "parse_entry", "plan_kernel_cmdline", "set_options"]

KERNEL_CMDLINE = "/etc/kernel/cmdline"
_OPTIONS = re.compile(r"^(options[ \t]+)(.*)$", re.MULTILINE)
_FIELD = re.compile(r"^(title|options|linux|efi|uki)[ \t]+(.*)$", re.MULTILINE)


def find_entry_files(tree: BootTree, places: Iterable[str], *, ostree: bool = False) -> list[str]:
    """List the entries below some directories, those of ostree or those that are not; each file once."""
    found: dict[object, str] = {}
    for place in places:
        for path in tree.list_files(f"{place}/loader/entries", ".conf"):
            is_ostree = path.rsplit("/", 1)[1].startswith("ostree-")
            if is_ostree == ostree:
                found.setdefault(tree.find(path), path)
    return list(found.values())


def parse_entry(path: str, text: str) -> BootEntry:
    """Decode an entry: its title, and its options as they stand, variables of GRUB included."""
    fields = _FIELD.findall(text)
    title = next((value for key, value in fields if key == "title"), "")
    return BootEntry(path, title.strip(), " ".join(value.strip() for key, value in fields if key == "options"))


def set_options(text: str, values: Sequence[str]) -> str:
    r"""
    Change ``crashkernel=`` in an entry: in the last of its lines of options that has one, else in the last.

    >>> set_options("title a\noptions ro quiet\n", ["160M"])
    'title a\noptions ro quiet crashkernel=160M\n'
    """
    found = list(_OPTIONS.finditer(text))
    if not found:
        if not values:
            return text
        gap = "" if text.endswith("\n") else "\n"
        return f"{text}{gap}options {replace_words('', values)}\n"
    asked = [match for match in found if find_values(match[2])]
    target = (asked or found)[-1]
    pieces, at = [], 0
    for match in found:
        pieces.append(text[at : match.start(2)])
        pieces.append(replace_words(match[2], values if match is target else ()))
        at = match.end(2)
    return "".join(pieces) + text[at:]


def plan_kernel_cmdline(edits: Edits, tree: BootTree, values: Sequence[str]) -> None:
    """Change the command line of kernels to come, where there is one; ``#`` begins a comment."""
    if not tree.has(KERNEL_CMDLINE):
        return
    lines = edits.read_text(KERNEL_CMDLINE).splitlines(keepends=True)
    used = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    asked = [number for number in used if find_values(lines[number])]
    if not used:
        edits.write_text(KERNEL_CMDLINE, "".join(lines) + (replace_words("", values) + "\n" if values else ""))
        return
    target = (asked or used)[-1]
    for number in used:
        lines[number] = replace_words(lines[number], values if number == target else ())
    edits.write_text(KERNEL_CMDLINE, "".join(lines))
