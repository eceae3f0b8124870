"""
A directory of an SSH server.

OpenSSH's own client makes the connection, in its own process, with a key and
host keys from the image; it never asks anything, and trusts no host that it
was not told of. The SFTP protocol over it is ours, so the dump on the server
is a plain file from the first byte on, that nothing has to put in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from postpanic.dumps.sink import Sink
from postpanic.errors import NoSpaceError, OutputError
from postpanic.saver.plan import RetentionPlan, SshPlan
from postpanic.saver.targets.retention import parse_dump_name, select_for_deletion
from postpanic.saver.targets.sftp import SftpClient, SftpStatusError
from postpanic.saver.targets.sftp_connection import SftpConnection
from postpanic.saver.targets.sftp_retention import delete_remote_dump, find_remote_dumps
from postpanic.saver.targets.sftp_sink import SftpSink
from postpanic.saver.targets.sftp_wire import Status
from postpanic.saver.targets.ssh_process import SshProcess
from postpanic.units import format_size

__all__ = ["SshTarget"]

_MAX_NAMES_TRIED = 100
_LITTLE_ROOM = 1 << 20
"""With less than this a write that failed did so for want of room."""


class SshTarget:
    """
    A target on a server of SSH.

    Parameters
    ----------
    program : str
        OpenSSH's client.
    options : sequence of str
        More options of it, ``-o`` left out.
    """

    def __init__(self, plan: SshPlan, *, program: str = "ssh", options: Sequence[str] = ()) -> None:
        self.name = plan.name or f"ssh {plan.user}@{plan.server}:{plan.path}"
        self._plan = plan
        self._program = program
        self._options = options
        self._ssh: SshProcess | None = None
        self._client: SftpClient | None = None
        self._dump_name = ""
        self._directory = ""
        self._sink: SftpSink | None = None
        self._dump_file = ""
        self._is_committed = False

    def open(self, dump_name: str) -> None:
        """Connect, and make a directory for the dump."""
        self.close()
        self._connect()
        if self._directory and self._dump_name == dump_name:
            if self._get_client().find_attributes(self._directory) is not None:
                return
            self._directory = ""
        self._dump_name = dump_name
        base = self._plan.path.rstrip("/") or "/"
        self._make_directories(base)
        self._directory = self._make_new(base.rstrip("/") + "/" + dump_name)

    @property
    def place(self) -> str:
        """The directory, as scp takes it."""
        if not self._directory:
            return ""
        server = f"[{self._plan.server}]" if ":" in self._plan.server else self._plan.server
        return f"{self._plan.user}@{server}:{self._directory}"

    @property
    def takes_small_files(self) -> bool:
        """There is room for them beside the dump."""
        return True

    def put(self, name: str, content: bytes) -> None:
        """Write a small file: under another name first, so that it is there whole or not at all."""
        client = self._get_client()
        path = f"{self._directory}/{name}"
        sink = SftpSink(client, f"{path}.part", refuse=self._refuse, name=self.name)
        try:
            sink.write_at(0, [content])
            sink.flush()
        finally:
            sink.close()
        self._call(lambda: client.rename(f"{path}.part", path))

    def open_dump(self, name: str) -> Sink:
        """Start the dump."""
        if self._sink is not None:
            self._sink.close()
        self._dump_file = name
        self._is_committed = False
        path = f"{self._directory}/{name}-incomplete"
        try:
            client, seconds = self._get_client(), self._plan.timeout_s
            self._sink = SftpSink(client, path, refuse=self._refuse, name=self.name, read_back_s=seconds)
        except SftpStatusError as exc:
            raise self._refuse(exc) from exc
        return self._sink

    @property
    def dump_files(self) -> tuple[str, ...]:
        """The dump is one file."""
        return (self._dump_file,) if self._dump_file else ()

    def read_back(self) -> str | None:
        """Nothing can be opened here; the digest was made of what the server gave back."""
        return None

    def room_bytes(self) -> int | None:
        """Tell how much room the server's file system has for us."""
        room = self._get_client().find_room(self._directory or self._plan.path)
        return None if room is None else room.free_bytes

    def commit(self) -> None:
        """Give the dump its final name."""
        client = self._get_client()
        path = f"{self._directory}/{self._dump_file}"
        if not self._is_committed:
            self._call(lambda: client.rename(f"{path}-incomplete", path))
            self._is_committed = True

    def rotate(self) -> list[str]:
        """Delete old dumps as the plan allows."""
        plan = self._plan.retention
        node = parse_dump_name(self._directory.rpartition("/")[2])
        if plan == RetentionPlan() or node is None or not self._is_committed:
            return []
        root = self._plan.path.rstrip("/") or "/"
        client = self._get_client()
        room = client.find_room(root)
        dumps = sorted(find_remote_dumps(client, root, node[0]))
        free = plan.min_free_bytes if room is None else room.free_bytes
        chosen = select_for_deletion(dumps, self._directory.rpartition("/")[2], plan, free)
        return [dump.name for dump in chosen if delete_remote_dump(client, f"{root}/{dump.name}")]

    def close(self) -> None:
        """Disconnect, and see that the program ends."""
        ssh, self._ssh, self._client, self._sink = self._ssh, None, None, None
        if ssh is not None:
            ssh.close()

    def _connect(self) -> None:
        plan = self._plan
        self._ssh = ssh = SshProcess(plan, name=self.name, program=self._program, options=self._options)
        connection = SftpConnection(
            ssh.read_fd, ssh.write_fd, name=self.name, timeout_s=plan.timeout_s, explain=ssh.explain
        )
        try:
            connection.shake_hands()
        except OutputError:
            self.close()
            raise
        self._client = SftpClient(connection)

    def _get_client(self) -> SftpClient:
        if self._client is None:
            raise OutputError("is not connected", where=self.name)
        return self._client

    def _make_directories(self, path: str) -> None:
        """Make a directory and those above it, as far as they are missing."""
        client = self._get_client()
        found = client.find_attributes(path)
        if found is None:
            above = path.rpartition("/")[0]
            if above:
                self._make_directories(above)
            self._call(lambda: client.make_directory(path))
        elif not found.is_directory:
            raise OutputError(f"{path} is no directory", where=self.name)

    def _make_new(self, path: str) -> str:
        """Make a directory of this name, or with a number after it."""
        client = self._get_client()
        for number in range(_MAX_NAMES_TRIED):
            candidate = f"{path}-{number}" if number else path
            if client.find_attributes(candidate) is None:
                self._call(partial(client.make_directory, candidate))
                return candidate
        raise OutputError(f"{path} and {_MAX_NAMES_TRIED - 1} names like it are taken", where=self.name)

    def _call(self, request: Callable[[], None]) -> None:
        """Do something, and find out what is behind a failure."""
        try:
            request()
        except SftpStatusError as exc:
            raise self._refuse(exc) from exc

    def _refuse(self, error: OutputError) -> OutputError:
        """Find out what is behind an error that says nothing: most often there is no room."""
        if not isinstance(error, SftpStatusError):
            return error
        if error.status == Status.PERMISSION_DENIED:
            error.hint = f"{self._plan.user} must be allowed to write in {self._plan.path} on the server"
        if error.status == Status.FAILURE:
            room = self._get_client().find_room(self._directory or self._plan.path)
            if room is not None and room.free_bytes < _LITTLE_ROOM:
                left = format_size(room.free_bytes)
                return NoSpaceError(f"cannot write: the server's disk has {left} left", where=self.name)
        return error
