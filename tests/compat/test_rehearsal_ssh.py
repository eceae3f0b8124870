"""OpenSSH's client at the SSH server that stands in, without a machine in between."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from postpanic.errors import OutputError
from postpanic.process import find_program
from postpanic.rehearse.servers.stand_ins import ServerStandIn, make_ssh_server
from postpanic.saver.plan import SshPlan
from postpanic.saver.targets.sftp import SftpClient
from postpanic.saver.targets.sftp_connection import SftpConnection
from tests.compat.ssh_server import find_missing, make_key


@pytest.fixture
def server(tmp_path: Path) -> ServerStandIn:
    missing = find_missing()
    if missing:
        pytest.skip(missing)
    make_key(tmp_path / "key")
    plan = SshPlan(name="ssh", user="dumps", server="192.0.2.1", port=2222, known_hosts="/known_hosts")
    return make_ssh_server(plan, (tmp_path / "key").read_bytes(), tmp_path / "server", tmp_path / "saved")


def connect(
    server: ServerStandIn, tmp_path: Path, key: str, *more: str, before: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_bytes(server.files["/known_hosts"])
    options = ["BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known_hosts}", "IdentitiesOnly=yes"]
    options += ["GlobalKnownHostsFile=none", "IdentityAgent=none", f"ProxyCommand={server.command}"]
    assert isinstance(server.plan, SshPlan)
    words = [str(find_program("ssh")), "-F", "none", "-i", str(tmp_path / key), "-p", "2222", "-l", server.plan.user]
    for option in options:
        words += ["-o", option]
    return subprocess.Popen(
        [*before, *words, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_the_key_of_the_image_gets_the_directory(server: ServerStandIn, tmp_path: Path) -> None:
    with connect(server, tmp_path, "key", "-s", "192.0.2.1", "sftp") as ssh:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        connection = SftpConnection(
            ssh.stdout.fileno(), ssh.stdin.fileno(), name="t", timeout_s=30.0, explain=lambda: OutputError("gone")
        )
        connection.shake_hands()
        client = SftpClient(connection)
        handle = client.open_file("/vmcore")
        client.write(handle, 0, [memoryview(b"dump")])
        client.close_handle(handle)
        assert client.find_attributes("/etc/passwd") is None
        ssh.stdin.close()
    assert (tmp_path / "saved/vmcore").read_bytes() == b"dump"


def test_another_key_is_not_let_in(server: ServerStandIn, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    with connect(server, tmp_path, "other", "-s", "192.0.2.1", "sftp") as ssh:
        _, said = ssh.communicate(b"", 60)
    assert b"Permission denied (publickey)" in said


def test_commands_are_not_run(server: ServerStandIn, tmp_path: Path) -> None:
    with connect(server, tmp_path, "key", "192.0.2.1", f"touch {shlex.quote(str(tmp_path / 'touched'))}") as ssh:
        ssh.communicate(b"", 60)
    assert not (tmp_path / "touched").exists()


def test_the_account_s_own_start_up_files_are_not_run(server: ServerStandIn, tmp_path: Path) -> None:
    account = pwd.getpwuid(os.geteuid())
    theirs = Path(account.pw_dir, ".bashrc")
    if account.pw_uid != 0 or not account.pw_shell.endswith("/bash") or not theirs.is_file():
        pytest.skip("another file can be put in place of .bashrc by root only, and matters to bash only")
    ours = tmp_path / "bashrc"
    ours.write_text(f"touch {shlex.quote(str(tmp_path / 'touched'))}\n")
    # Where nobody else sees it.
    script = f'mount --bind {shlex.quote(str(ours))} {shlex.quote(str(theirs))} && exec "$@"'
    before = [str(find_program("unshare")), "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*before, "true"], check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    with connect(server, tmp_path, "key", "-s", "192.0.2.1", "sftp", before=before) as ssh:
        ssh.communicate(b"\0\0\0\5\1\0\0\0\3", 60)
    assert ssh.returncode == 0
    assert not (tmp_path / "touched").exists()
