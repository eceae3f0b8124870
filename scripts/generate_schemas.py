"""
Write the JSON Schema of each native command's answer, and of the verbs that answer in the same way.

Usage::

    generate_schemas.py DIRECTORY

One file for each command, named after it; files of commands that are gone are removed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from postpanic.analysis.commands.catalog import load_commands
from postpanic.analysis.decode.answer import SHAPES as DECODE_SHAPES
from postpanic.findings.schema import answer_schema
from postpanic.findings.verdict_answer import SHAPES as TRIAGE_SHAPES

__all__ = ["SPELLED", "make_schemas"]

SPELLED = {"*": "star"}
"""Commands whose names are no good file names."""


def make_schemas() -> dict[str, str]:
    """Return the text of each schema, by its file name."""
    shapes = {name: command.shapes for name, command in load_commands().items()}
    return {
        f"{SPELLED.get(name, name)}.json": json.dumps(answer_schema(name, known), indent=1) + "\n"
        for name, known in {**shapes, "decode": DECODE_SHAPES, "triage": TRIAGE_SHAPES}.items()
    }


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n", 1)[0])
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    schemas = make_schemas()
    for path in directory.glob("*.json"):
        if path.name not in schemas:
            path.unlink()
    for name, text in schemas.items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    main()
