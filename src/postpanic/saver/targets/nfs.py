"""
A directory of an NFS server, by the kernel's own client.

There is no mount.nfs(8) here: what that finds out and passes on (the server's
address, ours) is found out here, and the kernel asks the server's mount
service itself. The mount is soft: of a server that is gone the kernel tells
after a while, and nobody waits for ever.

Sources: nfs(5); ``fs/nfs/fs_context.c``, ``fs/nfs/super.c``, ``net/sunrpc/xprt.c``.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from postpanic.dumps.write_calls import as_output_error
from postpanic.errors import OutputError
from postpanic.saver.mounting import mount
from postpanic.saver.plan import NfsPlan
from postpanic.saver.targets.directory import DirectoryTarget, resolve_inside
from postpanic.saver.targets.mount_points import MOUNTS_DIR, leave_mount_point, make_mount_point

__all__ = ["NfsTarget", "make_nfs_options"]

_RETRIES = 2
_PORT = 2049
_REASONS = {
    errno.EINVAL: "an option that the kernel does not know",
    errno.ENODEV: "the kernel does not know NFS: its module is missing",
    errno.EPROTONOSUPPORT: "the kernel or the server does not know this version of NFS: is a module missing?",
    errno.EACCES: "the server does not export it to this machine",
    errno.EPERM: "the server does not export it to this machine",
    errno.ENOENT: "the server has no such export",
    errno.ENOTDIR: "the export is no directory",
    errno.ECONNREFUSED: "the server refuses connections: does its NFS service run?",
    errno.EHOSTUNREACH: "no route to the server",
    errno.ENETUNREACH: "no route to the server",
    errno.EHOSTDOWN: "the server does not answer",
    errno.ETIMEDOUT: "the server does not answer",
    errno.EIO: "the server does not answer as it should",
    errno.EBUSY: "it is mounted in another way already",
}
# For mount.nfs(8); or what would make us wait for ever, or need a daemon that is not here.
_LEFT_OUT = frozenset({"bg", "fg", "hard", "lock", "intr", "nointr", "ac", "sloppy", "softreval", "_netdev"})
_LEFT_OUT_KEYS = (
    "retry=",
    "addr=",
    "clientaddr=",
    "mountaddr=",
    "mounthost=",
    "vers=",
    "nfsvers=",
    "v3",
    "v4",
    "sec=krb5",
)


class NfsTarget(DirectoryTarget):
    """
    A directory of an NFS server.

    Parameters
    ----------
    mounts_dir : Path
        Where it is mounted, in a directory of its own.
    """

    def __init__(self, plan: NfsPlan, *, mounts_dir: Path = MOUNTS_DIR) -> None:
        name = plan.name or f"nfs {plan.server}:{plan.export}"
        super().__init__(Path(plan.path), name=name, retention=plan.retention)
        self._plan = plan
        self._mounts_dir = mounts_dir
        self._mount_point: Path | None = None

    def open(self, dump_name: str) -> None:
        """Mount the export, and make the directory of a new dump."""
        self.close()
        plan = self._plan
        server = _look_up(plan.server, self.name)
        ours = _find_our_address(server, self.name)
        source = f"[{server}]:{plan.export}" if ":" in server else f"{server}:{plan.export}"
        point = make_mount_point(self._mounts_dir, self.name)
        mount(
            source,
            point,
            "nfs" if plan.version == "3" else "nfs4",
            make_nfs_options(plan, server, ours),
            timeout_s=plan.timeout_s,
            where=self.name,
            reasons=_REASONS,
        )
        self._mount_point = point
        try:
            self._root = resolve_inside(point, plan.path)
        except OSError as exc:
            raise as_output_error(exc, self.name, f"find {plan.path or '/'}") from exc
        try:
            super().open(dump_name)
        except OutputError as exc:
            cause = exc.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM):
                exc.hint = (
                    "root of this machine must be allowed to write there: no_root_squash, or a directory of nobody's"
                )
            raise

    @property
    def place(self) -> str:
        """The dump's directory on the server."""
        if not self._dump_name or self._mount_point is None:
            return ""
        below = self._directory.relative_to(self._mount_point)
        return f"{self._plan.server}:{self._plan.export.rstrip('/')}/{below}"

    def close(self) -> None:
        """Unmount."""
        super().close()
        point, self._mount_point = self._mount_point, None
        if point is not None:
            leave_mount_point(point, timeout_s=self._plan.timeout_s)


def make_nfs_options(plan: NfsPlan, server: str, ours: str) -> str:
    """
    Make the options that the kernel's client takes.

    Those of the plan that make no sense here are left out.

    Parameters
    ----------
    server, ours : str
        Addresses.
    """
    family = "6" if ":" in server else ""
    # Of TCP the kernel gives up after timeo * (1 + retrans) tenths of a second: xprt_calc_majortimeo().
    tenths = max(int(plan.timeout_s * 10 / (1 + _RETRIES)), 10)
    options = [f"proto=tcp{family}", "soft", f"timeo={tenths}", f"retrans={_RETRIES}", "sec=sys"]
    if plan.version == "3":
        # No statd and no lockd here: locks would wait for them.
        options = ["vers=3", *options, "nolock", f"mountproto=tcp{family}", f"mountaddr={server}", "mountvers=3"]
    else:
        options = [f"vers={plan.version}", *options, f"clientaddr={ours}"]
    for option in plan.options.split(","):
        word = option.strip()
        if word and word not in _LEFT_OUT and not word.startswith(_LEFT_OUT_KEYS):
            options.append(word)
    return ",".join([*options, f"addr={server}"])


def _look_up(host: str, where: str) -> str:
    """Find the address of a host."""
    try:
        found = socket.getaddrinfo(host.encode("ascii"), _PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", "") or str(exc)
        raise OutputError(f"the name {host} cannot be looked up: {reason.lower()}", where=where) from None
    return str(found[0][4][0])


def _find_our_address(server: str, where: str) -> str:
    """Find the address that we have for a server; nothing is sent for that."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((server, _PORT))
            return str(probe.getsockname()[0])
    except OSError as exc:
        raise OutputError(f"no route to {server}: {(exc.strerror or str(exc)).lower()}", where=where) from None
