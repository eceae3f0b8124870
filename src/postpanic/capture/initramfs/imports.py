"""
Which modules a program of the image imports: found by reading, without running any of it.

Of a module's imports those count that happen when it is imported: at its top
level and in classes, in either branch of what is only known at run time. What
stands in functions counts for our own modules, which import late what costs
much. Excluded are blocks for type checkers, for other platforms and versions,
for the module run as a program, and what is tried in place of a module that is
there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from postpanic.errors import CorruptError

__all__ = ["ImportFinder", "find_imports", "parse_source"]

# An import, up to its closing parenthesis; or what else begins in the first column.
_STATEMENT = re.compile(
    r"^(?P<indent>[ \t]*)(?P<import>(?:import|from)\s+[\w.]+(?:\s+import\s+(?:\([^)]*\)|[^\n(;]*)|[^\n(;]*))"
    r"|^(?P<definition>(?:async\s+def|def|class)\b|@)"
    r"|^(?P<other>[^\s#)\]}])",
    re.MULTILINE,
)


@dataclass(frozen=True)
class _Scope:
    """What decides about a module's conditional imports."""

    package: str
    minor: int
    functions: bool
    is_there: Callable[[str], bool]


def find_imports(
    tree: ast.Module,
    package: str,
    *,
    minor: int,
    functions: bool = False,
    is_there: Callable[[str], bool] = lambda _name: False,
) -> list[str]:
    """
    Return the names that a module may import, in order, absolute; ``from a import b`` gives ``a`` and ``a.b``.

    Parameters
    ----------
    package : str
        Where relative imports start.
    minor : int
        The version that the module will run in.
    functions : bool
        Whether imports in functions count.
    is_there : callable
        Tells whether a module is known to exist: then what replaces it does not count.
    """
    scope = _Scope(package, minor, functions, is_there)
    return list(dict.fromkeys(_walk(tree.body, scope)))


def _walk(body: Iterable[ast.stmt], scope: _Scope) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            yield from _expand_from(node, scope.package)
        elif isinstance(node, ast.If):
            yield from _walk_if(node, scope)
        elif isinstance(node, ast.Try):
            yield from _walk_try(node, scope)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if scope.functions:
                yield from _walk(node.body, scope)
        else:
            yield from _walk_inside(node, scope)


def _walk_inside(node: ast.stmt, scope: _Scope) -> Iterator[str]:
    for _, value in ast.iter_fields(node):
        if isinstance(value, list):
            yield from _walk([item for item in value if isinstance(item, ast.stmt)], scope)
            for item in value:
                if isinstance(item, ast.match_case):
                    yield from _walk(item.body, scope)


def _walk_if(node: ast.If, scope: _Scope) -> Iterator[str]:
    known = _evaluate(node.test, scope.minor)
    if known is not False:
        yield from _walk(node.body, scope)
    if known is not True:
        yield from _walk(node.orelse, scope)


def _walk_try(node: ast.Try, scope: _Scope) -> Iterator[str]:
    tried = list(_walk(node.body, scope))
    yield from tried
    modules = [name for item in node.body for name in _list_modules(item, scope.package)]
    if not modules or not all(scope.is_there(name) for name in modules):
        for handler in node.handlers:
            yield from _walk(handler.body, scope)
    yield from _walk(node.orelse, scope)
    yield from _walk(node.finalbody, scope)


