"""``postpanic rehearse``: crash this host's configuration in a machine of its own, and see what comes out."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from postpanic.cli.verb import Verb
from postpanic.errors import NotReadyError, OutputError, UsageError
from postpanic.units import parse_size

if TYPE_CHECKING:
    from postpanic.capture.config import Config
    from postpanic.capture.host import Host
    from postpanic.rehearse.bare_host import BareKernel
    from postpanic.rehearse.rehearsal import RehearsalOptions
    from postpanic.rehearse.runs import Run, Series
    from postpanic.rehearse.subject import Subject

__all__ = ["command"]

KINDS = ("sysrq", "nmi", "out-of-memory", "panic", "bug", "null", "softlockup", "hardlockup", "hung-task", "stack")
FAULTS = "disk-error|disk-hang|saver-killed"

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the command line says, as it stands there."""

    config_file: Path | None
    root: Path | None
    kernel: str
    crashkernel: str
    crash: tuple[str, ...]
    memory_mib: int | None
    free: tuple[str, ...]
    disk: tuple[str, ...]
    unreachable: tuple[int, ...]
    fault: tuple[str, ...]
    arch: str
    modules: Path | None
    cmdline: str
    dtb: Path | None
    host_memory: str
    smallest: bool
    matrix: bool
    shell: bool
    keep: Path | None
    show_console: bool
    as_json: bool

    @property
    def is_bare(self) -> bool:
        """Whether there is a kernel and no host."""
        return bool(self.arch) and self.root is None

    @property
    def is_of_this_host(self) -> bool:
        return self.root is None and not self.arch


