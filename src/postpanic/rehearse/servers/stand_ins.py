"""
Servers that stand in: what is started for each connection, and what the image must have to believe it.

A target keeps its address, its port, its path and its key. What only the real
server has is made anew: its host key or certificate, which the machine is told
to trust in place of the real one.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from postpanic.errors import NotReadyError, PostpanicError
from postpanic.process import run
from postpanic.rehearse.requirements import find_needed
from postpanic.rehearse.servers.http import list_objects
from postpanic.rehearse.servers.nfs.store import STORE_NAME, Store
from postpanic.saver.plan import HttpPlan, NfsPlan, SshPlan

__all__ = ["ServerPlan", "ServerStandIn", "gather_objects", "make_http_server", "make_nfs_server", "make_ssh_server"]

ServerPlan = NfsPlan | SshPlan | HttpPlan

_PORTS = {"http": 80, "https": 443}
_PRIVSEP_DIRECTORY = Path("/run/sshd")
_NFS_PORT, _MOUNT_PORT, _RPCBIND_PORT = 2049, 20048, 111
"""Those that IANA gave them; the mount service's is found by asking rpcbind."""
_DAYS = "3650"
_STREAM = re.compile(r"(vmcore(?:-incomplete)?\.flat)\.(\d+)")


@dataclass(frozen=True)
class ServerStandIn:
    """
    A server.

    Attributes
    ----------
    plan : NfsPlan, SshPlan or HttpPlan
        The target, as the machine's saver is to see it.
    host : str
        Address or name by which it is reached.
    ports : tuple of int
        All that it answers at.
    command : str
        What QEMU starts for each connection to any of them, which is its standard input and output.
    received : Path
        Where it keeps what it gets.
    files : mapping
        Of the image, in place of the host's own.
    unproven : tuple of str
        What the real server may do otherwise.
    """

    plan: ServerPlan
    host: str
    ports: tuple[int, ...]
    command: str
    received: Path
    files: Mapping[str, bytes]
    unproven: tuple[str, ...]


def make_ssh_server(
    plan: SshPlan, key: bytes, directory: Path, received: Path, room_bytes: int | None = None
) -> ServerStandIn:
    """
    Make an SSH server.

    Parameters
    ----------
    key : bytes
        The private key that is in the image; its public half is what the server lets in.
    directory : Path
        New; for the server's own files.
    room_bytes : int or None
        The most that it takes.

    Raises
    ------
    NotReadyError
        If OpenSSH's server is not installed or cannot be started, or the key is none.
    """
    sshd, keygen = find_needed("sshd", "openssh-server"), find_needed("ssh-keygen", "openssh-client")
    directory.mkdir()
    received.mkdir(parents=True)
    _write_secret(directory / "client", key if key.endswith(b"\n") else key + b"\n")
    try:
        run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", directory / "host"])
        public = run([keygen, "-y", "-P", "", "-f", directory / "client"]).stdout
    except PostpanicError as exc:
        raise NotReadyError("the private key cannot be read", where=plan.name) from exc
    finally:
        (directory / "client").unlink()
    (directory / "authorized").write_bytes(public)
    subsystem = _spell_python("postpanic.rehearse.servers.sftp", received, *_optional(room_bytes))
    config = directory / "sshd_config"
    # The command is run by the account's shell, whose own start-up files are none of this machine's business:
    # bash reads some for whoever comes by SSH and is in no other shell, others look for them at home.
    config.write_text(
        f'HostKey "{directory / "host"}"\nAuthorizedKeysFile "{directory / "authorized"}"\nPidFile none\n'
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nDisableForwarding yes\nPermitTTY no\nPermitUserRC no\nPrintMotd no\n"
        f'SetEnv "HOME={directory}" SHLVL=9\n'
        f"ForceCommand {subsystem}\nSubsystem sftp {subsystem}\n"
    )
    host_key = " ".join((directory / "host.pub").read_text().split()[:2])
    name = plan.server if plan.port == 22 else f"[{plan.server}]:{plan.port}"
    user = getpass.getuser()
    unproven = [f"{plan.name}: the real server's host key, and that it lets this key in"]
    if user != plan.user:
        unproven.append(f"{plan.name}: the account {plan.user}: in the machine it is {user}")
    return ServerStandIn(
        replace(plan, user=user),
        plan.server,
        (plan.port,),
        _spell_sshd(sshd, config, directory, user),
        received,
        {plan.known_hosts: f"{name} {host_key}\n".encode()},
        tuple(unproven),
    )


