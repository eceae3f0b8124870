"""Kernel modules: found by name or alias, decompressed, put into the order in which they can be loaded."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from postpanic.capture.initramfs.module_files import ModuleInfo, decode_module_info, read_module
from postpanic.errors import FactAbsentError

__all__ = ["ModuleTree", "read_module"]

_ENDINGS = frozenset({".ko", ".xz", ".zst", ".gz"})
_SPECIAL = re.compile(r"[*?\[]")
_NEAREST = 3

# What the kernel asks modprobe for at the moment it needs it: there is no modprobe in the image.
_ASKED_FOR_LATER: Mapping[str, tuple[str, ...]] = {
    # The character sets of names: CONFIG_FAT_DEFAULT_CODEPAGE and _IOCHARSET, fs/fat/inode.c.
    "vfat": ("nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"),
}


class ModuleTree:
    """
    The modules of one kernel, found by name, each after those it depends on.

    Dependencies come from the modules' own ``.modinfo``, so no index made by
    depmod is needed; where there is one it spares reading every module for its
    aliases.

    Parameters
    ----------
    directory : Path
        ``lib/modules/RELEASE`` of the kernel.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._paths = {_module_name(path): path for path in sorted(directory.rglob("*.ko*")) if path.suffix in _ENDINGS}
        self._contents: dict[str, bytes] = {}
        self._infos: dict[str, ModuleInfo] = {}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _normalize(name) in self._paths

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all modules that are files."""
        return tuple(self._paths)

    @cached_property
    def built_in(self) -> frozenset[str]:
        """Names of what is part of the kernel itself, by ``modules.builtin``; none where that is missing."""
        lines = _read_lines(self.directory / "modules.builtin")
        return frozenset(_module_name(Path(line)) for line in lines if line.strip())

    def read(self, name: str) -> bytes:
        """
        Return the module's content, decompressed.

        Raises
        ------
        FactAbsentError
            If the kernel has no such module; it may be built in.
        """
        name = _normalize(name)
        if name not in self._paths:
            raise FactAbsentError(f"module {name}: not among the kernel's {len(self._paths)} modules")
        if name not in self._contents:
            self._contents[name] = read_module(self._paths[name])
        return self._contents[name]

    def read_info(self, name: str) -> ModuleInfo:
        """
        Return what a module says about itself.

        Raises
        ------
        FactAbsentError
            If the kernel has no such module.
        """
        name = _normalize(name)
        if name not in self._infos:
            self._infos[name] = decode_module_info(self.read(name))
        return self._infos[name]

    def sort_by_dependency(self, names: Iterable[str]) -> list[str]:
        """
        Return *names* and all they need, each after what it needs.

        Names of which there is no module are left out: they are built in, or
        the kernel does not have them.
        """
        order: list[str] = []
        visiting: set[str] = set()

        def visit(name: str) -> None:
            name = _normalize(name)
            if name in visiting or name in order or name not in self._paths:
                return
            visiting.add(name)
            for needed in self.read_info(name).depends:
                visit(needed)
            order.append(name)

        for name in names:
            visit(name)
        return order

    def resolve(self, names: Iterable[str]) -> list[str]:
        """
        Return all modules that are to be loaded so that *names* work, in order.

        That is what they depend on, what their soft dependencies name (by name
        or alias, as far as there are modules of it), and what the kernel would
        have asked modprobe for.

        Parameters
        ----------
        names : iterable of str
            Names or aliases (``fs-ext4``). What is built into the kernel is
            satisfied.

        Raises
        ------
        FactAbsentError
            If the kernel has no such module, neither as a file nor built in, as
            far as ``modules.builtin`` is there to tell.
        """
        order: list[str] = []
        visiting: set[str] = set()

        def visit(name: str) -> None:
            if name in visiting:
                return
            visiting.add(name)
            info = self.read_info(name)
            for wanted in (*info.soft_before, *_ASKED_FOR_LATER.get(name, ())):
                visit_all(self._find(wanted))
            visit_all(self._find_known(info.depends))
            order.append(name)
            for wanted in info.soft_after:
                visit_all(self._find(wanted))

        def visit_all(found: Iterable[str]) -> None:
            for name in found:
                visit(name)

        for name in names:
            found = self._find(name)
            if not found and not self._is_built_in(name):
                raise self._describe_missing(name)
            visit_all(found)
        return order

    def find_by_modalias(self, modalias: str) -> list[str]:
        """
        Return the modules that drive a device, sorted; none where the driver is built in, or there is none.

        Parameters
        ----------
        modalias : str
            Of ``/sys/devices/…/modalias``, or another name the kernel asks for: ``fs-xfs``, ``crypto-crc32c``.
        """
        wanted = _normalize(modalias)
        bus = wanted.split(":", 1)[0]
        candidates = (*self._aliases.get(bus, ()), *self._aliases.get("", ()))
        found = {
            name
            for literal, pattern, name in candidates
            if wanted.startswith(literal) and fnmatch.fnmatchcase(wanted, pattern)
        }
        return sorted(name for name in found if name in self._paths)

    def is_built_in_alias(self, modalias: str) -> bool:
        """Tell whether something in the kernel itself answers to an alias (``modules.builtin.modinfo``)."""
        wanted = _normalize(modalias)
        return any(fnmatch.fnmatchcase(wanted, pattern) for pattern in self._built_in_aliases)

    def _find(self, name: str) -> list[str]:
        name = _normalize(name)
        if name in self._paths:
            return [name]
        return [] if name in self.built_in else self.find_by_modalias(name)

    def _find_known(self, names: Iterable[str]) -> list[str]:
        return [_normalize(name) for name in names if _normalize(name) in self._paths]

    def _is_built_in(self, name: str) -> bool:
        # Where nothing says what is built in, all that is no file is taken to be.
        return not self.built_in or _normalize(name) in self.built_in or self.is_built_in_alias(name)

    def _describe_missing(self, name: str) -> FactAbsentError:
        near = difflib.get_close_matches(_normalize(name), [*self._paths, *self.built_in], _NEAREST)
        return FactAbsentError(
            f"module {name}: the kernel has none of this name, nor is it built in",
            where=str(self.directory),
            hint=f"did you mean {' or '.join(near)}?" if near else "is this the directory of the right kernel?",
        )

    @cached_property
    def _aliases(self) -> dict[str, list[tuple[str, str, str]]]:
        """Literal beginning, pattern and module of every alias, by bus; "" has those of any bus."""
        found: dict[str, list[tuple[str, str, str]]] = {}
        for pattern, name in self._list_aliases():
            pattern = _normalize_pattern(pattern)
            literal = _SPECIAL.split(pattern, maxsplit=1)[0]
            bus = literal.split(":", 1)[0] if ":" in literal or literal == pattern else ""
            found.setdefault(bus, []).append((literal, pattern, name))
        return found

    def _list_aliases(self) -> Iterable[tuple[str, str]]:
        lines = _read_lines(self.directory / "modules.alias")
        if lines:
            for line in lines:
                words = line.split()
                if len(words) == 3 and words[0] == "alias":
                    yield words[1], _normalize(words[2])
            return
        for name in self._paths:
            info = self._infos.get(name) or decode_module_info(read_module(self._paths[name]))
            self._infos[name] = info
            yield from ((pattern, name) for pattern in info.aliases)

    @cached_property
    def _built_in_aliases(self) -> list[str]:
        try:
            entries = (self.directory / "modules.builtin.modinfo").read_bytes().split(b"\0")
        except OSError:
            return []
        pairs = (entry.decode(errors="replace").partition("=") for entry in entries)
        return [_normalize_pattern(value) for key, _, value in pairs if key.endswith(".alias")]


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _normalize(name: str) -> str:
    return name.replace("-", "_")


def _normalize_pattern(pattern: str) -> str:
    """Spell an alias as names are spelled; a range in brackets keeps its dash."""
    return "".join(part if part.startswith("[") else _normalize(part) for part in re.split(r"(\[[^\]]*\])", pattern))


def _module_name(path: Path) -> str:
    return _normalize(path.name.split(".ko", 1)[0])
