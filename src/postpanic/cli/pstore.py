"""``postpanic pstore``: what the kernel saved of its log in persistent storage."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import AbsentError, FileFaultError, PostpanicError, UsageError
from postpanic.units import parse_size

if TYPE_CHECKING:
    from postpanic.evidence.oops.model import Report
    from postpanic.evidence.pstore.model import Crash
    from postpanic.evidence.pstore.sources import Source

__all__ = ["command"]

STORE = Path("/sys/fs/pstore")
FORMATS = ("pstore", "efivars", "efi-store", "ramoops", "mtdoops", "pstore_blk", "erst")


def _parse_size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


@click.command(cls=Verb, name="pstore")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[PATH]...")
@click.option("--text", "as_text", is_flag=True, help="Print the joined kernel logs, and nothing else.")
@click.option("--full", is_flag=True, help="Show every report with its traces and registers.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("--archive", is_flag=True, help="Put the crashes into the archive.")
@click.option(
    "--to",
    "archive_directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY",
    help="The archive, if it is not /var/lib/systemd/pstore.",
)
@click.option("--erase", is_flag=True, help="Erase from the store what is safe in the archive.")
@click.option("--enable", "service", flag_value="enable", help="Archive at every boot; with --erase also erase.")
@click.option("--disable", "service", flag_value="disable", help="No longer archive at every boot.")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="What PATH is, where it is not found out.")
@click.option(
    "--mem-size", callback=_parse_size, metavar="SIZE", help="Size of the ramoops area; by default of the file."
)
@click.option("--record-size", callback=_parse_size, metavar="SIZE", help="Of a dump: ramoops and mtdoops.")
@click.option("--console-size", callback=_parse_size, metavar="SIZE", help="Of the console zone of ramoops.")
@click.option("--ftrace-size", callback=_parse_size, metavar="SIZE", help="Of the ftrace zones of ramoops together.")
@click.option(
    "--pmsg-size", callback=_parse_size, metavar="SIZE", help="Of the zone of ramoops for messages of programs."
)
@click.option("--ecc", type=click.IntRange(0, 127), metavar="BYTES", help="Parity of each 128 bytes; 1 means 16.")
def command(
    paths: tuple[Path, ...],
    as_text: bool,
    full: bool,
    as_json: bool,
    quiet: bool,
    archive: bool,
    archive_directory: Path | None,
    erase: bool,
    service: str | None,
    kind: str | None,
    mem_size: int | None,
    record_size: int | None,
    console_size: int | None,
    ftrace_size: int | None,
    pmsg_size: int | None,
    ecc: int | None,
) -> int:
    """
    Show what the kernel saved of its log when it crashed.

    Reads a mounted pstore, efivarfs, the archive of systemd-pstore, and images
    or devices: the memory of ramoops (errors corrected by its parity), an
    mtdoops flash partition, a pstore_blk device, ERST records, the firmware's
    flash. Without PATH it is /sys/fs/pstore and /var/lib/systemd/pstore. Parts
    are put in order and decompressed, an oops and its panic become one log, and
    the reports in it are shown.

        postpanic pstore
        postpanic pstore --text /sys/fs/pstore | less
        postpanic pstore ramoops.img --ecc 16
        postpanic pstore --archive --erase
        postpanic pstore --enable --erase

    With --archive each crash gets a directory below /var/lib/systemd/pstore: the
    records as they were, the log as dmesg.txt, a manifest. All of it is on the
    disk before --erase takes a record out of the store; nothing is erased without it.

    The geometry of a ramoops area is found by the signatures of its zones. Given
    sizes are those of the module's parameters, with its defaults for the others.
    """
    if service is not None:
        is_alone = not (paths or archive or archive_directory or as_text or as_json)
        return _change_service(service, erase=erase, quiet=quiet, is_alone=is_alone)
    if (erase or archive_directory) and not archive:
        raise UsageError("what is not archived is not erased", hint="--archive --erase")
    sizes = {"mem_size": mem_size, "record_size": record_size, "console_size": console_size}
    sizes |= {"ftrace_size": ftrace_size, "pmsg_size": pmsg_size, "ecc": ecc}
    parameters = {name: value for name, value in sizes.items() if value is not None}
    sources, crashes, problems = _read_crashes(paths, kind, parameters, archive=archive)
    places: dict[int, str] = {}
    if archive:
        places, failures = _archive(sources, crashes, archive_directory, erase=erase)
        problems += failures
    elif not crashes:
        where = ", ".join(str(path) for path in paths) or f"{STORE} and the archive"
        raise AbsentError(f"no records in {where}", hint="" if paths else _where_else())
    _show(sources, crashes, places, problems, as_text=as_text, full=full, as_json=as_json, quiet=quiet)
    return 1 if archive and problems else 0


def _read_crashes(
    paths: Sequence[Path], kind: str | None, parameters: dict[str, int], *, archive: bool
) -> tuple[list[Source], list[tuple[Crash, list[Report]]], list[str]]:
    """Read all records and join them; what went wrong comes last."""
    from postpanic.cli.progress import Progress

    with Progress() as progress:
        progress("reading records")
        sources, problems = _read(paths, kind, parameters, archive=archive)
        progress("joining them")
        return sources, _join(sources), problems


def _where_else() -> str:
    """Say where systemd-pstore has put records, if not into the archive."""
    from postpanic.capture.host import Host
    from postpanic.capture.pstore_service import read_pstore_conf

    if read_pstore_conf(Host.running()).storage == "journal":
        return "systemd-pstore keeps them in the journal (Storage=journal): journalctl -t systemd-pstore -o verbose"
    return ""


def _change_service(service: str, *, erase: bool, quiet: bool, is_alone: bool) -> int:
    """Enable or disable archiving at boot, which goes with no other option but --erase, to enable it."""
    if not is_alone or (service == "disable" and erase):
        raise UsageError(f"--{service} goes alone" + (", or with --erase" if service == "enable" else ""))
    from postpanic.capture.host import Host
    from postpanic.capture.pstore_service import disable_service, enable_service

    host = Host.running()
    change = enable_service(host, erase=erase) if service == "enable" else disable_service(host)
    if not quiet:
        done = "written" if service == "enable" else "removed"
        for path in change.paths:
            print(f"{done}: {path}")
        if not change.paths:
            print("it was not enabled")
        for note in change.notes:
            print(note)
    return 0


def _read(
    paths: Sequence[Path], kind: str | None, parameters: dict[str, int], *, archive: bool
) -> tuple[list[Source], list[str]]:
    """Read what was named, or the places of this machine: of these only what is there."""
    from postpanic.evidence.pstore.archive import ARCHIVE
    from postpanic.evidence.pstore.sources import Format, read_source

    chosen = Format(kind) if kind else None
    if paths:
        return [read_source(path, kind=chosen, parameters=parameters) for path in paths], []
    if parameters or chosen:
        raise UsageError("a geometry or a format is of a PATH, and none was named")
    problems: list[str] = []
    sources: list[Source] = []
    for path in (STORE,) if archive else (STORE, ARCHIVE):
        if not path.exists():
            continue
        try:
            sources.append(read_source(path, kind=Format.PSTORE))
        except FileFaultError as exc:
            # What root may read is no reason to hide the rest.
            problems.append(str(exc))
    if problems and not sources:
        raise FileFaultError(problems[0], hint="root can read it")
    return sources, problems


def _join(sources: Iterable[Source]) -> list[tuple[Crash, list[Report]]]:
    from postpanic.evidence.oops import find_reports
    from postpanic.evidence.pstore.joining import join_records

    records = [record for source in sources for record in source.records]
    return [(crash, find_reports(crash.text)) for crash in join_records(records)]


def _archive(
    sources: Sequence[Source],
    crashes: Sequence[tuple[Crash, list[Report]]],
    directory: Path | None,
    *,
    erase: bool,
) -> tuple[dict[int, str], list[str]]:
    from postpanic.evidence.pstore.archive import ARCHIVE, archive_crash, erase_records, hold_archive

    directory = directory or ARCHIVE
    for source in sources:
        if source.path.resolve() == directory.resolve():
            raise UsageError(f"{directory} is the archive itself", hint="--to DIRECTORY names another")
        if erase and source.format.value not in ("pstore", "efivars"):
            raise UsageError(
                f"{source.path}: records of {source.format.value} cannot be erased one by one",
                hint="leave --erase out; flash is erased with flash_erase, a device with blkdiscard or dd",
            )
    places: dict[int, str] = {}
    problems: list[str] = []
    if not crashes:
        return places, problems
    with hold_archive(directory):
        for number, (crash, reports) in enumerate(crashes):
            try:
                archived = archive_crash(crash, directory, reports=reports, now_s=time.time(), node=os.uname().nodename)
            except PostpanicError as exc:
                problems.append(str(exc))
                continue
            place = str(archived.path) if archived.is_new else f"{archived.path} (was there already)"
            if erase:
                erased, kept = erase_records(crash.records, archived)
                problems += [f"not erased: {reason}" for reason in kept]
                place += f", {len(erased)} of {len(crash.records)} records erased"
            places[number] = place
    return places, problems


def _show(
    sources: Sequence[Source],
    crashes: Sequence[tuple[Crash, list[Report]]],
    places: dict[int, str],
    problems: Sequence[str],
    *,
    as_text: bool,
    full: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    if as_text and not as_json:
        for crash, _ in crashes:
            sys.stdout.buffer.write(crash.text if crash.text.endswith(b"\n") or not crash.text else crash.text + b"\n")
        sys.stdout.buffer.flush()
    else:
        from postpanic.evidence.pstore.answer import pstore_answer
        from postpanic.report.json import encode_json
        from postpanic.report.text import render_text

        answer = pstore_answer(sources, crashes, archived=places, problems=problems, full=full and not as_json)
        if as_json:
            print(encode_json(answer))
        elif not quiet:
            for line in render_text(answer):
                print(line)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
