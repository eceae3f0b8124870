"""A configuration that grows while another one is read, with the account of every setting."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Draft", "Setting"]

_LEVEL = re.compile(r"(?:^|\s)-d\s*([0-9]{1,2}(?:,[0-9]{1,2})*)\b")
_KEXEC_FLAGS = {
    "--reset-vga": ("reset_vga", True),
    "--console-vga": ("console_vga", True),
    "--elf32-core-headers": ("core_headers", "elf32"),
    "--elf64-core-headers": ("core_headers", "elf64"),
    "-s": ("kexec", "file"),
    "--kexec-file-syscall": ("kexec", "file"),
    "-c": ("kexec", "legacy"),
    "--kexec-syscall": ("kexec", "legacy"),
    "-a": ("kexec", "auto"),
    "--kexec-syscall-auto": ("kexec", "auto"),
}
# What an image of ours needs no word for, or has of itself.
_OURS_ANYWAY = re.compile(
    r"^(?:irqpoll|reset_devices|nr_cpus=1|maxcpus=1|usbcore\.nousb|systemd\.unit=\S*|cgroup_disable=memory|numa=off"
    r"|udev\.children-max=\S*|ata_piix\.prefer_ms_hyperv=\S*|panic=\S*|rootflags=\S*|swiotlb=noforce|novmcoredd"
    r"|transparent_hugepage=never|mce=off|acpi_no_memhotplug|hest_disable|cma=0|hugetlb_cma=0|pcie_ports=compat"
    r"|kfence\.sample_interval=0|initcall_blacklist=\S*|noefi|nokaslr|elevator=\S*|sysrq=\S*|rd\.\S*|root=\S*)$"
)


@dataclass(frozen=True)
class Setting:
    """
    What became of a setting.

    Attributes
    ----------
    name, value : str
        As the other tool has them; passwords are not shown.
    outcome : str
        The key that it became, or why there is none.
    is_taken : bool
    """

    name: str
    value: str
    outcome: str
    is_taken: bool


@dataclass
class Draft:
    """
    A configuration in the making.

    Attributes
    ----------
    tool, source : str
        Whose it was, and which file.
    """

    tool: str
    source: str
    targets: list[dict[str, object]] = field(default_factory=list)
    fallbacks: list[dict[str, object]] = field(default_factory=list)
    tables: dict[str, dict[str, object]] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)

    def take(self, name: str, value: str, outcome: str) -> None:
        """Note a setting that has become something."""
        self.settings.append(Setting(name, value, outcome, is_taken=True))

    def leave(self, name: str, value: str, reason: str) -> None:
        """Note a setting that has no counterpart."""
        self.settings.append(Setting(name, value, reason, is_taken=False))

    def put(self, table: str, key: str, value: object, name: str, text: str) -> None:
        """Set a key of a table, and note it."""
        self.tables.setdefault(table, {})[key] = value
        self.take(name, text, f"{table}.{key}")

    def put_hook(self, when: str, command: str, name: str) -> None:
        """Add a program that is run before or after saving."""
        hooks = self.tables.setdefault("hooks", {}).setdefault(when, [])
        assert isinstance(hooks, list)  # noqa: S101 - made so above
        hooks.append({"command": shlex.split(command)})
        self.take(name, command, f"hooks.{when}: it needs what its own image gave it")

    def put_level(self, words: str, name: str) -> None:
        """Take the dump level out of makedumpfile's arguments."""
        match = _LEVEL.search(words)
        levels = [int(one) for one in match[1].split(",")] if match else []
        if levels and max(levels) < 32:
            self.put("dump", "level", levels[0] if len(levels) == 1 else levels, name, words)
        elif re.match(r"\s*(?:cp|scp)\b", words):
            self.put("dump", "level", 0, name, words)
        else:
            self.leave(name, words, "no dump level in it: the default is 31")

    def put_kexec(self, words: str, name: str) -> None:
        """Take options of the program kexec apart."""
        rest = []
        for word in _split(words):
            if word in _KEXEC_FLAGS:
                key, value = _KEXEC_FLAGS[word]
                self.put("capture", key, value, name, word)
            else:
                rest.append(word)
        if rest:
            self.put("capture", "kexec_options", rest, name, " ".join(rest))

    def put_appended(self, words: str, name: str) -> None:
        """Take what is appended to the capture kernel's command line, but for what it has of itself."""
        mine = [word for word in words.split() if not _OURS_ANYWAY.match(word)]
        if mine:
            self.put("capture", "command_line_append", " ".join(mine), name, words)
        elif words.strip():
            self.take(name, words, "what a capture kernel needs is on its command line anyway")

    def encode(self) -> dict[str, object]:
        """Give the whole as a table of tables."""
        value: dict[str, object] = {"target": self.targets, "fallback": self.fallbacks}
        return {name: part for name, part in (value | self.tables).items() if part}

    def leave_all(self, values: Mapping[str, str], reasons: Mapping[str, str], hidden: Iterable[str] = ()) -> None:
        """Note what has no counterpart, of those that are set."""
        for name, reason in reasons.items():
            if values.get(name):
                self.leave(name, "…" if name in set(hidden) else values[name], reason)


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError:
        return words.split()
