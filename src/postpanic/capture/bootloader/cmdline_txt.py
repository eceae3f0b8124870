"""
The Raspberry Pi's firmware: one line, ``cmdline.txt`` on its partition.

Debian's raspi-firmware writes that file anew with each kernel, and adds what is
in ``/etc/default/raspi-extra-cmdline``.

Sources: Raspberry Pi's documentation of ``cmdline.txt``; ``z50-raspi-firmware`` of Debian's raspi-firmware.
"""

from __future__ import annotations

from postpanic.capture.bootloader.model import BOOTED, CONFIGURED, BootEntry, Edits, Evidence, Loader, Plan
from postpanic.capture.bootloader.tree import BootTree
from postpanic.capture.bootloader.words import replace_words

__all__ = ["CMDLINE_TXT"]

_PLACES = ("/boot/firmware/current/cmdline.txt", "/boot/firmware/cmdline.txt", "/boot/cmdline.txt")
_BESIDE = ("config.txt", "start.elf", "start4.elf", "bootcode.bin", "kernel8.img")
EXTRA = "/etc/default/raspi-extra-cmdline"
_HOOK = "/etc/kernel/postinst.d/z50-raspi-firmware"


def _find_files(tree: BootTree) -> list[str]:
    found: dict[object, str] = {}
    for path in _PLACES:
        directory = path.rsplit("/", 1)[0].removesuffix("/current")
        if tree.has(path) and any(tree.has(f"{directory}/{name}") for name in _BESIDE):
            found.setdefault(tree.find(path), path)
    return list(found.values())


def _detect(tree: BootTree) -> Evidence | None:
    files = _find_files(tree)
    if not files:
        return None
    model = (tree.host.read_text("proc/device-tree/model") or "").rstrip("\0")
    is_pi = model.startswith("Raspberry Pi") and not tree.host.path("proc/device-tree/chosen/u-boot,version").exists()
    reasons = [*files, *([f"/proc/device-tree/model: {model}"] if is_pi else [])]
    return Evidence(BOOTED if is_pi else CONFIGURED, tuple(reasons))


def _read_entries(tree: BootTree) -> list[BootEntry]:
    return [BootEntry(path, "", tree.read_text(path).split("\n", 1)[0].strip()) for path in _find_files(tree)]


def _plan(tree: BootTree, values: tuple[str, ...]) -> Plan:
    edits = Edits(tree)
    for path in _find_files(tree):
        # The firmware reads the first line alone.
        edits.change(path, lambda text: _edit_first_line(text, values))
    if tree.has(_HOOK):
        edits.write_text(EXTRA, _edit_first_line(tree.read_text(EXTRA), values, ended=True))
    return Plan("cmdline-txt", edits.changed)


def _edit_first_line(text: str, values: tuple[str, ...], *, ended: bool = False) -> str:
    line, end, rest = text.partition("\n")
    edited = replace_words(line, values)
    missing = "\n" if ended and edited else ""
    return f"{edited}{end or missing}{rest}"


CMDLINE_TXT = Loader("cmdline-txt", "cmdline.txt of the Raspberry Pi", _detect, _read_entries, _plan)
