"""``postpanic import``: take over the configuration of another tool."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import OutputError, UsageError

if TYPE_CHECKING:
    from postpanic.capture.imports import Draft

__all__ = ["command"]


@click.command(cls=Verb, name="import")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="PATH", help="Write the configuration there.")
@click.option("--force", is_flag=True, help="Write it although there is one.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="TREE",
    help="Look for files below this directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print configuration and account as JSON.")
def command(file: Path | None, output: Path | None, force: bool, root: Path | None, as_json: bool) -> int:
    """
    Take over the configuration of another tool.

    These are known: kdump-tools, kdump-utils, openSUSE's kdump. Without FILE
    the host's own is taken: /etc/kdump.conf with /etc/sysconfig/kdump,
    /etc/default/kdump-tools, or openSUSE's /etc/sysconfig/kdump. Printed is a
    configuration for postpanic; what has no counterpart in it is listed on
    standard error, with the reason.

        postpanic import
        postpanic import -o /etc/postpanic.toml
        postpanic import kdump.conf

    The other tool is not changed: as long as it is enabled, both want to load a
    capture kernel, and the last one wins.
    """
    from postpanic.capture.host import Host
    from postpanic.capture.imports import import_file, import_host

    host = Host.running() if root is None else Host(root)
    draft = import_host(host) if file is None else import_file(file, host)
    text = _spell(draft)
    if as_json:
        print(json.dumps(_to_json(draft), indent=2))
    elif output is None:
        sys.stdout.write(text)
    if not as_json:
        for setting in draft.settings:
            if not setting.is_taken:
                print(f"left out: {setting.name} {setting.value}: {setting.outcome}", file=sys.stderr)
    if output is not None:
        _write(output, text, force=force)
    return 0


def _spell(draft: Draft) -> str:
    from postpanic.capture.imports import encode_toml

    return f"# Taken over from {draft.source} ({draft.tool}).\n\n{encode_toml(draft.encode())}"


def _to_json(draft: Draft) -> dict[str, object]:
    settings = [
        {"name": one.name, "value": one.value, "taken": one.is_taken, "outcome": one.outcome} for one in draft.settings
    ]
    return {"tool": draft.tool, "source": draft.source, "configuration": draft.encode(), "settings": settings}


def _write(output: Path, text: str, *, force: bool) -> None:
    from postpanic.capture.arming.state import write_atomically

    if output.exists() and not force:
        raise UsageError(f"{output} is there already", hint="--force writes over it")
    try:
        write_atomically(output, text.encode(), 0o644)
    except OutputError as exc:
        raise OutputError(exc.message, where=str(output)) from exc
    print(f"{output}: written; postpanic arm reads it", file=sys.stderr)
