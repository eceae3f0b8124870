"""The plan as JSON, and back: every mistake names its key."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from postpanic.errors import CorruptError
from postpanic.saver.plan import PLAN_PATH, SCHEMA_VERSION, SavePlan

__all__ = ["decode_plan", "encode_plan", "read_plan"]

_LIMIT_BYTES = 1 << 20


def encode_plan(plan: SavePlan) -> bytes:
    """Give a plan as JSON."""
    return (json.dumps(dataclasses.asdict(plan), indent=1, sort_keys=True) + "\n").encode()


def read_plan(path: Path = PLAN_PATH) -> SavePlan:
    """
    Read the plan of the image.

    Raises
    ------
    CorruptError
        If the file cannot be read or is no plan; names the key.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_LIMIT_BYTES + 1)
    except OSError as exc:
        raise CorruptError(f"no plan: {(exc.strerror or str(exc)).lower()}", where=str(path)) from exc
    return decode_plan(data, where=str(path))


def decode_plan(data: bytes, where: str = "") -> SavePlan:
    """
    Decode a plan.

    Raises
    ------
    CorruptError
        If it is none; names the key.
    """
    if len(data) > _LIMIT_BYTES:
        raise CorruptError(f"a plan has at most {_LIMIT_BYTES} bytes", where=where)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise CorruptError(f"no JSON: {exc}", where=where) from exc
    try:
        plan = _decode(SavePlan, value, "plan")
    except _WrongValueError as exc:
        raise CorruptError(str(exc), where=where) from None
    assert isinstance(plan, SavePlan)  # noqa: S101 - for the type checker
    if plan.schema_version != SCHEMA_VERSION:
        raise CorruptError(f"plan.schema_version is {plan.schema_version}, must be {SCHEMA_VERSION}", where=where)
    return plan


class _WrongValueError(Exception):
    pass


def _decode(kind: Any, value: object, path: str) -> Any:  # noqa: ANN401 - whatever the annotation says
    """Decode a value as what its annotation says; every mistake names its key."""
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_object(kind, value, path)
    if origin is Literal:
        if value in get_args(kind) and isinstance(value, str):
            return value
        raise _WrongValueError(f"{path} is {value!r}, must be one of {', '.join(get_args(kind))}")
    if origin in (typing.Union, types.UnionType):
        return _decode_union(get_args(kind), value, path)
    if origin is tuple:
        return _decode_tuple(get_args(kind), value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    raise _WrongValueError(f"{path} is {value!r}, must be of type {kind.__name__}")


def _decode_tuple(inner: tuple[Any, ...], value: object, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _WrongValueError(f"{path} is {value!r}, must be a list")
    if inner[-1] is Ellipsis:
        inner = (inner[0],) * len(value)
    if len(inner) != len(value):
        raise _WrongValueError(f"{path} has {len(value)} members, must have {len(inner)}")
    return tuple(
        _decode(one, item, f"{path}[{index}]") for index, (one, item) in enumerate(zip(inner, value, strict=True))
    )


def _decode_union(choices: tuple[Any, ...], value: object, path: str) -> Any:  # noqa: ANN401 - whatever the annotation says
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    if len(choices) == 1:
        return _decode(choices[0], value, path)
    known = {choice.kind: choice for choice in choices}
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in known:
        raise _WrongValueError(f"{path}.kind is {kind!r}, must be one of {', '.join(known)}")
    return _decode(known[kind], value, path)


def _decode_object(kind: Any, value: object, path: str) -> Any:  # noqa: ANN401 - whatever the annotation says
    if not isinstance(value, dict):
        raise _WrongValueError(f"{path} is {value!r}, must be an object")
    hints = typing.get_type_hints(kind)
    names = {one.name for one in dataclasses.fields(kind)}
    unknown = sorted(set(value) - names)
    if unknown:
        raise _WrongValueError(f"{path}.{unknown[0]} is not known")
    missing = [
        one.name
        for one in dataclasses.fields(kind)
        if one.name not in value and one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise _WrongValueError(f"{path}.{missing[0]} is missing")
    return kind(**{name: _decode(hints[name], item, f"{path}.{name}") for name, item in value.items()})
