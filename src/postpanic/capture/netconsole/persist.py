"""Targets that are there after the next boot: options of the module, or the kernel's command line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from postpanic.capture.netconsole.target import Target
from postpanic.errors import OutputError

__all__ = ["boot_parameter", "is_built_in", "persistent_files", "remove_files", "write_files"]

_LOAD = Path("etc/modules-load.d/postpanic-netconsole.conf")
_OPTIONS = Path("etc/modprobe.d/postpanic-netconsole.conf")
_NOTE = "# Written by postpanic listen --setup; removed by postpanic listen --setup --remove.\n"


def boot_parameter(targets: Sequence[Target]) -> str:
    """
    Return the word of the kernel's command line; several targets are separated by semicolons.

    A boot loader's configuration that a shell reads needs quotes around it.
    """
    return "netconsole=" + ";".join(target.parameter for target in targets)


def persistent_files(targets: Sequence[Target]) -> dict[Path, str]:
    """Return the files that load the module with these targets at boot, by their place below the root."""
    return {
        _LOAD: f"{_NOTE}netconsole\n",
        _OPTIONS: f"{_NOTE}options netconsole {boot_parameter(targets)}\n",
    }


def is_built_in(release: str, root: Path = Path("/")) -> bool:
    """Tell whether netconsole is part of the kernel itself: then options of modules do nothing."""
    for place in ("lib/modules", "usr/lib/modules"):
        with suppress(OSError):
            text = (root / place / release / "modules.builtin").read_text(errors="replace")
            return any(line.endswith("/netconsole.ko") for line in text.splitlines())
    return False


def write_files(files: dict[Path, str], root: Path = Path("/")) -> list[Path]:
    """
    Write the files, each whole or not at all.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    written: list[Path] = []
    for name, content in files.items():
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_text(content)
            temporary.replace(path)
        except OSError as exc:
            raise OutputError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
        written.append(path)
    return written


def remove_files(root: Path = Path("/")) -> list[Path]:
    """Remove what :func:`write_files` has written; return what was there."""
    removed: list[Path] = []
    for name in (_LOAD, _OPTIONS):
        path = root / name
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise OutputError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
        removed.append(path)
    return removed
