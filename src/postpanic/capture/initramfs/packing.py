"""Python in the image: interpreter, modules in one file, extension modules, libraries."""

from __future__ import annotations

import _imp
import importlib.util
import marshal
import re
import sys
from pathlib import Path

from postpanic.capture.initramfs import compiling, recording, replaced
from postpanic.capture.initramfs.contents import PythonModules
from postpanic.capture.initramfs.elf import read_elf, read_undefined_symbols, strip
from postpanic.capture.initramfs.libraries import LibraryFinder
from postpanic.capture.initramfs.placeholder import MACHINES, make_placeholder
from postpanic.capture.initramfs.python_tree import PythonTree
from postpanic.process import run

__all__ = ["INIT", "PackedPython", "find_substitute", "pack_python"]

START = "postpanic_start"
_CUSTOM = "sitecustomize"
EXTENSIONS_DIR = "/usr/lib/postpanic"
# Kinds of replaced/start.py.
_PACKAGE, _SOURCE, _EXTENSION = 1, 2, 4
_COMPILE_TIMEOUT_S = 300.0
# What the interpreter imports before the first line of /init runs.
_EARLY = ("encodings", "encodings.aliases", "encodings.utf_8")
# Libraries that are linked with, and never called: which they are, and which names of theirs are.
_UNUSED = (
    (
        re.compile(r"lib(scipy_)?(open)?(blas|cblas|blis|flexiblas|mkl_|satlas|tatlas|atlas|f77blas|lapack).*"),
        re.compile(r"(\w+_)?(cblas|lapacke?|openblas)_\w+|[sdcz][a-z0-9]{2,7}_(64_)?"),
    ),
    # Of an interpreter that has the XML parser built in.
    (re.compile(r"libexpat\.so.*"), re.compile(r"XML_\w+")),
)

INIT = """\
#!{interpreter} {options}
import {start}
from {module} import main
main()
"""
OPTIONS = "-BOOPSsXutf8"
"""
No bytecode written, docstrings dropped, no directory of scripts, no site, no user's site, UTF-8. Not ``-E``:
``PYTHONHASHSEED`` of the kernel's command line counts, as there is no entropy yet.
"""


class PackedPython:
    """
    The files of Python in the image.

    Attributes
    ----------
    files : dict
        Path in the image to content.
    interpreter : str
        The program.
    programs : set of str
        Files that are run.
    """

    def __init__(self, interpreter: str) -> None:
        self.interpreter = interpreter
        self.files: dict[str, bytes] = {}
        self.programs = {interpreter}


def pack_python(
    python: PythonTree, modules: PythonModules, libraries: LibraryFinder, entry: str, *, compiled: bool
) -> PackedPython:
    """
    Lay out a Python that imports what is listed and nothing else.

    Parameters
    ----------
    libraries : LibraryFinder
        Gets the libraries that are needed.
    entry : str
        The module whose ``main`` is PID 1.
    compiled : bool
        Whether modules are compiled here, which takes the same version of Python.

    Raises
    ------
    ProcessError
        If modules cannot be compiled.
    FactAbsentError
        If a library is missing.
    """
    interpreter = f"/usr/bin/python3.{python.minor}"
    packed = PackedPython(interpreter)
    packed.files[interpreter] = strip(python.root.read(python.interpreter))
    libraries.add(python.interpreter)
    for name, module in modules.extensions.items():
        libraries.add(module.path, python.interpreter)
        packed.files[f"{EXTENSIONS_DIR}/{name}.so"] = strip(python.read(module))

    start = (Path(replaced.__file__).parent / "start.py").read_bytes()
    # What runs a hook's Python program imports "sitecustomize" by itself.
    sources = {**modules.sources, START: (start, False), _CUSTOM: (f"import {START}\n".encode(), False)}
    code: dict[str, bytes] = {}
    texts: list[str] = []
    if compiled:
        texts = _record_texts(modules)
        everything = {name: source for name, (source, _) in sources.items()}
        code = _compile_all({**everything, **{text: text.encode() for text in texts}})
    packed.files |= _make_library(f"/usr/{python.library_place}", sources, code)
    packed.files[f"{EXTENSIONS_DIR}/modules"] = _make_modules_file(modules, code, texts)
    packed.files["/init"] = INIT.format(interpreter=interpreter, options=OPTIONS, start=START, module=entry).encode()
    packed.programs.add("/init")
    return packed


def _make_library(library: str, sources: dict[str, tuple[bytes, bool]], code: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files of the library's directory: by which the interpreter knows it, and what it imports first."""
    # Modules/getpath.py
    files = {f"{library}/os.py{'c' if code else ''}": b"", f"{library}/lib-dynload/.keep": b""}
    for name in (*_EARLY, START, _CUSTOM):
        source, is_package = sources[name]
        path = f"{library}/{name.replace('.', '/')}{'/__init__' if is_package else ''}.py"
        files[path + "c" if code else path] = _add_header(code[name]) if code else source
    return files


def find_substitute(name: str, content: bytes) -> bytes | None:
    """Return a placeholder for a library that nothing of the image calls (:mod:`.placeholder`); None for others."""
    for library, symbol in _UNUSED:
        if library.fullmatch(name):
            machine = read_elf(content, name).machine
            if machine not in MACHINES:
                return None
            symbols = [found for found in read_undefined_symbols(content, name) if symbol.fullmatch(found)]
            return make_placeholder(name, symbols, machine)
    return None


def _compile_all(sources: dict[str, bytes]) -> dict[str, bytes]:
    names = sorted(sources)
    # A process of its own that knows nothing of us: see compiling.py.
    finished = run(
        [sys.executable, "-BSs", "-X", "no_debug_ranges", Path(compiling.__file__)],
        stdin=marshal.dumps([(name, sources[name]) for name in names]),
        env={"PYTHONHASHSEED": "0"},
        timeout_s=_COMPILE_TIMEOUT_S,
    )
    compiled = marshal.loads(finished.stdout)  # noqa: S302 - of our own program
    return dict(zip(names, compiled, strict=True))


def _add_header(code: bytes) -> bytes:
    """Make a .pyc of code: hash-based and never checked (PEP 552)."""
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + code


def _record_texts(modules: PythonModules) -> list[str]:
    """Return what our data classes compile when they are made."""
    ours = [name for name in modules.sources if name.split(".")[0] == "postpanic"]
    paths = [path for path in sys.path if path]
    finished = run(
        [sys.executable, "-BSs", Path(recording.__file__)],
        stdin=marshal.dumps([paths, ours]),
        env={"PYTHONHASHSEED": "0"},
        timeout_s=_COMPILE_TIMEOUT_S,
    )
    texts: list[str] = marshal.loads(finished.stdout)  # noqa: S302 - of our own program
    return texts


def _make_modules_file(modules: PythonModules, code: dict[str, bytes], texts: list[str]) -> bytes:
    """Make the file that replaced/start.py reads; of modules without code it gets the source."""
    table: dict[str | bytes, tuple[int, int, int]] = dict.fromkeys(modules.extensions, (0, 0, _EXTENSION))
    content = bytearray()
    for name, (source, is_package) in sorted(modules.sources.items()):
        data = code.get(name, source)
        table[name] = (len(content), len(data), (_PACKAGE if is_package else 0) | (0 if name in code else _SOURCE))
        content += data
    for text in texts:
        table[_imp.source_hash(0, text.encode())] = (len(content), len(code[text]), 0)
        content += code[text]
    # Version 2 of marshal's format has no references, which depend on who else knows a string.
    index = marshal.dumps(table, 2)
    return len(index).to_bytes(8, "little") + index + bytes(content)
