from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from postpanic.dumps.memory import PageState, ranges_from_pairs
from postpanic.dumps.open import open_dump
from postpanic.errors import (
    FileFaultError,
    MismatchError,
    NotADumpError,
    PostpanicError,
    TruncatedError,
    UnsupportedError,
    UsageError,
)
from tests.builders.elfcore import Segment, build_elf_core
from tests.builders.kdump import KdumpSpec, build_kdump
from tests.unit.dumps.conftest import Opener
from tests.unit.dumps.pages import frames, make_page

ELF = build_elf_core([Segment(0, make_page(1))]).raw
KDUMP = build_kdump(KdumpSpec({0: make_page(1)})).raw


def _open_files() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_one_path_or_several_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(ELF)
    for paths in (path, [path], (path,)):
        with open_dump(paths) as dump:
            assert dump.page_states(frames(0)).tolist() == [PageState.PRESENT]
            assert dump.description.paths == (str(path),)
            assert dump.description.file_size_bytes == len(ELF)


def test_no_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        open_dump([])


def test_closed_files_stay_closed(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(KDUMP)
    before = _open_files()
    with open_dump(path) as dump:
        assert _open_files() > before
    dump.close()
    path.write_bytes(KDUMP[:100])
    with pytest.raises(TruncatedError):
        open_dump(path)
    assert _open_files() == before


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match="no such file") as caught:
        open_dump(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)
    with pytest.raises(FileFaultError, match=r"null (?:byte|character)"):
        open_dump(tmp_path / "a\0b")


def test_things_that_are_not_files_are_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, words in ((tmp_path, "a directory"), (Path("/dev/null"), "a character device"), (fifo, "a named pipe")):
        with pytest.raises(NotADumpError, match=words):
            open_dump(path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", TruncatedError, "the file is empty"),
        (b"KDU", TruncatedError, "ends after 3 bytes"),
        (b"\x7fE", TruncatedError, "ends after 2 bytes"),
        (b"Kernel panic - not syncing: sysrq\n[1.0] Call Trace:\n", NotADumpError, "a text file"),
        (bytes(8192), NotADumpError, "begins with 4096 zero bytes"),
        (b"\x01\x02\x03\x04" * 100, NotADumpError, "begins with 01 02 03 04"),
        (b"PAGEDU64" + bytes(100), UnsupportedError, "Windows"),
        (b"QFI\xfb" + bytes(100), UnsupportedError, "qcow2"),
        (b"dump".ljust(257, b"\0") + b"ustar  \0", UnsupportedError, "tar archive"),
    ],
)
def test_other_files_are_one_clear_error(
    open_bytes: Opener, content: bytes, error: type[PostpanicError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        open_bytes(content)
    assert caught.value.exit_status == 2
    assert "dump0.0" in str(caught.value)


def test_compressed_dump_says_how_to_decompress_it(open_bytes: Opener) -> None:
    for content, command in (
        (gzip.compress(ELF), "gzip -dk "),
        (lzma.compress(ELF), "xz -dk "),
        (bz2.compress(ELF), "bzip2 -dk "),
        (zstandard.ZstdCompressor().compress(ELF), "zstd -d "),
    ):
        with pytest.raises(UnsupportedError, match="compressed with") as caught:
            open_bytes(content)
        assert command in caught.value.hint


def test_files_of_different_formats_are_a_mismatch(open_bytes: Opener) -> None:
    for contents in ((ELF, KDUMP), (KDUMP, ELF), (ELF, ELF)):
        with pytest.raises(MismatchError):
            open_bytes(*contents)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], []),
        ([(5, 5), (3, 1)], []),
        ([(4, 6), (0, 2), (2, 3), (5, 9)], [[0, 3], [4, 9]]),
        ([(0, 10), (2, 3)], [[0, 10]]),
    ],
)
def test_ranges_are_sorted_and_merged(pairs: Sequence[tuple[int, int]], expected: list[list[int]]) -> None:
    assert ranges_from_pairs(pairs).tolist() == expected
