"""Which Python modules the saver needs: what is imported late, what never, what stands in for what."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import FrozenImporter
from pathlib import Path

from postpanic import version
from postpanic.capture.initramfs import replaced
from postpanic.capture.initramfs.imports import ImportFinder, parse_source
from postpanic.capture.initramfs.numpy_parts import NumpyParts, choose_numpy_parts, find_used_names
from postpanic.capture.initramfs.python_tree import ModuleFile, PythonTree
from postpanic.errors import FactAbsentError
from postpanic.saver.plan import HttpPlan, NfsPlan, SavePlan, SshPlan, TargetPlan

__all__ = ["PythonModules", "find_python_modules"]

ENTRY = "postpanic.saver.init"
_OURS = Path(version.__file__).parent
_REPLACED = Path(replaced.__file__).parent

# Standard modules with a smaller one that does what is asked of them, and such as are imported but not called.
_REPLACED_BY = {
    "ctypes.util": "ctypes_util.py",
    "encodings.idna": "encodings_idna.py",
    "inspect": "inspect.py",
    "logging": "logging.py",
    "platform": "platform.py",
}
_ABSENT = ("ast", "pickle", "sysconfig")
# Since then dataclasses makes expressions of annotations.
_AST_MINOR = 14
# pathlib takes a function from there that is used for addresses only.
_ABSENT_WITHOUT_HTTP = ("urllib.parse",)
_OF_OTHER_SYSTEMS = ("_msi", "_overlapped", "_scproxy", "_winapi", "msvcrt", "nt", "ntpath", "winreg", "winsound")

# Imported by C code, by name, or in a function of the standard library: no import statement that counts says so.
_ROOTS = (
    *("encodings.ascii", "encodings.latin_1", "encodings.utf_8", "encodings.aliases"),
    # Of hashlib, which complains at length when one of them is missing.
    *("_blake2", "_md5", "_sha1", "_sha2", "_sha256", "_sha3", "_sha512"),
)
_WITH = {"concurrent.futures": ("concurrent.futures.thread",)}
_NETWORK_ROOTS = ("encodings.idna",)

_NEVER = (
    # Ours, that are imported late, by what is not called here.
    *("postpanic.analysis", "postpanic.capture", "postpanic.cli", "postpanic.pages.redaction", "postpanic.rehearse"),
    *("postpanic.findings", "postpanic.report"),
    "postpanic.kernel.debuginfo",
    # Of the standard library: what is tried and done without, or belongs to what is not called.
    *("_bz2", "_lzma", "_uuid", "_decimal", "argparse", "asyncio", "bdb", "bz2", "curses", "decimal", "difflib"),
    *("distutils", "doctest", "getopt", "gettext", "importlib._bootstrap", "importlib._bootstrap_external", "lzma"),
    *("importlib.metadata", "importlib.resources", "multiprocessing", "optparse", "pdb", "pydoc", "readline"),
    *("tarfile", "tkinter", "tracemalloc", "unittest", "urllib.request", "uuid", "webbrowser", "xml"),
    "zipfile",
    # What zstandard uses without its C module.
    *("zstandard._cffi", "zstandard.backend_cffi", "zstandard.backend_rust"),
)
# Modules that only some plans need, and whether one does.
_TLS = ("_hashlib", "_ssl", "ssl")
_HTTP = ("email", "http", "postpanic.saver.targets.http")
_SSH = ("postpanic.saver.targets.ssh",)
_NETWORK = ("postpanic.saver.network",)


@dataclass(frozen=True)
class PythonModules:
    """
    The modules of an image.

    Attributes
    ----------
    sources : dict
        Name to (text, whether it is a package).
    extensions : dict
        Name to the file in the tree.
    importers : dict
        Which module brought each in.
    numpy : NumpyParts
        What became of numpy.
    """

    sources: dict[str, tuple[bytes, bool]]
    extensions: dict[str, ModuleFile]
    importers: dict[str, str]
    numpy: NumpyParts


def find_python_modules(
    python: PythonTree,
    plan: SavePlan,
    *,
    https: bool = False,
    roots: Iterable[str] = (ENTRY,),
    keep: Iterable[str] = (),
) -> PythonModules:
    """
    Return the modules that the saver of a plan imports, from a tree's Python and from ourselves.

    Parameters
    ----------
    https : bool
        Whether TLS is needed.
    roots : iterable of str
        Where to begin.
    keep : iterable of str
        Modules and packages that the saver never needs, and these roots do.

    Raises
    ------
    FactAbsentError
        If numpy or zstandard is not as expected, or a module to begin with is missing.
    CorruptError
        If a module cannot be parsed.
    """
    has_http = any(isinstance(target, HttpPlan) for target in (*plan.targets, *plan.fallbacks))
    absent = {*_ABSENT, *(() if has_http else _ABSENT_WITHOUT_HTTP)} - (
        {"ast"} if python.minor >= _AST_MINOR else set()
    )
    ours = _Modules(python, _choose_left_out(plan, https=https) - frozenset(keep), frozenset(absent))
    finder = ImportFinder(ours.parse, ours.is_left_out, ours.is_there, _is_ours, python.minor)
    finder.add([*_ROOTS, *(_NETWORK_ROOTS if plan.network else ()), *roots])
    for name in roots:
        if name not in finder.found:
            raise FactAbsentError(f"no module {name} to begin with", where=str(_OURS))
    finder.add(name for package, names in _WITH.items() if package in finder.found for name in names)
    used = {
        name for module, tree in finder.found.items() if tree and _is_ours(module) for name in find_used_names(tree)
    }
    parts = ours.numpy = choose_numpy_parts(python, used)
    finder.add([*sorted(ours.later), *parts.roots, *parts.places.values()])
    return PythonModules(ours.sources_of(finder.found), ours.extensions_of(finder.found), finder.importers, parts)


def _is_ours(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] == "postpanic"


def _choose_left_out(plan: SavePlan, *, https: bool) -> frozenset[str]:
    targets: tuple[TargetPlan, ...] = (*plan.targets, *plan.fallbacks)
    conditions = (
        (_TLS, https),
        (_HTTP, any(isinstance(target, HttpPlan) for target in targets)),
        (_SSH, any(isinstance(target, SshPlan) for target in targets)),
        (("postpanic.saver.targets.nfs",), any(isinstance(target, NfsPlan) for target in targets)),
        (_NETWORK, plan.network is not None),
    )
    return frozenset([*_NEVER, *(name for names, wanted in conditions if not wanted for name in names)])


class _Modules:
    """Where modules are taken from: ourselves, what stands in, numpy and zstandard, the standard library."""

    def __init__(self, python: PythonTree, left_out: frozenset[str], absent: frozenset[str]) -> None:
        self._python = python
        self._left_out = left_out
        self._absent = absent
        self._parsed: dict[str, tuple[ast.Module | None, bool] | None] = {}
        self._sources: dict[str, bytes] = {}
        self._extensions: dict[str, ModuleFile] = {}
        self.numpy: NumpyParts | None = None
        self.later: set[str] = set()

    def is_left_out(self, name: str) -> bool:
        parts = name.split(".")
        if any(".".join(parts[:count]) in self._left_out for count in range(1, len(parts) + 1)):
            return True
        if parts[0] == "numpy" and self.numpy is None:
            # Its turn comes when it is known what of it is used.
            self.later.add(name)
            return True
        return False

    def parse(self, name: str) -> tuple[ast.Module | None, bool] | None:
        if name not in self._parsed:
            self._parsed[name] = self._parse(name)
        return self._parsed[name]

    def is_there(self, name: str) -> bool:
        """Tell whether an import will succeed: also of what is built into the interpreter."""
        if self.is_left_out(name):
            return False
        if self.parse(name) is not None:
            return True
        # A module of C of which there is no file is part of the interpreter.
        return name in sys.stdlib_module_names and name not in _OF_OTHER_SYSTEMS

    def sources_of(self, names: Iterable[str]) -> dict[str, tuple[bytes, bool]]:
        found = {}
        for name in sorted(names):
            parsed = self._parsed[name]
            if name in self._sources and parsed is not None:
                found[name] = (self._sources[name], parsed[1])
        return found

    def extensions_of(self, names: Iterable[str]) -> dict[str, ModuleFile]:
        return {name: self._extensions[name] for name in sorted(names) if name in self._extensions}

    def _parse(self, name: str) -> tuple[ast.Module | None, bool] | None:
        stand_in = self._find_stand_in(name)
        if stand_in is not None:
            source, is_package = stand_in
            return self._keep(name, source, is_package=is_package)
        if _is_ours(name):
            return self._parse_ours(name)
        if self._python.is_running_version and FrozenImporter.find_spec(name) is not None:
            return None
        module = self._python.find_module(name)
        if module is None or not self._is_wanted(module):
            return None
        if module.is_extension:
            self._extensions[name] = module
            return None, False
        return self._keep(name, self._python.read(module), is_package=module.is_package)

    def _is_wanted(self, module: ModuleFile) -> bool:
        """Tell whether a module is of the standard library, numpy or zstandard: nothing else that is installed."""
        return module.name.split(".")[0] in {"numpy", "zstandard"} or not any(
            module.path.startswith(f"{directory}/") for directory in self._python.packages
        )

    def _find_stand_in(self, name: str) -> tuple[bytes, bool] | None:
        if name in _REPLACED_BY:
            return (_REPLACED / _REPLACED_BY[name]).read_bytes(), False
        if name in self._absent:
            return (_REPLACED / "absent.py").read_bytes(), False
        if self.numpy is None or name.split(".", maxsplit=1)[0] != "numpy":
            return None
        if name == "numpy":
            return _fill_in_numpy(self.numpy), True
        file = {
            "numpy.typing": "numpy_typing.py",
            "numpy.ma": "numpy_ma.py",
            f"{self.numpy.core}.overrides": "numpy_overrides.py",
        }.get(name)
        if file is not None:
            return (_REPLACED / file).read_bytes(), False
        if self.numpy.is_absent(name):
            module = self._python.find_module(name)
            if module is not None:
                return (_REPLACED / "absent.py").read_bytes(), module.is_package
        return None

    def _parse_ours(self, name: str) -> tuple[ast.Module | None, bool] | None:
        base = _OURS.joinpath(*name.split(".")[1:])
        for path, is_package in ((base / "__init__.py", True), (base.with_suffix(".py"), False)):
            if path.is_file():
                return self._keep(name, path.read_bytes(), is_package=is_package)
        return None

    def _keep(self, name: str, source: bytes, *, is_package: bool) -> tuple[ast.Module, bool]:
        self._sources[name] = source
        return parse_source(source, name), is_package


def _fill_in_numpy(parts: NumpyParts) -> bytes:
    text = (_REPLACED / "numpy.py").read_text()
    text = text.replace("_PLACES: dict[str, str] = {}", f"_PLACES: dict[str, str] = {dict(parts.places)!r}")
    return text.replace('_CORE = "numpy._core"', f"_CORE = {parts.core!r}").encode()
