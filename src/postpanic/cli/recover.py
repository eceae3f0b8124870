"""``postpanic recover``: fetch dumps that were saved onto raw devices and swap areas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from postpanic.cli.verb import Verb
from postpanic.errors import CorruptError, FactAbsentError, UsageError

if TYPE_CHECKING:
    from postpanic.saver.recovery import RawDump, RecoveredDump

__all__ = ["command", "list_block_devices"]

_BLOCK_CLASS = Path("/sys/class/block")


@click.command(cls=Verb, name="recover")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option(
    "--device",
    "devices",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Look here; may be repeated; by default everywhere.",
)
@click.option("--keep", is_flag=True, help="Leave the dump on its device, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(directory: Path | None, devices: tuple[Path, ...], keep: bool, as_json: bool) -> int:
    """
    Fetch dumps that were saved onto raw devices and swap areas.

    Without DIRECTORY the dumps are listed. With it each is copied into a
    directory of its own there and checked against its checksums; then the
    device is given back: a swap area is one again, and swapon takes it.
    A dump that is damaged is copied as far as it goes, and stays where it is.

        postpanic recover
        postpanic recover /var/crash
    """
    from postpanic.saver.recovery import find_raw_dumps

    found = find_raw_dumps(devices or list_block_devices())
    if not found:
        where = ", ".join(map(str, devices)) if devices else "the block devices"
        raise FactAbsentError(f"no dump is on {where}", hint="a dump in a file system needs no recovery")
    if directory is None:
        _show(found, as_json=as_json)
        return 0
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"not a directory: {directory}")
    done = [_recover(dump, directory, keep=keep, quiet=as_json) for dump in found]
    if as_json:
        print(json.dumps([_to_json(dump, copy) for dump, copy in zip(found, done, strict=True)], indent=1))
    if any(copy.damaged for copy in done):
        return CorruptError.exit_status
    return 0


def list_block_devices() -> list[Path]:
    """List the block devices of this machine; none where that cannot be told."""
    try:
        return sorted(Path("/dev") / entry.name for entry in _BLOCK_CLASS.iterdir())
    except OSError:
        return []


def _recover(dump: RawDump, directory: Path, *, keep: bool, quiet: bool) -> RecoveredDump:
    from postpanic.saver.recovery import recover_raw_dump, release_raw_dump

    copy = recover_raw_dump(dump, directory)
    said = [f"{copy.directory}: {len(copy.files)} files of {dump.device}"]
    if copy.damaged:
        said.append(f"damaged: {', '.join(copy.damaged)}; the device keeps the dump")
    elif keep:
        said.append("the device keeps the dump")
    else:
        release_raw_dump(dump)
        said.append("checked, the device is a swap area again" if dump.is_swap else "checked, the device is free again")
    if not quiet:
        print("; ".join(said))
    return copy


def _show(found: list[RawDump], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_to_json(dump, None) for dump in found], indent=1))
        return
    from postpanic.units import format_size

    for dump in found:
        state = "complete" if dump.is_complete else "incomplete"
        kind = "swap area" if dump.is_swap else "raw device"
        size = format_size(dump.size_bytes)
        print(f"{dump.device} ({kind}): {dump.name}, {state}, {size}: {', '.join(dump.file_names)}")


def _to_json(dump: RawDump, copy: RecoveredDump | None) -> dict[str, object]:
    value: dict[str, object] = {
        "device": str(dump.device),
        "name": dump.name,
        "complete": dump.is_complete,
        "swap": dump.is_swap,
        "size_bytes": dump.size_bytes,
        "files": list(dump.file_names),
    }
    if copy is not None:
        value |= {"directory": str(copy.directory), "damaged": list(copy.damaged)}
    return value
