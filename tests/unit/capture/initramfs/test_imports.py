"""Which imports count: those that happen, as far as reading tells."""

from __future__ import annotations

import ast

import pytest

from postpanic.capture.initramfs.imports import ImportFinder, find_imports, parse_source
from postpanic.errors import CorruptError

CASES = {
    "import a, b.c as d": ["a", "b.c"],
    "from a import b, c": ["a", "a.b", "a.c"],
    "from a import *": ["a"],
    "from . import x\nfrom .y import z\nfrom .. import w": ["p.q", "p.q.x", "p.q.y", "p.q.y.z", "p", "p.w"],
    "def f():\n import a": [],
    "class C:\n import a\n def f(self): import b": ["a"],
    "if TYPE_CHECKING:\n import a\nelse:\n import b": ["b"],
    "if not typing.TYPE_CHECKING: import a": ["a"],
    "if sys.platform == 'win32':\n import a\nelif sys.platform != 'darwin':\n import b\nelse:\n import c": ["b"],
    "if os.name == 'nt': import a": [],
    "if sys.platform.startswith('linux'): import a\nelse: import b": ["a"],
    "if sys.version_info >= (3, 12): import a\nelse: import b": ["b"],
    "if sys.version_info < (3, 11, 2): import a\nelse: import b": ["b"],
    "if __name__ == '__main__': import a": [],
    "if x and TYPE_CHECKING: import a": [],
    "if x or y: import a\nelse: import b": ["a", "b"],
    "try:\n import there\nexcept ImportError:\n import a": ["there"],
    "try:\n import gone\nexcept ImportError:\n import a\nelse:\n import b\nfinally:\n import c": [
        "gone",
        "a",
        "b",
        "c",
    ],
    "try:\n from there import x\n f()\nexcept ImportError:\n import a": ["there", "there.x"],
    "for x in y:\n import a\nelse:\n import b": ["a", "b"],
    "with x:\n import a": ["a"],
    "while x: import a": ["a"],
    "match x:\n case 1:\n  import a": ["a"],
}


@pytest.mark.parametrize("text", CASES)
def test_what_counts(text: str) -> None:
    found = find_imports(ast.parse(text), "p.q", minor=11, is_there=lambda name: name == "there")
    assert found == CASES[text]


def test_functions_count_where_they_are_asked_for() -> None:
    tree = ast.parse("def f():\n import a\n def g():\n  if TYPE_CHECKING:\n   import b\n  from .c import d")
    assert find_imports(tree, "p", minor=11, functions=True) == ["a", "p.c", "p.c.d"]


MODULES = {
    "ours": ("import one\ndef f(): import late, never.x", False),
    "one": ("from . import y\nfrom pkg.sub import name\ndef f(): import not_followed", False),
    "late": ("import ours", False),
    "pkg": ("import of_package", True),
    "pkg.sub": ("from .side import *", False),
    "pkg.side": ("", False),
    "of_package": ("import ext", False),
    "never": ("import behind_never", True),
    "never.x": ("", False),
    "not_followed": ("", False),
}


def test_closure_follows_packages_and_leaves_out_what_it_must() -> None:
    def parse(name: str) -> tuple[ast.Module | None, bool] | None:
        if name == "ext":
            return None, False
        text, is_package = MODULES.get(name, ("", None))
        return None if is_package is None else (ast.parse(text), is_package)

    finder = ImportFinder(
        parse,
        is_left_out=lambda name: name.split(".")[0] == "never",
        is_there=lambda _: True,
        follow_functions=lambda name: name == "ours",
        minor=11,
    )
    finder.add(["ours"])
    assert set(finder.found) == {"ours", "one", "late", "pkg", "pkg.sub", "pkg.side", "of_package", "ext"}
    assert finder.found["ext"] is None
    assert finder.importers["pkg.sub"] == "one"


NEWER = b'''
"""Doc: f-strings may hold their own quotes since 3.12; what comes behind this one no Python has yet."""
import a.b, c as d  # why
from e import (
    f,  # one
    g,
)
try:
    from . import h
except ImportError:
    h = None
@decorated
def function():
    import not_this
    from nor import this
class Late:
    import nor_that
value = f"{"x" if (1) else 'y'}" newer
if value:
    from .i.j import *
'''


def test_newer_syntax_still_tells_its_imports() -> None:
    names = find_imports(parse_source(NEWER, "m"), "p", minor=13)
    expected = ["a.b", "c", "e", "e.f", "e.g", "p", "p.h", "p.i.j"]
    assert names == expected


def test_source_that_is_none_is_one_error() -> None:
    for source in (b"\0import \0", b"\xff\xfe", b"import a b c"):
        with pytest.raises(CorruptError, match="not a Python module"):
            parse_source(source, "m")
