"""Answers as JSON."""

from __future__ import annotations

import msgspec

from postpanic.findings.schema import answer_value
from postpanic.findings.table import Answer

__all__ = ["encode_json"]


def encode_json(answer: Answer, *, indent: int = 2) -> str:
    """Encode an answer as one JSON document; ``indent=0`` puts it on one line."""
    encoded = msgspec.json.encode(answer_value(answer))
    return (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()
