"""The tree of a host that is rehearsed, and the real crash of what it would arm."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from postpanic.capture.config import read_config
from postpanic.capture.host import Host
from postpanic.cli.app import main
from postpanic.process import find_program, run
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.machine import Disk, MachineError
from postpanic.rehearse.subject import Subject, read_subject
from tests.vm.captures import Request, capturing, plan_for
from tests.vm.lab import Lab, hold_machine
from tests.vm.overlaid import run_overlaid
from tests.vm.python_root import fetch_python_root

__all__ = ["ENDS", "Tree", "crash_for_real", "make_tree", "rehearse_overlaid", "rehearse_tree"]

ENDS = r"^postpanic: (?:rebooting|powering off|halting)|end Kernel panic"
ARMED = "var/lib/postpanic/capture.img"


@dataclass(frozen=True)
class Tree:
    """A host's files, in a directory."""

    root: Path
    kernel: Kernel

    def configure(self, text: str) -> None:
        (self.root / "etc/postpanic.toml").write_text(text)

    def read_subject(self, crashkernel: str) -> Subject:
        """Give what would be armed now."""
        host = Host(self.root, "x86_64", self.kernel.release)
        return read_subject(read_config(self.root / "etc/postpanic.toml"), host, crashkernel=crashkernel)


def make_tree(lab: Lab, kernel: Kernel, directory: Path, python_root: Path | None = None) -> Tree:
    """
    Make a tree with Debian's Python and a kernel with its modules; files are links to the cache.

    Parameters
    ----------
    python_root : Path, optional
        Where Python is from, instead of that of x86-64.
    """
    root = directory / "root"
    run([find_program("cp"), "-al", python_root or fetch_python_root(lab), root])
    # The cache's own: its time is that of the last use, by whichever test.
    (root / "manifest.json").unlink()
    for name in ("boot", "etc", "lib/modules"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for path in kernel.image.parent.iterdir():
        shutil.copy2(path, root / "boot" / path.name)
    run([find_program("cp"), "-al", kernel.modules_dir, root / "lib/modules" / kernel.release])
    return Tree(root, kernel)


def rehearse_tree(
    lab: Lab, tree: Tree, directory: Path, capsys: pytest.CaptureFixture[str], *words: str, status: int = 0
) -> dict[str, Any]:
    """Rehearse a tree by the command line, and give what it prints."""
    command = ["rehearse", "--root", str(tree.root), "--kernel", tree.kernel.release, "--json"]
    with hold_machine(lab.cache_dir):
        found = main([*command, "--keep", str(directory), *words])
    captured = capsys.readouterr()
    assert found == status, captured.out + captured.err
    value: dict[str, Any] = json.loads(captured.out)
    return value


def rehearse_overlaid(lab: Lab, tree: Tree, directory: Path, *words: str) -> tuple[dict[str, Any], list[str]]:
    """
    Rehearse a tree by the command line, and give what it prints, and what it changed of this machine.

    Raises
    ------
    OverlayError
        If that cannot be seen here.
    """
    kept, temporary = directory / "kept", directory / "temporary"
    kept.mkdir(parents=True)
    temporary.mkdir()
    command = [sys.executable, "-m", "postpanic", "rehearse", "--root", str(tree.root), "--kernel", tree.kernel.release]
    command += ["--json", "--keep", str(kept), *words]
    with hold_machine(lab.cache_dir):
        done = run_overlaid(command, directory / "overlaid", writable=[temporary, kept])
    assert done.status == 0, done.out + done.err
    value: dict[str, Any] = json.loads(done.out)
    return value, done.changes


def crash_for_real(
    lab: Lab,
    subject: Subject,
    image: bytes,
    directory: Path,
    *,
    crashkernel: str,
    is_saved: Callable[[str], bool],
    disks: tuple[Disk, ...] = (),
    words: tuple[str, ...] = (),
) -> tuple[bool, str]:
    """
    Crash a machine that has the real disks and servers, with an image in its reserved memory.

    Parameters
    ----------
    is_saved : callable
        Looks for the dump afterwards; gets the console.

    Returns
    -------
    bool
        Whether the dump is there.
    str
        The console.
    """
    directory.mkdir()
    path = directory / "armed.img"
    path.write_bytes(image)
    line = f"{subject.prepared.command_line.text} console=ttyS0 no_timer_check"
    request = Request(
        plan_for(), crashkernel=crashkernel, command_line=line, disks=disks, words=words, is_isolated=False
    )
    with capturing(lab, request, directory, image=path) as capture:
        with contextlib.suppress(MachineError):
            capture.machine.wait_for(ENDS, timeout_s=150.0)
            capture.machine.wait_exit(timeout_s=20.0)
        console = capture.console
    return is_saved(console), console
