"""What ``postpanic filter`` can do beside filtering, as makedumpfile does: the log, streams, live memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postpanic.errors import UsageError

if TYPE_CHECKING:
    from postpanic.kernel.memory import KernelMemory
    from postpanic.kernel.printk import LogRecord

__all__ = ["run_mode"]

STDIN_FD = 0
_MODES = {
    "dump_dmesg": "--dump-dmesg",
    "partial_dmesg": "--partial-dmesg",
    "mem_usage": "--mem-usage",
    "rearrange": "-R",
    "reassemble": "--reassemble",
    "generate": "-g",
}


def run_mode(files: tuple[Path, ...], options: Mapping[str, Any]) -> int | None:
    """
    Do what one of the other modes asks for.

    Returns
    -------
    int or None
        The exit status; None if a dump is to be filtered.

    Raises
    ------
    UsageError
        If two modes are asked for, or the files do not fit.
    """
    chosen = [name for name in _MODES if options[name]]
    if {"dump_dmesg", "partial_dmesg"} <= set(chosen):
        chosen.remove("dump_dmesg")
    if len(chosen) > 1:
        raise UsageError(f"{_MODES[chosen[0]]} and {_MODES[chosen[1]]} exclude each other")
    if not chosen:
        return None
    if options["check_params"]:
        return 0
    return _RUNNERS[chosen[0]](files, options)


def _write_log(files: tuple[Path, ...], options: Mapping[str, Any]) -> int:
    """Write the kernel log to a file or standard output."""
    from postpanic.dumps.open import open_dump
    from postpanic.kernel.log_text import LogStyle, format_record
    from postpanic.kernel.memory import open_kernel_memory
    from postpanic.kernel.printk import read_log

    source, output = _one_or_two(files, "--dump-dmesg VMCORE [OUT]")
    with open_dump(source) as dump:
        memory = open_kernel_memory(dump)
        records = read_log(memory)
        if options["partial_dmesg"]:
            records = _after_clear(memory, records)
    text = "".join(format_record(record, LogStyle()) + "\n" for record in records)
    if output is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        _write_new(output, text.encode(), overwrite=options["overwrite"])
    return 0


def _after_clear(memory: KernelMemory, records: list[LogRecord]) -> list[LogRecord]:
    """
    Leave out what ``dmesg -c`` has shown before the crash.

    ``clear_seq`` is a ``struct latched_seq`` of a counter and two values since
    5.12 (7d7a23a91c91), before that a plain ``u64``.
    """
    vaddr = memory.vmcoreinfo.symbol("clear_seq")
    offset = memory.vmcoreinfo.get_offset("latched_seq.val")
    if offset is None:
        first = memory.read_u64(vaddr)
    else:
        first = memory.read_u64(vaddr + offset + 8 * (memory.read_u32(vaddr) & 1))
    return [record for record in records if record.seq >= first]


def _show_usage(files: tuple[Path, ...], options: Mapping[str, Any]) -> int:
    """Say what each level would leave out of a live kernel, or of a dump."""
    from dataclasses import asdict

    from postpanic.dumps.kcore import KCORE_PATH, open_kcore
    from postpanic.dumps.open import open_dump
    from postpanic.kernel.memory import open_kernel_memory
    from postpanic.pages.usage import count_usage, format_usage

    if len(files) > 1:
        raise UsageError(f"--mem-usage [{KCORE_PATH}]: {len(files)} files named")
    path = files[0] if files else KCORE_PATH
    with open_kcore(path) if path.resolve() == KCORE_PATH else open_dump(path) as dump:
        usage = count_usage(dump, open_kernel_memory(dump), threads=options["threads"] or 1)
    for note in usage.notes:
        print(f"warning: {note}", file=sys.stderr)
    print(json.dumps(asdict(usage), indent=2) if options["as_json"] else format_usage(usage))
    return 0


def _rearrange(files: tuple[Path, ...], options: Mapping[str, Any]) -> int:
    """Make a dump file of the flattened stream on standard input."""
    from postpanic.dumps.flattened.rearrange import rearrange_stream
    from postpanic.dumps.sink import FileSink

    if len(files) != 1:
        raise UsageError(f"-R takes one OUT file, {len(files)} named")
    sink = FileSink(files[0], overwrite=options["overwrite"], hashed=False, synced=options["sync"])
    try:
        rearrange_stream(STDIN_FD, sink)
        sink.finish()
    finally:
        sink.close()
    return 0


def _reassemble(files: tuple[Path, ...], options: Mapping[str, Any]) -> int:
    """Join the files of a split set."""
    from postpanic.cli.filter_job import run_job
    from postpanic.cli.filter_report import report_outcome
    from postpanic.cli.join import make_join_job

    job = make_join_job(files, overwrite=options["overwrite"])
    return report_outcome(run_job(job), as_json=options["as_json"], quiet=options["quiet"], show_stats=False)


def _generate(files: tuple[Path, ...], options: Mapping[str, Any]) -> int:
    """Write the VMCOREINFO that a vmlinux stands for."""
    from postpanic.kernel.supplement import generate_vmcoreinfo

    if options["vmlinux"] is None:
        raise UsageError("-g needs -x VMLINUX")
    if files:
        raise UsageError(f"-g takes no VMCORE, but {files[0]} is named")
    _write_new(options["generate"], generate_vmcoreinfo(options["vmlinux"]), overwrite=options["overwrite"])
    return 0


def _one_or_two(files: tuple[Path, ...], usage: str) -> tuple[Path, Path | None]:
    if not 1 <= len(files) <= 2:
        raise UsageError(f"{usage}: {len(files)} files named")
    output = files[1] if len(files) == 2 else None
    return files[0], None if output == Path("-") else output


def _write_new(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a small file, which must not be there yet."""
    from postpanic.dumps.sink import FileSink

    sink = FileSink(path, overwrite=overwrite, hashed=False, synced=False)
    try:
        sink.write_at(0, [data])
        sink.finish()
    finally:
        sink.close()


_RUNNERS = {
    "dump_dmesg": _write_log,
    "partial_dmesg": _write_log,
    "mem_usage": _show_usage,
    "rearrange": _rearrange,
    "reassemble": _reassemble,
    "generate": _generate,
}
