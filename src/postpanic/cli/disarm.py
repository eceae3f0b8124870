"""``postpanic disarm``: take the capture kernel away."""

from __future__ import annotations

import json

import click

from postpanic.cli.verb import Verb

__all__ = ["command"]


@click.command(cls=Verb, name="disarm")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(as_json: bool, quiet: bool) -> int:
    """
    Take the capture kernel away.

    What "postpanic arm" has loaded is unloaded, and the panic policy is put
    back: each sysctl that it has changed gets the value it had before. The image stays on the disk, so that
    arming again is quick. Until then a crash is not captured.

        postpanic disarm
        postpanic disarm --json
    """
    from postpanic.capture.arming.disarm import disarm
    from postpanic.capture.host import Host
    from postpanic.cli.arm_report import describe_change

    outcome = disarm(Host.running())
    if as_json:
        changes = [{"name": one.name, "before": one.before, "after": one.after} for one in outcome.policy]
        print(json.dumps({"unloaded": outcome.unloaded, "policy": changes}, indent=1))
    elif not quiet:
        print("the capture kernel is unloaded" if outcome.unloaded else "no capture kernel was loaded")
        for change in outcome.policy:
            print(describe_change(change))
    return 0
