"""What is remembered of the last arming: ``armed.json``, beside the image."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from postpanic.capture.host import Host
from postpanic.errors import NotReadyError, OutputError

__all__ = ["ArmedState", "StatePaths", "hold_state", "identify_file", "read_state", "write_atomically", "write_state"]

SCHEMA_VERSION = 1
_LIMIT_BYTES = 8 << 20


@dataclass(frozen=True)
class StatePaths:
    """Where things are kept."""

    directory: Path
    policy: Path
    """Of this boot only: a reboot undoes the policy by itself."""

    @classmethod
    def of(cls, host: Host) -> StatePaths:
        """Give the places of a host."""
        return cls(host.path("var/lib/postpanic"), host.path("run/postpanic/policy.json"))

    @property
    def image(self) -> Path:
        """Give the image's place."""
        return self.directory / "capture.img"

    @property
    def new_image(self) -> Path:
        """Give the place of an image that is not yet loaded."""
        return self.directory / "capture.img.new"

    @property
    def state(self) -> Path:
        """Give the place of what is remembered."""
        return self.directory / "armed.json"


@dataclass(frozen=True)
class ArmedState:
    """
    What was built from what, and how it was loaded.

    Attributes
    ----------
    fingerprint : dict
        Digest of each thing that the image depends on, by what it is called in messages.
    inputs : dict
        Every file that went into the image: size and times.
    image : str
        What :func:`identify_file` said of the image.
    kernel, command_line : str
        What was loaded with it.
    boot_id : str
        Of the boot in which it was loaded.
    method : str
        How.
    """

    fingerprint: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    image: str = ""
    kernel: str = ""
    kernel_identity: str = ""
    command_line: str = ""
    boot_id: str = ""
    method: str = ""
    schema_version: int = SCHEMA_VERSION


@contextmanager
def hold_state(paths: StatePaths) -> Iterator[None]:
    """
    Keep everybody else from arming and disarming meanwhile.

    Raises
    ------
    NotReadyError
        If somebody does so now.
    OutputError
        If there is no place for what is remembered.
    """
    try:
        paths.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(paths.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise OutputError(
            f"cannot be locked: {(exc.strerror or str(exc)).lower()}", where=str(paths.directory)
        ) from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise NotReadyError("the machine is being armed or disarmed by somebody else now", hint="try again") from None
    finally:
        os.close(fd)


def identify_file(path: Path | str) -> str:
    """
    Tell a file from what it was before: size, times and number of the file; empty if it is not there.

    A package manager that keeps times and size still makes another file, with
    another time of change.
    """
    try:
        found = Path(path).stat()
    except OSError:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"


def identify_files(paths: Iterable[Path | str]) -> dict[str, str]:
    """Tell what several files are now."""
    return {str(path): identify_file(path) for path in paths}


def read_state(path: Path) -> ArmedState | None:
    """Read what is remembered; None if there is nothing, or nothing that can be used."""
    try:
        with path.open("rb") as stream:
            value = json.loads(stream.read(_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("schema_version") != SCHEMA_VERSION:
        return None
    known = {one.name for one in fields(ArmedState)}
    try:
        state = ArmedState(**{name: item for name, item in value.items() if name in known})
    except TypeError:
        return None
    tables = (state.fingerprint, state.inputs)
    texts = (state.image, state.kernel, state.kernel_identity, state.command_line, state.boot_id, state.method)
    if all(_is_table(table) for table in tables) and all(isinstance(text, str) for text in texts):
        return state
    return None


def write_state(path: Path, state: ArmedState) -> None:
    """
    Remember.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_atomically(path, (json.dumps(asdict(state), indent=1, sort_keys=True) + "\n").encode())


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """
    Write a file that is there whole or not at all, also after a loss of power.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as exc:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError(f"cannot write: {(exc.strerror or str(exc)).lower()}", where=str(path)) from exc


def sync_directory(directory: Path) -> None:
    """Let names that were changed reach the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(item, str) for pair in value.items() for item in pair)
