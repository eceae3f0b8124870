"""
Targets that are made while the kernel runs: ``/sys/kernel/config/netconsole``.

Needs ``CONFIG_NETCONSOLE_DYNAMIC``. What a kernel does not have yet (``release``
came with 6.6, ``userdata`` with 6.9, ``msgid`` with 6.17) is left out and said.

Source: Documentation/networking/netconsole.rst.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from postpanic.capture.netconsole.target import Target
from postpanic.errors import NotReadyError, ProcessError
from postpanic.process import find_program, run

__all__ = ["CONFIGFS", "NAME_PREFIX", "list_targets", "open_netconsole", "remove_target", "write_target"]

CONFIGFS = Path("/sys/kernel/config")
NAME_PREFIX = "postpanic-"
_TIMEOUT_S = 30.0
_KMSG_BYTES = 8192
_ENOTSUPP = 524
"""Of the kernel alone, and given out all the same: the interface's driver has no ``ndo_poll_controller``."""


def open_netconsole(configfs: Path = CONFIGFS) -> Path:
    """
    Return the directory of netconsole, after loading the module and mounting configfs where that is needed.

    Raises
    ------
    NotReadyError
        If the kernel has none.
    """
    directory = configfs / "netconsole"
    if directory.is_dir():
        return directory
    reasons: list[str] = []
    for command in (("modprobe", "netconsole"), ("mount", "-t", "configfs", "configfs", str(configfs))):
        if directory.is_dir() or (command[0] == "mount" and any(configfs.glob("*"))):
            break
        try:
            run([find_program(command[0]), *command[1:]], timeout_s=_TIMEOUT_S)
        except ProcessError as exc:
            reasons.append(str(exc))
    if not directory.is_dir():
        raise NotReadyError(
            f"the kernel has no {directory}" + (f": {reasons[0]}" if reasons else ""),
            hint="root and CONFIG_NETCONSOLE_DYNAMIC are needed; the boot parameter works without",
        )
    return directory


def list_targets(directory: Path) -> list[str]:
    """List the targets that postpanic has made."""
    return sorted(path.name for path in directory.glob(f"{NAME_PREFIX}*") if path.is_dir())


def write_target(directory: Path, target: Target) -> list[str]:
    """
    Make a target, or change it, and switch it on.

    Returns
    -------
    list of str
        What this kernel does not have.

    Raises
    ------
    NotReadyError
        If the kernel refuses; with what it has logged.
    """
    place = directory / target.name
    is_new = not place.exists()
    try:
        missing = _configure(place, target)
        _enable(place)
    except NotReadyError:
        if is_new:
            with suppress(NotReadyError):
                remove_target(directory, target.name)
        raise
    return missing


def _configure(place: Path, target: Target) -> list[str]:
    missing: list[str] = []
    try:
        place.mkdir(exist_ok=True)
        if _read(place / "enabled") == "1":
            _write(place / "enabled", "0")
        for name, value in (
            ("dev_name", target.interface),
            ("local_port", str(target.local_port)),
            ("remote_port", str(target.remote_port)),
            ("local_ip", target.local_ip),
            ("remote_ip", target.remote_ip),
            ("remote_mac", target.remote_mac),
            # In this order: the release goes with extended messages alone.
            *((("release", "0"),) if (place / "release").exists() else ()),
            ("extended", str(int(target.extended))),
        ):
            _write(place / name, value)
        if target.release and target.extended:
            missing += _write_if_there(place / "release", "1", "the release before each message")
        missing += _write_userdata(place, target)
    except OSError as exc:
        raise NotReadyError((exc.strerror or str(exc)).lower(), where=str(exc.filename or place)) from exc
    return missing


def _write_userdata(place: Path, target: Target) -> list[str]:
    directory = place / "userdata"
    if not directory.is_dir():
        return ["user data"] if target.userdata else []
    wanted = dict(target.userdata)
    for path in directory.iterdir():
        if path.is_dir() and path.name not in wanted:
            path.rmdir()
    for key, value in wanted.items():
        (directory / key).mkdir(exist_ok=True)
        _write(directory / key / "value", value)
    if target.extended and (directory / "msgid_enabled").exists():
        # With it the receiver can tell what was lost from what was not for this console.
        _write(directory / "msgid_enabled", "1")
    return []


def _write_if_there(path: Path, value: str, what: str) -> list[str]:
    if not path.exists():
        return [what]
    _write(path, value)
    return []


def _enable(place: Path) -> None:
    log = _open_kernel_log()
    try:
        _write(place / "enabled", "1")
    except OSError as exc:
        said = _read_kernel_log(log)
        reason = "the driver cannot do it" if exc.errno == _ENOTSUPP else (exc.strerror or str(exc)).lower()
        raise NotReadyError(
            f"the kernel does not switch it on: {reason}" + (f" ({said})" if said else ""), where=str(place)
        ) from exc
    finally:
        if log is not None:
            os.close(log)


def remove_target(directory: Path, name: str) -> None:
    """
    Switch a target off and take it away.

    Raises
    ------
    NotReadyError
        If the kernel refuses.
    """
    place = directory / name
    try:
        if _read(place / "enabled") == "1":
            _write(place / "enabled", "0")
        userdata = place / "userdata"
        if userdata.is_dir():
            for path in userdata.iterdir():
                if path.is_dir():
                    path.rmdir()
        place.rmdir()
    except OSError as exc:
        raise NotReadyError((exc.strerror or str(exc)).lower(), where=str(exc.filename or place)) from exc


def _write(path: Path, value: str) -> None:
    # One write call: each is a transaction in configfs.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, value.encode())
    except OSError as exc:
        exc.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _open_kernel_log() -> int | None:
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    os.lseek(log, 0, os.SEEK_END)
    return log


def _read_kernel_log(log: int | None) -> str:
    """Return the last thing that netconsole has logged since the log was opened."""
    said = ""
    if log is not None:
        with suppress(OSError):
            for _ in range(100):
                text = os.read(log, _KMSG_BYTES).decode(errors="replace").partition("\n")[0].partition(";")[2]
                if "netconsole" in text or "netpoll" in text:
                    said = text[:200]
    return said
