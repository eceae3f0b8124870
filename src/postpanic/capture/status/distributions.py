"""
The distributions' own tools: what they are told to load, and where they are told to save.

Sources: ``/etc/default/kdump-tools`` and kdump-tools(5) of Debian; kdump.conf(5)
and ``/etc/sysconfig/kdump`` of Fedora's kdump-utils; kdump(5) of openSUSE. Their
configuration is read, never run: of the shell's syntax there are assignments and
quotes. Passwords are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from postpanic.capture.host import Host

__all__ = ["DEBIAN", "FEDORA", "SUSE", "DumpTool", "ToolTarget", "find_tools", "read_assignments", "read_directives"]

DEBIAN, FEDORA, SUSE = "kdump-tools", "kdump-utils", "kdump (openSUSE)"
DEFAULT_DIRECTORY = "/var/crash"
DEFAULT_LEVEL = 31
_MOST_TARGETS, _MOST_SETTINGS = 16, 64
"""Each tool takes a handful at most; each server among them is asked."""

_ASSIGNMENT = re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)=(.*)$")
_VALUE = re.compile(r"""'([^'\n]*)'|"((?:[^"\\\n]|\\.)*)"|((?:[^\s'"\\;&|<>()]|\\.)+)""")
_ESCAPED = re.compile(r"""\\([$`"\\])""")
"""Within double quotes; before anything else a backslash stands for itself there."""
_LEVEL = re.compile(r"(?:^|\s)-d\s*([0-9]{1,2})\b")
_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "minix", "virtiofs"})
_PORTS = {"ssh": 22, "sftp": 22, "nfs": 2049, "ftp": 21, "cifs": 445}
_SECRET = re.compile(r"PASSWORD|SECRET", re.IGNORECASE)


@dataclass(frozen=True)
class ToolTarget:
    """
    Where such a tool saves.

    Attributes
    ----------
    kind : str
        ``file``, ``raw``, ``nfs``, ``ssh``, ``sftp``, ``ftp``, ``cifs``.
    description : str
        As its configuration has it, without passwords.
    path : str
        Of a directory: in this machine's file system, or, where there is a device, in the one on it.
    device : str
        ``/dev/sda1``, ``UUID=…``; empty: whatever path is on.
    """

    kind: str
    description: str
    path: str = ""
    device: str = ""
    server: str = ""
    port: int = 0


@dataclass(frozen=True)
class DumpTool:
    """
    A tool, as it is configured.

    Attributes
    ----------
    name, config, unit : str
        Its package, its file, its service.
    is_enabled : bool
        Whether it arms the machine at boot.
    why : str
        How that is known.
    kernel, initrd : str
        What it loads, if its configuration says so or there is a rule.
    level : int
        Dump level of makedumpfile.
    arm, rebuild : str
        The commands that load, and that make the image again.
    settings : tuple of (str, str)
        What else it has been told, for showing.
    """

    name: str
    config: str
    unit: str
    is_enabled: bool
    why: str
    kernel: str
    initrd: str
    targets: tuple[ToolTarget, ...]
    level: int
    arm: str
    rebuild: str
    settings: tuple[tuple[str, str], ...] = ()


def find_tools(host: Host) -> list[DumpTool]:
    """List the tools whose configuration is on the host."""
    found = [_read_debian(host), _read_fedora(host) or _read_suse(host)]
    return [
        replace(tool, targets=tool.targets[:_MOST_TARGETS], settings=tool.settings[:_MOST_SETTINGS])
        for tool in found
        if tool is not None
    ]


def read_assignments(text: str) -> dict[str, str]:
    r"""
    Read a shell's assignments; what is expanded there stays as it is written.

    >>> read_assignments('A=1 # one\n#B=2\nexport C="x \\"y\\""\nD=\'$A\'"b"c')
    {'A': '1', 'C': 'x "y"', 'D': '$Abc'}
    """
    found: dict[str, str] = {}
    for line in _printable(text).replace("\\\n", "").splitlines():
        match = _ASSIGNMENT.match(line)
        if match is not None:
            found[match[1]] = _read_value(match[2])
    return found


def _printable(text: str) -> str:
    """Leave out what neither a path nor a terminal should get."""
    return "".join(char for char in text if char.isprintable() or char in "\t\n")


def _read_value(text: str) -> str:
    value, at = "", 0
    while (part := _VALUE.match(text, at)) is not None:
        single, double, bare = part.groups()
        if bare is not None:
            value += re.sub(r"\\(.)", r"\1", bare)
        else:
            value += single if single is not None else _ESCAPED.sub(r"\1", double)
        at = part.end()
    return value


