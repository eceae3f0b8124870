"""Tables of the configuration as dataclasses, whose fields carry key, allowed values and description."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from postpanic.capture.config.values import RefusedError, Value

__all__ = [
    "Key",
    "Place",
    "WrongKeyError",
    "decode_table",
    "key",
    "list_keys",
    "one_table",
    "required",
    "tables",
    "tables_by_kind",
]

T = TypeVar("T")
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Key:
    """
    One key of the file.

    Attributes
    ----------
    name : str
        As it is written, with its table: ``capture.kernel``, ``[[target]] path``.
    allowed, default, summary : str
        For the documentation.
    """

    name: str
    allowed: str
    default: str
    summary: str


@dataclass(frozen=True)
class _Table:
    """What a key holds that is a table itself, or a list of tables (by their ``kind`` where there are several)."""

    choices: Mapping[str, type]
    is_list: bool
    summary: str


class WrongKeyError(Exception):
    """
    Something in the file is wrong.

    Attributes
    ----------
    place : tuple
        Keys and list indices from the top down to it.
    hint : str
        What to do.
    """

    def __init__(self, message: str, place: Place, hint: str = "") -> None:
        super().__init__(message)
        self.place = place
        self.hint = hint


def key(value: Value[T], default: Any, summary: str, *, name: str = "", shown: str = "") -> T:  # noqa: ANN401 - of the field's type, as the reader makes it
    """
    Declare the field of a dataclass as a key of the file.

    Parameters
    ----------
    default
        Of the field, when the file does not have the key.
    summary : str
        For the documentation.
    name : str
        Of the key, where it is not the field's.
    shown : str
        The default as the file would have it.
    """
    return cast("T", dataclasses.field(default=default, metadata={"value": value, "about": (summary, name, shown)}))


def required(value: Value[T], summary: str, *, name: str = "") -> T:
    """Declare a key that the file must have."""
    metadata = {"value": value, "about": (summary, name, ""), "required": True}
    return cast("T", dataclasses.field(metadata=metadata))


def one_table(kind: type[T], summary: str) -> T:
    """Declare a table ``[name]``."""
    table = _Table({"": kind}, is_list=False, summary=summary)
    return dataclasses.field(default_factory=kind, metadata={"value": table, "about": (summary, "", "")})


def tables(kind: type[T], summary: str, *, name: str = "") -> tuple[T, ...]:
    """Declare a list of tables ``[[name]]``."""
    table = _Table({"": kind}, is_list=True, summary=summary)
    return cast("tuple[T, ...]", dataclasses.field(default=(), metadata={"value": table, "about": (summary, name, "")}))


def tables_by_kind(kinds: Mapping[str, type], summary: str, *, name: str = "") -> Any:  # noqa: ANN401 - the union is in the annotation
    """Declare a list of tables whose key ``kind`` says which keys they have."""
    table = _Table(kinds, is_list=True, summary=summary)
    return dataclasses.field(default=(), metadata={"value": table, "about": (summary, name, "")})


def decode_table(kind: type[T], table: object, place: Place = ()) -> T:
    """
    Turn a table of the file into its dataclass.

    Raises
    ------
    WrongKeyError
        At the first key that is not known, is missing, or holds what it must not.
    """
    if not isinstance(table, dict):
        raise WrongKeyError(f"{_spell(place)} is {_show(table)}, must be a table", place)
    fields = {_name_of(one): one for one in dataclasses.fields(cast("Any", kind)) if "value" in one.metadata}
    for name in table:
        if name not in fields:
            raise _unknown(name, (*place, name), list(fields))
    values: dict[str, object] = {}
    for name, one in fields.items():
        if name in table:
            values[one.name] = _decode_value(one.metadata["value"], table[name], (*place, name))
        elif one.metadata.get("required"):
            raise WrongKeyError(f"{_spell(place)} lacks the key {name}", place, f"{name}: {one.metadata['about'][0]}")
    return kind(**values)


def list_keys(kind: type, prefix: str = "") -> Iterator[Key]:
    """List every key of a table and of those below it, in the order in which they are declared."""
    for one in dataclasses.fields(kind):
        if "value" not in one.metadata:
            continue
        value, (summary, _, shown) = one.metadata["value"], one.metadata["about"]
        name = prefix + _name_of(one)
        if not isinstance(value, _Table):
            default = "required" if one.metadata.get("required") else shown or _show_default(one.default)
            yield Key(name, value.allowed, default, summary)
            continue
        for kind_name, inner in value.choices.items():
            path = f"{name}[{kind_name}]" if kind_name else name
            yield from list_keys(inner, f"{path}.")


def _decode_value(value: Value[Any] | _Table, found: object, place: Place) -> object:
    if isinstance(value, _Table):
        return _decode_tables(value, found, place)
    try:
        return value.read(found)
    except RefusedError as exc:
        raise WrongKeyError(f"{_spell(place)} is {_show(found)}: {exc}", place) from None
    except (ValueError, TypeError, OverflowError):
        raise WrongKeyError(f"{_spell(place)} is {_show(found)}, must be {value.allowed}", place) from None


def _decode_tables(value: _Table, found: object, place: Place) -> object:
    if not value.is_list:
        return decode_table(value.choices[""], found, place)
    if not isinstance(found, list):
        name = _spell(place)
        raise WrongKeyError(f"{name} is {_show(found)}, must be a list of tables", place, f"write it as [[{name}]]")
    return tuple(_decode_member(value, table, (*place, index)) for index, table in enumerate(found))


def _decode_member(value: _Table, table: object, place: Place) -> object:
    if "" in value.choices:
        return decode_table(value.choices[""], table, place)
    allowed = ", ".join(f'"{kind}"' for kind in value.choices)
    if not isinstance(table, dict) or "kind" not in table:
        raise WrongKeyError(f"{_spell(place)} lacks the key kind", place, f"kind is one of {allowed}")
    kind = table["kind"]
    if not isinstance(kind, str) or kind not in value.choices:
        raise WrongKeyError(f"{_spell((*place, 'kind'))} is {_show(kind)}, must be one of {allowed}", (*place, "kind"))
    return decode_table(value.choices[kind], {name: item for name, item in table.items() if name != "kind"}, place)


def _unknown(name: str, place: Place, names: list[str]) -> WrongKeyError:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
    return WrongKeyError(f"{_spell(place)} is not known", place, hint)


def _name_of(one: dataclasses.Field[Any]) -> str:
    name: str = one.metadata["about"][1] if "about" in one.metadata else ""
    return name or one.name


def _spell(place: Place) -> str:
    """Spell a place as TOML's tables do, lists counted from 1: ``target 2: path``."""
    text = ""
    for part in place:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the file"


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = f'"{value}"' if value.isprintable() else repr(value)
    else:
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _show_default(value: object) -> str:
    if value is None or value == () or value == "":
        return "none"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _show(value)
