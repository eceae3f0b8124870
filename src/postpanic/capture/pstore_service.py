"""
The boot service that archives what the last crash left in pstore, and its neighbour systemd-pstore.

Both may run at the same boot. Ours is ordered before systemd-pstore: what it has
archived and erased, systemd-pstore does not see; what it has left, systemd-pstore
moves as it always did. Neither needs to know of the other.

Sources: systemd's ``units/systemd-pstore.service.in``, systemd-pstore(8), pstore.conf(5), systemd.unit(5).
"""

from __future__ import annotations

import configparser
import sys
from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.arming.state import write_atomically
from postpanic.capture.host import Host
from postpanic.capture.services import detect_kind, reload_systemd, spell_command
from postpanic.errors import NotReadyError, OutputError

__all__ = ["UNIT", "PstoreConf", "ServiceChange", "disable_service", "enable_service", "is_enabled", "read_pstore_conf"]

UNIT = "postpanic-pstore.service"
_NEIGHBOUR = "systemd-pstore.service"
_UNITS = "etc/systemd/system"
_WANTS = f"{_UNITS}/sysinit.target.wants"
_CONF_PLACES = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
_CONF_LIMIT_BYTES = 1 << 16

_TEXT = """\
# Written by "postpanic pstore --enable"; "postpanic pstore --disable" removes it.
[Unit]
Description=Archive what the last crash left in persistent storage
Documentation=man:systemd-pstore(8)
ConditionDirectoryNotEmpty=/sys/fs/pstore
ConditionVirtualization=!container
DefaultDependencies=no
Conflicts=shutdown.target
Before=systemd-pstore.service sysinit.target shutdown.target
After=systemd-remount-fs.service systemd-modules-load.service modprobe@efi_pstore.service modprobe@pstore_blk.service
After=modprobe@pstore_zone.service modprobe@ramoops.service
Wants=modprobe@efi_pstore.service modprobe@pstore_blk.service modprobe@pstore_zone.service modprobe@ramoops.service
RequiresMountsFor=/var/lib/systemd/pstore {prefix}

[Service]
Type=oneshot
RemainAfterExit=yes
StateDirectory=systemd/pstore
UMask=0077
TimeoutStartSec=120
ExecStart={command}

[Install]
WantedBy=sysinit.target
"""


@dataclass(frozen=True)
class PstoreConf:
    """
    What systemd-pstore does.

    Attributes
    ----------
    storage : str
        ``external`` (the archive directory), ``journal`` or ``none`` (it leaves everything alone).
    unlink : bool
        Whether it erases what it has stored.
    is_installed : bool
        Whether there is a systemd-pstore.
    """

    storage: str = "external"
    unlink: bool = True
    is_installed: bool = False


@dataclass(frozen=True)
class ServiceChange:
    """What enabling or disabling did: files written or removed, and what else there is to say."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def read_pstore_conf(host: Host) -> PstoreConf:
    """
    Read how systemd-pstore is configured: ``pstore.conf`` and what is dropped in, the later name over the earlier.

    A file that cannot be read or understood is passed over, as systemd does.
    """
    storage, unlink = "external", True
    for path in _find_conf_files(host):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            with path.open("rb") as stream:
                parser.read_string(stream.read(_CONF_LIMIT_BYTES).decode(errors="replace"))
        except (OSError, configparser.Error):
            continue
        found = parser.get("PStore", "Storage", fallback="").strip().lower()
        storage = found if found in ("external", "journal", "none") else storage
        word = parser.get("PStore", "Unlink", fallback="").strip().lower()
        if word in ("1", "yes", "y", "true", "t", "on"):
            unlink = True
        elif word in ("0", "no", "n", "false", "f", "off"):
            unlink = False
    places = (f"{place}/systemd/system/{_NEIGHBOUR}" for place in ("usr/lib", "lib", "etc"))
    return PstoreConf(storage, unlink, any(host.path(place).exists() for place in places))


def _find_conf_files(host: Host) -> list[Path]:
    main = next((path for place in _CONF_PLACES if (path := host.path(f"{place}/systemd/pstore.conf")).is_file()), None)
    dropped: dict[str, Path] = {}
    for place in reversed(_CONF_PLACES):
        try:
            found = sorted(host.path(f"{place}/systemd/pstore.conf.d").glob("*.conf"))
        except OSError:
            continue
        dropped |= {path.name: path for path in found}
    return ([main] if main is not None else []) + [dropped[name] for name in sorted(dropped)]


def is_enabled(host: Host) -> bool:
    """Tell whether the service runs at the next boot."""
    return host.path(f"{_WANTS}/{UNIT}").is_symlink() and host.path(f"{_UNITS}/{UNIT}").exists()


def enable_service(host: Host, *, erase: bool, interpreter: Path | None = None) -> ServiceChange:
    """
    Install the boot service.

    Parameters
    ----------
    erase : bool
        Whether it erases what is safe in the archive.
    interpreter : Path, optional
        The Python that has postpanic; by default this one.

    Raises
    ------
    NotReadyError
        If the machine has no systemd.
    OutputError
        If the unit cannot be written.
    """
    if detect_kind(host) != "systemd":
        raise NotReadyError(
            "there is no systemd",
            hint="have whatever runs at boot run: postpanic pstore --archive --erase",
        )
    options = "--archive --erase" if erase else "--archive"
    command = f"{spell_command(interpreter)} pstore {options}"
    prefix = (interpreter or Path(sys.executable)).parent
    unit, link = host.path(f"{_UNITS}/{UNIT}"), host.path(f"{_WANTS}/{UNIT}")
    conf = read_pstore_conf(host)
    try:
        unit.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(unit, _TEXT.format(command=command, prefix=prefix).encode(), 0o644)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(f"../{UNIT}")
    except OSError as exc:
        raise OutputError(
            f"cannot be written: {(exc.strerror or str(exc)).lower()}", where=str(exc.filename or unit)
        ) from exc
    return ServiceChange((unit, link), (*_neighbour_notes(conf, erase=erase), *reload_systemd(host)))


def disable_service(host: Host) -> ServiceChange:
    """
    Remove the boot service; done again it does nothing.

    Raises
    ------
    OutputError
        If a file cannot be removed.
    """
    removed: list[Path] = []
    for path in (host.path(f"{_WANTS}/{UNIT}"), host.path(f"{_UNITS}/{UNIT}")):
        try:
            path.unlink()
            removed.append(path)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise OutputError(f"cannot be removed: {(exc.strerror or str(exc)).lower()}", where=str(path)) from exc
    return ServiceChange(tuple(removed), reload_systemd(host) if removed else ())


def _neighbour_notes(conf: PstoreConf, *, erase: bool) -> tuple[str, ...]:
    if not conf.is_installed:
        return ()
    if conf.storage == "none":
        return ("systemd-pstore leaves pstore alone (Storage=none)",)
    if erase:
        return ("systemd-pstore finds nothing to do where this service has archived and erased everything",)
    moves = "moves" if conf.unlink else "copies"
    target = "into the journal" if conf.storage == "journal" else "into its archive, too"
    return (f"systemd-pstore {moves} the records {target} afterwards; with --erase there is one copy",)
