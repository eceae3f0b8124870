"""
OpenSSH's client as a process: how it is called, and what it means when it ends.

It runs with nothing but what it is told here: no configuration file, no agent,
no password, no question, one key, one file of known hosts (ssh(1),
ssh_config(5)).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from postpanic import process
from postpanic.errors import OutputError, PostpanicError
from postpanic.saver.plan import SshPlan
from postpanic.saver.targets.sftp_wire import as_printable

__all__ = ["SshProcess"]

_ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "HOME": "/root"}
_CONNECT_S = 30
"""At most; ssh is to give up before we do, because it knows why."""
_ALIVE_COUNT = 3
_END_S = 2.0
"""How long the program may take to end by itself."""
_TAIL_BYTES = 4096

_MEANINGS: tuple[tuple[str, str, str], ...] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the server's host key is not the one that is known",
        "if the server was installed anew, put its new key into known_hosts and arm again; else somebody is in between",
    ),
    (
        "Host key verification failed",
        "the server's host key is not known",
        "put it into known_hosts (ssh-keyscan, and compare it), and arm again",
    ),
    (
        "host key for",
        "the server's host key is not known",
        "put it into known_hosts (ssh-keyscan, and compare it), and arm again",
    ),
    ("no mutual signature", "the server does not take keys of this kind", "make another key"),
    ("invalid format", "the private key cannot be read", "it must be without a passphrase, in OpenSSH's format"),
    ("error in libcrypto", "the private key cannot be read", "it must be without a passphrase, in OpenSSH's format"),
    (
        "Permission denied (",
        "the server refuses the key",
        "the key's public half belongs into the user's authorized_keys on the server",
    ),
    ("subsystem request failed", "the server offers no SFTP", "it needs a line Subsystem sftp in sshd_config"),
    ("Connection refused", "the server refuses connections", "does sshd run there, on this port?"),
    ("No route to host", "no route to the server", ""),
    ("Network is unreachable", "no route to the server", ""),
    ("Could not resolve hostname", "the server's name cannot be looked up", "give its address"),
    ("Connection timed out", "the server does not answer", ""),
    ("not responding", "the server does not answer any more", ""),
    ("Connection closed by", "the server closed the connection", ""),
    ("Connection reset by", "the server closed the connection", ""),
    ("Broken pipe", "the server closed the connection", ""),
)
"""What ssh prints, what it means, and what to do; the first that fits counts."""


class SshProcess:
    """
    A running client, whose pipes carry the SFTP protocol.

    Parameters
    ----------
    name : str
        Of the target, for messages.
    program : str
        OpenSSH's client.
    options : sequence of str
        More options of it, in the form of its configuration file.

    Raises
    ------
    OutputError
        If it cannot be started.
    """

    def __init__(self, plan: SshPlan, *, name: str, program: str = "ssh", options: Sequence[str] = ()) -> None:
        self._name = name
        if not Path(plan.key).is_file():
            raise OutputError(f"the private key {plan.key} is not there", where=name)
        try:
            path = process.find_program(program)
            command = make_command(plan, str(path), options)
            pipe = subprocess.PIPE
            self._process = process.start(command, stdin=pipe, stdout=pipe, stderr=pipe, env=_ENVIRONMENT)
        except PostpanicError as exc:
            raise OutputError(str(exc), where=name, hint=exc.hint) from exc
        self._stderr = b""
        os.set_blocking(self._get_fd(self._process.stderr), False)

    @property
    def read_fd(self) -> int:
        """What the server sends."""
        return self._get_fd(self._process.stdout)

    @property
    def write_fd(self) -> int:
        """What the server gets."""
        return self._get_fd(self._process.stdin)

    def explain(self) -> OutputError:
        """Tell why the connection is gone."""
        status = self._wait(_END_S)
        self._read_stderr()
        lines = [line for line in self._stderr.decode(errors="replace").splitlines() if line.strip()]
        said = "\n".join(lines)
        for words, meaning, hint in _MEANINGS:
            if words in said:
                return OutputError(meaning, where=self._name, hint=hint)
        last = as_printable(lines[-1].encode()) if lines else f"ssh ended with status {status}"
        return OutputError(f"the connection is lost: {last}", where=self._name)

    def close(self) -> None:
        """End the program, by force where that is needed."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue
        if self._wait(_END_S) is None:
            self._process.kill()
            self._wait(_END_S)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _wait(self, seconds: float) -> int | None:
        """Wait for its end, and read what it says meanwhile: it may wait for that."""
        deadline = time.monotonic() + seconds
        while (status := self._process.poll()) is None and time.monotonic() < deadline:
            self._read_stderr()
            time.sleep(0.02)
        return status

    def _read_stderr(self) -> None:
        stream = self._process.stderr
        if stream is None or stream.closed:
            return
        for _ in range(16):
            try:
                data = os.read(stream.fileno(), _TAIL_BYTES)
            except OSError:
                return
            if not data:
                return
            self._stderr = (self._stderr + data)[-_TAIL_BYTES:]

    @staticmethod
    def _get_fd(stream: object) -> int:
        return stream.fileno()  # type: ignore[attr-defined,no-any-return]


def make_command(plan: SshPlan, program: str, options: Sequence[str] = ()) -> list[str]:
    """
    Make the command line.

    What is not taken from a configuration file must be said: ``-F none`` leaves
    both files out.
    """
    alive_s = max(int(plan.timeout_s / _ALIVE_COUNT), 1)
    settings = [
        *options,
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        f"UserKnownHostsFile={plan.known_hosts}",
        "GlobalKnownHostsFile=none",
        "UpdateHostKeys=no",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "PreferredAuthentications=publickey",
        f"ConnectTimeout={min(max(int(plan.timeout_s * 2 / 3), 1), _CONNECT_S)}",
        f"ServerAliveInterval={alive_s}",
        f"ServerAliveCountMax={_ALIVE_COUNT}",
        "ControlPath=none",
        "Compression=no",
        "ForwardAgent=no",
        "ForwardX11=no",
        "LogLevel=ERROR",
        "EscapeChar=none",
    ]
    words = [program, "-F", "none", "-T", "-x", "-a", "-i", plan.key, "-p", str(plan.port), "-l", plan.user]
    for setting in settings:
        words += ["-o", setting]
    return [*words, "-s", "--", plan.server, "sftp"]
