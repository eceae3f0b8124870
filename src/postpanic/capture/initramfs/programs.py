"""Programs besides Python: with their libraries, what runs scripts, and what the C library reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.elf import is_elf, strip
from postpanic.capture.initramfs.libraries import LibraryFinder
from postpanic.capture.initramfs.root import RootTree
from postpanic.errors import FactAbsentError

__all__ = ["add_account_files", "find_programs"]

_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_SHEBANG = b"#!"
_SHEBANG_LIMIT_BYTES = 256
"""``BINPRM_BUF_SIZE`` of ``include/uapi/linux/binfmts.h``."""
_SCRIPT_DEPTH = 4
_PYTHON = re.compile(r"python(3(\.\d+)?)?")
# Name service of glibc before 2.34, when it was moved into libc.so itself.
_NAME_SERVICES = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")
_MOVED_SYMBOL = b"_nss_files_getpwnam_r\0"
_FILES = {
    "/etc/passwd": b"root:x:0:0:root:/:/bin/sh\n",
    "/etc/group": b"root:x:0:\n",
    "/etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
}


def find_programs(root: RootTree, wanted: Iterable[str], libraries: LibraryFinder) -> dict[str, bytes | None]:
    """
    Return programs by the path that they get in the image; None stands for the image's own Python.

    Parameters
    ----------
    wanted : iterable of str
        Paths in the tree, or names that are looked for in its ``bin`` directories.
    libraries : LibraryFinder
        Gets the libraries that they need.

    Raises
    ------
    FactAbsentError
        If a program is not there, or what runs it, or a library.
    """
    found: dict[str, bytes | None] = {}
    for name in dict.fromkeys(wanted):
        _add(root, name, libraries, found, _SCRIPT_DEPTH)
    return dict(sorted(found.items()))


def add_account_files(image: ImageTree, libraries: LibraryFinder) -> None:
    """Add the one account there is, and how names are looked up; for an old C library what looks them up."""
    for path, content in _FILES.items():
        image.add_bytes(path, content)
    libc = libraries.libraries.get("libc.so.6")
    if libc is not None and _MOVED_SYMBOL not in libc.content:
        libraries.add_by_name(_NAME_SERVICES, libc.path)


def _add(root: RootTree, name: str, libraries: LibraryFinder, found: dict[str, bytes | None], depth: int) -> None:
    if _PYTHON.fullmatch(PurePosixPath(name).name):
        found[name if name.startswith("/") else f"/usr/bin/{name}"] = None
        return
    path = _find(root, name)
    if path in found:
        return
    content = root.read(path)
    if is_elf(content):
        libraries.add(path)
        found[path] = strip(content)
        return
    found[path] = content
    first = content[:_SHEBANG_LIMIT_BYTES].split(b"\n", 1)[0]
    if first.startswith(_SHEBANG) and depth:
        words = first.removeprefix(_SHEBANG).decode(errors="replace").split()
        # "#!/usr/bin/env NAME" needs both.
        interpreters = words[:2] if words and words[0].endswith("/env") else words[:1]
        for interpreter in interpreters:
            _add(root, interpreter, libraries, found, depth - 1)


def _find(root: RootTree, name: str) -> str:
    candidates = [name] if name.startswith("/") else [f"{directory}/{name}" for directory in _DIRECTORIES]
    for path in candidates:
        if root.find(path) is not None:
            return path
    raise FactAbsentError(
        f"no program {name}", where=str(root.directory), hint="install the package that has it, or leave it out"
    )
