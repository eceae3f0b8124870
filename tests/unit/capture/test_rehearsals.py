"""What is remembered of a rehearsal: it comes back as it was written, and nonsense is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from postpanic.capture.rehearsals import (
    REHEARSAL_NAME,
    Rehearsal,
    find_changes,
    read_rehearsal,
    take_fingerprint,
    write_rehearsal,
)

REHEARSAL = Rehearsal(
    when="2026-11-20T10:00:00Z",
    verdict="broken",
    broken_link="the driver virtio_blk is not in the image",
    kinds=("sysrq", "null"),
    fingerprint={"the kernel": "12", "the image": "34"},
    needed_bytes=96 << 20,
    peak_bytes=80 << 20,
    dump_bytes=25_000_000,
    seconds=21.5,
    unproven=("this very disk controller",),
    runs=("sysrq, file /crash: proven", "null, file /crash: broken at saver"),
)


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state" / REHEARSAL_NAME
    write_rehearsal(path, REHEARSAL)
    assert read_rehearsal(path) == REHEARSAL
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [REHEARSAL_NAME]


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "perhaps"},
        {"schema_version": 2},
        {"when": 5},
        {"kinds": "sysrq"},
        {"kinds": [1]},
        {"fingerprint": {"the kernel": 1}},
        {"fingerprint": []},
        {"needed_bytes": -1},
        {"needed_bytes": True},
        {"seconds": "long"},
        {"unproven": {}},
        {"runs": "all"},
        {"runs": [[]]},
    ],
)
def test_what_is_not_sound_is_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / REHEARSAL_NAME
    write_rehearsal(path, REHEARSAL)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert read_rehearsal(path) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"verdict": "proven"}', b"[" * 100_000])
def test_what_is_no_record_is_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / REHEARSAL_NAME
    assert read_rehearsal(path) is None
    path.write_bytes(content)
    assert read_rehearsal(path) is None


def test_keys_of_later_versions_are_left_aside(tmp_path: Path) -> None:
    path = tmp_path / REHEARSAL_NAME
    write_rehearsal(path, REHEARSAL)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    assert read_rehearsal(path) == REHEARSAL


def test_a_change_of_each_thing_is_named(tmp_path: Path) -> None:
    kernel, image, copy = (tmp_path / name for name in ("vmlinuz", "image", "copy"))
    kernel.write_bytes(b"kernel")
    image.write_bytes(b"image" * 1000)
    copy.write_bytes(b"image" * 1000)
    first = take_fingerprint(kernel, image, "console=ttyS0", ["file /var/crash"], 256 << 20)
    proven = Rehearsal(when="", verdict="proven", fingerprint=first)
    same = take_fingerprint(kernel, copy.read_bytes(), "console=ttyS0", ["file /var/crash"], 256 << 20)
    assert find_changes(proven, same) == [], "by content, wherever it is"
    others = {
        "the kernel": take_fingerprint(copy, image, "console=ttyS0", ["file /var/crash"], 256 << 20),
        "the image": take_fingerprint(kernel, kernel, "console=ttyS0", ["file /var/crash"], 256 << 20),
        "the command line": take_fingerprint(kernel, image, "quiet", ["file /var/crash"], 256 << 20),
        "the targets": take_fingerprint(kernel, image, "console=ttyS0", ["file /srv"], 256 << 20),
        "the reservation": take_fingerprint(kernel, image, "console=ttyS0", ["file /var/crash"], 128 << 20),
    }
    for name, now in others.items():
        assert find_changes(proven, now) == [name]