def read_directives(text: str) -> list[tuple[str, str]]:
    r"""
    Read the lines of kdump.conf: a name, white space, a value; ``#`` begins a comment.

    >>> read_directives("# no\npath /var/crash # here\n\nssh kdump@example.org")
    [('path', '/var/crash'), ('ssh', 'kdump@example.org')]
    """
    found = []
    for line in _printable(text).splitlines():
        words = re.sub(r"(^|\s)#.*", "", line).split(None, 1)
        if words:
            found.append((words[0], words[1].strip() if len(words) > 1 else ""))
    return found


def _read_debian(host: Host) -> DumpTool | None:
    config = "etc/default/kdump-tools"
    text = host.read_text(config)
    if text is None:
        return None
    values = read_assignments(text)
    release = host.release
    directory = values.get("KDUMP_COREDIR") or DEFAULT_DIRECTORY
    used = values.get("USE_KDUMP", "")
    link = _find_unit(host, "kdump-tools.service")
    shown = ("USE_KDUMP", "KDUMP_COREDIR", "MAKEDUMP_ARGS", "HOSTTAG", "SSH_KEY", "NFS_TIMEO", "NFS_RETRANS")
    settings = [(name, values[name]) for name in shown if values.get(name)]
    command = host.read_text(f"{directory.lstrip('/')}/kexec_cmd")
    settings += [("kexec command", command)] if command else []
    return DumpTool(
        name=DEBIAN,
        config=f"/{config}",
        unit="kdump-tools.service",
        is_enabled=used not in {"", "0"},
        why=f"USE_KDUMP={used}" + (f", {link}" if link else ""),
        kernel=values.get("KDUMP_KERNEL") or f"/boot/vmlinuz-{release}",
        initrd=values.get("KDUMP_INITRD") or f"/boot/initrd.img-{release}",
        targets=tuple(_list_debian(values, directory)),
        level=_read_level(values.get("MAKEDUMP_ARGS", "")),
        arm="kdump-config unload; kdump-config load",
        rebuild=f"/etc/kernel/postinst.d/kdump-tools {release}",
        settings=tuple(settings),
    )


def _list_debian(values: dict[str, str], directory: str) -> Iterator[ToolTarget]:
    """FTP, then SSH, then NFS or, without it, the directory: as its script goes through them."""
    if values.get("FTP"):
        server, _, path = values["FTP"].partition(":")
        port = values.get("FTP_PORT", "")
        yield ToolTarget("ftp", f"ftp {server}:{path or '/'}", server=server, port=int(port) if port.isdigit() else 21)
    if values.get("SSH"):
        yield ToolTarget(
            "ssh", f"ssh {values['SSH']}:{directory}", server=values["SSH"].rpartition("@")[2], port=_PORTS["ssh"]
        )
    if values.get("NFS"):
        yield ToolTarget("nfs", f"nfs {values['NFS']}", server=_server_of(values["NFS"]), port=_PORTS["nfs"])
    elif not values.get("FTP") and not values.get("SSH"):
        yield ToolTarget("file", f"file {directory}", path=directory)


def _read_fedora(host: Host) -> DumpTool | None:
    config = "etc/kdump.conf"
    text = host.read_text(config)
    if text is None:
        return None
    directives = read_directives(text)
    values = read_assignments(host.read_text("etc/sysconfig/kdump") or "")
    release = values.get("KDUMP_KERNELVER") or re.sub(r"[+-]debug$", "", host.release)
    boot = values.get("KDUMP_BOOTDIR", "").rstrip("/")
    image = f"{values.get('KDUMP_IMG') or 'vmlinuz'}-{release}"
    kernels = [f"{boot or '/boot'}/{image}", f"/boot/efi/{image}", f"/lib/modules/{release}/vmlinuz"]
    initrds = [f"{boot or '/boot'}/initramfs-{release}kdump.img", f"/var/lib/kdump/initramfs-{release}kdump.img"]
    link = _find_unit(host, "kdump.service")
    collector = dict(directives).get("core_collector", "")
    return DumpTool(
        name=FEDORA,
        config=f"/{config}",
        unit="kdump.service",
        is_enabled=bool(link),
        why=link or "kdump.service is not enabled",
        kernel=_first_there(host, kernels),
        initrd=_first_there(host, initrds),
        targets=tuple(_list_fedora(directives)),
        level=_read_level(collector),
        arm="kdumpctl restart",
        rebuild="kdumpctl rebuild",
        settings=(*directives, *((key, value) for key, value in values.items() if value and not _SECRET.search(key))),
    )


