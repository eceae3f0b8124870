"""Put the manifest of a dump together, when it has been written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from postpanic.dumps.digest import FileDigest
from postpanic.dumps.memory import Dump
from postpanic.errors import PostpanicError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.uts import read_utsname
from postpanic.pages.checks import SelfTest
from postpanic.pages.filtering import FilterResult, WritePlan
from postpanic.pages.manifest import (
    KernelRecord,
    Manifest,
    OutputFile,
    OutputRecord,
    PageRecord,
    RedactionRecord,
    SourceRecord,
    find_lost_ranges,
)
from postpanic.version import __version__

if TYPE_CHECKING:
    from postpanic.pages.redaction.erasure import Erasure

__all__ = ["record_dump"]

_TOOL = "postpanic"


def record_dump(
    dump: Dump,
    kernel: KernelMemory | None,
    result: FilterResult,
    plan: WritePlan,
    files: Mapping[str, FileDigest],
    *,
    duration_s: float,
    flattened: bool = False,
    erasure: Erasure | None = None,
    self_test: SelfTest | None = None,
    notes: Sequence[str] = (),
) -> Manifest:
    """
    Collect what is known of a dump that has just been written.

    Parameters
    ----------
    dump, kernel
        What was read, and the kernel in it.
    files : mapping of str to FileDigest
        Name of each file, without its directory.
    notes : sequence of str
        What the user was warned of.
    """
    description = dump.description
    selection = result.selection
    container = "flattened " if flattened else ""
    return Manifest(
        tool=_TOOL,
        tool_version=__version__,
        written_at=datetime.now(UTC),
        kernel=_record_kernel(dump, kernel),
        source=SourceRecord(
            description.format, description.file_size_bytes, description.incomplete, description.dump_level
        ),
        output=OutputRecord(
            container + plan.form.value,
            str(plan.compression.name).lower() if plan.is_compressed and plan.compression else "",
            tuple(OutputFile(name, digest) for name, digest in files.items()),
        ),
        dump_level=selection.level | (description.dump_level or 0),
        pages=_record_pages(dump, result),
        duration_s=duration_s,
        incomplete=tuple(result.faults),
        redactions=tuple(
            RedactionRecord(record.request, record.objects, record.size_bytes, record.notes, record.gaps)
            for record in (erasure.records if erasure is not None else ())
        ),
        notes=tuple(notes),
        self_test=self_test,
    )


def _record_pages(dump: Dump, result: FilterResult) -> PageRecord:
    ranges, left_out = find_lost_ranges(result.lost)
    return PageRecord(
        dump.page_size_bytes,
        {verdict.name.lower(): count for verdict, count in result.selection.counts.items()},
        written=result.written_pages,
        zero=result.zero_pages,
        lost=len(result.lost),
        lost_ranges=ranges,
        lost_ranges_left_out=left_out,
    )


def _record_kernel(dump: Dump, kernel: KernelMemory | None) -> KernelRecord:
    names = dict(dump.description.utsname)
    if kernel is None:
        return KernelRecord(
            names.get("release", ""), names.get("version", ""), dump.description.machine, names.get("nodename", "")
        )
    if not names:
        with contextlib.suppress(PostpanicError):
            names = asdict(read_utsname(kernel))
    info = kernel.vmcoreinfo
    return KernelRecord(
        release=info.osrelease or names.get("release", ""),
        version=names.get("version", ""),
        machine=kernel.machine,
        node=names.get("nodename", ""),
        build_id=info.build_id or "",
        crash_time_s=info.crash_time_s,
    )