def make_http_server(plan: HttpPlan, directory: Path, received: Path, room_bytes: int | None = None) -> ServerStandIn:
    """
    Make an HTTP server, or one of HTTPS with a certificate of its own.

    Parameters
    ----------
    directory : Path
        New; for the server's own files and the objects as they come.
    received : Path
        Where :func:`gather_objects` puts them together.

    Raises
    ------
    NotReadyError
        If a certificate cannot be made.
    """
    parts = urlsplit(plan.url)
    host = parts.hostname or ""
    objects = directory / "objects"
    objects.mkdir(parents=True)
    received.mkdir(parents=True)
    words: list[str | Path] = [objects, "-" if room_bytes is None else str(room_bytes)]
    files: dict[str, bytes] = {}
    unproven = [f"{plan.name}: that the real server takes it"]
    if parts.scheme == "https":
        certificate = _make_certificate(host, directory)
        words.append(certificate)
        files[plan.ca_file] = certificate.read_bytes().partition(b"-----BEGIN PRIVATE KEY")[0]
        unproven.append(f"{plan.name}: the real server's certificate")
    command = _spell_python("postpanic.rehearse.servers.http", *words)
    return ServerStandIn(plan, host, (parts.port or _PORTS[parts.scheme],), command, received, files, tuple(unproven))


def make_nfs_server(plan: NfsPlan, directory: Path, received: Path, room_bytes: int | None = None) -> ServerStandIn:
    """
    Make an NFS server, of the version that is asked for and all others.

    Parameters
    ----------
    directory : Path
        New; for the server's own files.
    received : Path
        Its root; the export is below it.

    Raises
    ------
    NotReadyError
        If it is reached by what QEMU's network has not, or the export is no path.
    """
    names = [name for name in plan.export.split("/") if name]
    if {".", ".."} & set(names) or "\0" in plan.export:
        raise NotReadyError(f"its export is no path: {plan.export!r}")
    options = dict(word.strip().partition("=")[::2] for word in plan.options.split(","))
    protocol = options.get("proto", "tcp")
    mount_protocol = options.get("mountproto", "tcp") if plan.version == "3" else "tcp"
    if {protocol, mount_protocol} != {"tcp"} or "rdma" in options or "udp" in options:
        raise NotReadyError("it is not reached by TCP of IPv4")
    directory.mkdir()
    try:
        received.joinpath(*names).mkdir(parents=True)
    except OSError as exc:
        raise NotReadyError(f"its export cannot be made here: {(exc.strerror or str(exc)).lower()}") from exc
    # Processes that are the first to open it, and do so at once, do not wait for each other.
    Store(directory / STORE_NAME).close()
    port, mount_port = _find_port(options, "port", _NFS_PORT), _find_port(options, "mountport", _MOUNT_PORT)
    room = "-" if room_bytes is None else str(room_bytes)
    words: list[str | Path] = [directory, received, "/" + "/".join(names), str(port), str(mount_port), room]
    command = _spell_python("postpanic.rehearse.servers.nfs", *words)
    # Of version 4 there is one port; of version 3 those of rpcbind and of the mount service, too.
    ports = (port, mount_port, _RPCBIND_PORT) if plan.version == "3" else (port,)
    unproven = [
        f"{plan.name}: that the real server has NFS {plan.version}, exports it to this host, and lets its root write"
    ]
    if options.get("sec", "sys") != "sys":
        unproven.append(f"{plan.name}: its security {options['sec']}: in the machine it is sys")
    return ServerStandIn(plan, plan.server, tuple(dict.fromkeys(ports)), command, received, {}, tuple(unproven))


def _find_port(options: Mapping[str, str], name: str, default: int) -> int:
    """Find a port; of one that is none the kernel says so itself."""
    text = options.get(name, "")
    return int(text) if text.isdecimal() and 0 < int(text) < 1 << 16 else default


