"""In place of a module that is imported, but not used: what is taken from it fails when it is called."""

from __future__ import annotations

from typing import NoReturn

__all__: list[str] = []


class Absent:
    """Something that is not in the image."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_arguments: object, **_options: object) -> NoReturn:
        raise NotImplementedError(f"{self._name} is not in this image")

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __mro_entries__(self, _bases: tuple[object, ...]) -> tuple[type, ...]:
        return (object,)


def __getattr__(name: str) -> Absent:
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent(f"{__name__}.{name}")
