"""Archives of others are unpacked where they belong, whatever they hold."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.errors import CorruptError
from postpanic.rehearse.tarballs import unpack_files

WRITTEN_S = 1_600_000_000


def make_archive(*members: tuple[str, bytes, bytes]) -> bytes:
    """Make an archive of names, types and contents; links lead to their content."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.mtime, member.mode = kind, WRITTEN_S, 0o4777
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = content.decode() if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def unpack(raw: bytes, target: Path, want: Callable[[str], bool] = lambda _: True) -> list[Path]:
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r|") as archive:
        return unpack_files(archive, target, want)


def test_files_and_directories_are_unpacked_with_their_times(tmp_path: Path) -> None:
    archive = make_archive(
        ("./empty", tarfile.DIRTYPE, b""), ("./0/vmcore", tarfile.REGTYPE, b"dump"), ("log", tarfile.REGTYPE, b"")
    )
    unpacked = unpack(archive, tmp_path / "new")
    assert [path.relative_to(tmp_path / "new") for path in unpacked] == [Path("0/vmcore"), Path("log")]
    assert [path.read_bytes() for path in unpacked] == [b"dump", b""]
    assert [path.stat().st_mtime for path in unpacked] == [WRITTEN_S] * 2
    assert not any(path.stat().st_mode & 0o7022 for path in unpacked)
    assert (tmp_path / "new/empty").is_dir()


def test_only_what_is_wanted_is_unpacked(tmp_path: Path) -> None:
    archive = make_archive(("./a/one", tarfile.REGTYPE, b"1"), ("./b/two", tarfile.REGTYPE, b"2"))
    assert unpack(archive, tmp_path, lambda name: name == "b/two") == [tmp_path / "b/two"]
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_left_out(kind: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    archive = make_archive(
        ("out", kind, b"../elsewhere"), ("out/file", tarfile.REGTYPE, b"x"), ("file", tarfile.REGTYPE, b"y")
    )
    assert unpack(archive, target) == [target / "out/file", target / "file"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("name", ["../file", "a/../../file", "/tmp/file"])  # noqa: S108
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_a_name_that_leads_elsewhere_is_refused(name: str, kind: bytes, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="leads out of the directory"):
        unpack(make_archive((name, kind, b"x" if kind == tarfile.REGTYPE else b"")), tmp_path / "target")
    assert not (tmp_path / "file").exists()


def test_an_archive_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(tarfile.TarError):
        unpack(make_archive(("file", tarfile.REGTYPE, b"x" * 100_000))[:50_000], tmp_path)