def gather_objects(server: ServerStandIn, directory: Path) -> None:
    """Name what an HTTP server was sent as the saver named it, and join what was sent in parts."""
    if not isinstance(server.plan, HttpPlan):
        return
    parts = urlsplit(server.plan.url)
    template = parts.path + (f"?{parts.query}" if parts.query else "")
    pattern = (
        re.escape(template).replace(r"\{name\}", r"(?P<name>[^/?&]*)", 1).replace(r"\{file\}", r"(?P<file>[^/?&]*)", 1)
    )
    pattern = pattern.replace(r"\{name\}", "[^/?&]*").replace(r"\{file\}", "[^/?&]*")
    for address, path in list_objects(directory / "objects").items():
        found = re.fullmatch(pattern, address)
        if found is None or not path.exists():
            continue
        fields = {key: Path(unquote(value)).name for key, value in found.groupdict().items()}
        place = server.received / (fields.get("name") or "dump") / (fields.get("file") or "vmcore.flat")
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    for first in sorted(server.received.rglob("*")):
        part = _STREAM.fullmatch(first.name)
        if part is not None:
            with first.with_name(part[1]).open("ab") as whole, first.open("rb") as stream:
                while data := stream.read(1 << 20):
                    whole.write(data)
            first.unlink()


def _make_certificate(host: str, directory: Path) -> Path:
    """Make a certificate that signs itself, and its key, in one file."""
    kind = "IP" if re.fullmatch(r"[0-9.]+|.*:.*", host) else "DNS"
    key, certificate, both = directory / "key.pem", directory / "certificate.pem", directory / "server.pem"
    try:
        words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", _DAYS]
        words += ["-subj", "/CN=rehearsal", "-addext", f"subjectAltName={kind}:{host}"]
        run([find_needed("openssl", "openssl"), *words, "-keyout", key, "-out", certificate])
    except PostpanicError as exc:
        raise NotReadyError(f"no certificate can be made: {exc.message}", hint=exc.hint) from exc
    _write_secret(both, certificate.read_bytes() + key.read_bytes())
    return both


def _spell_sshd(sshd: Path, config: Path, directory: Path, user: str) -> str:
    """
    Spell the command of one connection.

    Root's sshd wants an empty directory in /run, and lets nobody in whose
    account is locked, as root's often is. It gets both in a name space of
    mounts that nobody else sees.
    """
    words: list[str | Path] = [sshd, "-i", "-f", config, "-E", directory / "sshd.log"]
    if os.geteuid() != 0:
        return _spell(*words)
    shadow = directory / "shadow"
    _write_secret(shadow, f"{user}:*:1::::::\n".encode())
    steps = [_spell("mount", "--bind", shadow, "/etc/shadow"), f"exec {_spell(*words)}"]
    if not _PRIVSEP_DIRECTORY.is_dir():
        steps.insert(1, f"mount -t tmpfs tmpfs {_PRIVSEP_DIRECTORY.parent} && mkdir {_PRIVSEP_DIRECTORY}")
    try:
        unshare = find_needed("unshare", "util-linux")
        run([unshare, "--mount", "true"])
    except PostpanicError as exc:
        raise NotReadyError(f"no server of SSH can be started: {exc.message}", hint="rehearse as another user") from exc
    return _spell(unshare, "--mount", "/bin/sh", "-c", " && ".join(steps))


def _spell_python(module: str, *words: str | Path) -> str:
    """
    Spell the command of a server that is a module of ours.

    Its Python finds us wherever we were started from, takes nothing from that
    directory for a module (``-P``), and leaves no compiled modules beside ours:
    sshd passes on no environment that would say so.
    """
    return _spell("env", f"PYTHONPATH={Path(__file__).parents[3]}", sys.executable, "-P", "-B", "-m", module, *words)


def _spell(*words: str | Path) -> str:
    return shlex.join(map(str, words))


def _optional(room_bytes: int | None) -> list[str]:
    return [] if room_bytes is None else [str(room_bytes)]


def _write_secret(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
