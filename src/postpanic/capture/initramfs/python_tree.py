"""The Python of a tree: interpreter, standard library, extension modules, installed packages."""

from __future__ import annotations

import re
import site
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import zstandard

from postpanic.capture.initramfs.root import RootTree
from postpanic.errors import FactAbsentError, UnsupportedError

__all__ = ["ModuleFile", "PythonTree", "find_python"]

LOWEST_MINOR = 11
_INTERPRETER = re.compile(r"python3\.(\d+)")
_BINARIES = ("/usr/bin", "/usr/local/bin", "/opt/python/bin")
_LIBRARIES = ("lib", "lib64")


@dataclass(frozen=True)
class ModuleFile:
    """
    Where a module comes from.

    Attributes
    ----------
    name : str
        With its package: ``numpy.core.umath``.
    path : str
        In the tree.
    is_package, is_extension : bool
        An ``__init__`` file; a shared library.
    """

    name: str
    path: str
    is_package: bool = False
    is_extension: bool = False


@dataclass(frozen=True)
class PythonTree:
    """
    A Python, as its files lie in a tree.

    Attributes
    ----------
    root : RootTree
        The tree.
    minor : int
        Of the version: 11 is Python 3.11.
    interpreter : str
        The program.
    library : str
        The standard library's directory; its last two parts, ``lib/python3.11``, are where the interpreter expects it.
    packages : tuple of str
        Directories of what is installed, first the one that wins.
    """

    root: RootTree
    minor: int
    interpreter: str
    library: str
    packages: tuple[str, ...]

    @property
    def is_running_version(self) -> bool:
        """Whether what the running Python compiles can be read by this one."""
        return sys.implementation.name == "cpython" and self.minor == sys.version_info.minor

    @property
    def library_place(self) -> str:
        """``lib/python3.11``, or with lib64 on systems that have it there."""
        return "/".join(Path(self.library).parts[-2:])

    def find_module(self, name: str) -> ModuleFile | None:
        """Return a module's file; None for what is built into the interpreter, and for what is not there."""
        for directory in (self.library, f"{self.library}/lib-dynload", *self.packages):
            found = self._find_in(directory, name)
            if found is not None:
                return found
        return None

    def list_submodules(self, package: ModuleFile) -> list[str]:
        """Return the names of a package's own modules, without those of its subpackages."""
        directory = str(Path(package.path).parent)
        names = {name.split(".")[0] for name in self.root.list_names(directory) if name.endswith((".py", ".so"))}
        return sorted(names - {"__init__"})

    def read(self, module: ModuleFile) -> bytes:
        """Return the content of a module's file."""
        return self.root.read(module.path)

    def _find_in(self, directory: str, name: str) -> ModuleFile | None:
        base = f"{directory}/{name.replace('.', '/')}"
        if self.root.find(f"{base}/__init__.py"):
            return ModuleFile(name, f"{base}/__init__.py", is_package=True)
        for suffix in self._list_suffixes():
            if self.root.find(base + suffix):
                return ModuleFile(name, base + suffix, is_extension=True)
        if self.root.find(f"{base}.py"):
            return ModuleFile(name, f"{base}.py")
        return None

    def _list_suffixes(self) -> Iterable[str]:
        machine = _find_extension_tag(self.root, self.library, self.minor)
        return (f".cpython-3{self.minor}-{machine}.so", ".abi3.so", ".so") if machine else (".abi3.so", ".so")


_TAGS: dict[tuple[Path, str], str] = {}


def _find_extension_tag(root: RootTree, library: str, minor: int) -> str:
    """Return ``x86_64-linux-gnu``: what the names of extension modules carry."""
    key = (root.directory, library)
    if key not in _TAGS:
        pattern = re.compile(rf".*\.cpython-3{minor}-([\w-]+)\.so")
        matches = (pattern.fullmatch(name) for name in root.list_names(f"{library}/lib-dynload"))
        _TAGS[key] = next((match[1] for match in matches if match), "")
    return _TAGS[key]


def find_python(root: RootTree) -> PythonTree:
    """
    Return the Python of a tree that has numpy and zstandard.

    Of the running system it is the running Python, wherever that is installed;
    of another tree the one of the running version, else the newest.

    Raises
    ------
    FactAbsentError
        If there is none.
    UnsupportedError
        If the running Python is not CPython.
    """
    if root.directory == Path("/"):
        return _describe_running(root)
    candidates: list[PythonTree] = []
    for directory in _BINARIES:
        for name in root.list_names(directory):
            match = _INTERPRETER.fullmatch(name)
            if match and int(match[1]) >= LOWEST_MINOR and root.find(f"{directory}/{name}"):
                candidates += _list_installed(root, f"{directory}/{name}", int(match[1]))
    usable = [
        python for python in candidates if python.find_module("numpy") and python.find_module("zstandard.backend_c")
    ]
    if not usable:
        found = ", ".join(f"{python.interpreter} without them" for python in candidates) or "no Python"
        raise FactAbsentError(
            f"no Python 3.{LOWEST_MINOR} or newer with numpy and zstandard: {found}",
            where=str(root.directory),
            hint="install python3-numpy and python3-zstandard",
        )
    return max(usable, key=lambda python: (python.is_running_version, python.minor))


def _describe_running(root: RootTree) -> PythonTree:
    if sys.implementation.name != "cpython":
        raise UnsupportedError(f"the capture image needs CPython, this is {sys.implementation.name}")
    packages = [*site.getsitepackages(), *map(_find_parent, (np, zstandard))]
    return PythonTree(
        root=root,
        minor=sys.version_info.minor,
        interpreter=str(Path(sys.executable).resolve()),
        library=sysconfig.get_path("stdlib"),
        packages=tuple(dict.fromkeys(packages)),
    )


def _find_parent(package: ModuleType) -> str:
    return str(Path(str(package.__file__)).parent.parent)


def _list_installed(root: RootTree, interpreter: str, minor: int) -> Iterable[PythonTree]:
    prefix = str(Path(interpreter).parent.parent)
    name = f"python3.{minor}"
    for library in _LIBRARIES:
        # The standard library's first module, without which no interpreter starts.
        if root.find(f"{prefix}/{library}/{name}/encodings/__init__.py"):
            directories = [
                *(f"{prefix}/local/lib/{name}/dist-packages", f"{prefix}/lib/python3/dist-packages"),
                *(f"{prefix}/{part}/{name}/{kind}-packages" for part in _LIBRARIES for kind in ("dist", "site")),
            ]
            packages = tuple(directory for directory in directories if root.is_directory(directory))
            yield PythonTree(root, minor, interpreter, f"{prefix}/{library}/{name}", packages)
