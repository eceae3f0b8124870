"""``postpanic service``: arm at every boot, and collect what a crash left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.capture.services import ServiceKind

__all__ = ["command"]


@click.command(cls=Verb, name="service")
@click.option("--enable", is_flag=True, help="Install it.")
@click.option("--disable", is_flag=True, help="Remove it.")
@click.option(
    "--init", type=click.Choice(("systemd", "openrc", "local.d")), help="What runs services, instead of what is found."
)
@click.option(
    "--command", "program", metavar="SCRIPT", help="Have this run for each new dump, as postpanic collect does."
)
@click.option("--webhook", metavar="URL", help="Have each new dump told there.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="TREE",
    help="Of the host whose files are below this directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(
    enable: bool,
    disable: bool,
    init: ServiceKind | None,
    program: str | None,
    webhook: str | None,
    root: Path | None,
    as_json: bool,
) -> int:
    """
    Arm this machine at every boot, and collect what a crash left.

    Installed are a service that runs postpanic arm when file systems and
    network are up, one that runs postpanic collect before, rules by which the
    capture kernel is loaded anew when memory or processors come and go (where
    the kernel does not see to that itself), and a hook for kernel packages.
    Without an option it says whether they are there.

        postpanic service --enable
        postpanic service --enable --webhook https://example.org/crashes
        postpanic service --disable
    """
    from postpanic.capture.host import Host
    from postpanic.capture.services import detect_kind, find_enabled
    from postpanic.capture.services import disable as disable_service
    from postpanic.capture.services import enable as enable_service

    if enable and disable:
        raise UsageError("--enable or --disable, not both")
    if not enable and (init or program or webhook):
        raise UsageError("--init, --command and --webhook go with --enable")
    host = Host.running() if root is None else Host(root)
    if not enable and not disable:
        paths = find_enabled(host)
        return _show(as_json, "enabled" if paths else "not enabled", detect_kind(host), paths, ())
    if enable:
        tell = (*(("--command", program) if program else ()), *(("--webhook", webhook) if webhook else ()))
        change = enable_service(host, kind=init, tell=tell)
    else:
        change = disable_service(host)
    done = "enabled" if enable else "disabled"
    return _show(as_json, done, change.kind, list(change.paths), change.notes)


def _show(as_json: bool, state: str, kind: str | None, paths: list[Path], notes: tuple[str, ...]) -> int:
    if as_json:
        print(json.dumps({"state": state, "init": kind, "files": [str(path) for path in paths], "notes": list(notes)}))
        return 0
    print(f"{state}, for {kind or 'nothing that is known'}")
    for path in paths:
        print(f"  {path}")
    for note in notes:
        print(f"  {note}")
    return 0
