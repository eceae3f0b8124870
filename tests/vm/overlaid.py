"""
A program that sees this machine through overlays: whatever it changes is found afterwards, and is gone.

Every file system that it needs is covered by an overlay, whose upper layer has
each file that was written, made or removed, and each directory in which one was
for a while. Processes, mounts and networks are in name spaces of its own;
settings, modules, loop devices and the loaded kernels are compared.

Run as a program, with the name of a job, this is the part within the name spaces.

Source: ``Documentation/filesystems/overlayfs.rst``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Overlaid", "OverlayError", "run_overlaid"]

END_WAIT_S = 3.0
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
"""netdevice(7)."""
SETTINGS = ("kernel", "vm", "fs", "net", "dev")
VOLATILE = ("kernel/ns_last_pid", "kernel/perf_")
"""What the kernel sets by itself, too: the last process, and how much of a processor sampling may take."""


class OverlayError(Exception):
    """Overlays cannot be laid here: no root, no user name spaces, or no such file system."""


@dataclass(frozen=True)
class Overlaid:
    """What a program printed, and what it changed: a line for each change."""

    status: int
    out: str
    err: str
    changes: list[str]


def run_overlaid(
    command: Sequence[str], directory: Path, *, writable: Sequence[Path], env: Mapping[str, str] | None = None
) -> Overlaid:
    """
    Run a program.

    Parameters
    ----------
    directory : Path
        New; for what is needed here.
    writable : sequence of Path
        Directories that it may write to, ``TMPDIR`` the first: all that is left there is a change, too.

    Raises
    ------
    OverlayError
        If it cannot be.
    """
    directory.mkdir()
    layers = directory / "layers"
    layers.mkdir()
    places = {*map(_find_mount, [Path(__file__), Path(sys.prefix), Path(sys.executable).resolve(), directory])}
    places |= {_find_mount(Path(name)) for name in ("/usr", "/etc", "/run", "/tmp", "/var", "/home", "/root")}  # noqa: S108
    job = {
        "command": list(command),
        "env": {**os.environ, **(env or {}), "TMPDIR": str(writable[0]), "PYTHONDONTWRITEBYTECODE": "1"},
        "cwd": str(Path.cwd()),
        "layers": str(layers),
        "places": sorted(map(str, places)),
        "writable": list(map(str, writable)),
        "result": str(directory / "result.json"),
    }
    (directory / "job.json").write_text(json.dumps(job))
    unshare = shutil.which("unshare")
    if unshare is None:
        raise OverlayError("unshare is not installed")
    spaces = ["--mount", "--pid", "--fork", "--net", "--ipc", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    done = subprocess.run(
        [unshare, *spaces, sys.executable, "-B", __file__, str(directory / "job.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    if not (directory / "result.json").exists():
        raise OverlayError((done.stderr.strip() or f"status {done.returncode}")[-400:])
    return Overlaid(**json.loads((directory / "result.json").read_text()))


def _find_mount(path: Path) -> Path:
    path = path.resolve()
    while not os.path.ismount(path):
        path = path.parent
    return path


def _stay_within(job_path: Path) -> None:
    """Lay the overlays, run the program, compare."""
    job = json.loads(job_path.read_text())
    result = Path(job["result"])
    layers, temporary = Path(job["layers"]), Path(job["writable"][0])
    root = _lay(layers, job["places"], job["writable"])

    def enter() -> None:
        os.chroot(root)
        os.chdir(job["cwd"])

    _bring_up_loopback()
    before = _look()
    out, err = result.with_name("out"), result.with_name("err")
    # No pipes: whoever is left behind holds them open.
    with out.open("wb") as out_stream, err.open("wb") as err_stream:
        done = subprocess.run(
            job["command"],
            env=job["env"],
            stdin=subprocess.DEVNULL,
            stdout=out_stream,
            stderr=err_stream,
            check=False,
            preexec_fn=enter,
        )
    changes = [f"process: {name}" for name in _find_processes()]
    after = _look()
    changes += [
        f"{name}: {before.get(name)} became {after.get(name)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    changes += [f"left behind: {path}" for path in sorted([*temporary.rglob("*"), *(root / "dev/shm").rglob("*")])]
    for number, place in enumerate(job["places"]):
        upper = layers / str(number) / "upper"
        changes += [f"file: {Path(place) / path.relative_to(upper)}" for path in sorted(upper.rglob("*"))]
    value = {
        "status": done.returncode,
        "out": out.read_text(errors="replace"),
        "err": err.read_text(errors="replace"),
        "changes": changes,
    }
    result.write_text(json.dumps(value))


def _bring_up_loopback() -> None:
    """Let programs of this machine reach each other: QEMU's network does with its own servers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def _lay(layers: Path, places: Sequence[str], writable: Sequence[str]) -> Path:
    """Lay an overlay on every place, and return where the root of it all is."""
    _run("mount", "-t", "proc", "proc", "/proc")
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", layers)
    root = layers / "root"
    root.mkdir()
    for number, place in enumerate(places):
        upper, work = layers / str(number) / "upper", layers / str(number) / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        upper.chmod(Path(place).stat().st_mode & 0o7777)
        options = ",".join(f"{name}={_escape(path)}" for name, path in (("lowerdir", Path(place)), ("upperdir", upper)))
        _run("mount", "-t", "overlay", "-o", f"{options},workdir={_escape(work)}", "overlay", f"{root}{place}")
    for name in ("proc", "sys", "dev"):
        _run("mount", "--rbind", f"/{name}", root / name)
    _run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "dev/shm")
    for name in writable:
        _run("mount", "--bind", name, f"{root}{name}")
    return root


def _escape(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")


def _run(*words: str | Path) -> None:
    subprocess.run([*map(str, words)], check=True)


def _find_processes() -> list[str]:
    """Name what is still running besides us, which are the first process here."""
    deadline = time.monotonic() + END_WAIT_S
    while True:
        # Whoever has lost its parent is ours to bury.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if path.name != "1":
                    found.append((path / "comm").read_text().strip())
        if not found or time.monotonic() > deadline:
            return sorted(found)
        time.sleep(0.2)


def _look() -> dict[str, str]:
    """Describe what no overlay covers."""
    found = {f"setting {name}": text for name, text in _read_settings()}
    for line in _read(Path("/proc/self/mounts")).splitlines():
        found[f"mount {line}"] = "there"
    found["modules"] = " ".join(sorted(line.split(" ", 1)[0] for line in _read(Path("/proc/modules")).splitlines()))
    found["swap areas"] = _read(Path("/proc/swaps"))
    found["network cards"] = " ".join(line.split(":")[0] for line in _read(Path("/proc/net/dev")).splitlines())
    for path in sorted(Path("/sys/block").glob("*/loop/backing_file")):
        found[f"loop device {path.parts[3]}"] = _read(path)
    for path in sorted(Path("/sys/kernel").glob("kexec_*")):
        found[path.name] = _read(path)
    return found


def _read_settings() -> Iterator[tuple[str, str]]:
    """Read what can be set. What can only be read (``fs/quota/syncs``) is what the kernel counts there."""
    for kind in SETTINGS:
        for path in sorted(Path("/proc/sys", kind).rglob("*")):
            name = str(path.relative_to("/proc/sys"))
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                continue
            if not name.startswith(VOLATILE) and stat.S_ISREG(mode) and mode & 0o444 and mode & 0o222:
                yield name, _read(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError as exc:
        return f"({exc.strerror})"


if __name__ == "__main__":
    _stay_within(Path(sys.argv[1]))
