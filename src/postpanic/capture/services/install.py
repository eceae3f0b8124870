"""Put the files of the boot services where they belong, and take them away."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from postpanic.capture.arming.state import write_atomically
from postpanic.capture.host import Host
from postpanic.capture.services.files import ServiceFile, ServiceKind, detect_kind, list_files
from postpanic.errors import NotReadyError, OutputError, PostpanicError
from postpanic.process import find_program, run

__all__ = ["ServiceChange", "disable", "enable", "find_enabled", "reload_systemd", "spell_command"]

_KINDS: tuple[ServiceKind, ...] = ("systemd", "openrc", "local.d")
_PLAIN = re.compile(r"[\w./+:@=-]+")
_OURS = "postpanic service"
_NEEDED = ("postpanic", "click", "numpy", "zstandard")
"""What is looked for: it may lie in several directories."""
_SHOW_PATH = "import sys; print(*sys.path, sep=chr(10))"
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class ServiceChange:
    """
    What was done.

    Attributes
    ----------
    kind : str
        What runs the service.
    paths : tuple of Path
        Files that were written or removed; those that were as they should be are not among them.
    notes : tuple of str
        What else there is to say.
    """

    kind: ServiceKind
    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def enable(
    host: Host, *, kind: ServiceKind | None = None, tell: tuple[str, ...] = (), interpreter: Path | None = None
) -> ServiceChange:
    """
    Install the services. Nothing is started: the machine is armed at the next boot, or by ``postpanic arm``.

    Parameters
    ----------
    kind : str, optional
        What runs services here; by default as it is found.
    tell : tuple of str
        Options of ``postpanic collect``: whom to tell.
    interpreter : Path, optional
        The Python that has postpanic; by default this one.

    Raises
    ------
    NotReadyError
        If nothing that is known runs services here, or a word cannot be put into these files.
    OutputError
        If a file cannot be written, or somebody else's is in its place.
    """
    chosen = kind or detect_kind(host)
    if chosen is None:
        raise NotReadyError(
            "nothing that is known runs services here",
            hint="have whatever runs at boot run: postpanic collect; postpanic arm",
        )
    files = list_files(chosen, host, spell_command(interpreter, tell), " ".join(tell))
    changed = [host.path(file.path) for file in files if _put(host, file)]
    # What tells somebody, when nobody is to be told any more.
    wanted = {file.path for file in files}
    changed += [path for file in _list_ours(host) if file.path not in wanted and (path := _remove(host, file))]
    return ServiceChange(chosen, tuple(changed), reload_systemd(host) if changed and chosen == "systemd" else ())


def spell_command(interpreter: Path | None = None, words: tuple[str, ...] = ()) -> str:
    """
    Spell the command that runs postpanic, so that every kind of service file can take it.

    Parameters
    ----------
    words : tuple of str
        That will follow it; only looked at.

    Raises
    ------
    NotReadyError
        If a word would need quotes: their rules differ from file to file.
    """
    python = str(interpreter or Path(sys.executable))
    places = ":".join(_find_places(python)) if interpreter is None else ""
    for word in (python, places, *words):
        if word and not _PLAIN.fullmatch(word):
            raise NotReadyError(f"{word!r} cannot be put into a service", hint="name a script instead")
    # What runs services hands down no PYTHONPATH; of the files only systemd's have a word for the environment.
    return f"{f'/usr/bin/env PYTHONPATH={places} ' if places else ''}{python} -m postpanic"


def _find_places(python: str) -> list[str]:
    """
    Find where postpanic is that Python would not find by itself.

    So it is with ``pip install --target`` and with a copied tree, where PYTHONPATH or a script tells it.
    """
    try:
        listed = run([python, "-E", "-c", _SHOW_PATH], cwd=Path("/"), timeout_s=_TIMEOUT_S).stdout.decode()
    except PostpanicError:
        return []
    by_itself = {str(Path(line).resolve()) for line in listed.splitlines() if line}
    found = (_find_directory(name) for name in _NEEDED)
    return list(dict.fromkeys(place for place in found if place and place not in by_itself))


def _find_directory(name: str) -> str:
    """Return the entry of the search path that has a package."""
    spec = find_spec(name)
    return str(Path(spec.origin).resolve().parent.parent) if spec is not None and spec.origin else ""


def disable(host: Host) -> ServiceChange:
    """
    Remove the services, whatever runs them; done again it does nothing. What is loaded stays loaded.

    Raises
    ------
    OutputError
        If a file cannot be removed.
    """
    removed = [path for file in _list_ours(host) if (path := _remove(host, file))]
    found = detect_kind(host) or "systemd"
    return ServiceChange(found, tuple(removed), reload_systemd(host) if removed else ())


def find_enabled(host: Host) -> list[Path]:
    """List the files of the services that are there."""
    found = [file for file in _list_ours(host) if _is_ours(host.path(file.path), file)]
    return list(dict.fromkeys(host.path(file.path) for file in reversed(found)))


def _list_ours(host: Host) -> list[ServiceFile]:
    """List all that there may be, links before what they lead to."""
    return [file for kind in _KINDS for file in reversed(list_files(kind, host, "", "--tell"))]


def _remove(host: Host, file: ServiceFile) -> Path | None:
    """Remove a file if it is there and ours; return where it was."""
    path = host.path(file.path)
    if not _is_ours(path, file):
        return None
    try:
        path.unlink()
    except OSError as exc:
        raise OutputError(f"cannot be removed: {(exc.strerror or str(exc)).lower()}", where=str(path)) from exc
    return path


def _is_ours(path: Path, file: ServiceFile) -> bool:
    if file.is_link:
        return path.is_symlink() and str(path.readlink()) == file.text
    try:
        with path.open("rb") as stream:
            return _OURS.encode() in stream.read(4096)
    except OSError:
        return False


def _put(host: Host, file: ServiceFile) -> bool:
    """Write a file; tell whether it was not there as it should be."""
    path = host.path(file.path)
    if file.is_link:
        if _is_ours(path, file):
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(file.text)
        except OSError as exc:
            raise OutputError(f"cannot be linked: {(exc.strerror or str(exc)).lower()}", where=str(path)) from exc
        return True
    with suppress(OSError):
        if path.read_text() == file.text and path.stat().st_mode & 0o777 == file.mode:
            return False
    if path.exists() and not _is_ours(path, file):
        raise OutputError("is there already, and not ours", where=str(path), hint="move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.text.encode(), file.mode)
    return True


def reload_systemd(host: Host) -> tuple[str, ...]:
    """Tell a systemd that runs of new units; elsewhere they are read at the next boot anyway. Returns what to say."""
    if host.root != Path("/") or not host.path("run/systemd/system").is_dir():
        return ()
    try:
        run([find_program("systemctl"), "daemon-reload"], timeout_s=_TIMEOUT_S)
    except PostpanicError as exc:
        return (f"systemd was not told: {exc}",)
    return ()
