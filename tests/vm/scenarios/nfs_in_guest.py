"""Run as root in a guest: what the kernel's client of NFS makes of the servers that stand in."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from postpanic.errors import PostpanicError
from postpanic.saver.network.setup import set_up_network
from postpanic.saver.plan import InterfacePlan, NetworkPlan, NfsPlan
from postpanic.saver.targets.nfs import NfsTarget

NAME = "node-20260131-235959"
MAC = "52:54:00:70:70:01"
FILES = 60
DIRECTORIES = 120
TIMEOUT_S = 30.0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def make_target(
    server: str, version: str, *, export: str = "/srv/export", path: str = "", options: str = ""
) -> NfsTarget:
    return NfsTarget(
        NfsPlan(
            server=server,
            export=export,
            path=path,
            version=version,  # type: ignore[arg-type]
            options=options,
            timeout_s=TIMEOUT_S,
        )
    )


def find_root(target: NfsTarget) -> Path:
    """Where a target is mounted."""
    assert target._mount_point is not None
    return target._mount_point


def check(server: str, version: str, options: str) -> None:
    """Save, as the saver does, and do what else may be done to files."""
    target = make_target(server, version, path="/dumps", options=options)
    target.open(NAME)
    # What is not unmounted would be shared with the next mount, whatever version that asks for.
    with contextlib.closing(target):
        root = find_root(target)
        line = next(line for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1] == str(root))
        say(f"MOUNT {version} vers={f'vers={version}' in line} {line}")
        save(target, version)
        try_files(root, version)
    say(f"UNMOUNTED {version} {':/srv' not in Path('/proc/mounts').read_text()}")


def save(target: NfsTarget, version: str) -> None:
    room = target.room_bytes()
    target.put("vmcore-dmesg.txt", version.encode())
    sink = target.open_dump("vmcore")
    for place in range(0, 12, 2):
        sink.write_at(place << 20, [bytes([place + 1]) * (2 << 20)])
    sink.write_at(100, [version.encode()])
    digest = sink.finish()
    target.commit()
    say(f"SAVED {version} {digest.size_bytes} {target.place}")
    left = target.room_bytes()
    assert room is not None
    assert left is not None
    say(f"ROOM {version} {room} {left}")


def try_files(root: Path, version: str) -> None:
    here = root / "here"
    here.mkdir(mode=0o750)
    for number in range(FILES):
        (here / f"file {number:03}").write_bytes(b"%d" % number)
    (here / "ünï").write_text("x")
    names = sorted(path.name for path in here.iterdir())
    say(f"LIST {version} {len(names)} {names[0]} {names[-1]}")
    with (here / "open").open("w+b") as stream:
        stream.write(b"a" * 100_000)
        stream.flush()
        os.fsync(stream.fileno())
        # Its handle outlives its name and its directory's.
        (here / "open").rename(here / "renamed")
        here.rename(root / "there")
        stream.write(b"b" * 10)
        stream.flush()
        os.fsync(stream.fileno())
        stream.seek(99_995)
        say(f"READ {version} {stream.read().decode()}")
        stream.truncate(7)
    there = root / "there"
    say(f"SIZE {version} {(there / 'renamed').stat().st_size}")
    (there / "file 000").replace(there / "file 001")
    say(f"REPLACED {version} {(there / 'file 001').read_text()} {(there / 'file 000').exists()}")
    (there / "file 002").chmod(0o640)
    os.utime(there / "file 002", (1000, 2000))
    os.chown(there / "file 002", 7, 8)
    status = (there / "file 002").stat()
    say(f"STATUS {version} {oct(status.st_mode)} {status.st_mtime:.0f} {status.st_uid} {status.st_gid}")
    calls: dict[str, Callable[[], object]] = {
        "rmdir": there.rmdir,
        "mkdir": there.mkdir,
        "link": lambda: (root / "link").symlink_to("/etc/passwd"),
        "long": (root / ("x" * 256)).mkdir,
        "exclusive": lambda: os.open(there / "file 003", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    }
    for name, call in calls.items():
        try:
            call()
        except OSError as exc:
            say(f"ERROR {version} {name} {errno.errorcode.get(exc.errno or 0, exc.errno)}")
    with (there / "unlinked").open("w+b") as stream:
        stream.write(b"gone")
        (there / "unlinked").unlink()
        stream.flush()
        stream.seek(0)
        say(f"UNLINKED {version} {stream.read().decode()}")
    remove(there)
    say(f"REMOVED {version} {sorted(path.name for path in root.iterdir())}")


def remove(directory: Path) -> None:
    """Empty a directory, in which the kernel may not yet have removed what was removed while it was open."""
    end = time.monotonic() + TIMEOUT_S
    while paths := list(directory.iterdir()):
        assert time.monotonic() < end, paths
        for path in paths:
            path.unlink(missing_ok=True)
    directory.rmdir()


def check_full(server: str, version: str) -> None:
    target = make_target(server, version)
    target.open(NAME)
    say(f"FREE {version} {target.room_bytes()}")
    try:
        sink = target.open_dump("vmcore")
        for place in range(0, 8, 2):
            sink.write_at(place << 20, [b"x" * (2 << 20)])
            sink.flush()
        say(f"FULL {version} NO ERROR")
    except PostpanicError as exc:
        say(f"FULL {version} {type(exc).__name__} {exc}")
    target.close()


def check_missing(server: str, version: str) -> None:
    target = make_target(server, version, export="/srv/nothing")
    try:
        target.open(NAME)
        say(f"MISSING {version} NO ERROR")
    except PostpanicError as exc:
        say(f"MISSING {version} {exc}")
    target.close()


def check_broken(server: str, version: str) -> None:
    """Write where every connection is cut after a few seconds."""
    target = make_target(server, version)
    target.open(NAME)
    root = find_root(target)
    for number in range(DIRECTORIES):
        directory = root / f"d{number}"
        directory.mkdir()
        with (directory / "file").open("wb") as stream:
            stream.write(b"%d" % number * 2000)
        (directory / "file").rename(root / f"f{number}")
        directory.rmdir()
    content = [(root / f"f{number}").read_bytes() == b"%d" % number * 2000 for number in range(DIRECTORIES)]
    say(f"BROKEN {version} {all(content)} {len(list(root.glob('f*')))} {len(list(root.glob('d*')))}")
    target.close()


def main() -> None:
    network = NetworkPlan(
        interfaces=(InterfacePlan(name="eth0", mac=MAC, method="static", addresses=("10.9.0.2/24",)),)
    )
    if sys.argv[1] == "network":
        set_up_network(network, say, root=Path("/tmp/root"))  # noqa: S108
        return
    version, server = sys.argv[2:4]
    try:
        if sys.argv[1] == "all":
            check(server, version, sys.argv[4] if len(sys.argv) > 4 else "")
        else:
            {"full": check_full, "missing": check_missing, "broken": check_broken}[sys.argv[1]](server, version)
    except (PostpanicError, OSError) as exc:
        say(f"FAILED {version} {exc} {getattr(exc, 'hint', '')}")
        traceback.print_exc()


if __name__ == "__main__":
    main()
