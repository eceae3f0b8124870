"""Write a configuration as TOML: tables, arrays of tables, and values of the kinds that ours has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

__all__ = ["encode_toml"]


def encode_toml(value: Mapping[str, object]) -> str:
    r"""
    Write a table of tables.

    Parameters
    ----------
    value : mapping
        Names to tables or lists of tables; their values are texts, numbers, truth values, and lists of texts.

    >>> print(encode_toml({"target": [{"kind": "file", "keep": 3}], "dump": {"level": [31]}}), end="")
    [[target]]
    kind = "file"
    keep = 3
    <BLANKLINE>
    [dump]
    level = [31]
    """
    parts: list[str] = []
    for name, table in value.items():
        if isinstance(table, list):
            parts += ["\n".join([f"[[{name}]]", *_lines(one)]) + "\n" for one in table]
        elif isinstance(table, Mapping) and table:
            nested = {key: one for key, one in table.items() if isinstance(one, list) and one and _is_table(one[0])}
            plain = {key: one for key, one in table.items() if key not in nested}
            if plain:
                parts.append("\n".join([f"[{name}]", *_lines(plain)]) + "\n")
            parts += ["\n".join([f"[[{name}.{key}]]", *_lines(one)]) + "\n" for key in nested for one in nested[key]]
    return "\n".join(parts)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _lines(table: Mapping[str, object]) -> Iterator[str]:
    for name, value in table.items():
        # What JSON writes of texts, numbers, truth values and lists of them is TOML, too.
        yield f"{name} = {json.dumps(value)}"
