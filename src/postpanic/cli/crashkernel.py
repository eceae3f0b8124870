"""``postpanic crashkernel``: the reservation: how much is needed, what is asked for, and asking for it."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import NotReadyError, UsageError
from postpanic.units import format_size, parse_size

if TYPE_CHECKING:
    from postpanic.capture.crashkernel.estimate import Estimate
    from postpanic.capture.host import Host

__all__ = ["command"]

ACTIONS = ("show", "estimate", "check", "set")


@click.command(cls=Verb, name="crashkernel")
@click.argument("action", type=click.Choice(ACTIONS), default="show")
@click.argument("values", nargs=-1, metavar="[VALUE]...")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would be changed, and change nothing.")
@click.option("--undo", "undo_last", is_flag=True, help="Put back what the last change of the boot loader has changed.")
@click.option("--shrink", metavar="SIZE", help="Give reserved memory back now, down to this size.")
@click.option("--reload", "reload_after", is_flag=True, help="With --shrink: unload what is loaded, and arm again.")
@click.option("--loader", default="", metavar="NAME", help="Change this boot loader's configuration.")
@click.option("--memory", metavar="SIZE", help="With check and set: on a machine with this much memory.")
@click.option("--kernel", default="", metavar="PATH|RELEASE", help="With estimate and set: capture with this kernel.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="TREE",
    help="Work on the files below this directory; programs are left to be run there.",
)
@click.option("--force", is_flag=True, help="Set or shrink to what seems wrong.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
def command(action: str, values: tuple[str, ...], **options: object) -> int:
    """
    Reserve memory for the capture kernel.

    The boot loader asks the kernel for it by crashkernel= on its command line;
    it takes effect with the next boot.

        postpanic crashkernel                  what is reserved, asked for, set
        postpanic crashkernel estimate         how much is needed
        postpanic crashkernel set              ask the boot loader for that
        postpanic crashkernel set 256M         or for this much
        postpanic crashkernel set --dry-run    show the difference only
        postpanic crashkernel --undo           put the files back
        postpanic crashkernel check 1G-:256M   what the kernel makes of a value
        postpanic crashkernel --shrink 192M    give memory back at once

    Boot loaders: GRUB, with or without boot loader entries (Fedora, Red Hat),
    rpm-ostree, systemd-boot, unified kernel images, extlinux.conf (U-Boot),
    cmdline.txt of the Raspberry Pi, zipl. For others the words to add are
    printed. VALUE is as the kernel has it: 256M, 512M-2G:64M,2G-:128M,
    "1G,high 256M,low"; auto is what estimate says, none takes it away.

    Files are changed only after the difference was shown, and on a terminal
    only after a yes. What they were is kept for --undo.
    """
    chosen = _Options(action, values, **options)  # type: ignore[arg-type]
    if chosen.undo_last:
        return _undo(chosen)
    if chosen.shrink is not None:
        return _shrink(chosen)
    return {"show": _show, "estimate": _estimate, "check": _check, "set": _set}[action](chosen)


class _Options:
    """What the command line asks for."""

    def __init__(
        self,
        action: str,
        values: tuple[str, ...],
        *,
        dry_run: bool,
        undo_last: bool,
        shrink: str | None,
        reload_after: bool,
        loader: str,
        memory: str | None,
        kernel: str,
        root: Path | None,
        force: bool,
        yes: bool,
        as_json: bool,
        quiet: bool,
    ) -> None:
        if action in ("show", "estimate") and values:
            raise UsageError(f"{action} takes no value: {' '.join(values)}", hint="postpanic crashkernel set VALUE")
        if undo_last and shrink is not None:
            raise UsageError("--undo and --shrink are two things: one at a time")
        if (undo_last or shrink is not None) and (action != "show" or values):
            raise UsageError(f"{'--undo' if undo_last else '--shrink'} and {action} are two things: one at a time")
        if shrink is not None and root is not None:
            raise UsageError("--shrink is of this machine: not with --root")
        self.values = tuple(word.removeprefix("crashkernel=") for value in values for word in value.split())
        self.dry_run, self.undo_last, self.shrink, self.reload_after = dry_run, undo_last, shrink, reload_after
        self.loader, self.kernel, self.root = loader, kernel, root
        self.memory_bytes = _parse_option("--memory", memory) if memory is not None else 0
        self.force, self.yes, self.as_json, self.quiet = force, yes, as_json, quiet

    def find_host(self) -> Host:
        """Give this machine, or the tree that was named."""
        from postpanic.capture.bootloader.tree import find_machine
        from postpanic.capture.host import Host

        running = Host.running()
        if self.root is None or self.root.resolve() == Path("/"):
            return running
        releases = [path.name for path in (*self.root.glob("lib/modules/*"), *self.root.glob("usr/lib/modules/*"))]
        newest = max(releases, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], default="")
        release = self.kernel if self.kernel and not self.kernel.startswith("/") else newest
        return Host(self.root, find_machine(self.root) or running.machine, release, running.is_root)

    def confirm(self, question: str) -> None:
        """
        Ask on a terminal; elsewhere the command line is the answer.

        Raises
        ------
        UsageError
            If the answer is no.
        """
        if self.yes or not sys.stdin.isatty():
            return
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("nothing was changed: the answer was not yes")


def _parse_option(name: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as exc:
        raise UsageError(f"{name}: {exc}") from exc


def _show(options: _Options) -> int:
    from postpanic.capture.bootloader.detect import detect_loaders
    from postpanic.capture.bootloader.record import read_last_record
    from postpanic.capture.bootloader.tree import BootTree
    from postpanic.capture.crashkernel.reservation import read_reservation
    from postpanic.cli.crashkernel_report import print_reservation

    host = options.find_host()
    tree = BootTree(host)
    reservation = read_reservation(host)
    faults: list[str] = []
    print_reservation(
        reservation,
        detect_loaders(tree, faults),
        read_last_record(tree) if host.is_root else None,
        host,
        as_json=options.as_json,
        quiet=options.quiet,
    )
    for fault in faults:
        print(f"warning: {fault}", file=sys.stderr)
    return 0


def _find_estimate(options: _Options, host: Host) -> Estimate:
    from postpanic.capture.config import CONFIG_PATH, read_config
    from postpanic.capture.crashkernel.estimate import estimate
    from postpanic.capture.crashkernel.needs import measure_needs, read_measured
    from postpanic.capture.crashkernel.reservation import has_cma

    config = read_config(host.path(str(CONFIG_PATH)), must_exist=False)
    if sys.stderr.isatty() and not options.quiet:
        print("looking at kernel and image …", file=sys.stderr)
    needs = measure_needs(config, host, kernel=options.kernel)
    measured, remark = read_measured(host, needs.release)
    if remark:
        needs = replace(needs, remarks=(*needs.remarks, remark))
    return estimate(needs, measured, knows_cma=has_cma(host))


def _estimate(options: _Options) -> int:
    from postpanic.cli.crashkernel_report import print_estimate

    host = options.find_host()
    print_estimate(_find_estimate(options, host), as_json=options.as_json, quiet=options.quiet)
    return 0


def _check(options: _Options) -> int:
    from postpanic.capture.crashkernel.parse import parse_command_line
    from postpanic.capture.crashkernel.reservation import HostMemory, read_features, read_memory
    from postpanic.cli.crashkernel_report import print_check

    if not options.values:
        raise UsageError("check what?", hint="postpanic crashkernel check 512M-2G:64M,2G-:128M")
    host = options.find_host()
    memory = HostMemory(options.memory_bytes, "--memory") if options.memory_bytes else read_memory(host)
    if not memory.total_bytes:
        raise UsageError("how much memory has the machine? its files do not say", hint="--memory SIZE")
    line = " ".join(f"crashkernel={value}" for value in options.values)
    request = parse_command_line(line, memory.total_bytes, read_features(host))
    print_check(request, memory, host.machine, as_json=options.as_json, quiet=options.quiet)
    return 4 if request.problem else 0


def _set(options: _Options) -> int:
    from postpanic.capture.bootloader.detect import choose_loaders, detect_loaders, find_rivals, plan_unknown
    from postpanic.capture.bootloader.model import drop_repeated
    from postpanic.capture.bootloader.record import apply_plans, leave
    from postpanic.capture.bootloader.tree import BootTree
    from postpanic.cli.crashkernel_report import print_applied, print_plans
    from postpanic.process import run

    host = options.find_host()
    tree = BootTree(host)
    values = _find_values(options, host)
    found = detect_loaders(tree)
    chosen = choose_loaders(found, options.loader)
    plans = drop_repeated([one.loader.plan(tree, values) for one in chosen]) or [plan_unknown(tree, values)]
    others = [one for one in found if one not in chosen]
    will_apply = not options.dry_run and any(plan.edits or plan.commands for plan in plans)
    if not options.as_json or not will_apply:
        print_plans(plans, values, others, as_json=options.as_json, quiet=options.quiet)
        for rival in find_rivals(tree):
            print(f"warning: {rival}", file=sys.stderr)
    if will_apply:
        _check_may_write(host)
        options.confirm("Write this?")
        record = apply_plans(tree, plans, values, run if tree.is_running else leave)
        print_applied(plans, record, tree, as_json=options.as_json, quiet=options.quiet)
    if manual := [line for plan in plans for line in plan.manual]:
        raise NotReadyError(f"to be done by hand: {manual[0]}")
    return 0


def _check_may_write(host: Host) -> None:
    if not host.is_root and str(host.root) == "/":
        raise NotReadyError("only root may change the boot loader's configuration", hint="run it as root, or --dry-run")


def _find_values(options: _Options, host: Host) -> tuple[str, ...]:
    """
    Settle the values, and see that the kernel reserves something for them.

    Raises
    ------
    UsageError
        If it would not.
    """
    from postpanic.capture.crashkernel.parse import parse_command_line
    from postpanic.capture.crashkernel.reservation import read_features, read_memory

    values = options.values
    if values in ((), ("auto",)):
        found = _find_estimate(options, host)
        for remark in found.remarks:
            print(f"warning: {remark}", file=sys.stderr)
        return found.words
    if values == ("none",):
        return ()
    for value in values:
        # What a shell, or a boot loader's configuration, would take for something else.
        if not value or set(value) - set("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:,@.-"):
            raise UsageError(f"not a value of crashkernel=: {value!r}")
    memory_bytes = options.memory_bytes or read_memory(host).total_bytes or 1 << 62
    line = " ".join(f"crashkernel={value}" for value in values)
    request = parse_command_line(line, memory_bytes, read_features(host))
    if request.problem and not options.force:
        raise UsageError(f"{line}: nothing would be reserved: {request.problem}", hint="--force sets it all the same")
    for remark in (*((request.problem,) if request.problem else ()), *request.remarks):
        print(f"warning: {remark}", file=sys.stderr)
    return values


def _undo(options: _Options) -> int:
    from postpanic.capture.bootloader.record import leave, read_last_record, undo
    from postpanic.capture.bootloader.tree import BootTree
    from postpanic.cli.crashkernel_report import print_undone
    from postpanic.process import run

    host = options.find_host()
    _check_may_write(host)
    tree = BootTree(host)
    record = read_last_record(tree)
    if options.dry_run:
        from postpanic.cli.crashkernel_report import print_record

        print_record(record, as_json=options.as_json)
        return 0
    if record is not None:
        options.confirm(f"Put back {', '.join(one.path for one in record.files) or 'what was changed'}?")
    outcome = undo(tree, run if tree.is_running else leave)
    print_undone(outcome, tree, as_json=options.as_json, quiet=options.quiet)
    return 0


def _shrink(options: _Options) -> int:
    from postpanic.capture.crashkernel.shrink import check_shrink, shrink
    from postpanic.capture.host import Host
    from postpanic.capture.kexec.load import unload
    from postpanic.cli.crashkernel_report import print_shrunk

    host = Host.running()
    size = _parse_option("--shrink", options.shrink or "")
    before = check_shrink(host, size, least_bytes=0 if options.force else _find_least(host))
    is_loaded = bool(host.read_crash_loaded())
    if options.dry_run:
        if not options.quiet:
            print(f"the reservation would go from {format_size(before)} to {format_size(size)}")
        return 0
    if is_loaded and not options.reload_after:
        if options.yes or not sys.stdin.isatty():
            raise NotReadyError(
                "a capture kernel is loaded in the reserved memory",
                hint="--reload unloads it, shrinks, and arms again",
            )
        options.confirm("A capture kernel is loaded. Unload it, shrink, and arm again?")
    if is_loaded:
        unload(host)
    try:
        outcome = shrink(host, size)
    finally:
        if is_loaded and (size or host.read_crash_size_bytes()):
            _arm_again(host)
    print_shrunk(outcome, reloaded=is_loaded and size > 0, as_json=options.as_json, quiet=options.quiet)
    return 0


def _arm_again(host: Host) -> None:
    from postpanic.capture.arming.arm import arm
    from postpanic.capture.config import CONFIG_PATH, read_config

    arm(read_config(CONFIG_PATH, must_exist=False), host)


def _find_least(host: Host) -> int:
    """Tell what the kernel and the image that were armed last take while they are loaded; 0: not known."""
    from postpanic.capture.arming.state import StatePaths, read_state
    from postpanic.capture.kexec.images import read_image
    from postpanic.capture.kexec.refusals import measure_load
    from postpanic.errors import FileFaultError

    paths = StatePaths.of(host)
    state = read_state(paths.state)
    if state is None:
        return 0
    try:
        return measure_load(read_image(Path(state.kernel)), paths.image.stat().st_size)
    except (FileFaultError, OSError):
        return 0
