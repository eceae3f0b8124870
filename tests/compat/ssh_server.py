"""A real OpenSSH server on loopback, for one test: its own host key, its own user key, nothing of the machine's."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from postpanic.saver.plan import SshPlan

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
SFTP_SERVER = next(
    (
        path
        for path in (Path("/usr/lib/openssh/sftp-server"), Path("/usr/libexec/openssh/sftp-server"))
        if path.exists()
    ),
    None,
)


def find_missing() -> str:
    """Say what is missing for a server; empty if nothing is."""
    if SSHD is None or SFTP_SERVER is None or shutil.which("ssh") is None:
        return "openssh-server and openssh-client are not installed"
    return ""


def make_key(path: Path) -> None:
    program = shutil.which("ssh-keygen") or "/usr/bin/ssh-keygen"
    subprocess.run([program, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class SshServer:
    """sshd, its keys and its files below one directory."""

    base: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    subsystem: str = str(SFTP_SERVER)
    settings: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        self.port = find_free_port()
        for name in ("host", "user"):
            make_key(self.base / name)
        shutil.copy(self.base / "user.pub", self.base / "authorized")
        self.trust(self.base / "host.pub")
        self.dumps.mkdir()

    @property
    def dumps(self) -> Path:
        return self.base / "dumps"

    @property
    def plan(self) -> SshPlan:
        return SshPlan(
            name="ssh test",
            user=getpass.getuser(),
            server="127.0.0.1",
            port=self.port,
            path=str(self.dumps),
            key=str(self.base / "user"),
            known_hosts=str(self.base / "known_hosts"),
            timeout_s=20.0,
        )

    def trust(self, public_key: Path) -> None:
        words = public_key.read_text().split()
        (self.base / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {words[0]} {words[1]}\n")

    def start(self) -> None:
        config = self.base / "sshd_config"
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.base / 'host'}",
            f"AuthorizedKeysFile {self.base / 'authorized'}",
            f"PidFile {self.base / 'pid'}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            *([f"Subsystem sftp {self.subsystem}"] if self.subsystem else []),
            *self.settings,
        ]
        config.write_text("\n".join(lines) + "\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        assert SSHD is not None
        with (self.base / "sshd.log").open("wb") as log:
            # A group of its own: the processes of its sessions end with it.
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError(f"sshd did not start: {(self.base / 'sshd.log').read_text()}")

    def find_sessions(self) -> list[int]:
        """Find the processes of sessions, which sshd puts into sessions of their own."""
        if self.process is None:
            return []
        return _find_descendants(self.process.pid)

    def kill(self) -> None:
        """End it and all its sessions at once, as a power cut does."""
        if self.process is None:
            return
        for pid in [*self.find_sessions(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        self.process = None

    def freeze(self) -> None:
        """Stop its sessions: the connections stay, nothing moves."""
        for pid in self.find_sessions():
            os.kill(pid, signal.SIGSTOP)


def _find_descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        # One that has ended meanwhile has none.
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *_find_descendants(int(child))]
    return found
