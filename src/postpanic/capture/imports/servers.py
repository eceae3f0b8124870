"""How the distributions spell servers, as targets of ours."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

__all__ = ["nfs_target", "ssh_target", "url_target"]


def nfs_target(text: str, path: str, options: str = "") -> dict[str, object]:
    """
    Make a target of ``server:/export``.

    >>> nfs_target("[2001:db8::1]:/srv/crash", "/var/crash")
    {'kind': 'nfs', 'server': '2001:db8::1', 'export': '/srv/crash', 'path': 'var/crash'}
    """
    server, _, export = text.partition(":/") if not text.startswith("[") else text.partition("]:/")
    target: dict[str, object] = {"kind": "nfs", "server": server.strip("[]"), "export": f"/{export}"}
    if path.strip("/"):
        target["path"] = path.strip("/")
    if options:
        target["options"] = options
    return target


def ssh_target(text: str, path: str, key: str) -> dict[str, object]:
    """
    Make a target of ``user@server``.

    >>> ssh_target("kdump@example.org", "/var/crash", "/root/.ssh/id")["server"]
    'example.org'
    """
    user, at, server = text.rpartition("@")
    target: dict[str, object] = {"kind": "ssh", "server": server.strip("[]"), "path": path or "/var/crash"}
    return target | ({"user": user} if at else {}) | ({"key": key} if key else {})


def url_target(url: str, key: str) -> dict[str, object] | None:
    """
    Make a target of an address as openSUSE has them; None: of a kind that there is none of.

    >>> url_target("file:///var/crash", "")
    {'kind': 'file', 'path': '/var/crash'}
    >>> url_target("ftp://example.org/crash", "") is None
    True
    """
    try:
        parts = urlsplit(url if "://" in url else f"file://{url}")
        server, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    path = unquote(parts.path)
    if parts.scheme == "file":
        return {"kind": "file", "path": path or "/var/crash"}
    if parts.scheme == "nfs" and server:
        return {"kind": "nfs", "server": server, "export": path or "/"}
    if parts.scheme in {"ssh", "sftp"} and server:
        name = f"{unquote(parts.username)}@{server}" if parts.username else server
        return ssh_target(name, path, key) | ({"port": port} if port else {})
    return None
