"""What a manifest says, as values, and the same as JSON; docs/formats/manifest.md describes every key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from postpanic.dumps.digest import FileDigest
from postpanic.pages.checks import CheckResult, Outcome, SelfTest
from postpanic.pages.json_values import JsonObject, clean_text

__all__ = [
    "MAX_LOST_RANGES",
    "SCHEMA_VERSION",
    "KernelRecord",
    "Manifest",
    "OutputFile",
    "OutputRecord",
    "PageRecord",
    "RedactionRecord",
    "SourceRecord",
    "decode_manifest",
]

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away; new keys alone do not change it."""

MAX_LOST_RANGES = 10_000


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """The kernel that crashed; empty or None where that is not known."""

    release: str = ""
    version: str = ""
    machine: str = ""
    node: str = ""
    """The machine's name, as ``uname -n`` prints it."""
    build_id: str = ""
    crash_time_s: int | None = None
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """What the dump was made from, as that describes itself."""

    format: str
    size_bytes: int
    incomplete: str = ""
    """Why it was not complete, as one phrase; empty where it was."""
    dump_level: int | None = None
    """Of an earlier filter."""


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file; its name has no directory, so that a dump can be moved together with its manifest."""

    name: str
    digest: FileDigest


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """What was written; several files are a split set, in the order of their pages."""

    format: str
    compression: str
    """``zlib``, ``lzo``, ``snappy``, ``zstd``; empty for none."""
    files: tuple[OutputFile, ...]


@dataclass(frozen=True, slots=True)
class PageRecord:
    """What became of each frame of RAM."""

    page_size_bytes: int
    counts: dict[str, int]
    """Frames by the name of their :class:`~postpanic.pages.verdict.Verdict`, lower case; they add up to all of RAM."""
    written: int
    """Pages that were chosen and went through, zero and lost ones included."""
    zero: int
    """Those of them that are all zero, whose contents take no room."""
    lost: int = 0
    """Those that could not be read from the source."""
    lost_ranges: tuple[tuple[int, int], ...] = ()
    """Their frame numbers, ``[start, end)``, rising; not more than :data:`MAX_LOST_RANGES`."""
    lost_ranges_left_out: int = 0
    """How many more ranges there are."""


@dataclass(frozen=True, slots=True)
class RedactionRecord:
    """One request to erase something, and what became of it."""

    request: str
    objects: int
    size_bytes: int
    notes: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    """What should have been erased and may still be in the dump."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that is known of a dump when it has been written."""

    tool: str
    tool_version: str
    written_at: datetime
    kernel: KernelRecord
    source: SourceRecord
    output: OutputRecord
    dump_level: int
    pages: PageRecord
    duration_s: float
    incomplete: tuple[str, ...] = ()
    """Why the dump is not complete, one phrase each; empty when it is."""
    redactions: tuple[RedactionRecord, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be decided when pages were chosen, and what was done about it."""
    self_test: SelfTest | None = None
    """None where it was not run."""
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def complete(self) -> bool:
        """Whether everything that was chosen is in the dump."""
        return not self.incomplete

    def to_json(self) -> dict[str, Any]:
        """Give everything as values that JSON has."""
        return {
            "schema_version": self.schema_version,
            "tool": {"name": clean_text(self.tool), "version": clean_text(self.tool_version)},
            "written_at": self.written_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "kernel": _kernel_to_json(self.kernel),
            "source": {
                "format": clean_text(self.source.format),
                "size_bytes": self.source.size_bytes,
                "complete": not self.source.incomplete,
                "incomplete": clean_text(self.source.incomplete),
                "dump_level": self.source.dump_level,
            },
            "output": {
                "format": clean_text(self.output.format),
                "compression": clean_text(self.output.compression),
                "files": [_file_to_json(file) for file in self.output.files],
            },
            "dump_level": self.dump_level,
            "pages": _pages_to_json(self.pages),
            "duration_s": round(self.duration_s, 3),
            "complete": self.complete,
            "incomplete": _clean_all(self.incomplete),
            "redactions": [_redaction_to_json(record) for record in self.redactions],
            "notes": _clean_all(self.notes),
            "self_test": None if self.self_test is None else self.self_test.to_json(),
        }


def decode_manifest(top: JsonObject) -> Manifest:
    """
    Decode the outermost object of a manifest of a schema that is known.

    Raises
    ------
    CorruptError
        If a key is missing or holds what it must not; names the key.
    """
    tool = top.child("tool")
    return Manifest(
        tool=tool.text("name"),
        tool_version=tool.text("version"),
        written_at=top.moment("written_at"),
        kernel=_kernel_from_json(top.child("kernel")),
        source=_source_from_json(top.child("source")),
        output=_output_from_json(top.child("output")),
        dump_level=top.integer("dump_level", most=31),
        pages=_pages_from_json(top.child("pages")),
        duration_s=top.number("duration_s"),
        incomplete=top.texts("incomplete"),
        redactions=tuple(_redaction_from_json(record) for record in top.children("redactions")),
        notes=top.texts("notes"),
        self_test=None if top.is_null("self_test") else _self_test_from_json(top.child("self_test")),
        schema_version=top.integer("schema_version"),
    )


def _kernel_to_json(kernel: KernelRecord) -> dict[str, Any]:
    texts = ("release", "version", "machine", "node", "build_id")
    return {name: clean_text(getattr(kernel, name)) for name in texts} | {"crash_time_s": kernel.crash_time_s}


def _kernel_from_json(value: JsonObject) -> KernelRecord:
    return KernelRecord(
        release=value.text("release"),
        version=value.text("version"),
        machine=value.text("machine"),
        node=value.text("node"),
        build_id=value.text("build_id"),
        crash_time_s=None if value.is_null("crash_time_s") else value.integer("crash_time_s"),
    )


def _source_from_json(value: JsonObject) -> SourceRecord:
    return SourceRecord(
        format=value.text("format"),
        size_bytes=value.integer("size_bytes"),
        incomplete=value.text("incomplete"),
        dump_level=None if value.is_null("dump_level") else value.integer("dump_level", most=31),
    )


def _file_to_json(file: OutputFile) -> dict[str, Any]:
    digest = file.digest
    return {
        "name": file.name,
        "size_bytes": digest.size_bytes,
        "chunk_size_bytes": digest.chunk_size_bytes,
        "sha256": digest.sha256,
        "sha256_chunks": list(digest.sha256_chunks),
    }


def _output_from_json(value: JsonObject) -> OutputRecord:
    files = tuple(_file_from_json(file) for file in value.children("files"))
    return OutputRecord(value.text("format"), value.text("compression"), files)


def _file_from_json(value: JsonObject) -> OutputFile:
    size, chunk_size = value.integer("size_bytes"), value.integer("chunk_size_bytes", least=1)
    chunks = value.digests("sha256_chunks")
    whole = value.digest("sha256")
    count = -(-size // chunk_size)
    if (whole or chunks) and not (whole and len(chunks) == count):
        raise value.fault("sha256_chunks", f"has {len(chunks)} digests", f"{count}, or none where sha256 is empty too")
    return OutputFile(value.file_name("name"), FileDigest(size, chunk_size, chunks, whole))


def _pages_to_json(pages: PageRecord) -> dict[str, Any]:
    return {
        "page_size_bytes": pages.page_size_bytes,
        "counts": {clean_text(name): count for name, count in pages.counts.items()},
        "written": pages.written,
        "written_bytes": pages.written * pages.page_size_bytes,
        "zero": pages.zero,
        "lost": pages.lost,
        "lost_ranges": [list(pair) for pair in pages.lost_ranges],
        "lost_ranges_left_out": pages.lost_ranges_left_out,
    }


def _pages_from_json(value: JsonObject) -> PageRecord:
    return PageRecord(
        page_size_bytes=value.integer("page_size_bytes", least=1),
        counts=value.child("counts").integers(),
        written=value.integer("written"),
        zero=value.integer("zero"),
        lost=value.integer("lost"),
        lost_ranges=value.ranges("lost_ranges", most=MAX_LOST_RANGES),
        lost_ranges_left_out=value.integer("lost_ranges_left_out"),
    )


def _redaction_to_json(record: RedactionRecord) -> dict[str, Any]:
    return {
        "request": clean_text(record.request),
        "objects": record.objects,
        "size_bytes": record.size_bytes,
        "notes": _clean_all(record.notes),
        "gaps": _clean_all(record.gaps),
    }


def _redaction_from_json(value: JsonObject) -> RedactionRecord:
    return RedactionRecord(
        value.text("request"),
        value.integer("objects"),
        value.integer("size_bytes"),
        value.texts("notes"),
        value.texts("gaps"),
    )


def _self_test_from_json(value: JsonObject) -> SelfTest:
    outcomes = {outcome.value: outcome for outcome in Outcome}
    results = tuple(
        CheckResult(result.text("name"), outcomes[result.choice("outcome", tuple(outcomes))], result.text("detail"))
        for result in value.children("results")
    )
    return SelfTest(results, value.number("duration_s"))


def _clean_all(texts: Iterable[str]) -> list[str]:
    return [clean_text(text) for text in texts]
