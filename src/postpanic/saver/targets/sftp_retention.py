"""Old dumps on a server of SFTP: found and deleted by the rules of :mod:`~postpanic.saver.targets.retention`."""

from __future__ import annotations

from postpanic.saver.targets.retention import DUMP_MARKS, OldDump, parse_dump_name
from postpanic.saver.targets.sftp import SftpClient, SftpStatusError

__all__ = ["delete_remote_dump", "find_remote_dumps"]

_MAX_DUMPS = 1000
_S_IFMT, _S_IFREG = 0o170000, 0o100000


def find_remote_dumps(client: SftpClient, root: str, node: str) -> list[OldDump]:
    """
    Find a machine's dumps in a directory of the server.

    Raises
    ------
    OutputError
        If the directory cannot be read, or the connection is lost.
    """
    found: list[OldDump] = []
    for entry in client.list_directory(root):
        parts = parse_dump_name(entry.name)
        # A link to a directory is listed as a link, and left alone.
        if parts is None or parts[0] != node or not entry.attributes.is_directory or len(found) >= _MAX_DUMPS:
            continue
        files = _list_files(client, f"{root}/{entry.name}")
        if files is not None and any(mark in files for mark in DUMP_MARKS):
            found.append(OldDump(parts[1], parts[2], entry.name, sum(files.values())))
    return found


def delete_remote_dump(client: SftpClient, path: str) -> bool:
    """Delete a directory of files, what tells that it is a dump last; whether it is gone."""
    files = _list_files(client, path)
    if files is None:
        return False
    try:
        for name in sorted(files, key=lambda name: (name in DUMP_MARKS, name == DUMP_MARKS[0])):
            client.remove(f"{path}/{name}")
        client.remove_directory(path)
    except SftpStatusError:
        return False
    return True


def _list_files(client: SftpClient, path: str) -> dict[str, int] | None:
    """List the files of a directory with their sizes; None if there is anything else in it, or it cannot be read."""
    try:
        entries = client.list_directory(path)
    except SftpStatusError:
        return None
    if any(entry.attributes.mode & _S_IFMT != _S_IFREG for entry in entries):
        return None
    return {entry.name: entry.attributes.size_bytes for entry in entries}
