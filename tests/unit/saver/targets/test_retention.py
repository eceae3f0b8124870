"""Which old dumps are deleted, and what never is."""

from __future__ import annotations

from pathlib import Path

import pytest

from postpanic.saver.plan import RetentionPlan
from postpanic.saver.targets.retention import OldDump, delete_old_dumps, parse_dump_name, select_for_deletion

NEW = "host-20260105-120000"


def make_dump(root: Path, name: str, *, size: int = 4096, files: tuple[str, ...] = ("vmcore",)) -> Path:
    directory = root / name
    directory.mkdir()
    for file in files:
        (directory / file).write_bytes(b"x" * size)
    return directory


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("host-20260131-235959", ("host", "20260131-235959", 0)),
        ("web-7.example-20260131-235959-12", ("web-7.example", "20260131-235959", 12)),
        ("host-20260131", None),
        ("host-20260131-2359590", None),
        ("20260131-235959", None),
        ("host-20260131-235959-", None),
        ("host-20260131-235959-1234", None),
        ("host-20260131-235959\n", None),
        ("host-\uff12\uff10\uff12\uff1660131-235959", None),
    ],
)
def test_names(name: str, parts: tuple[str, str, int] | None) -> None:
    assert parse_dump_name(name) == parts


def test_the_oldest_go_first_and_the_new_one_never(tmp_path: Path) -> None:
    for day in (3, 1, 2, 9):
        make_dump(tmp_path, f"host-2026010{day}-000000")
    make_dump(tmp_path, f"{NEW}-1")
    make_dump(tmp_path, NEW)
    assert delete_old_dumps(tmp_path, NEW, RetentionPlan(keep_count=3)) == [
        *("host-20260101-000000", "host-20260102-000000", "host-20260103-000000")
    ]
    # A clock that was wrong: the new one is not the last.
    assert delete_old_dumps(tmp_path, NEW, RetentionPlan(keep_count=1)) == [f"{NEW}-1", "host-20260109-000000"]
    assert [path.name for path in tmp_path.iterdir()] == [NEW]
    assert delete_old_dumps(tmp_path, NEW, RetentionPlan(keep_bytes=1)) == []


def test_without_bounds_all_stay(tmp_path: Path) -> None:
    make_dump(tmp_path, "host-20260101-000000")
    make_dump(tmp_path, NEW)
    assert delete_old_dumps(tmp_path, NEW, RetentionPlan()) == []
    assert delete_old_dumps(tmp_path, "by-hand", RetentionPlan(keep_count=1)) == []


def test_only_dumps_of_this_machine_are_deleted(tmp_path: Path) -> None:
    kept = [
        make_dump(tmp_path, "other-20260101-000000"),
        make_dump(tmp_path, "host-2-20260101-000000"),
        make_dump(tmp_path, "host-20260101-00000"),
        make_dump(tmp_path, "host-20260101-000001", files=("thesis.tex",)),
        make_dump(tmp_path, "host-20260101-000002", files=()),
        make_dump(tmp_path, "backup"),
    ]
    with_directory = make_dump(tmp_path, "host-20260101-000003")
    (with_directory / "analysis").mkdir()
    with_link = make_dump(tmp_path, "host-20260101-000004")
    (with_link / "latest").symlink_to("vmcore")
    (tmp_path / "elsewhere").mkdir()
    make_dump(tmp_path / "elsewhere", "host-20260101-000005")
    (tmp_path / "host-20260101-000005").symlink_to("elsewhere/host-20260101-000005")
    (tmp_path / "host-20260101-000006").write_text("a file")
    make_dump(tmp_path, NEW)
    before = sorted(path for path in tmp_path.rglob("*"))
    assert delete_old_dumps(tmp_path, NEW, RetentionPlan(keep_count=1, keep_bytes=1, min_free_bytes=1 << 60)) == []
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("file", ["vmcore", "vmcore.flat", "vmcore.manifest.json", "vmcore-incomplete"])
def test_all_that_tells_a_dump_does(tmp_path: Path, file: str) -> None:
    make_dump(tmp_path, "host-20260101-000000", files=(file, "saver.log"))
    make_dump(tmp_path, NEW)
    assert delete_old_dumps(tmp_path, NEW, RetentionPlan(keep_count=1)) == ["host-20260101-000000"]
    assert not (tmp_path / "host-20260101-000000").exists()


def test_bytes_and_room_are_bounds_too() -> None:
    dumps = [OldDump(f"2026010{day}-000000", 0, f"host-2026010{day}-000000", 100) for day in range(1, 6)]
    new = dumps[-1].name

    def chosen(plan: RetentionPlan, free: int = 1000) -> int:
        return len(select_for_deletion(dumps, new, plan, free))

    assert chosen(RetentionPlan(keep_bytes=500)) == 0
    assert chosen(RetentionPlan(keep_bytes=499)) == 1
    assert chosen(RetentionPlan(keep_bytes=250)) == 3
    assert chosen(RetentionPlan(keep_bytes=1)) == 4
    assert chosen(RetentionPlan(min_free_bytes=1000)) == 0
    assert chosen(RetentionPlan(min_free_bytes=1150)) == 2
    assert chosen(RetentionPlan(min_free_bytes=1 << 60)) == 4
    assert chosen(RetentionPlan(keep_count=4, keep_bytes=250)) == 3


def test_what_is_left_of_a_deletion_that_was_cut_goes_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    names = ("vmcore", "vmcore.manifest.json", "vmcore-dmesg.txt", "saver.log")
    real = os.unlink
    for steps in range(len(names) + 1):
        root = tmp_path / str(steps)
        root.mkdir()
        make_dump(root, "host-20260101-000000", files=names)
        make_dump(root, NEW)
        left = [steps]

        def cut(path: str, *, dir_fd: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(5, "the power is gone")
            real(path, dir_fd=dir_fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", cut)
            delete_old_dumps(root, NEW, RetentionPlan(keep_count=1))
        delete_old_dumps(root, NEW, RetentionPlan(keep_count=1))
        assert [path.name for path in root.iterdir()] == [NEW]
