"""
numpy made small: which of its modules go into the image, and what stands in for the others.

Of numpy the saver uses arrays, their arithmetic, and a handful of functions of
``numpy.lib``; which ones is read from our own modules. All else (linear
algebra, random numbers, text arrays, documentation) is replaced by modules from
which nothing can be called.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from postpanic.capture.initramfs.python_tree import PythonTree
from postpanic.errors import FactAbsentError

__all__ = ["NumpyParts", "choose_numpy_parts", "find_used_names"]

_CORES = ("numpy._core", "numpy.core")
"""Since 2.0, and before."""

# Packages and modules that the rest of numpy imports, and the saver has no use for.
_ABSENT = (
    *("numpy.__config__", "numpy._distributor_init", "numpy.lib", "numpy.linalg", "numpy.fft"),
    *("numpy.polynomial", "numpy.random", "numpy.ctypeslib", "numpy.matrixlib", "numpy.testing"),
    *("numpy._typing", "numpy.f2py", "numpy.distutils"),
)
_ABSENT_IN_CORE = ("_add_newdocs", "_add_newdocs_scalars")
# Absent unless one of these names is used: modules of their own, the documented way in.
_DROPPABLE_IN_CORE: dict[str, frozenset[str]] = {
    "defchararray": frozenset({"char", "chararray"}),
    "einsumfunc": frozenset({"einsum", "einsum_path"}),
    "memmap": frozenset({"memmap"}),
    "records": frozenset({"rec", "recarray", "record"}),
    "strings": frozenset({"strings"}),
}
_MODULE_NAME = re.compile(rb"\0(numpy(?:\.[A-Za-z_]\w*)+)(?=\0)")


@dataclass(frozen=True)
class NumpyParts:
    """
    What becomes of numpy.

    Attributes
    ----------
    core : str
        The package of the core.
    absent : frozenset of str
        Modules that are only imported.
    places : mapping
        Names that are used and not in the core, with the module that has them.
    roots : tuple of str
        Modules that the core's C code imports when it needs them.
    """

    core: str
    absent: frozenset[str]
    places: Mapping[str, str]
    roots: tuple[str, ...]

    def is_absent(self, name: str) -> bool:
        """Tell whether a module, or the package that it is in, is only imported; numpy.lib has parts that are not."""
        parts = name.split(".")
        packages = {".".join(parts[:count]) for count in range(2, len(parts))} - {"numpy.lib"}
        return name in self.absent or bool(packages & self.absent)


def find_used_names(tree: ast.Module) -> set[str]:
    """Return which names a module takes from numpy: ``np.unique`` gives ``unique``."""
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "numpy"
    }
    if not aliases:
        return set()
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases
    }


def choose_numpy_parts(python: PythonTree, used: Iterable[str]) -> NumpyParts:
    """
    Decide which modules of a tree's numpy are needed.

    Parameters
    ----------
    used : iterable of str
        The names that are taken from numpy.

    Raises
    ------
    FactAbsentError
        If numpy's core is not where any known version has it.
    """
    for core in _CORES:
        extension = python.find_module(f"{core}._multiarray_umath")
        if extension is not None:
            break
    else:
        raise FactAbsentError("no core of numpy, neither _core nor core", where=str(python.root.directory))
    absent = {*_ABSENT, *(f"{core}.{name}" for name in _ABSENT_IN_CORE)}
    used = {*used, *_find_names_of_core(python, core)}
    absent |= {f"{core}.{name}" for name, names in _DROPPABLE_IN_CORE.items() if not used & names}
    strings = {match[1].decode() for match in _MODULE_NAME.finditer(python.read(extension))}
    roots = sorted(name for name in strings if name not in absent and python.find_module(name) is not None)
    # numpy.ma is asked whether an array is masked.
    return NumpyParts(core, frozenset(absent), _find_places(python, used), (*roots, "datetime", "numpy.ma"))


def _find_names_of_core(python: PythonTree, core: str) -> set[str]:
    """Return what the core's own functions take from numpy when they are called."""
    package = python.find_module(core)
    names: set[str] = set()
    for name in python.list_submodules(package) if package else ():
        module = python.find_module(f"{core}.{name}")
        if module is not None and not module.is_extension and name not in {*_DROPPABLE_IN_CORE, *_ABSENT_IN_CORE}:
            names |= find_used_names(ast.parse(python.read(module)))
    return names


def _find_places(python: PythonTree, used: Iterable[str]) -> dict[str, str]:
    """Return the module of each name that is of numpy.lib, and of those that such functions use in their turn."""
    library = python.find_module("numpy.lib")
    if library is None:
        return {}
    modules = {name: _read_functions(python, f"numpy.lib.{name}") for name in python.list_submodules(library)}
    places: dict[str, str] = {}
    waiting = sorted(used)
    while waiting:
        name = waiting.pop()
        module = next((module for module, functions in modules.items() if name in functions), None)
        if module is not None and name not in places:
            places[name] = f"numpy.lib.{module}"
            waiting += sorted(_follow(modules[module], name))
    return dict(sorted(places.items()))


def _read_functions(python: PythonTree, name: str) -> dict[str, ast.AST]:
    """Return the functions and classes of a module by name; none where it is none of Python."""
    module = python.find_module(name)
    if module is None or module.is_extension:
        return {}
    tree = ast.parse(python.read(module))
    return {item.name: item for item in tree.body if isinstance(item, ast.FunctionDef | ast.ClassDef)}


def _follow(functions: Mapping[str, ast.AST], name: str) -> set[str]:
    """Return what a function takes from numpy, itself or by another one of its module."""
    taken: set[str] = set()
    waiting = [name]
    done: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in done or name not in functions:
            continue
        done.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Name):
                waiting.append(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
                taken.add(node.attr)
    return taken
