"""What filter, split, join and convert have in common: dump files in, dump files out, a check and a manifest."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from postpanic.errors import NoSpaceError, PostpanicError, UsageError

if TYPE_CHECKING:
    from postpanic.cli.progress import PageProgress
    from postpanic.dumps.memory import Dump
    from postpanic.dumps.sink import Sink
    from postpanic.kernel.memory import KernelMemory
    from postpanic.pages.filtering import FilterResult, WritePlan
    from postpanic.pages.manifest import Manifest
    from postpanic.pages.redaction import Erasure
    from postpanic.pages.selftest import SelfTest

__all__ = ["FilterJob", "JobOutcome", "available_threads", "run_job"]

STDOUT_FD = 1
MOST_THREADS = 8
"""Unless asked for: reading and writing give out before compression does."""
STANDARD_OUTPUT = "standard output"


@dataclass(frozen=True)
class FilterJob:
    """
    One thing to do.

    Attributes
    ----------
    outputs : tuple of Path
        Several make a split set; none means a flattened stream on standard output.
    levels : tuple of int
        The next one is tried when the output does not fit.
    """

    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    plan: WritePlan
    levels: tuple[int, ...] = (0,)
    flattened: bool = False
    overwrite: bool = False
    limit_bytes: int | None = None
    erase: tuple[str, ...] = ()
    erase_symbols: tuple[str, ...] = ()
    vmlinux: Path | None = None
    vmcoreinfo_file: Path | None = None
    dry_run: bool = False
    check: bool = True
    manifest: bool = True
    manifest_path: Path | None = None
    sync: bool = False
    classify: bool = True
    """Whether struct pages are looked at; else every page that the source has is kept."""


@dataclass
class JobOutcome:
    """What the user is told."""

    job: FilterJob
    result: FilterResult
    level: int
    seconds: float
    output_bytes: int
    source_pages: int
    page_size_bytes: int
    self_test: SelfTest | None = None
    manifest: Manifest | None = None
    warnings: list[str] = field(default_factory=list)
    erasure: Erasure | None = None


def available_threads() -> int:
    """Count the processors that this process may use."""
    return min(len(os.sched_getaffinity(0)), MOST_THREADS)


def run_job(job: FilterJob) -> JobOutcome:
    """
    Do it.

    Raises
    ------
    PostpanicError
        If nothing worth keeping came of it. An incomplete file is an outcome.
    """
    from postpanic.cli.progress import PageProgress
    from postpanic.dumps.open import open_dump

    started = time.monotonic()
    with PageProgress() as progress, open_dump(job.inputs) as dump:
        job.plan.require_codec(dump.page_size_bytes)
        kernel, warnings = _open_kernel(dump, job)
        outcome = _filter(dump, kernel, job, progress)
        outcome.warnings[:0] = warnings
        if not job.dry_run:
            _check(dump, kernel, outcome, progress)
            outcome.seconds = time.monotonic() - started
            _record(dump, kernel, outcome)
    outcome.seconds = time.monotonic() - started
    return outcome


def _filter(dump: Dump, kernel: KernelMemory | None, job: FilterJob, progress: PageProgress) -> JobOutcome:
    """Try the levels until what they leave fits."""
    from postpanic.pages.classify import select_pages
    from postpanic.pages.filtering import write_dump

    erasure = _plan_erasure(kernel, job)
    too_large: list[str] = []
    for number, level in enumerate(job.levels):
        progress("classifying pages")
        selection = select_pages(dump, kernel if job.classify else None, level, threads=job.plan.threads)
        progress.begin(selection.kept.count, dump.page_size_bytes)
        with ExitStack() as stack, _signals_noted() as stop:
            sinks = _open_sinks(job, stack, again=number > 0)
            result = write_dump(
                dump,
                kernel,
                selection,
                sinks,
                job.plan,
                erase=erasure.apply if erasure is not None else None,
                eraseinfo=erasure.text if erasure is not None else b"",
                progress=progress.advance,
                stop=stop,
            )
        outcome = JobOutcome(
            job, result, level, 0.0, _measure_outputs(job, result), selection.ram.count, dump.page_size_bytes
        )
        outcome.warnings.extend(selection.notes if kernel is not None and job.classify else ())
        outcome.erasure = erasure
        if not isinstance(result.error, NoSpaceError) or level == job.levels[-1]:
            break
        too_large.append(f"level {level} does not fit: {result.error.message}")
    outcome.warnings[:0] = too_large
    return outcome


def _measure_outputs(job: FilterJob, result: FilterResult) -> int:
    sizes = [digest.size_bytes for digest in result.digests if digest is not None]
    if len(sizes) == max(len(job.outputs), 1):
        return sum(sizes)
    return sum(path.stat().st_size for path in job.outputs if path.exists())


def _open_kernel(dump: Dump, job: FilterJob) -> tuple[KernelMemory | None, list[str]]:
    """Find the kernel in the dump; without one there is nothing to tell pages apart by."""
    from postpanic.kernel.memory import open_kernel_memory

    if job.vmlinux is not None or job.vmcoreinfo_file is not None:
        return _open_supplemented(dump, job), []
    try:
        return open_kernel_memory(dump), []
    except PostpanicError as exc:
        if not job.classify:
            return None, []
        return None, [f"all pages are kept, as the kernel in the dump cannot be found: {exc.message}"]


def _open_supplemented(dump: Dump, job: FilterJob) -> KernelMemory:
    """Find the kernel, and add to its VMCOREINFO what the files have that the user named."""
    from postpanic.kernel.memory import open_kernel_memory
    from postpanic.kernel.supplement import read_vmcoreinfo_file, supplement_from_file, supplement_from_vmlinux

    file = job.vmcoreinfo_file
    own = None if dump.description.vmcoreinfo or file is None else read_vmcoreinfo_file(file)
    vmcoreinfo = open_kernel_memory(dump, own).vmcoreinfo
    if file is not None and own is None:
        vmcoreinfo = supplement_from_file(vmcoreinfo, file)
    if job.vmlinux is not None:
        vmcoreinfo = supplement_from_vmlinux(vmcoreinfo, job.vmlinux)
    return open_kernel_memory(dump, vmcoreinfo)


def _plan_erasure(kernel: KernelMemory | None, job: FilterJob) -> Erasure | None:
    if not job.erase and not job.erase_symbols:
        return None
    if kernel is None:
        raise UsageError("nothing can be erased from a dump in which no kernel is found")
    from postpanic.pages.redaction import plan_erasure

    return plan_erasure(kernel, job.erase, job.erase_symbols)


def _open_sinks(job: FilterJob, stack: ExitStack, *, again: bool) -> list[Sink]:
    """Open what is written to; the stack closes it."""
    from postpanic.dumps.sink import FileSink, LimitedSink, NullSink
    from postpanic.pages.manifest import manifest_path

    sinks: list[Sink] = []
    overwrite = job.overwrite or again
    if overwrite and job.outputs and not job.dry_run:
        # What it says would be about another file from now on.
        manifest_path(job.outputs[0]).unlink(missing_ok=True)
    for path in job.outputs or (None,):
        sink: Sink
        if job.dry_run:
            sink = NullSink(str(path or STANDARD_OUTPUT))
        elif path is None:
            sink = _make_stream(STDOUT_FD, STANDARD_OUTPUT, hashed=job.manifest)
        else:
            hashed = job.manifest and not job.flattened
            file = FileSink(path, overwrite=overwrite, hashed=hashed, synced=job.sync, sources=job.inputs)
            stack.callback(file.close)
            sink = _make_stream(file.fileno(), file.name, hashed=job.manifest) if job.flattened else file
        sinks.append(sink if job.limit_bytes is None else LimitedSink(sink, job.limit_bytes))
    return sinks


def _make_stream(fd: int, name: str, *, hashed: bool) -> Sink:
    from postpanic.dumps.flattened.writer import FlattenedSink

    return FlattenedSink(fd, name, hashed=hashed)


def _check(dump: Dump, kernel: KernelMemory | None, outcome: JobOutcome, progress: PageProgress) -> None:
    """Prove that what was written can be worked with; a stream is gone, and cannot be looked at."""
    job = outcome.job
    if not job.check or not job.outputs or outcome.result.error is not None or outcome.result.stopped:
        return
    from postpanic.dumps.open import open_dump
    from postpanic.pages.selftest import check_dump

    progress("testing what was written")
    with open_dump(job.outputs) as written:
        outcome.self_test = check_dump(written, source=dump, source_kernel=kernel, quick=True)


def _record(dump: Dump, kernel: KernelMemory | None, outcome: JobOutcome) -> None:
    """Write the manifest; of an incomplete dump too, whose files then have no digests."""
    from postpanic.dumps.digest import FileDigest
    from postpanic.pages.manifest import manifest_path, write_manifest
    from postpanic.pages.recording import record_dump

    job = outcome.job
    names = [path.name for path in job.outputs] or [STANDARD_OUTPUT]
    digests = [*outcome.result.digests, *[None] * len(names)]
    outcome.manifest = record_dump(
        dump,
        kernel,
        outcome.result,
        job.plan,
        {name: digest or FileDigest(0) for name, digest in zip(names, digests, strict=False)},
        duration_s=outcome.seconds,
        flattened=job.flattened,
        erasure=outcome.erasure,
        self_test=outcome.self_test,
        notes=outcome.warnings,
    )
    if not job.manifest:
        return
    path = job.manifest_path or manifest_path(job.outputs[0])
    try:
        write_manifest(path, outcome.manifest)
    except (OSError, PostpanicError) as exc:
        # On a full disk the dump matters more than what is said about it.
        outcome.warnings.append(f"the manifest cannot be written: {exc}")


@contextmanager
def _signals_noted() -> Iterator[_Stop]:
    """Turn the first SIGTERM, SIGHUP or SIGINT into a wish to stop; a second one has its usual effect."""
    stop = _Stop()
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [(number, signal.signal(number, stop.note)) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class _Stop:
    """A reason to stop, once there is one."""

    def __init__(self) -> None:
        self._signal = 0

    def note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> str:
        return f"interrupted by {signal.Signals(self._signal).name}" if self._signal else ""