def _list_modules(node: ast.stmt, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [_find_base(node, package)]
    return []


def _find_base(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return ".".join(part for part in (base, node.module) if part)


def _expand_from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    base = _find_base(node, package)
    yield base
    for alias in node.names:
        if alias.name != "*":
            yield f"{base}.{alias.name}"


def _evaluate(test: ast.expr, minor: int) -> bool | None:
    """Return what a condition comes to in the image; None if that is only known there."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return False
        case ast.Constant(value=value):
            return bool(value)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            known = _evaluate(operand, minor)
            return None if known is None else not known
        case ast.BoolOp(op=operation, values=values):
            found = [_evaluate(value, minor) for value in values]
            if isinstance(operation, ast.And):
                return False if False in found else (None if None in found else True)
            return True if True in found else (None if None in found else False)
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            return _compare(ast.unparse(left), operator, right, minor)
        case ast.Call(func=ast.Attribute(value=left, attr="startswith"), args=[ast.Constant(value=str(prefix))]) if (
            ast.unparse(left) == "sys.platform"
        ):
            return "linux".startswith(prefix)
    return None


def _compare(left: str, operator: ast.cmpop, right: ast.expr, minor: int) -> bool | None:
    values = {"sys.platform": "linux", "os.name": "posix", "__name__": "imported", "_os.name": "posix"}
    if left in values and isinstance(right, ast.Constant):
        if isinstance(operator, ast.Eq):
            return bool(values[left] == right.value)
        return bool(values[left] != right.value) if isinstance(operator, ast.NotEq) else None
    if left == "sys.version_info" and isinstance(right, ast.Tuple) and len(right.elts) > 1:
        wanted = tuple(item.value for item in right.elts[:2] if isinstance(item, ast.Constant))
        if isinstance(operator, ast.GtE | ast.Gt):
            return (3, minor) >= wanted
        if isinstance(operator, ast.Lt | ast.LtE):
            return (3, minor) < wanted
    return None


@dataclass
class ImportFinder:
    """
    The closure of imports.

    Attributes
    ----------
    parse : callable
        Gives a module's syntax tree and whether it is a package; a tree of None
        is an extension module, None in all a module that is not there or built
        into the interpreter.
    is_left_out : callable
        Tells which modules never go in: their import fails in the image.
    is_there : callable
        Tells which modules can be imported in the image.
    follow_functions : callable
        Tells of which modules the functions count.
    minor : int
        The version of the image's Python.
    """

    parse: Callable[[str], tuple[ast.Module | None, bool] | None]
    is_left_out: Callable[[str], bool]
    is_there: Callable[[str], bool]
    follow_functions: Callable[[str], bool]
    minor: int
    found: dict[str, ast.Module | None] = field(default_factory=dict)
    importers: dict[str, str] = field(default_factory=dict)
    """Which module brought each in: for messages."""

    def add(self, roots: Iterable[str], importer: str = "") -> None:
        """Follow modules and the packages that they are in."""
        waiting = [(name, importer) for name in roots]
        while waiting:
            name, importer = waiting.pop()
            if name in self.importers or self.is_left_out(name):
                continue
            package = name.rpartition(".")[0]
            if package:
                waiting.append((package, importer))
                if self.is_left_out(package):
                    continue
            parsed = self.parse(name)
            if parsed is None:
                continue
            tree, is_package = parsed
            self.importers[name] = importer
            self.found[name] = tree
            if tree is not None:
                waiting += [(found, name) for found in self._list(name, tree, is_package)]

    def _list(self, name: str, tree: ast.Module, is_package: bool) -> list[str]:
        return find_imports(
            tree,
            name if is_package else name.rpartition(".")[0],
            minor=self.minor,
            functions=self.follow_functions(name),
            is_there=self.is_there,
        )


def parse_source(source: bytes, where: str) -> ast.Module:
    """
    Parse a module; of one in a syntax that is newer than the running Python's, only the imports.

    Raises
    ------
    CorruptError
        If it is no text, or nothing can be made of its imports.
    """
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        pass
    try:
        text = source.decode()
        return ast.parse("\0" if "\0" in text else "\n".join(_list_import_lines(text)))
    except (SyntaxError, ValueError, RecursionError) as exc:
        raise CorruptError(f"not a Python module that can be read: {exc}", where=where) from exc


def _list_import_lines(text: str) -> Iterator[str]:
    """Yield the import statements of a module that stand in no function or class."""
    inside = False
    for match in _STATEMENT.finditer(text):
        if match["definition"] is not None:
            inside = True
        elif match["import"] is None:
            inside = False
        elif not (inside and match["indent"]):
            inside = False
            yield match["import"]
