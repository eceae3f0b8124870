"""``postpanic rehearse``: crash this host's configuration in a machine of its own, and see what comes out."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from postpanic.cli.verb import Verb
from postpanic.errors import NotReadyError, OutputError, UsageError
from postpanic.units import format_size

if TYPE_CHECKING:
    from postpanic.capture.config import Config
    from postpanic.rehearse.rehearsal import RehearsalOptions, RehearsalOutcome
    from postpanic.rehearse.subject import Subject

__all__ = ["command"]

KINDS = ("sysrq", "nmi", "out-of-memory", "panic", "bug", "null", "softlockup", "hardlockup", "hung-task", "stack")
_ROOM_BYTES = 2 << 30
_MARKS = {"held": "ok", "broken": "BROKEN", "not reached": "-", "not proven": "?"}


@click.command(cls=Verb, name="rehearse")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), metavar="PATH", help="Read this file instead."
)
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="TREE", help="Of a host."
)
@click.option("--kernel", default="", metavar="PATH|RELEASE", help="Capture with this kernel.")
@click.option("--crashkernel", default="", metavar="SIZE", help="Reserve this much, instead of what the host reserves.")
@click.option(
    "--crash", type=click.Choice(KINDS), multiple=True, help="How to crash; sysrq unless said. May be repeated."
)
@click.option("--memory", "memory_mib", type=click.IntRange(256), metavar="MIB", help="Memory of the machine.")
@click.option("--free", multiple=True, metavar="NUMBER=SIZE", help="Room of a target, the first is 0.")
@click.option("--smallest", is_flag=True, help="Also find the smallest crashkernel= that works.")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Leave disks, console and dumps there.")
@click.option("--console", "show_console", is_flag=True, help="Show the machine's console on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def command(
    config_file: Path | None,
    root: Path | None,
    kernel: str,
    crashkernel: str,
    crash: tuple[str, ...],
    memory_mib: int | None,
    free: tuple[str, ...],
    smallest: bool,
    keep: Path | None,
    show_console: bool,
    as_json: bool,
) -> int:
    """
    Prove in a virtual machine that a crash will be captured.

    The host's own kernel is booted in a virtual machine, with the reservation
    that the host has. There the capture kernel is loaded with the very image
    and command line that `postpanic arm` loads, by the same code, and the
    machine is crashed. The saver writes to disks that stand in for the targets:
    the same file system, size, room and identifiers, on the same kind of
    controller where QEMU has it. After the reboot the dump is brought out,
    compared with its manifest, opened, and its panic task and log are looked at.

        postpanic rehearse
        postpanic rehearse --crash null --crash softlockup
        postpanic rehearse --smallest
        postpanic rehearse --root /srv/tree --crashkernel 192M

    Nothing of the host is changed but the record of the verdict, which
    `postpanic status` shows. The exit status is 0 if it is proven, 4 if a link
    broke; that link is named, with what the console says of it.
    """
    from postpanic.rehearse.machine import detect_accelerator
    from postpanic.rehearse.rehearsal import RehearsalOptions

    config, subject = _find_subject(config_file, root, kernel, crashkernel)
    options = RehearsalOptions(
        memory_mib=memory_mib or 0,
        free_bytes=_parse_free(free, len(subject.targets)),
        watch=_show_line if show_console else None,
    )
    if not as_json:
        _print_subject(subject, detect_accelerator())
    with ExitStack() as stack:
        directory = _make_directory(keep, stack)
        # An image that is not what the configuration asks for proves nothing of it.
        kinds = () if subject.stale else crash or ("sysrq",)
        outcomes = {kind: _rehearse_one(subject, directory, options, kind) for kind in kinds}
        needed = 0
        if smallest and not _find_broken(subject, outcomes):
            needed = _find_smallest(subject, directory, options, next(iter(outcomes.values())))
    broken = _find_broken(subject, outcomes)
    if root is None:
        _remember(config, subject, outcomes, broken, needed)
    if as_json:
        print(json.dumps(_to_json(subject, outcomes, broken, needed), indent=2))
    else:
        _print_outcomes(outcomes, needed)
        print(f"broken: {broken}" if broken else "proven: a crash of this configuration is captured")
    return NotReadyError.exit_status if broken else 0


def _find_subject(config_file: Path | None, root: Path | None, kernel: str, crashkernel: str) -> tuple[Config, Subject]:
    from postpanic.capture.config import CONFIG_PATH, read_config
    from postpanic.cli.arm import find_host
    from postpanic.rehearse.subject import read_subject

    host = find_host(root, kernel)
    config = read_config(config_file or host.path(str(CONFIG_PATH)), must_exist=config_file is not None)
    return config, read_subject(config, host, kernel=kernel, crashkernel=crashkernel)


def _parse_free(words: tuple[str, ...], count: int) -> dict[int, int]:
    from postpanic.units import parse_size

    found: dict[int, int] = {}
    for word in words:
        number, equals, size = word.partition("=")
        if not equals or not number.isdigit():
            raise UsageError(f"--free {word}: must be NUMBER=SIZE, as 0=1G")
        if int(number) >= count:
            raise UsageError(f"--free {word}: there is no target {number}, the last one is {count - 1}")
        found[int(number)] = parse_size(size)
    return found


def _make_directory(keep: Path | None, stack: ExitStack) -> Path:
    if keep is None:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="postpanic-rehearsal-"))
        directory = Path(name)
    else:
        directory = keep
        if directory.exists() and any(directory.iterdir()):
            raise UsageError(f"--keep {directory}: is not empty")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise OutputError((exc.strerror or str(exc)).lower(), where=str(directory)) from exc
    room = shutil.disk_usage(directory).free
    if room < _ROOM_BYTES:
        raise OutputError(
            f"{format_size(room)} are free, a rehearsal takes up to {format_size(_ROOM_BYTES)}",
            where=str(directory),
            hint="TMPDIR, or --keep DIR on a larger disk",
        )
    return directory


def _rehearse_one(
    subject: Subject, directory: Path, options: RehearsalOptions, kind: str, reserved_mib: int = 0
) -> RehearsalOutcome:
    from dataclasses import replace

    from postpanic.rehearse.rehearsal import rehearse

    size = reserved_mib << 20 or subject.reserved_bytes
    print(f"rehearsing {kind} with {format_size(size)} reserved …", file=sys.stderr)
    place = directory / f"{kind}-{size >> 20}M"
    place.mkdir()
    outcome = rehearse(subject, place, replace(options, crash=kind, reserved_bytes=reserved_mib << 20))
    (place / "console.log").write_text(outcome.console)
    return outcome


def _find_smallest(subject: Subject, directory: Path, options: RehearsalOptions, first: RehearsalOutcome) -> int:
    from postpanic.rehearse.sizing import STEP_MIB, find_smallest

    def works(size_mib: int) -> bool:
        return _rehearse_one(subject, directory, options, "sysrq", size_mib).broken is None

    known = first.reserved_bytes >> 20
    guess = (first.peak_bytes >> 20) + STEP_MIB if first.peak_bytes else known // 2
    return find_smallest(works, known_mib=known, guess_mib=guess) << 20


def _find_broken(subject: Subject, outcomes: dict[str, RehearsalOutcome]) -> str:
    """Name the first link that broke."""
    if subject.stale:
        return f"the image that is armed is stale: {'; '.join(subject.stale)}; postpanic arm"
    for kind, outcome in outcomes.items():
        link = outcome.broken
        if link is not None:
            return f"{link.name} ({kind}): {link.evidence}" + (f"; {link.mend}" if link.mend else "")
    return ""


def _remember(
    config: Config, subject: Subject, outcomes: dict[str, RehearsalOutcome], broken: str, needed: int
) -> None:
    """Keep the verdict where ``status`` looks for it."""
    from postpanic.capture.arming.state import StatePaths
    from postpanic.capture.rehearsals import REHEARSAL_NAME, Rehearsal, take_fingerprint, write_rehearsal

    best = max(outcomes.values(), key=lambda outcome: outcome.dump_bytes, default=None)
    targets = [repr(target) for target in (*config.targets, *config.fallbacks)]
    kernel = subject.prepared.kernel.image
    record = Rehearsal(
        when=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict="broken" if broken else "proven",
        broken_link=broken,
        kinds=tuple(outcomes),
        fingerprint=take_fingerprint(
            kernel, subject.image, subject.prepared.command_line.text, targets, subject.reserved_bytes
        ),
        needed_bytes=needed,
        peak_bytes=max((outcome.peak_bytes for outcome in outcomes.values()), default=0),
        dump_bytes=best.dump_bytes if best else 0,
        seconds=best.seconds if best else 0.0,
        unproven=best.unproven if best else (),
    )
    try:
        write_rehearsal(StatePaths.of(subject.host).directory / REHEARSAL_NAME, record)
    except OutputError as exc:
        print(f"warning: the verdict is not kept for status: {exc.message}", file=sys.stderr)


def _show_line(line: str) -> None:
    print(f"  | {line}", file=sys.stderr)


def _print_subject(subject: Subject, accelerator: str) -> None:
    image = "the one that is armed" if subject.is_armed else "what postpanic arm would build"
    print(f"kernel      {subject.host.release}, captured by {subject.prepared.kernel.release}")
    print(f"image       {format_size(len(subject.image))}, {image}")
    print(f"reserved    {format_size(subject.reserved_bytes)} ({subject.reserved_by})")
    for number, target in enumerate(subject.targets):
        print(f"target {number}    {target.name}")
    print(f"machine     QEMU, {'KVM' if accelerator == 'kvm' else 'software emulation'}")
    for reason in subject.stale:
        print(f"stale       {reason}")


def _print_outcomes(outcomes: dict[str, RehearsalOutcome], needed: int) -> None:
    for kind, outcome in outcomes.items():
        print(f"\n{kind}, {format_size(outcome.memory_bytes)} of memory:")
        width = max(len(link.name) for link in outcome.links)
        for link in outcome.links:
            print(f"  {_MARKS[link.state]:<7} {link.name:<{width}}  {link.evidence}".rstrip())
            if link.mend:
                print(f"  {'':<7} {'':<{width}}  mend: {link.mend}")
        if outcome.seconds:
            print(f"  saved {outcome.seconds:.0f} s after the panic")
        if outcome.peak_bytes:
            used, reserved = format_size(outcome.peak_bytes), format_size(outcome.reserved_bytes)
            print(f"  about {used} of the {reserved} were in use at the most")
        for text in outcome.unproven:
            print(f"  not shown: {text}")
    if needed:
        print(f"\nthe smallest that works: crashkernel={needed >> 20}M (16M less does not)")


def _to_json(subject: Subject, outcomes: dict[str, RehearsalOutcome], broken: str, needed: int) -> dict[str, Any]:
    def encode(outcome: RehearsalOutcome) -> dict[str, Any]:
        value = asdict(outcome)
        del value["console"]
        return value

    return {
        "verdict": "broken" if broken else "proven",
        "broken": broken or None,
        "image": {"armed": subject.is_armed, "stale": list(subject.stale), "bytes": len(subject.image)},
        "reserved_bytes": subject.reserved_bytes,
        "smallest_bytes": needed or None,
        "rehearsals": {kind: encode(outcome) for kind, outcome in outcomes.items()},
    }
