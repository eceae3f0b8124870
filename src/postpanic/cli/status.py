"""``postpanic status``: whether this machine is ready to capture its crash."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import NotReadyError, UsageError

if TYPE_CHECKING:
    from postpanic.capture.host import Host
    from postpanic.capture.status.model import StatusReport
    from postpanic.capture.status.subject import Subject

__all__ = ["command"]


@click.command(cls=Verb, name="status")
@click.option("-v", "--verbose", is_flag=True, help="Show the evidence of every condition, not only of those not met.")
@click.option("-q", "--quiet", is_flag=True, help="Show only what has to be mended, and the verdict.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--strict", is_flag=True, help="Take warnings, and what could not be seen, for not ready.")
@click.option("--offline", is_flag=True, help="Do not ask the servers among the targets whether they answer.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="Read this file instead of /etc/postpanic.toml.",
)
@click.option("--kernel", default="", metavar="PATH|RELEASE", help="Capture with this kernel.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="TREE",
    help="Look at the machine whose files are below this directory.",
)
def command(
    verbose: bool,
    quiet: bool,
    as_json: bool,
    strict: bool,
    offline: bool,
    config_path: Path | None,
    kernel: str,
    root: Path | None,
) -> int:
    """
    Say whether this machine is ready to capture its crash.

    Every condition is looked at: the reserved memory, what is loaded in it, the
    image, the targets and their room, lockdown, the kernel's options, the panic
    sysctls, watchdogs, the other evidence that a crash may leave. Each is ok, a
    warning, failing, unknown or not applicable, with its evidence and what mends
    it. Machines that kdump-tools, kdumpctl or openSUSE's kdump have armed are
    looked at in the same way. Nothing is changed.

        postpanic status               every condition
        postpanic status -q            what has to be mended
        postpanic status --json | jq '.checks[] | select(.state == "failing")'
        postpanic status --root /mnt   the machine whose root is mounted there

    Without root some of it cannot be seen, and it says so. The exit status is 0
    if the machine is ready, 4 if not.
    """
    from postpanic.cli.status_report import encode_report, print_report

    subject = _find_subject(root, kernel, config_path, offline=offline)
    report = _examine(subject)
    if as_json:
        print(json.dumps(encode_report(report), indent=1, ensure_ascii=False))
    else:
        print_report(report, verbose=verbose, quiet=quiet, color=sys.stdout.isatty())
    is_ready = report.is_ready and not (strict and report.select("warning", "unknown"))
    return 0 if is_ready else NotReadyError.exit_status


def _examine(subject: Subject) -> StatusReport:
    from postpanic.capture.status.examine import examine

    return examine(subject)


def _find_subject(root: Path | None, kernel: str, config_path: Path | None, *, offline: bool) -> Subject:
    from postpanic.capture.arming.prepare import ask_network
    from postpanic.capture.status.subject import Subject, connect_tcp

    return Subject.find(
        _find_host(root, kernel),
        config_path,
        kernel=kernel,
        find_network=ask_network if root is None else None,
        connect=connect_tcp if root is None and not offline else None,
    )


def _find_host(root: Path | None, kernel: str) -> Host:
    from postpanic.capture.bootloader.tree import find_machine
    from postpanic.capture.host import Host

    running = Host.running()
    if root is None:
        return running
    copied = Host(root, running.machine, "", running.is_root)
    release = copied.read_text("proc/sys/kernel/osrelease") or ""
    if not release:
        names = sorted(path.name for path in (*root.glob("lib/modules/*"), *root.glob("usr/lib/modules/*")))
        releases = list(dict.fromkeys(names))
        if kernel not in releases and len(releases) > 1:
            raise UsageError(
                f"which kernel of {root}? its modules are of: {', '.join(releases)}", hint="--kernel RELEASE"
            )
        release = kernel if kernel in releases or not releases else releases[0]
    machine = copied.read_text("proc/sys/kernel/arch") or find_machine(root) or running.machine
    return Host(root, machine, release, running.is_root)