@click.command(cls=Verb, name="rehearse")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), metavar="PATH", help="Read this file instead."
)
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="TREE", help="Of a host."
)
@click.option("--kernel", default="", metavar="PATH|RELEASE", help="Capture with this kernel.")
@click.option("--arch", default="", metavar="ARCH", help="Of a kernel that has no host yet, which --kernel names.")
@click.option(
    "--modules",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Of that kernel: its lib/modules/RELEASE.",
)
@click.option("--crashkernel", default="", metavar="SIZE", help="Reserve this much, instead of what the host reserves.")
@click.option(
    "--crash", type=click.Choice(KINDS), multiple=True, help="How to crash; sysrq unless said. May be repeated."
)
@click.option("--matrix", is_flag=True, help="Every kind of crash that the kernel can do, on every target alone.")
@click.option("--memory", "memory_mib", type=click.IntRange(256), metavar="MIB", help="Memory of the machine.")
@click.option("--free", multiple=True, metavar="NUMBER=SIZE", help="Room of a target, the first is 0.")
@click.option("--disk", multiple=True, metavar="NUMBER=IMAGE", help="Use this disk for a target; it stays as it is.")
@click.option("--unreachable", multiple=True, type=click.IntRange(0), metavar="NUMBER", help="This server is away.")
@click.option("--fault", multiple=True, metavar="KIND[=NUMBER]", help=f"Let this go wrong: {FAULTS}.")
@click.option("--cmdline", default="", metavar="TEXT", help="More words for the kernel that crashes.")
@click.option(
    "--dtb", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE", help="Of the board."
)
@click.option(
    "--host-memory",
    default="",
    metavar="SIZE",
    help="Of the host, for what is to be expected there, and for ranges of crashkernel=.",
)
@click.option("--smallest", is_flag=True, help="Also find the smallest crashkernel= that works.")
@click.option("--shell", is_flag=True, help="Then boot the machine once more, with a prompt on the terminal.")
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Leave disks, console and dumps there.")
@click.option("--console", "show_console", is_flag=True, help="Show the machine's console on standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def command(**asked: object) -> int:
    """
    Prove in a virtual machine that a crash will be captured.

    The host's own kernel is booted in a virtual machine, with the reservation
    that the host has. There the capture kernel is loaded with the very image
    and command line that `postpanic arm` loads, by the same code, and the
    machine is crashed. The saver writes to disks that stand in for the targets:
    the same file system, size, room and identifiers, on the same kind of
    controller where QEMU has it; servers of SSH and HTTP stand in at the
    addresses of the real ones. After the reboot the dump is brought out,
    compared with its manifest, opened, and its panic task and log are looked at.

        postpanic rehearse
        postpanic rehearse --crash null --crash softlockup
        postpanic rehearse --smallest
        postpanic rehearse --matrix
        postpanic rehearse --fault disk-hang=0 --unreachable 1
        postpanic rehearse --root /srv/tree --crashkernel 192M --disk 0=disk.img
        postpanic rehearse --arch arm64 --kernel Image --dtb board.dtb --cmdline crashkernel=192M

    Nothing of the host is changed but the record of the verdict, which
    `postpanic status` shows. The exit status is 0 if it is proven, 4 if a link
    broke; that link is named, with what the console says of it.
    """
    words = _Asked(**asked)  # type: ignore[arg-type]
    if words.shell and words.as_json:
        raise UsageError("--shell takes the terminal: it does not go with --json")
    if words.arch and words.root is None and not words.kernel:
        raise UsageError(f"--arch {words.arch}: which kernel?", hint="--kernel FILE, or --root TREE")
    if words.modules and not words.is_bare:
        raise UsageError(f"--modules {words.modules}: goes with --arch and --kernel", hint="a tree has its own")
    with ExitStack() as stack:
        return _rehearse(words, stack)


def _rehearse(words: _Asked, stack: ExitStack) -> int:
    from postpanic.cli.rehearse_report import print_runs, print_subject, to_json
    from postpanic.rehearse.accelerators import find_kvm_fault
    from postpanic.rehearse.runs import Runner, Series, list_runs
    from postpanic.rehearse.subject import read_subject

    memory_bytes = _parse_size("--host-memory", words.host_memory) if words.host_memory else 0
    bare = _read_bare(words) if words.is_bare else None
    directory = _make_directory(words.keep, stack, bare.size_bytes if bare else 0)
    host, config = _find_config(words, bare, directory, stack)
    options = _choose_options(words, host, config)
    kernel = host.release if words.is_bare else words.kernel
    subject = read_subject(
        config,
        host,
        kernel=kernel,
        crashkernel=words.crashkernel,
        command_line=words.cmdline,
        memory_bytes=memory_bytes,
    )
    kvm_fault = find_kvm_fault(host.machine)
    if not words.as_json:
        print_subject(subject, kvm_fault)
    runner = Runner(subject, directory, options, _say)
    # An image that is not what the configuration asks for proves nothing of it.
    planned = [] if subject.stale else list_runs(subject, words.crash, is_matrix=words.matrix)
    runs = [runner.run(one, f"{number} of {len(planned)}") for number, one in enumerate(planned, 1)]
    needed = 0
    if words.smallest and runs and not _find_broken(subject, runs):
        needed = runner.find_smallest(runs[0])
    broken = _find_broken(subject, runs)
    series = Series(subject, config, tuple(runs), broken, needed, memory_bytes, bool(kvm_fault))
    if words.is_of_this_host and not (words.fault or words.unreachable or words.disk or words.free):
        _remember(config, series)
    if words.as_json:
        print(to_json(series))
    else:
        print_runs(series)
    if words.shell:
        # What the machine prints does not pass through us.
        sys.stdout.flush()
        runner.show_around()
    return NotReadyError.exit_status if broken else 0


def _choose_options(words: _Asked, host: Host, config: Config) -> RehearsalOptions:
    from postpanic.rehearse.boards import find_board
    from postpanic.rehearse.faults import parse_faults
    from postpanic.rehearse.overlays import measure_image
    from postpanic.rehearse.rehearsal import RehearsalOptions
    from postpanic.rehearse.requirements import find_needed

    kinds = [target.kind for target in (*config.targets, *config.fallbacks)]
    board = find_board(host.machine, words.dtb)
    find_needed(board.program, board.package)
    disks = _parse_numbered("--disk", words.disk, len(kinds), Path, "0=disk.img")
    for number, path in disks.items():
        if kinds[number] not in {"file", "raw"}:
            raise UsageError(f"--disk {number}={path}: target {number} is no disk")
        measure_image(path)
    for number in words.unreachable:
        if number >= len(kinds) or kinds[number] in {"file", "raw"}:
            raise UsageError(f"--unreachable {number}: target {number} is no server")
    return RehearsalOptions(
        memory_mib=words.memory_mib or 0,
        free_bytes=_parse_numbered("--free", words.free, len(kinds), lambda text: _parse_size("--free", text), "0=1G"),
        disks=disks,
        unreachable=frozenset(words.unreachable),
        faults=parse_faults(words.fault, kinds),
        command_line=words.cmdline,
        dtb=words.dtb,
        watch=_choose_watch(show_console=words.show_console),
    )


def _choose_watch(*, show_console: bool) -> Callable[[str], object] | None:
    from postpanic.cli.rehearse_report import show_progress

    if show_console:
        return _show_line
    return show_progress if sys.stderr.isatty() else None


def _find_config(words: _Asked, bare: BareKernel | None, directory: Path, stack: ExitStack) -> tuple[Host, Config]:
    from postpanic.capture.config import CONFIG_PATH, read_config
    from postpanic.cli.arm import find_host

    host = _make_bare(bare, directory, stack) if bare else find_host(words.root, words.kernel)
    if words.arch and words.root:
        from postpanic.rehearse.bare_host import find_architecture

        if find_architecture(words.arch) != host.machine:
            raise UsageError(f"--arch {words.arch}: the programs of {words.root} are of {host.machine}")
    path = words.config_file or host.find(str(CONFIG_PATH))
    return host, read_config(path, must_exist=words.config_file is not None)


def _read_bare(words: _Asked) -> BareKernel:
    from postpanic.rehearse.bare_host import BareKernel
    from postpanic.rehearse.boards import find_board
    from postpanic.rehearse.requirements import find_needed

    kernel = BareKernel.read(words.arch, Path(words.kernel), modules_dir=words.modules, command_line=words.cmdline)
    board = find_board(kernel.machine, words.dtb)
    find_needed(board.program, board.package)
    return kernel


def _make_bare(kernel: BareKernel, directory: Path, stack: ExitStack) -> Host:
    """Put what a host has around a kernel that has none."""
    from postpanic.cli.environment import cache_directory
    from postpanic.rehearse.bare_host import fetch_programs, make_bare_host

    # It can be made again of what is at hand: it is not kept.
    place = stack.enter_context(tempfile.TemporaryDirectory(prefix="host-", dir=directory))
    programs = fetch_programs(kernel.machine, cache_directory() / "packages")
    return make_bare_host(kernel, programs, Path(place) / "root")


def _parse_numbered(
    option: str, words: Sequence[str], count: int, parse: Callable[[str], _T], example: str
) -> dict[int, _T]:
    """Read ``NUMBER=…``, the number being that of a target."""
    found: dict[int, _T] = {}
    for word in words:
        number, equals, value = word.partition("=")
        if not equals or not (number.isascii() and number.isdigit()):
            raise UsageError(f"{option} {word}: must be NUMBER=…, as {example}")
        if int(number) >= count:
            raise UsageError(f"{option} {word}: there is no target {number}, the last one is {count - 1}")
        found[int(number)] = parse(value)
    return found


def _parse_size(option: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as exc:
        raise UsageError(f"{option} {text}: {exc}") from exc


def _make_directory(keep: Path | None, stack: ExitStack, more_bytes: int) -> Path:
    from postpanic.rehearse.requirements import check_room

    if keep is None:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="postpanic-rehearsal-"))
        directory = Path(name)
    else:
        # Servers that stand in are told where it is, and start elsewhere.
        directory = keep.absolute()
        if directory.exists() and any(directory.iterdir()):
            raise UsageError(f"--keep {directory}: is not empty")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise OutputError((exc.strerror or str(exc)).lower(), where=str(directory)) from exc
    check_room(directory, more_bytes)
    return directory


