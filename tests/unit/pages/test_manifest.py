"""A manifest says all that is known of a dump, and is believed in nothing."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from postpanic.dumps.digest import FileDigest
from postpanic.errors import CorruptError, FileFaultError, NoSpaceError, OutputError, PostpanicError, UnsupportedError
from postpanic.pages.checks import CheckResult, Outcome, SelfTest
from postpanic.pages.manifest import (
    MAX_LOST_RANGES,
    KernelRecord,
    Manifest,
    OutputFile,
    OutputRecord,
    PageRecord,
    RedactionRecord,
    SourceRecord,
    find_lost_ranges,
    manifest_path,
    read_manifest,
    write_manifest,
)

DOCUMENT = Path(__file__).parents[3] / "docs" / "formats" / "manifest.md"
CHUNKS = tuple(hashlib.sha256(bytes([number])).hexdigest() for number in range(2))


def make_manifest(**changes: Any) -> Manifest:  # noqa: ANN401 - any field of the manifest
    digest = FileDigest(100 << 20, 64 << 20, CHUNKS, hashlib.sha256(b"both").hexdigest())
    values: dict[str, Any] = {
        "tool": "postpanic",
        "tool_version": "1.2.3",
        "written_at": datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC),
        "kernel": KernelRecord("6.1.0", "#1 SMP", "x86_64", "höst", "ab" * 20, 1_700_000_000),
        "source": SourceRecord("ELF vmcore", 1 << 40, "the file ends early", 17),
        "output": OutputRecord("kdump-compressed v6", "zstd", (OutputFile("dump", digest), OutputFile("b", digest))),
        "dump_level": 31,
        "pages": PageRecord(4096, {"image": 3410, "user": 7}, 3420, 12, 2, ((3, 5), (9, 10)), 1),
        "duration_s": 1.25,
        "incomplete": ("2 pages could not be read",),
        "redactions": (RedactionRecord("key.payload", 3, 96, ("a note",), ("a gap",)),),
        "notes": ("no PG_hwpoison: kept",),
        "self_test": SelfTest(
            (CheckResult("BTF", Outcome.OK, "9 pages"), CheckResult("ORC", Outcome.NOT_APPLICABLE, "none")), 0.125
        ),
    }
    return Manifest(**(values | changes))


def _write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dump.manifest.json"
    write_manifest(path, make_manifest())
    assert read_manifest(path) == make_manifest()


def test_least_manifest_is_read(tmp_path: Path) -> None:
    least = make_manifest(
        kernel=KernelRecord(),
        source=SourceRecord("ELF vmcore", 0),
        output=OutputRecord("ELF vmcore", "", (OutputFile("dump", FileDigest(5)),)),
        pages=PageRecord(4096, {}, 0, 0),
        incomplete=(),
        redactions=(),
        notes=(),
        self_test=None,
    )
    path = tmp_path / "least"
    write_manifest(path, least)
    assert read_manifest(path) == least
    assert read_manifest(path).complete


def test_it_is_plain_json_for_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_manifest(path, make_manifest())
    value = json.loads(path.read_bytes())
    assert value["schema_version"] == 1
    assert value["written_at"] == "2026-01-31T23:59:59Z"
    assert value["complete"] is False
    assert value["output"]["files"][0]["sha256_chunks"] == list(CHUNKS)
    assert value["pages"]["written_bytes"] == 3420 * 4096
    assert path.read_bytes().isascii()


def test_control_characters_of_a_message_are_spelled_out(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_manifest(path, make_manifest(notes=("a\x1b[31mred\nline",)))
    assert read_manifest(path).notes == (r"a\x1b[31mred\x0aline",)


def test_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    name = os.fsdecode(b"dump-\xff\n")
    digest = FileDigest(5)
    path = tmp_path / "m"
    write_manifest(path, make_manifest(output=OutputRecord("ELF vmcore", "", (OutputFile(name, digest),))))
    assert read_manifest(path).output.files[0].name == name


def test_manifest_lies_beside_the_dump() -> None:
    assert manifest_path(Path("/a/dump.kdump")) == Path("/a/dump.kdump.manifest.json")


def test_lost_frames_become_ranges() -> None:
    assert find_lost_ranges([9, 1, 2, 3, 2]) == (((1, 4), (9, 10)), 0)
    assert find_lost_ranges([]) == ((), 0)


def test_ranges_are_bounded_and_the_rest_counted() -> None:
    ranges, left_out = find_lost_ranges(range(0, 2 * (MAX_LOST_RANGES + 7), 2))
    assert (len(ranges), left_out) == (MAX_LOST_RANGES, 7)


def test_failed_write_leaves_the_old_one_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    write_manifest(path, make_manifest())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpaceError, match="no space left"):
        write_manifest(path, make_manifest(duration_s=9.0))
    monkeypatch.undo()
    assert read_manifest(path) == make_manifest()
    assert list(tmp_path.iterdir()) == [path]


def test_directory_that_is_missing_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such file"):
        write_manifest(tmp_path / "no" / "m", make_manifest())


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    value = make_manifest().to_json()

    def add(part: object) -> None:
        if isinstance(part, dict):
            for inner in list(part.values()):
                add(inner)
            part["a key of the future"] = 7
        elif isinstance(part, list):
            for inner in part:
                add(inner)

    add(value)
    read = read_manifest(_write(tmp_path / "m", value))
    assert dataclasses.replace(read, pages=make_manifest().pages) == make_manifest()


def test_newer_schema_is_unsupported_whatever_else_it_says(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="schema version 2, known is 1"):
        read_manifest(_write(tmp_path / "m", {"schema_version": 2}))


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:  # noqa: ANN401 - JSON
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, (*path, index))


DERIVED = {("complete",), ("source", "complete"), ("pages", "written_bytes"), ("self_test", "passed")}
"""For other programs; what they follow from is read instead."""
PATHS = [path for path in _paths(make_manifest().to_json()) if path not in DERIVED]


def _change(path: tuple[str | int, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    value = copy.deepcopy(make_manifest().to_json())
    part: Any = value
    for key in path[:-1]:
        part = part[key]
    change(part, path[-1])
    return value


@pytest.mark.parametrize(
    "path", [path for path in PATHS if isinstance(path[-1], str) and path[:2] != ("pages", "counts")]
)
def test_key_that_is_missing_is_named(path: tuple[str | int, ...], tmp_path: Path) -> None:
    value = _change(path, lambda part, key: part.pop(key))
    with pytest.raises(CorruptError, match=rf"{path[-1]} is missing"):
        read_manifest(_write(tmp_path / "m", value))


WRONG = [-1, 1.5, True, "x\n", [], {}, [[]], 1 << 70, "é" * 3000]
NULLABLE = {("self_test",), ("kernel", "crash_time_s"), ("source", "dump_level")}


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_value_of_no_right_type_is_named(path: tuple[str | int, ...], tmp_path: Path) -> None:
    refused: list[str] = []
    for wrong in [*WRONG, *([] if path in NULLABLE else [None])]:

        def put(part: Any, key: Any, wrong: object = wrong) -> None:  # noqa: ANN401 - JSON
            part[key] = wrong

        try:
            read_manifest(_write(tmp_path / "m", _change(path, put)))
        except CorruptError as exc:
            refused.append(exc.message)
    named = [str(key) for key in path if isinstance(key, str)]
    assert all(len(message) < 400 and (named[-1] in message or named[0] in message) for message in refused)
    assert len(refused) >= 5, "most values are wrong anywhere"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/etc/passwd", "../other", "a/b", "a\0b"],
    ids=["empty", "dot", "up", "root", "out", "in", "nul"],
)
def test_name_with_a_directory_is_refused(name: str, tmp_path: Path) -> None:
    value = _change(("output", "files", 0, "name"), lambda part, key: part.__setitem__(key, name))
    with pytest.raises(CorruptError, match=r"output\.files\[0\]\.name is .*, must be the name of a file"):
        read_manifest(_write(tmp_path / "m", value))


@pytest.mark.parametrize(
    "ranges", [[[5, 5]], [[5, 4]], [[1, 5], [4, 9]], [[9, 10], [1, 2]], [[1]], [7], [[0, 1]] * (MAX_LOST_RANGES + 1)]
)
def test_ranges_that_do_not_rise_are_refused(ranges: object, tmp_path: Path) -> None:
    value = _change(("pages", "lost_ranges"), lambda part, key: part.__setitem__(key, ranges))
    with pytest.raises(CorruptError, match=r"pages\.lost_ranges"):
        read_manifest(_write(tmp_path / "m", value))


def test_digests_that_do_not_fit_the_size_are_refused(tmp_path: Path) -> None:
    value = _change(("output", "files", 0, "size_bytes"), lambda part, key: part.__setitem__(key, 1 << 50))
    with pytest.raises(CorruptError, match=r"sha256_chunks has 2 digests, must be 16777216"):
        read_manifest(_write(tmp_path / "m", value))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": ' + b"9" * 5000 + b"}", b"null",
     b'{"schema_version": NaN}', b'{"schema_version": 1e999}', b'"' + b"\xc3" + b'"'],
)  # fmt: skip
def test_what_is_no_manifest_is_one_clear_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(data)
    with pytest.raises(CorruptError) as caught:
        read_manifest(path)
    assert caught.value.where == str(path)
    assert caught.value.message.isprintable()


def test_file_larger_than_any_manifest_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CorruptError, match="at most 67108864 bytes"):
        read_manifest(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_a_file_fault(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "m")
    with pytest.raises(FileFaultError, match=r"not a regular file|is a directory"):
        read_manifest(tmp_path / "m")


def test_missing_file_is_a_file_fault(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match="no such file"):
        read_manifest(tmp_path / "m")


def test_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    data = json.dumps(make_manifest().to_json()).encode()
    path = tmp_path / "m"
    for end in range(0, len(data), 37):
        path.write_bytes(data[:end])
        with pytest.raises(PostpanicError):
            read_manifest(path)


def test_every_key_is_documented() -> None:
    documented = set(DOCUMENT.read_text().replace("`", " ").split())
    keys = {path[-1] for path in _paths(make_manifest().to_json()) if isinstance(path[-1], str)}
    assert keys - {"image", "user"} <= documented


def test_nothing_but_the_standard_library_is_needed() -> None:
    run = "import postpanic.pages.manifest, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    finished = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    assert not set(finished.stdout.split()) & {"numpy", "click", "zstandard", "msgspec"}
