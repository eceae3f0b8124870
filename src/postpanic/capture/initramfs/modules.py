"""Kernel modules: read, decompressed, put into the order in which they can be loaded."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

import zstandard

from postpanic.errors import CorruptError, FactAbsentError

__all__ = ["ModuleTree", "read_module"]

MODULE_SIZE_LIMIT_BYTES = 64 << 20
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def read_module(path: Path) -> bytes:
    """
    Read a kernel module, decompressed by the ending of its name: ``.ko``, ``.ko.xz``, ``.ko.zst``.

    Raises
    ------
    CorruptError
        If the compressed file is damaged, or larger than any module.
    """
    content = path.read_bytes()
    try:
        if path.suffix == ".xz":
            content = lzma.LZMADecompressor().decompress(content, MODULE_SIZE_LIMIT_BYTES + 1)
        elif path.suffix == ".zst":
            with zstandard.ZstdDecompressor().stream_reader(content) as reader:
                content = reader.read(MODULE_SIZE_LIMIT_BYTES + 1)
    except (lzma.LZMAError, zstandard.ZstdError) as exc:
        raise CorruptError(f"not a compressed module: {exc}", where=str(path)) from exc
    if len(content) > MODULE_SIZE_LIMIT_BYTES:
        raise CorruptError(f"a module of more than {MODULE_SIZE_LIMIT_BYTES} bytes", where=str(path))
    return content


class ModuleTree:
    """
    The modules of one kernel, found by name, each after those it depends on.

    Dependencies come from the modules' own ``depends=`` (``.modinfo``), so no
    index made by depmod is needed.

    Parameters
    ----------
    directory : Path
        ``lib/modules/RELEASE`` of the kernel.
    """

    def __init__(self, directory: Path) -> None:
        self._paths = {
            _module_name(path): path
            for path in sorted(directory.rglob("*.ko*"))
            if path.suffix in {".ko", ".xz", ".zst"}
        }
        self._contents: dict[str, bytes] = {}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.replace("-", "_") in self._paths

    def read(self, name: str) -> bytes:
        """
        Return the module's content, decompressed.

        Raises
        ------
        FactAbsentError
            If the kernel has no such module; it may be built in.
        """
        name = name.replace("-", "_")
        if name not in self._paths:
            raise FactAbsentError(f"module {name}: not among the kernel's {len(self._paths)} modules")
        if name not in self._contents:
            self._contents[name] = read_module(self._paths[name])
        return self._contents[name]

    def sort_by_dependency(self, names: Iterable[str]) -> list[str]:
        """
        Return *names* and all they need, each after what it needs.

        Names of which there is no module are left out: they are built in, or
        the kernel does not have them.
        """
        order: list[str] = []
        visiting: set[str] = set()

        def visit(name: str) -> None:
            name = name.replace("-", "_")
            if name in visiting or name in order or name not in self._paths:
                return
            visiting.add(name)
            found = _DEPENDS.search(self.read(name))
            for needed in (found[1].decode() if found else "").split(","):
                visit(needed)
            order.append(name)

        for name in names:
            visit(name)
        return order


def _module_name(path: Path) -> str:
    return path.name.split(".ko", 1)[0].replace("-", "_")
