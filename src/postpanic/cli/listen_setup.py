"""``postpanic listen --setup``: the sender's side."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from postpanic.errors import NotReadyError

if TYPE_CHECKING:
    from postpanic.capture.netconsole.probe import Probe
    from postpanic.capture.netconsole.target import Target

__all__ = ["Wanted", "remove", "set_up"]

_WARNING_LEVEL = 4


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line says of the sender's side."""

    receivers: tuple[str, ...]
    basic: bool
    release: bool
    userdata: tuple[str, ...]
    interface: str
    local_port: int
    is_persistent: bool
    dry_run: bool
    tests: bool
    as_json: bool


def set_up(wanted: Wanted) -> int:
    """Make the targets; 4 if a receiver does not answer."""
    from postpanic.capture.netconsole.configfs import open_netconsole, write_target
    from postpanic.capture.netconsole.persist import boot_parameter, is_built_in, persistent_files, write_files

    targets = [_find(receiver, wanted) for receiver in wanted.receivers]
    files = persistent_files(targets)
    missing: list[str] = []
    written: list[Path] = []
    probe = None
    if not wanted.dry_run:
        directory = open_netconsole()
        for target in targets:
            missing += [each for each in write_target(directory, target) if each not in missing]
        if wanted.is_persistent:
            if is_built_in(os.uname().release):
                raise NotReadyError(
                    "netconsole is part of this kernel, so that options of a module do nothing",
                    hint=f"put this on the kernel's command line: {boot_parameter(targets)}",
                )
            written = write_files(files)
        if wanted.tests:
            probe = _test(targets)
    if wanted.as_json:
        print(json.dumps(_encode(targets, missing, written, probe, boot_parameter(targets)), indent=2))
    else:
        _print(wanted, targets, missing, files, probe)
    return 0 if probe is None or not probe.silent else NotReadyError.exit_status


def remove(*, as_json: bool, dry_run: bool) -> int:
    """Take away what was made."""
    from postpanic.capture.netconsole.configfs import CONFIGFS, list_targets, remove_target
    from postpanic.capture.netconsole.persist import remove_files

    directory = CONFIGFS / "netconsole"
    names = list_targets(directory)
    files: list[Path] = []
    if not dry_run:
        for name in names:
            remove_target(directory, name)
        files = remove_files()
    if as_json:
        print(json.dumps({"removed": [*names, *map(str, files)]}, indent=2))
    else:
        for each in (*names, *files):
            print(f"removed  {each}")
        if not names and not files:
            print("there was nothing to remove")
    return 0


def _find(receiver: str, wanted: Wanted) -> Target:
    from postpanic.capture.netconsole.target import Target, parse_receiver, parse_userdata
    from postpanic.capture.netconsole.way import find_way

    host, port = parse_receiver(receiver)
    userdata = tuple(parse_userdata(each) for each in wanted.userdata)
    way = find_way(host)
    if wanted.interface and wanted.interface != way.interface:
        raise NotReadyError(
            f"{host} is reached over {way.interface}, not over {wanted.interface}",
            hint="the routing table decides: ip route get",
        )
    return Target(
        way.interface,
        way.local_ip,
        way.remote_ip,
        way.mac,
        port,
        wanted.local_port,
        not wanted.basic,
        wanted.release,
        userdata,
    )


def _test(targets: Sequence[Target]) -> Probe:
    from postpanic.capture.netconsole.probe import send_probe

    return send_probe(targets)


def _print(
    wanted: Wanted, targets: Sequence[Target], missing: Sequence[str], files: dict[Path, str], probe: Probe | None
) -> None:
    from postpanic.capture.netconsole.persist import boot_parameter
    from postpanic.capture.netconsole.probe import console_level

    for target in targets:
        form = "extended" if target.extended else "basic"
        print(
            f"target     {target.remote_ip} port {target.remote_port} over {target.interface} from {target.local_ip}, "
            f"to {target.remote_mac}, {form}"
        )
    for each in missing:
        print(f"left out   {each}: this kernel has it not")
    level = console_level()
    if level is not None and level <= _WARNING_LEVEL:
        print(
            f"level      kernel.printk is {level}: warnings and their traces are not sent, panics and oopses are "
            f"(sysctl kernel.printk={_WARNING_LEVEL + 1})"
        )
    print(f"boot       {boot_parameter(targets)}")
    if wanted.is_persistent or wanted.dry_run:
        word = "would be" if wanted.dry_run else "written"
        for path, content in files.items():
            print(f"{word:<10} /{path}: {content.splitlines()[-1]}")
    if probe is None:
        return
    for target in probe.arrived:
        print(f"test       {target.remote_ip} port {target.remote_port} answers: messages arrive")
    for target in probe.silent:
        print(
            f"test       no answer of {target.remote_ip} port {target.remote_port}; look there for the line\n"
            f"           {probe.line}"
        )
    if not probe.silent:
        return
    sys.stdout.flush()
    print(
        "hint: a firewall, another receiver than postpanic listen, or address translation on the way", file=sys.stderr
    )


def _encode(
    targets: Sequence[Target], missing: Sequence[str], written: Sequence[Path], probe: Probe | None, parameter: str
) -> dict[str, object]:
    return {
        "targets": [
            {
                "name": target.name,
                "interface": target.interface,
                "local_ip": target.local_ip,
                "local_port": target.local_port,
                "remote_ip": target.remote_ip,
                "remote_port": target.remote_port,
                "remote_mac": target.remote_mac,
                "extended": target.extended,
                "release": target.release,
                "userdata": dict(target.userdata),
                "arrives": None if probe is None else target in probe.arrived,
            }
            for target in targets
        ],
        "left_out": list(missing),
        "written": [str(path) for path in written],
        "parameter": parameter,
        "test_line": None if probe is None else probe.line,
    }
