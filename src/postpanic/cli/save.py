"""``postpanic save``: save the memory of the kernel that crashed, by hand, in any capture kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import NotReadyError, UsageError

if TYPE_CHECKING:
    from postpanic.saver.console import Console
    from postpanic.saver.plan import SavePlan, TargetPlan
    from postpanic.saver.session import Outcome
    from postpanic.saver.targets.base import Target

__all__ = ["command"]

VMCORE = Path("/proc/vmcore")


@click.command(cls=Verb, name="save")
@click.argument("directories", nargs=-1, type=click.Path(path_type=Path), metavar="[DIRECTORY]...")
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    help="Save as this plan says; as a rule /etc/postpanic/plan.json.",
)
@click.option("--vmcore", type=click.Path(path_type=Path), default=VMCORE, show_default=True, help="What is saved.")
@click.option(
    "-d",
    "levels",
    default="31",
    show_default=True,
    metavar="LEVEL[,LEVEL]...",
    help="Dump level; the next one if it does not fit.",
)
@click.option("--uncompressed", is_flag=True, help="Store pages as they are.")
@click.option("--log-only", is_flag=True, help="Save the log and the notes, and no pages.")
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=0,
    help="Delete the oldest dumps beyond this number, once the new one is safe.",
)
@click.option("--no-self-test", is_flag=True, help="Do not check what was written.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(
    directories: tuple[Path, ...],
    plan_path: Path | None,
    vmcore: Path,
    levels: str,
    uncompressed: bool,
    log_only: bool,
    keep: int,
    no_self_test: bool,
    as_json: bool,
) -> int:
    """
    Save the memory of the kernel that crashed.

    The capture image of "postpanic arm" does this by itself. By hand it works
    in any kernel that has /proc/vmcore, a distribution's capture kernel too:
    into directories of file systems that are mounted, all at once from one
    read, or to the targets of a plan. The kernel log comes first and is safe
    before the first page is read; each directory gets

        NODE-20260131-235959/vmcore-dmesg.txt       the kernel log
        NODE-20260131-235959/vmcore                 the dump
        NODE-20260131-235959/vmcore.manifest.json   what it is, digests, self-test
        NODE-20260131-235959/saver.log              what happened

    The exit status is 0 when at least one target has the whole dump.

        postpanic save /var/crash
        postpanic save -d 1,31 /var/crash /mnt/usb
    """
    plan, make_target = _choose_targets(
        directories, plan_path, levels, uncompressed=uncompressed, keep=keep, test=not no_self_test
    )
    if not vmcore.exists():
        raise NotReadyError(
            "there is none: this is not a capture kernel", where=str(vmcore), hint="--vmcore names another file to save"
        )
    from postpanic.dumps.open import open_dump
    from postpanic.saver.console import Console
    from postpanic.saver.session import SaveOptions, save

    console: Console = Console()
    with open_dump(vmcore) as dump:
        outcome = save(plan, dump, console, make_target, options=SaveOptions(log_only=log_only))
    if as_json:
        print(json.dumps(_to_json(outcome), indent=1))
    enough = outcome.has_log if log_only else outcome.is_complete
    return 0 if enough else 1


def _choose_targets(
    directories: tuple[Path, ...], plan_path: Path | None, levels: str, *, uncompressed: bool, keep: int, test: bool
) -> tuple[SavePlan, Callable[[TargetPlan], Target]]:
    """Make a plan of what was typed, or read one; and what makes targets of its parts."""
    from postpanic.saver.plan import PLAN_PATH, FilePlan, RetentionPlan, SavePlan
    from postpanic.saver.plan_json import read_plan
    from postpanic.saver.targets.directory import DirectoryTarget
    from postpanic.saver.targets.opening import make_target

    if directories and plan_path:
        raise UsageError("--plan excludes directories")
    if not directories:
        if plan_path is None and not PLAN_PATH.exists():
            raise UsageError(
                "no directory was named, and there is no plan",
                hint=f"postpanic save DIRECTORY, or --plan; looked for {PLAN_PATH}",
            )
        return read_plan(plan_path or PLAN_PATH), make_target
    from postpanic.cli.filter_options import parse_levels

    retention = RetentionPlan(keep_count=keep)
    plans = tuple(
        FilePlan(
            name=str(directory),
            path=str(directory),
            dump_levels=parse_levels(levels),
            compression="none" if uncompressed else "zstd",
            retention=retention,
            attempts=1,
        )
        for directory in directories
    )

    def make(plan: TargetPlan) -> Target:
        assert isinstance(plan, FilePlan)  # noqa: S101 - all of ours are
        return DirectoryTarget(Path(plan.path), name=plan.name, retention=plan.retention)

    from postpanic.cli.filter_job import available_threads

    return SavePlan(targets=plans, threads=available_threads(), self_test=test), make


def _to_json(outcome: Outcome) -> dict[str, object]:
    return {
        "complete": outcome.is_complete,
        "targets": [
            {
                "name": target.name,
                "state": target.state.value,
                "has_log": target.has_log,
                "place": target.place,
                "error": target.error,
            }
            for target in outcome.targets
        ],
    }