def _list_fedora(directives: list[tuple[str, str]]) -> Iterator[ToolTarget]:
    path = dict(directives).get("path") or DEFAULT_DIRECTORY
    count = 0
    for name, value in directives:
        if name in _FILESYSTEMS:
            yield ToolTarget("file", f"{name} {value}:{path}", path=path, device=value)
        elif name == "raw":
            yield ToolTarget("raw", f"raw {value}", device=value)
        elif name == "nfs":
            yield ToolTarget("nfs", f"nfs {value}", server=_server_of(value), port=_PORTS["nfs"])
        elif name == "ssh":
            yield ToolTarget("ssh", f"ssh {value}:{path}", server=value.rpartition("@")[2], port=_PORTS["ssh"])
        else:
            continue
        count += 1
    if not count:
        yield ToolTarget("file", f"file {path}", path=path)


def _read_suse(host: Host) -> DumpTool | None:
    config = "etc/sysconfig/kdump"
    text = host.read_text(config)
    values = read_assignments(text or "")
    if "KDUMP_SAVEDIR" not in values:
        return None
    release = values.get("KDUMP_KERNELVER") or host.release
    link = _find_unit(host, "kdump.service") or _find_unit(host, "kdump-early.service")
    level = values.get("KDUMP_DUMPLEVEL", "")
    return DumpTool(
        name=SUSE,
        config=f"/{config}",
        unit="kdump.service",
        is_enabled=bool(link),
        why=link or "kdump.service is not enabled",
        kernel=_first_there(host, ["/var/lib/kdump/kernel", f"/boot/vmlinuz-{release}", f"/boot/Image-{release}"]),
        initrd=_first_there(host, ["/var/lib/kdump/initrd", f"/boot/initrd-{release}-kdump"]),
        targets=tuple(_decode_url(url) for url in (values["KDUMP_SAVEDIR"] or f"file://{DEFAULT_DIRECTORY}").split()),
        level=int(level) if level.isdigit() and int(level) < 32 else DEFAULT_LEVEL,
        arm="systemctl restart kdump",
        rebuild="mkdumprd -f",
        settings=tuple(
            (key, _hide_password(value))
            for key, value in values.items()
            if value and key.startswith(("KDUMP_", "KEXEC_")) and not _SECRET.search(key)
        ),
    )


def _decode_url(url: str) -> ToolTarget:
    """Decode ``file:///var/crash``, ``/var/crash``, ``nfs://server/export``, ``ssh://user:password@server/path``."""
    try:
        parts = urlsplit(url if "://" in url else f"file://{url}")
        server, port = parts.hostname or "", parts.port
    except ValueError:
        return ToolTarget("unknown", _hide_password(url))
    if parts.scheme == "file":
        return ToolTarget("file", f"file {parts.path}", path=parts.path)
    shown = f"{parts.scheme} {f'{parts.username}@' if parts.username else ''}{server}:{parts.path}"
    return ToolTarget(parts.scheme, shown, server=server, port=port or _PORTS.get(parts.scheme, 0))


def _hide_password(text: str) -> str:
    return re.sub(r"(://[^/\s:@]{0,256}):[^/\s@]{0,256}@", r"\1:…@", text)


def _server_of(place: str) -> str:
    """``server:/export``, ``[2001:db8::1]:/export``, ``user@server:/export``."""
    return re.sub(r":/.*$", "", place).rpartition("@")[2].strip("[]")


def _read_level(words: str) -> int:
    match = _LEVEL.search(words)
    return int(match[1]) & 31 if match else DEFAULT_LEVEL


def _first_there(host: Host, places: list[str]) -> str:
    """Choose the first that is there; an absolute link counts, wherever it leads from outside."""
    return next((one for one in places if host.path(one).is_symlink() or host.path(one).exists()), places[0])


def _find_unit(host: Host, unit: str) -> str:
    """Find the link by which systemd starts a unit; also where it is broken, as below another root."""
    for target in ("multi-user.target", "basic.target", "sysinit.target", "default.target"):
        place = f"etc/systemd/system/{target}.wants/{unit}"
        if host.path(place).is_symlink() or host.path(place).exists():
            return f"/{place}"
    return ""
