"""
Compile modules: a program of its own, so that equal sources become equal bytes.

What marshal writes depends on which strings the process has seen before: this
one has seen nothing else. It reads a marshalled list of (name, source) from
standard input, and writes one of the code, marshalled each, to standard output.
"""

from __future__ import annotations
import __future__

import ast
import marshal
import sys

__all__ = ["compile_module"]

_TREE_NEEDED = (b"dataclass", b"NamedTuple", b"TypedDict")
"""In whose classes docstrings and annotations count."""


def compile_module(name: str, source: bytes) -> bytes:
    """
    Compile a module without assertions, docstrings and the annotations of functions.

    A module without classes that look at such is not taken to pieces for it, which takes five times as long as all
    else: its annotations become texts that nobody asks for. Data classes keep a short docstring: without any, each
    would compute its signature when it is made, which takes longer than all the rest of making it.
    """
    file = name.split("\n", maxsplit=1)[0]
    if not any(word in source for word in _TREE_NEEDED):
        flags = __future__.annotations.compiler_flag
        return marshal.dumps(compile(source, file, "exec", flags, dont_inherit=True, optimize=2))
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_annotations(node)
    return marshal.dumps(compile(tree, file, "exec", dont_inherit=True, optimize=1))


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        del node.body[0]
    if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(item) for item in node.decorator_list):
        node.body.insert(0, ast.Expr(ast.Constant("-")))
    if not node.body and not isinstance(node, ast.Module):
        node.body.append(ast.Pass())
    ast.fix_missing_locations(node)


def _drop_annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    """Spare every function a dict that nobody looks at; those of classes say what the fields of data classes are."""
    node.returns = None
    arguments = node.args
    for argument in (
        *(*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs),
        *(arguments.vararg, arguments.kwarg),
    ):
        if argument is not None:
            argument.annotation = None


def main() -> None:
    """Compile what standard input says."""
    modules: list[tuple[str, bytes]] = marshal.loads(sys.stdin.buffer.read())  # noqa: S302 - from packing.py
    sys.stdout.buffer.write(marshal.dumps([compile_module(name, source) for name, source in modules]))


if __name__ == "__main__":
    main()
