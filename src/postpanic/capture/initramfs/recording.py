"""
Find out which methods data classes compile when they are made: a program of its own.

``dataclasses`` writes its methods as text and compiles that, class by class,
which takes longer than all else when the saver is imported. The texts are
always the same: what this program has seen is compiled beforehand. It reads a
marshalled list of search paths and one of modules from standard input, imports
those that can be imported here, and writes the marshalled list of texts.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import importlib
import marshal
import sys

__all__ = ["record_texts"]


def record_texts(modules: list[str]) -> list[str]:
    """Import modules, and return what ``dataclasses`` compiled, sorted."""
    texts: set[str] = set()

    def record(text: str, *scope: dict[str, object]) -> None:
        texts.add(text)
        builtins.exec(text, *scope)  # noqa: S102 - in its place

    dataclasses.exec = record  # type: ignore[attr-defined]
    for name in modules:
        # One that cannot be imported here compiles its methods in the image, which takes a moment longer.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return sorted(texts)


def main() -> None:
    """Record what standard input says."""
    paths, modules = marshal.loads(sys.stdin.buffer.read())  # noqa: S302 - from packing.py
    sys.path[:] = [*paths, *sys.path]
    output = sys.stdout
    sys.stdout = sys.stderr
    output.buffer.write(marshal.dumps(record_texts(modules)))


if __name__ == "__main__":
    main()
