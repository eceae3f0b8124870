"""Places to save to: the tables ``[[target]]`` and ``[[fallback]]``, each kind with its keys."""

# ruff: noqa: RUF009 - key() declares a field as dataclasses.field() does

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from postpanic.capture.config import values as v
from postpanic.capture.config.tables import key, required
from postpanic.capture.config.values import DeviceName
from postpanic.units import MIB

__all__ = [
    "TARGETS",
    "FileTarget",
    "HttpTarget",
    "KeptSettings",
    "NfsTarget",
    "RawTarget",
    "SshTarget",
    "TargetConfig",
    "TargetSettings",
]

_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """What every target has."""

    level: tuple[int, ...] | None = key(v.LEVELS, None, "As in [dump], for this target.", shown="that of [dump]")
    compression: str | None = key(
        v.choice("zstd", "none"), None, "As in [dump], for this target.", shown="that of [dump]"
    )
    compression_level: int | None = key(
        v.integer(-7, 19), None, "As in [dump], for this target.", shown="that of [dump]"
    )
    limit_bytes: int = key(
        v.SIZE, 0, "The most that one dump may take; 0 is no limit but the room there is.", name="limit"
    )
    attempts: int = key(v.integer(1, 100), 3, "How often the target is tried in all.")
    timeout_s: float = key(
        v.duration(1, 24 * _HOUR_S),
        60.0,
        "Without any progress, after which the target is given up.",
        name="timeout",
        shown='"60 s"',
    )


@dataclass(frozen=True, kw_only=True)
class KeptSettings(TargetSettings):
    """Of a target whose old dumps can be listed and deleted."""

    keep_count: int = key(
        v.integer(0, 100_000), 0, "How many dumps are kept, the new one included; 0 keeps all.", name="keep"
    )
    keep_bytes: int = key(v.SIZE, 0, "How much room the dumps may take in all; 0 is no bound.")
    min_free_bytes: int = key(
        v.SIZE, 0, "How much room is to stay free; the oldest dumps make place for it.", name="min_free"
    )


@dataclass(frozen=True, kw_only=True)
class FileTarget(KeptSettings):
    """``kind = "file"``: a directory of a file system on a block device."""

    kind: ClassVar[str] = "file"
    path: str = key(
        v.PATH, "/var/crash", "The directory: of this machine, or, where device is given, of the file system on it."
    )
    device: DeviceName | None = key(
        v.DEVICE, None, "The device, where its file system is not mounted here.", shown="what holds path now"
    )
    filesystem: str = key(
        v.choice("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat"),
        "",
        "Type of the file system on device.",
        shown="as found on the device",
    )
    options: str | None = key(
        v.TEXT, None, "Options of mount, as in fstab.", shown="those it is mounted with that matter for writing"
    )


@dataclass(frozen=True, kw_only=True)
class RawTarget(TargetSettings):
    """``kind = "raw"``: a block device without a file system, or a swap area."""

    kind: ClassVar[str] = "raw"
    device: DeviceName = required(v.DEVICE, "The device, which is overwritten from its beginning.")
    swap: bool = key(
        v.FLAG,
        default=False,
        summary="The device is a swap area: it is overwritten only if it is one. "
        "Without it the device must hold nothing that is known.",
    )


@dataclass(frozen=True, kw_only=True)
class NfsTarget(KeptSettings):
    """``kind = "nfs"``: a directory of an NFS server."""

    kind: ClassVar[str] = "nfs"
    server: str = required(v.HOST, "The server; a name is looked up when the machine is armed.")
    export: str = required(v.PATH, "What the server exports.")
    path: str = key(v.RELATIVE_PATH, "", "The directory below the export.", shown="the export itself")
    version: Literal["3", "4.0", "4.1", "4.2"] = key(v.choice("3", "4.0", "4.1", "4.2"), "4.2", "Of the protocol.")
    options: str = key(v.TEXT, "", "Further options of mount.")


@dataclass(frozen=True, kw_only=True)
class SshTarget(KeptSettings):
    """``kind = "ssh"``: a directory of an SSH server, by SFTP."""

    kind: ClassVar[str] = "ssh"
    server: str = required(v.HOST, "The server; a name is looked up when the machine is armed.")
    user: str = key(v.TEXT, "root", "The user there.")
    port: int = key(v.integer(1, 65535), 22, "The port.")
    path: str = key(v.PATH, "/var/crash", "The directory there.")
    private_key: str = key(
        v.PATH,
        "/root/.ssh/id_ed25519",
        "The private key, without a passphrase; it is copied into the image.",
        name="key",
    )
    known_hosts: str = key(
        v.PATH, "/root/.ssh/known_hosts", "Holds the server's host key; the saver talks to no other server."
    )


@dataclass(frozen=True, kw_only=True)
class HttpTarget(TargetSettings):
    """``kind = "http"``: a place that takes HTTP PUT."""

    kind: ClassVar[str] = "http"
    url: str = required(
        v.URL,
        "Where to put the files; {name} stands for the dump's directory, {file} for the file in it, which parts need.",
    )
    mode: Literal["parts", "range", "whole"] = key(
        v.choice("parts", "range", "whole"),
        "parts",
        "parts: one object for each piece of the dump; range: one object, pieces by Content-Range; whole: one request.",
    )
    part_bytes: int = key(v.SIZE, 4 * MIB, "Size of a piece.", name="part_size", shown='"4 MiB"')
    headers: tuple[tuple[str, str], ...] = key(v.HEADERS, (), "Sent with every request.")
    ca_file: str = key(
        v.PATH,
        "",
        "Certificates to trust, in one PEM file; it is copied into the image.",
        shown="this machine's, of https",
    )


TargetConfig = FileTarget | RawTarget | NfsTarget | SshTarget | HttpTarget
TARGETS = {one.kind: one for one in (FileTarget, RawTarget, NfsTarget, SshTarget, HttpTarget)}
