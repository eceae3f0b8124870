"""``postpanic arm``: make the machine ready to capture its crash."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.capture.config import Config
    from postpanic.capture.host import Host

__all__ = ["command", "find_host"]


@click.command(cls=Verb, name="arm")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="Read this file instead of /etc/postpanic.toml.",
)
@click.option("--force", is_flag=True, help="Build and load the image even if nothing has changed.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option(
    "--build",
    "build_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Only build the image, into this file.",
)
@click.option("--kernel", default="", metavar="PATH|RELEASE", help="Capture with this kernel.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="TREE",
    help="Take kernel, modules, Python and configuration from below this directory; with --build or --dry-run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
def command(
    config_path: Path | None,
    force: bool,
    dry_run: bool,
    build_path: Path | None,
    kernel: str,
    root: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """
    Make the machine ready to capture its crash.

    Reads /etc/postpanic.toml (docs/configuration.md has its keys), finds the
    disks and servers to save to, builds an image that holds the saver and what
    it needs to reach them, loads it with a kernel into the reserved memory,
    looks at what was loaded, and sets the panic policy. Done again it builds
    and loads only what has changed. Without a configuration the dump goes to
    /var/crash.

        postpanic arm                      whatever is needed to be ready
        postpanic arm --dry-run            what that would be
        postpanic arm --build capture.img  the image alone

    The machine is ready if the exit status is 0.
    """
    from postpanic.capture.config import CONFIG_PATH, read_config

    if root is not None and not (dry_run or build_path):
        raise UsageError("--root goes with --build or --dry-run: only this machine can be armed")
    host = find_host(root, kernel)
    config = read_config(config_path or host.path(str(CONFIG_PATH)), must_exist=config_path is not None)
    if dry_run or build_path is not None:
        return _build_only(config, host, build_path, kernel, dry_run=dry_run, as_json=as_json, quiet=quiet)
    from postpanic.capture.arming.arm import arm
    from postpanic.cli.arm_report import print_outcome

    show = not as_json and not quiet and sys.stderr.isatty()
    outcome = arm(config, host, kernel=kernel, force=force, say=_say if show else lambda _: None)
    return print_outcome(outcome, as_json=as_json, quiet=quiet)


def find_host(root: Path | None, kernel: str) -> Host:
    """Return the host that runs, or that of a root tree; UsageError if it is not clear which kernel is meant."""
    from postpanic.capture.bootloader.tree import find_machine
    from postpanic.capture.host import Host
    from postpanic.capture.root_paths import follow_below

    running = Host.running()
    if root is None:
        return running
    places = [follow_below(root, place) for place in ("lib/modules", "usr/lib/modules")]
    names = sorted(path.name for place in places for path in place.glob("*"))
    releases = list(dict.fromkeys(names))
    if not kernel and len(releases) != 1:
        found = ", ".join(releases) or "none"
        raise UsageError(f"which kernel of {root}? its modules are of: {found}", hint="--kernel RELEASE")
    release = kernel if kernel in releases else releases[0] if releases else ""
    return Host(root, find_machine(root) or running.machine, release, running.is_root)


def _build_only(
    config: Config, host: Host, path: Path | None, kernel: str, *, dry_run: bool, as_json: bool, quiet: bool
) -> int:
    from postpanic.capture.arming.arm import find_stale
    from postpanic.capture.arming.image import build
    from postpanic.capture.arming.prepare import prepare
    from postpanic.capture.arming.state import StatePaths, read_state, write_atomically
    from postpanic.cli.arm_report import print_dry_run

    prepared = prepare(config, host, kernel=kernel)
    built = build(config, prepared, host)
    paths = StatePaths.of(host)
    stale = find_stale(prepared, read_state(paths.state), paths.image) if dry_run else []
    if path is not None and not dry_run:
        write_atomically(path, built.content)
    return print_dry_run(prepared, built, stale, path, as_json=as_json, quiet=quiet)


def _say(text: str) -> None:
    print(f"{text} …", file=sys.stderr)
