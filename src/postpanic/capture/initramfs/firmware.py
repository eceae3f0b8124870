"""Firmware that modules may ask for: looked for where the kernel looks, decompressed."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import PurePosixPath

from postpanic.capture.initramfs.module_files import decompress
from postpanic.capture.initramfs.root import RootTree

__all__ = ["find_firmware"]


def find_firmware(root: RootTree, name: str, release: str) -> Iterator[tuple[str, bytes]]:
    """
    Yield the files that a name or a pattern of ``.modinfo`` stands for: path below ``/lib/firmware`` and content.

    Where none is found none is needed: a driver names the files of all devices
    that it knows. The directories are those of ``drivers/base/firmware_loader/main.c``.

    Parameters
    ----------
    release : str
        Of the kernel.

    Raises
    ------
    CorruptError
        If a compressed file is damaged.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        return
    directories = (f"updates/{release}", "updates", release, ".")
    done: set[str] = set()
    for directory in directories:
        parent = f"/lib/firmware/{directory}/{pure.parent}"
        for found in root.list_names(parent):
            plain = found.removesuffix(".xz").removesuffix(".zst")
            path = str(pure.parent / plain)
            if path in done or not fnmatch.fnmatchcase(plain, pure.name) or not root.find(f"{parent}/{found}"):
                continue
            done.add(path)
            yield path, decompress(root.read(f"{parent}/{found}"), PurePosixPath(found).suffix, found, "firmware")