def _find_broken(subject: Subject, runs: Sequence[Run]) -> str:
    """Name the first link that broke."""
    if subject.stale:
        return f"the image that is armed is stale: {'; '.join(subject.stale)}; postpanic arm"
    return next((run.broken for run in runs if run.broken), "")


def _remember(config: Config, series: Series) -> None:
    """Keep the verdict where ``status`` looks for it."""
    from postpanic.capture.arming.state import StatePaths
    from postpanic.capture.rehearsals import REHEARSAL_NAME, Rehearsal, take_fingerprint, write_rehearsal

    subject, runs = series.subject, series.runs
    best = max((run.outcome for run in runs), key=lambda outcome: outcome.dump_bytes, default=None)
    targets = [repr(target) for target in (*config.targets, *config.fallbacks)]
    kernel = subject.prepared.kernel.image
    record = Rehearsal(
        when=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        verdict="broken" if series.broken else "proven",
        broken_link=series.broken,
        kinds=tuple(dict.fromkeys(run.crash for run in runs)),
        fingerprint=take_fingerprint(
            kernel, subject.image, subject.prepared.command_line.text, targets, subject.reserved_bytes
        ),
        needed_bytes=series.needed_bytes,
        peak_bytes=max((run.outcome.peak_bytes for run in runs), default=0),
        dump_bytes=best.dump_bytes if best else 0,
        seconds=best.seconds if best else 0.0,
        unproven=best.unproven if best else (),
        runs=tuple(f"{run.name}: {run.verdict}" for run in runs) if len(runs) > 1 else (),
    )
    try:
        write_rehearsal(StatePaths.of(subject.host).directory / REHEARSAL_NAME, record)
    except OutputError as exc:
        print(f"warning: the verdict is not kept for status: {exc.message}", file=sys.stderr)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show_line(line: str) -> None:
    print(f"  | {line}", file=sys.stderr)
