"""What ``triage`` and ``report`` work on: a dump with all that it holds, or the text of a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from postpanic.cli.arguments import sort_files
from postpanic.cli.opening import SourceOptions, open_for_analysis
from postpanic.errors import FactAbsentError, FileFaultError, UsageError
from postpanic.units import format_size

if TYPE_CHECKING:
    from postpanic.analysis.triage import Scene

__all__ = ["open_scene"]

STANDARD_INPUT = Path("-")
LARGEST_LOG_BYTES = 1 << 30


@contextmanager
def open_scene(files: Sequence[Path], sources: SourceOptions) -> Iterator[Scene]:
    """
    Open a dump, or read a log, for triage.

    A dump whose kernel carries no types, or whose debug information cannot be
    made, is triaged by its log; the scene says so.

    Parameters
    ----------
    files : sequence of Path
        A dump (all files of a split one) with a vmlinux and modules in any order; or one log; ``-`` is standard input.

    Raises
    ------
    UsageError
        If there is more than one log, or a log beside a dump.
    FileFaultError
        If a file cannot be read, or a dump not be opened and neither its log.
    """
    from postpanic.analysis.decode.files import FileKind, detect_file
    from postpanic.analysis.triage import scene_of_dump, scene_of_log

    logs = [path for path in files if path == STANDARD_INPUT or detect_file(path) is FileKind.TEXT]
    if logs:
        if len(files) > 1:
            raise UsageError(f"{logs[0]} is a log, and takes no other file beside it", hint="one log, or one dump")
        yield scene_of_log(_read_log(logs[0]))
        return
    inputs = sort_files(files, vmlinux=sources.vmlinux)
    try:
        opened = open_for_analysis(inputs.dump_paths, replace(sources, vmlinux=inputs.vmlinux), modules=inputs.modules)
    except FactAbsentError as exc:
        yield _scene_of_dump_log(inputs.dump_paths, str(exc))
        return
    with opened:
        if not opened.has_types:
            yield _scene_of_dump_log(inputs.dump_paths, "this kernel carries no types (BTF)")
            return
        from postpanic.analysis.workspace import Workspace

        yield scene_of_dump(Workspace(opened))


def _read_log(path: Path) -> bytes:
    try:
        if path == STANDARD_INPUT:
            data = sys.stdin.buffer.read(LARGEST_LOG_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(LARGEST_LOG_BYTES + 1)
    except OSError as exc:
        raise FileFaultError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    if len(data) > LARGEST_LOG_BYTES:
        raise FileFaultError(
            f"more than {format_size(LARGEST_LOG_BYTES)} of log", where=str(path), hint="cut out the time of the crash"
        )
    return data


def _scene_of_dump_log(paths: Sequence[Path], why: str) -> Scene:
    """Read the log of a dump that cannot be opened in full."""
    from postpanic.analysis.decode.from_dump import read_dump_log
    from postpanic.analysis.triage import scene_of_log

    text, _ = read_dump_log(paths[0])
    scene = scene_of_log(text)
    scene.missing.clear()
    scene.miss("memory, tasks and stacks", why, "give the vmlinux of this kernel (--vmlinux)")
    return scene
