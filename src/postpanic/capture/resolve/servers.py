"""Targets on servers: NFS, SSH, HTTP; keys and certificates that go into the image."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from postpanic.capture.config import HttpTarget, NfsTarget, SshTarget
from postpanic.capture.resolve.drivers import nfs_modules
from postpanic.capture.resolve.needs import ImageFile, Needs
from postpanic.capture.resolve.settings import Settings, retention_of
from postpanic.capture.root_paths import follow_below
from postpanic.errors import NotReadyError
from postpanic.saver.plan import HttpPlan, NfsPlan, SshPlan

__all__ = ["Servers", "has_host_key", "is_key_locked"]

_FILE_LIMIT_BYTES = 4 << 20
_IMAGE_DIR = "/etc/postpanic"
_CA_PLACES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_OPENSSH_MAGIC = b"openssh-key-v1\0"


@dataclass(frozen=True)
class Servers:
    """
    Resolves targets on servers.

    Attributes
    ----------
    root : Path
        Below which this machine's files are.
    """

    root: Path

    def resolve_nfs(self, target: NfsTarget, settings: Settings) -> tuple[NfsPlan, Needs]:
        """Say what mounts the export."""
        name = f"nfs {target.server}:{target.export}"
        plan = NfsPlan(
            name=name,
            server=target.server,
            export=target.export,
            path=target.path,
            version=target.version,
            options=target.options,
            retention=retention_of(target),
            **settings,
        )
        return plan, Needs(modules=tuple(nfs_modules(target.version)), evidence=(f"{name}: NFS {target.version}",))

    def resolve_ssh(self, target: SshTarget, settings: Settings, number: int) -> tuple[SshPlan, Needs]:
        """
        Check key and host key, and say where they are in the image.

        Parameters
        ----------
        number : int
            Tells the files of several targets apart.

        Raises
        ------
        NotReadyError
            If the key is not there or has a passphrase, or the server's host key is not known.
        """
        name = f"ssh {target.user}@{target.server}:{target.path}"
        key, known_hosts = self._find(target.private_key, name), self._find(target.known_hosts, name)
        if is_key_locked(_read(key, name)):
            raise NotReadyError(
                f"the key {target.private_key} has a passphrase, and nobody will be there to type it",
                where=name,
                hint='ssh-keygen -t ed25519 -N "" makes one without; allow it nothing but SFTP on the server',
            )
        if not has_host_key(_read(known_hosts, name), target.server, target.port):
            port = f" -p {target.port}" if target.port != 22 else ""
            raise NotReadyError(
                f"{target.known_hosts} has no host key of {target.server}",
                where=name,
                hint=f"ssh-keyscan{port} {target.server} shows it; compare its fingerprint before adding it",
            )
        files = (
            ImageFile(f"{_IMAGE_DIR}/ssh/id{number}", key),
            ImageFile(f"{_IMAGE_DIR}/ssh/known_hosts{number}", known_hosts),
        )
        plan = SshPlan(
            name=name,
            user=target.user,
            server=target.server,
            port=target.port,
            path=target.path,
            key=files[0].path,
            known_hosts=files[1].path,
            **settings,
            retention=retention_of(target),
        )
        evidence = f"{name}: key {target.private_key}, host key of {target.known_hosts}"
        return plan, Needs(files=files, evidence=(evidence,), has_ssh=True)

    def resolve_http(self, target: HttpTarget, settings: Settings, number: int) -> tuple[HttpPlan, Needs]:
        """
        Find the certificates to trust.

        Raises
        ------
        NotReadyError
            If there are none for https.
        """
        parts = urlsplit(target.url)
        # Presigned addresses are secrets: neither query nor user is shown.
        name = f"http {parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        is_https = parts.scheme == "https"
        files: tuple[ImageFile, ...] = ()
        if is_https:
            files = (ImageFile(f"{_IMAGE_DIR}/ca{number}.pem", self._find_certificates(target, name)),)
        plan = HttpPlan(
            name=name,
            url=target.url,
            mode=target.mode,
            part_bytes=target.part_bytes,
            headers=target.headers,
            ca_file=files[0].path if files else "",
            **settings,
        )
        trusted = f", certificates of {files[0].source}" if files else ", not encrypted"
        warnings: list[str] = []
        if not is_https:
            warnings.append(f"{name}: the dump, with all that was in memory, goes over the network in the clear")
        if "{file}" not in target.url:
            warnings.append(f"{name}: the address is of one object: there is no place for the log and the manifest")
        needs = Needs(
            files=files,
            evidence=(f"{name}: PUT, {target.mode}{trusted}",),
            warnings=tuple(warnings),
            has_https=is_https,
        )
        return plan, needs

    def _find_certificates(self, target: HttpTarget, where: str) -> Path:
        if target.ca_file:
            return self._find(target.ca_file, where)
        for place in _CA_PLACES:
            found = follow_below(self.root, place)
            if found.is_file():
                return found
        raise NotReadyError(
            "no certificates to trust are installed", where=where, hint="install ca-certificates, or set ca_file"
        )

    def _find(self, path: str, where: str) -> Path:
        found = follow_below(self.root, path)
        try:
            with found.open("rb"):
                return found
        except OSError as exc:
            raise NotReadyError(f"{path}: {(exc.strerror or str(exc)).lower()}", where=where) from exc


def is_key_locked(content: bytes) -> bool:
    """
    Tell whether a private key needs a passphrase.

    OpenSSH's own format (PROTOCOL.key) names the cipher first; PEM says ENCRYPTED.
    """
    head, _, body = content.partition(b"\n")
    if b"BEGIN OPENSSH PRIVATE KEY" not in head:
        return b"ENCRYPTED" in content
    try:
        data = base64.b64decode(b"".join(body.split(b"-----")[0].split()), validate=True)
        if not data.startswith(_OPENSSH_MAGIC):
            return False
        (size,) = struct.unpack_from(">I", data, len(_OPENSSH_MAGIC))
    except (ValueError, struct.error):
        return False
    return data[len(_OPENSSH_MAGIC) + 4 :][:size] != b"none"


def has_host_key(content: bytes, server: str, port: int) -> bool:
    """
    Tell whether a known_hosts file has a key of a server.

    sshd(8), SSH_KNOWN_HOSTS FILE FORMAT: names separated by commas, ``*`` and
    ``?``, ``!`` before what is not meant, ``[name]:port``; or ``|1|salt|hash``.
    """
    wanted = server.lower() if port == 22 else f"[{server.lower()}]:{port}"
    for line in content.decode(errors="replace").splitlines():
        words = line.split()
        if words and words[0] == "@cert-authority":
            words = words[1:]
        if len(words) < 3 or words[0].startswith(("#", "@")):
            continue
        if any(_matches(pattern, wanted) for pattern in words[0].split(",")):
            return True
    return False


def _matches(pattern: str, wanted: str) -> bool:
    if pattern.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in pattern[3:].split("|"))
        except ValueError:
            return False
        return hmac.compare_digest(hmac.new(salt, wanted.encode(), hashlib.sha1).digest(), digest)
    from fnmatch import fnmatchcase

    return fnmatchcase(wanted, pattern.lower().replace("[", "[[]"))


def _read(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_FILE_LIMIT_BYTES)
    except OSError as exc:
        raise NotReadyError(f"{path}: {(exc.strerror or str(exc)).lower()}", where=where) from exc
