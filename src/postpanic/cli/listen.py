"""``postpanic listen``: receive what kernels send by netconsole."""

from __future__ import annotations

import ipaddress
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from postpanic.cli.verb import Verb
from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.cli.listen_run import Settings
    from postpanic.cli.listen_show import Show

__all__ = ["command"]

_RECEIVER = ("directory", "address", "processes", "by_port", "allow", "names_path", "rate", "no_answer")
_PATH = click.Path(path_type=Path)


@click.command(cls=Verb, name="listen")
@click.option("-d", "--directory", type=_PATH, metavar="DIR", help="Keep logs and reports here, a directory per host.")
@click.option("-a", "--address", default="", help="Listen on this address of the machine alone.")
@click.option("-p", "--port", type=click.IntRange(1, 65535), default=6666, help="Listen on this UDP port; 6666.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, metavar="N", help="Share the work; needs -d.")
@click.option("--allow", multiple=True, metavar="NETWORK", help="Take packets from there alone; several times.")
@click.option("--names", "names_path", type=_PATH, metavar="FILE", help="Names of hosts, in the form of /etc/hosts.")
@click.option("--by-port", is_flag=True, help="Take each port of an address for a host of its own.")
@click.option("--rate", type=click.IntRange(0), default=0, metavar="N", help="Packets of a host in a second at most.")
@click.option("--rotate", "limit", type=click.IntRange(1, 65536), default=16, metavar="MIB", help="Size of a log; 16.")
@click.option("--keep", type=click.IntRange(0, 1000), default=4, metavar="N", help="Rotated logs of a host; 4.")
@click.option(
    "--hosts", type=click.IntRange(1), default=20000, metavar="N", help="Directories of hosts at most; 20000."
)
@click.option("--command", "program", default="", metavar="COMMAND", help="Run it with each report on its input.")
@click.option("--webhook", default="", metavar="URL", help="Post each report there.")
@click.option(
    "--again", type=click.IntRange(0), default=3600, metavar="S", help="Tell the same again after so long; 3600."
)
@click.option(
    "--per-hour", type=click.IntRange(1), default=60, metavar="N", help="Tell no more reports in an hour; 60."
)
@click.option("--no-answer", is_flag=True, help="Do not answer the tests of --setup.")
@click.option(
    "--follow", "files", type=_PATH, multiple=True, metavar="FILE", help="Follow a file instead; several times."
)
@click.option("--from-start", is_flag=True, help="With --follow: read what is in the files already.")
@click.option("--setup", "receivers", multiple=True, metavar="HOST[:PORT]", help="Make this machine send there.")
@click.option("--basic", is_flag=True, help="With --setup: text alone, for receivers that know nothing else.")
@click.option("--release", is_flag=True, help="With --setup: the kernel's release before each message.")
@click.option("--userdata", multiple=True, metavar="KEY=VALUE", help="With --setup: sent with each message.")
@click.option("--interface", default="", metavar="NAME", help="With --setup: fail if the way is not over this one.")
@click.option("--source-port", type=click.IntRange(1, 65535), default=6665, help="With --setup: send from it; 6665.")
@click.option("--persistent", is_flag=True, help="With --setup: also after the next boot.")
@click.option("--no-test", is_flag=True, help="With --setup: do not see whether it arrives.")
@click.option("--remove", is_flag=True, help="Take away what --setup has made.")
@click.option("-n", "--dry-run", is_flag=True, help="With --setup or --remove: change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each event, or of the setup.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings.")
def command(**options: Any) -> int:  # noqa: ANN401 - click's options, one by one below
    """
    Receive what kernels send by netconsole, and find the reports in it.

    Logs are kept for each host that sends, in the order in which its kernel
    printed, with a note of what was lost. As soon as a report has ended, it is
    stored as JSON beside the log, printed, and told to a command or a server.

        postpanic listen                                  print all that comes
        postpanic listen -d /var/log/netconsole           keep it
        postpanic listen -d DIR --command 'mail -s crash root'
        postpanic listen --follow /var/log/conserver/db1  a serial line's log

    On the machines that send:

        postpanic listen --setup logs.example             now
        postpanic listen --setup logs.example --persistent

    Anybody can send a packet with any address in it. What that can cost is
    bounded, in memory, files and announcements; --allow names the networks
    that are believed. SIGUSR1 prints statistics, SIGHUP opens the logs anew.
    """
    _check(options)
    if options["remove"]:
        from postpanic.cli.listen_setup import remove

        return remove(as_json=options["as_json"], dry_run=options["dry_run"])
    if options["receivers"]:
        return _set_up(options)
    return _receive(options)


def _check(options: dict[str, Any]) -> None:
    is_sender = bool(options["receivers"] or options["remove"])
    sender = ("basic", "release", "userdata", "interface", "persistent", "no_test", "dry_run")
    wrong = [name for name in _RECEIVER if options[name] and (name != "processes" or options[name] > 1)]
    if not is_sender and any(options[name] for name in sender):
        raise UsageError(f"--{_spell(next(n for n in sender if options[n]))} goes with --setup")
    if is_sender and wrong:
        raise UsageError(f"--{_spell(wrong[0])} is the receiver's, --setup the sender's")
    if options["receivers"] and options["remove"]:
        raise UsageError("--setup and --remove exclude each other")
    if options["basic"] and (options["release"] or options["userdata"]):
        raise UsageError("--basic has neither --release nor --userdata: they need the extended format")
    if options["processes"] > 1 and options["directory"] is None:
        raise UsageError("--processes needs --directory: several processes print over each other")
    if options["from_start"] and not options["files"]:
        raise UsageError("--from-start goes with --follow")


def _spell(name: str) -> str:
    return {"names_path": "names"}.get(name, name.replace("_", "-"))


def _set_up(options: dict[str, Any]) -> int:
    from postpanic.cli.listen_setup import Wanted, set_up

    return set_up(
        Wanted(
            receivers=options["receivers"],
            basic=options["basic"],
            release=options["release"],
            userdata=options["userdata"],
            interface=options["interface"],
            local_port=options["source_port"],
            is_persistent=options["persistent"],
            dry_run=options["dry_run"],
            tests=not options["no_test"],
            as_json=options["as_json"],
        )
    )


def _receive(options: dict[str, Any]) -> int:
    from postpanic.cli.listen_show import Show
    from postpanic.evidence.announce import Announcer, check_webhook

    try:
        program = shlex.split(options["program"])
    except ValueError as exc:
        raise UsageError(f"--command: {str(exc).lower()}") from exc
    announcer = Announcer(
        program,
        check_webhook(options["webhook"]) if options["webhook"] else "",
        per_hour=options["per_hour"],
        again_s=options["again"],
    )
    show = Show(announcer, as_json=options["as_json"], quiet=options["quiet"])
    announcer.on_failure = show.problem
    try:
        if options["files"]:
            from postpanic.cli.listen_follow import follow_files

            return follow_files(options["files"], options["directory"], show, from_start=options["from_start"])
        return _listen(_read_settings(options), show, quiet=options["quiet"] or options["as_json"])
    finally:
        announcer.close()


def _listen(settings: Settings, show: Show, *, quiet: bool) -> int:
    from postpanic.cli.listen_run import listen_alone, listen_together

    if not quiet:
        where = settings.directory or "nowhere: what comes is printed"
        print(f"listening on UDP port {settings.port}, logs go to {where}", file=sys.stderr, flush=True)
    return listen_together(settings, show) if settings.processes > 1 else listen_alone(settings, show)


def _read_settings(options: dict[str, Any]) -> Settings:
    from postpanic.cli.listen_run import Settings
    from postpanic.evidence.netconsole.names import read_names
    from postpanic.evidence.netconsole.sources import Limits

    networks = []
    for text in options["allow"]:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError as exc:
            raise UsageError(f"--allow {text}: ADDRESS or ADDRESS/BITS is needed") from exc
    return Settings(
        address=options["address"],
        port=options["port"],
        processes=options["processes"],
        directory=options["directory"],
        limit_bytes=options["limit"] << 20,
        keep=options["keep"],
        hosts_limit=options["hosts"],
        by_port=options["by_port"],
        names=read_names(options["names_path"]) if options["names_path"] is not None else {},
        limits=Limits(rate=options["rate"], networks=tuple(networks)),
        answers=not options["no_answer"],
        as_json=options["as_json"],
        announces=bool(options["program"] or options["webhook"]),
    )
