"""Read ``/etc/postpanic.toml``, and say where in it a mistake is."""

from __future__ import annotations

import bisect
import re
import tomllib
from dataclasses import replace
from pathlib import Path

from postpanic.capture.config.model import Config, InterfaceConfig
from postpanic.capture.config.tables import Place, WrongKeyError, decode_table
from postpanic.capture.config.targets import FileTarget, HttpTarget, TargetConfig
from postpanic.errors import UsageError

__all__ = ["CONFIG_PATH", "decode_config", "default_config", "read_config"]

CONFIG_PATH = Path("/etc/postpanic.toml")
_LIMIT_BYTES = 256 << 10
_TARGETS_MAX = 16


def default_config() -> Config:
    """Give what holds when there is no file: save to ``/var/crash``, on whatever disk it is."""
    return Config(targets=(FileTarget(),))


def read_config(path: Path = CONFIG_PATH, *, must_exist: bool = False) -> Config:
    """
    Read the configuration.

    Parameters
    ----------
    must_exist : bool
        Whether a file that is not there is an error; else it is as if it were empty.

    Raises
    ------
    UsageError
        If it cannot be read, is no TOML, or a key is wrong; with file and line.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_LIMIT_BYTES + 1)
    except FileNotFoundError:
        if must_exist:
            raise UsageError(
                "there is no such file", where=str(path), hint="docs/configuration.md has examples"
            ) from None
        return default_config()
    except OSError as exc:
        raise UsageError(f"cannot be read: {(exc.strerror or str(exc)).lower()}", where=str(path)) from exc
    return decode_config(data, str(path))


def decode_config(data: bytes, where: str) -> Config:
    """
    Decode the configuration.

    Parameters
    ----------
    where : str
        The file's name, for messages.

    Raises
    ------
    UsageError
        If it is no TOML, or a key is wrong; with file and line.
    """
    if len(data) > _LIMIT_BYTES:
        raise UsageError(f"a configuration has at most {_LIMIT_BYTES >> 10} KiB", where=where)
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise UsageError(f"no UTF-8: byte 0x{data[exc.start]:02x}", where=f"{where}:{line}") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise _syntax_error(str(exc), text, where) from None
    except RecursionError:
        raise UsageError("no TOML: nested too deeply", where=where) from None
    try:
        config = decode_table(Config, table)
        _check(config)
    except WrongKeyError as exc:
        line = _find_line(text, exc.place)
        raise UsageError(str(exc), where=f"{where}:{line}" if line else where, hint=exc.hint) from None
    return config if config.targets else replace(config, targets=default_config().targets)


def _syntax_error(message: str, text: str, where: str) -> UsageError:
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if match is None:
        return UsageError(f"no TOML: {message}", where=where)
    line = int(match[2]) if match[2] else max(len(text.splitlines()), 1)
    what = match[1][:1].lower() + match[1][1:]
    return UsageError(f"no TOML: {what}" + (f", in column {match[3]}" if match[3] else ""), where=f"{where}:{line}")


def _check(config: Config) -> None:
    """Check what one key alone cannot tell."""
    for name, targets in (("target", config.targets), ("fallback", config.fallbacks)):
        if len(targets) > _TARGETS_MAX:
            raise WrongKeyError(f"{len(targets)} tables [[{name}]], at most {_TARGETS_MAX} are allowed", (name,))
        for index, target in enumerate(targets):
            _check_target(target, (name, index))
    names: set[str] = set()
    for index, interface in enumerate(config.network.interfaces):
        _check_interface(interface, names, ("network", "interface", index))
        names.add(interface.name)
    for moment, hooks in (("before", config.hooks.before), ("after", config.hooks.after)):
        for index, hook in enumerate(hooks):
            if not hook.command or not hook.command[0].startswith("/"):
                place = ("hooks", moment, index, "command")
                raise WrongKeyError(
                    f"hooks.{moment}[{index + 1}].command must begin with a program's whole path", place
                )


def _check_target(target: TargetConfig, place: Place) -> None:
    name = f"{place[0]}[{int(place[1]) + 1}]"
    if isinstance(target, FileTarget) and target.device is None and target.filesystem:
        raise WrongKeyError(f"{name}.filesystem goes with device only", (*place, "filesystem"))
    if isinstance(target, HttpTarget):
        if target.part_bytes < 64 << 10:
            raise WrongKeyError(
                f"{name}.part_size is {target.part_bytes}, must be 64 KiB or more", (*place, "part_size")
            )
        if "{file}" not in target.url and target.mode == "parts":
            raise WrongKeyError(
                f"{name}.url lacks {{file}}: parts are objects of their own; mode whole or range puts one object",
                (*place, "url"),
                "https://server/dumps/{name}/{file}",
            )


def _check_interface(interface: InterfaceConfig, known: set[str], place: Place) -> None:
    name = f"network.interface[{int(place[-1]) + 1}]"
    if interface.name in known:
        raise WrongKeyError(f'{name}.name is "{interface.name}", which is there already', (*place, "name"))
    below = {"vlan": (interface.parent,), "bond": interface.members}.get(interface.kind, ())
    if interface.kind == "vlan" and not (interface.parent and interface.vlan_id):
        raise WrongKeyError(f"{name} is a VLAN: it needs parent and vlan_id", place)
    if interface.kind == "bond" and not interface.members:
        raise WrongKeyError(f"{name} is a bond: it needs members", place)
    for one in below:
        if one not in known:
            at = "parent" if interface.kind == "vlan" else "members"
            raise WrongKeyError(
                f'{name}.{at} has "{one}", which no [[network.interface]] before it is called', (*place, at)
            )
    if interface.method == "static" and not interface.addresses:
        raise WrongKeyError(f"{name}.method is static: addresses are needed", (*place, "method"))


def _find_line(text: str, place: Place) -> int:
    """
    Find the line that a key begins on; 0 if there is none.

    Every so many first lines of a file are a file of their own, unless they end
    within a value: the key is where the first of them that has it ends.
    """
    lines = text.splitlines(keepends=True)

    def has_key(count: int) -> bool:
        for end in range(count, len(lines) + 1):
            try:
                table: object = tomllib.loads("".join(lines[:end]))
            except (tomllib.TOMLDecodeError, RecursionError):
                continue
            return _has_place(table, place)
        return True

    if not place or not has_key(len(lines)):
        return 0
    # Within a value of several lines the answer is that of its end: the first line with it is where the value begins.
    return bisect.bisect_left([*range(1, len(lines) + 1)], 1, key=lambda count: int(has_key(count))) + 1


def _has_place(table: object, place: Place) -> bool:
    for part in place:
        if isinstance(part, int):
            if not isinstance(table, list) or part >= len(table):
                return False
            table = table[part]
        else:
            if not isinstance(table, dict) or part not in table:
                return False
            table = table[part]
    return True
