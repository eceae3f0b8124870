"""A tree with a Python in it that was never installed anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.shared_object import make_shared_object

LOADER = "/lib64/ld-linux-x86-64.so.2"
CORE = """
import os
from . import _add_newdocs, multiarray, overrides, getlimits
from .multiarray import *
from .records import record
"""
FILES = {
    # Of the standard library, as much as is looked for.
    "lib/python3.{minor}/encodings/__init__.py": "from . import aliases\n",
    "lib/python3.{minor}/encodings/aliases.py": "",
    "lib/python3.{minor}/encodings/utf_8.py": "",
    "lib/python3.{minor}/os.py": "",
    "lib/python3.{minor}/dataclasses.py": "import inspect, re\n",
    "lib/python3.{minor}/inspect.py": "import ast, dis\n",
    "lib/python3.{minor}/dis.py": "",
    "lib/python3.{minor}/re/__init__.py": "",
    "lib/python3.{minor}/json/__init__.py": "import _json\n",
    "lib/python3.{minor}/typing.py": "",
    "lib/python3.{minor}/__future__.py": "",
    "lib/python3/dist-packages/numpy/__init__.py": "from .core import *\nfrom . import lib, linalg, random\n",
    "lib/python3/dist-packages/numpy/_globals.py": "_NoValue = None\n",
    "lib/python3/dist-packages/numpy/core/__init__.py": CORE,
    "lib/python3/dist-packages/numpy/core/_add_newdocs.py": "import huge\n",
    "lib/python3/dist-packages/numpy/core/multiarray.py": "from . import _multiarray_umath\nimport numpy as np\n",
    "lib/python3/dist-packages/numpy/core/overrides.py": "import inspect\n",
    "lib/python3/dist-packages/numpy/core/getlimits.py": "",
    "lib/python3/dist-packages/numpy/core/records.py": "class record: pass\n",
    "lib/python3/dist-packages/numpy/core/einsumfunc.py": "def einsum(): pass\n",
    "lib/python3/dist-packages/numpy/core/_methods.py": "",
    "lib/python3/dist-packages/numpy/lib/__init__.py": "from . import npyio, arraysetops\n",
    "lib/python3/dist-packages/numpy/lib/npyio.py": "import gzip\n",
    "lib/python3/dist-packages/numpy/lib/arraysetops.py": (
        "import numpy as np\ndef unique(a): return _one(a)\ndef _one(a): return np.rot90(a)\ndef other(): np.unused()\n"
    ),
    "lib/python3/dist-packages/numpy/lib/function_base.py": "def rot90(a): pass\ndef unused(): pass\n",
    "lib/python3/dist-packages/numpy/linalg/__init__.py": "from . import _umath_linalg\n",
    "lib/python3/dist-packages/numpy/random/__init__.py": "",
    "lib/python3/dist-packages/zstandard/__init__.py": "from .backend_c import *\n",
    "lib/python3/dist-packages/other.py": "",
}


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a Debian-like tree with a Python of some version."""

    def make(minor: int = sys.version_info.minor, machine: str = "x86_64") -> Path:
        root = tmp_path / "root"
        usr = root / "usr"
        tag = f"cpython-3{minor}-{machine}-linux-gnu.so"
        packages = "lib/python3/dist-packages"
        extension = make_shared_object(needed=["libc.so.6"], machine=machine)
        core = make_shared_object(needed=["libblas.so.3", "libc.so.6"], undefined=["cblas_ddot"], machine=machine)
        program = make_shared_object(needed=["libc.so.6"], interpreter=LOADER, machine=machine)
        library = make_shared_object(machine=machine)
        binaries = {
            f"bin/python3.{minor}": program,
            f"lib/{machine}-linux-gnu/libc.so.6": library,
            f"lib/python3.{minor}/lib-dynload/_json.{tag}": extension,
            f"{packages}/numpy/core/_multiarray_umath.{tag}": core + b"\0numpy.core._methods\0numpy.core.nothing\0",
            f"{packages}/zstandard/backend_c.{tag}": extension,
        }
        texts = {name.format(minor=minor): text.encode() for name, text in FILES.items()}
        for name, content in {**texts, **binaries}.items():
            (usr / name).parent.mkdir(parents=True, exist_ok=True)
            (usr / name).write_bytes(content)
        (root / "lib64").mkdir(exist_ok=True)
        (root / LOADER.lstrip("/")).write_bytes(library)
        return root

    return make
