"""Dumps on a device without a file system: what comes off it, and what a power cut leaves."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.digest import digest_file
from postpanic.errors import CorruptError, FileFaultError, NoSpaceError, OutputError
from postpanic.saver.plan import RawPlan, RetentionPlan
from postpanic.saver.recovery import find_raw_dumps, recover_raw_dump, release_raw_dump
from postpanic.saver.targets.block_sink import BlockSink
from postpanic.saver.targets.raw import RawTarget
from postpanic.saver.targets.raw_table import DATA_OFFSET, TABLE_OFFSETS
from tests.unit.saver.targets.power_cut import recording

MIB = 1 << 20
LOG = b"<4>[ 1.0] Kernel panic - not syncing\n" * 50
DUMP = "host-20260131-235959"


def make_device(path: Path, *, size: int = 24 * MIB, swap: bool = True) -> Path:
    noise = random.Random(7)
    with path.open("wb") as stream:
        # A device is never empty: what is not written reads as what was there before.
        for _ in range(size // MIB):
            stream.write(noise.randbytes(MIB))
        stream.seek(0)
        stream.write(bytes(64 << 10))
    if swap:
        subprocess.run(["/usr/sbin/mkswap", "-q", "-L", "spare", path], check=True)
    return path


def save_dump(
    target: RawTarget, name: str = DUMP, *, pages: int = 300, seed: int = 1, mark: list[str] | None = None
) -> bytes:
    """Save as the saver does: the log, a dump with gaps and a table, the manifest; return the dump's bytes."""
    says = mark.append if mark is not None else lambda _: None
    noise = random.Random(seed)
    target.open(name)
    target.put("vmcore-dmesg.txt", LOG)
    says(f"{name} log")
    expected = bytearray(4096 * (pages + 20))
    sink = target.open_dump("vmcore")
    sink.reserve(16384)
    for page in noise.sample(range(4, pages), pages // 2):
        content = noise.randbytes(4096)
        sink.write_at(4096 * page, [content[:1000], content[1000:]])
        expected[4096 * page : 4096 * page + 4096] = content
    rows = np.frombuffer(noise.randbytes(24 * 3), dtype=np.uint8).reshape(3, 24)
    sink.write_rows(4096, np.array([2, 5, 9]), rows)
    for number, row in zip((2, 5, 9), rows, strict=True):
        expected[4096 + 24 * number : 4096 + 24 * number + 24] = row.tobytes()
    sink.extend(len(expected))
    sink.flush()
    sink.write_at(0, [b"HEAD"])
    expected[:4] = b"HEAD"
    digest = sink.finish()
    assert digest.size_bytes == len(expected)
    target.put("vmcore.manifest.json", b"{}")
    target.commit()
    says(f"{name} dump")
    target.put("saver.log", b"all is well\n")
    target.close()
    return bytes(expected)


def swap_plan(**words: object) -> RawPlan:
    return RawPlan(swap=True, **words)  # type: ignore[arg-type]


def blkid(path: Path) -> dict[str, str]:
    finished = subprocess.run(
        ["/usr/sbin/blkid", "-p", "-o", "export", path], capture_output=True, text=True, check=False
    )
    return dict(line.split("=", 1) for line in finished.stdout.splitlines() if "=" in line)


def test_a_dump_comes_off_as_it_went_on_and_the_swap_area_comes_back(tmp_path: Path) -> None:
    device = make_device(tmp_path / "swap")
    before = device.read_bytes()[: 64 << 10]
    known = blkid(device)
    assert known["TYPE"] == "swap"
    expected = save_dump(RawTarget(swap_plan(), path=device))
    assert blkid(device).get("TYPE") != "swap"
    (dump,) = find_raw_dumps([tmp_path / "nothing", device])
    assert dump.is_complete
    assert dump.is_swap
    assert dump.name == DUMP
    recovered = recover_raw_dump(dump, tmp_path / "crash")
    assert recovered.damaged == ()
    assert (tmp_path / "crash" / DUMP / "vmcore").read_bytes() == expected
    assert (tmp_path / "crash" / DUMP / "vmcore-dmesg.txt").read_bytes() == LOG
    assert {path.name for path in recovered.files} == {
        *("vmcore", "vmcore-dmesg.txt", "vmcore.manifest.json", "saver.log")
    }
    assert all(path.exists() for path in recovered.files)
    assert len(find_raw_dumps([device])) == 1
    release_raw_dump(dump)
    assert find_raw_dumps([device]) == []
    assert blkid(device) == known
    assert device.read_bytes()[: 64 << 10] == before
    with pytest.raises(FileFaultError, match="no dumps"):
        release_raw_dump(dump)


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    device = make_device(tmp_path / "swap")
    target = RawTarget(swap_plan(), path=device)
    target.open(DUMP)
    sink = target.open_dump("vmcore")
    sink.reserve(5000)
    for offset in (70000, 9000, 200001, 30):
        sink.write_at(offset, [b"x" * 1234])
    sink.extend(300000)
    assert isinstance(sink, BlockSink)
    assert sink.read_at(69990, 20) == bytes(10) + b"x" * 10
    digest = sink.finish()
    target.commit()
    target.close()
    (dump,) = find_raw_dumps([device])
    recovered = recover_raw_dump(dump, tmp_path / "crash")
    assert digest_file(recovered.directory / "vmcore") == digest


def test_a_device_that_was_empty_is_empty_again(tmp_path: Path) -> None:
    device = make_device(tmp_path / "raw", swap=False)
    head = device.read_bytes()[: 64 << 10]
    save_dump(RawTarget(RawPlan(), path=device))
    (dump,) = find_raw_dumps([device])
    assert not dump.is_swap
    release_raw_dump(dump)
    assert device.read_bytes()[: 64 << 10] == head


@pytest.mark.parametrize("program", [["mke2fs", "-q", "-F"], ["mkfs.vfat"], ["mkswap", "-q"]])
def test_a_device_with_something_on_it_is_left_alone(tmp_path: Path, program: list[str]) -> None:
    device = make_device(tmp_path / "raw", swap=False)
    subprocess.run([f"/usr/sbin/{program[0]}", *program[1:], device], check=True, capture_output=True)
    before = device.read_bytes()
    with pytest.raises(OutputError, match="not overwritten"):
        RawTarget(RawPlan(), path=device).open(DUMP)
    if program[0] != "mkswap":
        with pytest.raises(OutputError, match="swap area is wanted: not overwritten"):
            RawTarget(swap_plan(), path=device).open(DUMP)
    assert device.read_bytes() == before


def test_a_swap_area_is_only_taken_where_one_is_wanted(tmp_path: Path) -> None:
    empty = make_device(tmp_path / "empty", swap=False)
    with pytest.raises(OutputError, match="nothing that is known is on"):
        RawTarget(swap_plan(), path=empty).open(DUMP)
    swap = make_device(tmp_path / "swap")
    save_dump(RawTarget(swap_plan(), path=swap))
    with pytest.raises(OutputError, match="is a swap area"):
        RawTarget(RawPlan(), path=swap).open(DUMP)


def test_a_second_dump_goes_beside_the_first(tmp_path: Path) -> None:
    device = make_device(tmp_path / "swap")
    first = save_dump(RawTarget(swap_plan(), path=device), seed=1)
    second = save_dump(RawTarget(swap_plan(), path=device), seed=2)
    dumps = find_raw_dumps([device])
    assert [dump.name for dump in dumps] == [DUMP, f"{DUMP}-1"]
    for dump, expected in zip(dumps, (first, second), strict=True):
        recovered = recover_raw_dump(dump, tmp_path / "crash")
        assert (recovered.directory / "vmcore").read_bytes() == expected
    release_raw_dump(dumps[0])
    assert [dump.name for dump in find_raw_dumps([device])] == [f"{DUMP}-1"]
    release_raw_dump(dumps[1])
    assert blkid(device)["TYPE"] == "swap"


def test_a_full_device_says_so_and_keeps_what_is_on_it(tmp_path: Path) -> None:
    device = make_device(tmp_path / "swap", size=4 * MIB)
    first = save_dump(RawTarget(swap_plan(), path=device), pages=300)
    target = RawTarget(swap_plan(), path=device)
    target.open("host-20260201-000000")
    target.put("vmcore-dmesg.txt", LOG)
    sink = target.open_dump("vmcore")
    room = target.room_bytes()
    assert room is not None
    sink.write_at(0, [b"x" * (room - 1)])
    with pytest.raises(NoSpaceError, match="device is full"):
        sink.write_at(room - 1, [b"xx"])
    sink.close()
    target.put("saver.log", b"the device is full\n")
    target.close()
    dumps = find_raw_dumps([device])
    assert [dump.is_complete for dump in dumps] == [True, False]
    assert (recover_raw_dump(dumps[0], tmp_path / "a").directory / "vmcore").read_bytes() == first
    recovered = recover_raw_dump(dumps[1], tmp_path / "b")
    assert (recovered.directory / "vmcore-dmesg.txt").read_bytes() == LOG
    assert not (recovered.directory / "vmcore").exists()


def test_an_attempt_that_failed_leaves_its_room_to_the_next(tmp_path: Path) -> None:
    device = make_device(tmp_path / "swap", size=8 * MIB)
    target = RawTarget(swap_plan(), path=device)
    target.open(DUMP)
    target.put("vmcore-dmesg.txt", LOG)
    room = target.room_bytes()
    sink = target.open_dump("vmcore")
    sink.write_at(0, [b"first" * 100000])
    sink.flush()
    sink.close()
    target.close()
    save_dump(target, pages=1200)
    (dump,) = find_raw_dumps([device])
    assert dump.is_complete
    assert room is not None
    assert room > 4096 * 1220
    assert recover_raw_dump(dump, tmp_path / "crash").damaged == ()


def test_old_dumps_go_only_as_the_plan_says(tmp_path: Path) -> None:
    device = make_device(tmp_path / "swap")
    for day in range(1, 4):
        save_dump(RawTarget(swap_plan(), path=device), f"host-2026010{day}-000000")
    target = RawTarget(swap_plan(retention=RetentionPlan(keep_count=2)), path=device)
    target.open("host-20260104-000000")
    assert target.rotate() == []
    target.open_dump("vmcore").finish()
    target.commit()
    assert target.rotate() == ["host-20260101-000000", "host-20260102-000000"]
    target.close()
    assert [dump.name for dump in find_raw_dumps([device])] == ["host-20260103-000000", "host-20260104-000000"]


def test_a_file_that_was_damaged_on_the_device_is_named(tmp_path: Path) -> None:
    device = make_device(tmp_path / "swap")
    content = save_dump(RawTarget(swap_plan(), path=device))
    place = device.read_bytes().index(content[16384:20480] if any(content[16384:20480]) else content[20480:24576])
    with device.open("r+b") as stream:
        stream.seek(place + 100)
        stream.write(b"damage")
    recovered = recover_raw_dump(find_raw_dumps([device])[0], tmp_path / "crash")
    assert recovered.damaged == ("vmcore",)
    assert (recovered.directory / "vmcore-incomplete").exists()
    assert not (recovered.directory / "vmcore").exists()


@pytest.mark.parametrize("spoiled", [(0,), (1,), (0, 1)])
def test_a_damaged_table_is_told(tmp_path: Path, spoiled: tuple[int, ...]) -> None:
    device = make_device(tmp_path / "swap")
    save_dump(RawTarget(swap_plan(), path=device))
    with device.open("r+b") as stream:
        for number in spoiled:
            stream.seek(TABLE_OFFSETS[number] + 80)
            stream.write(b"\xff")
    if len(spoiled) == 1:
        assert len(find_raw_dumps([device])) == 1
        return
    with pytest.raises(CorruptError, match="table is damaged: its checksum is wrong"):
        find_raw_dumps([device])
    with pytest.raises(OutputError, match="table is damaged"):
        RawTarget(swap_plan(), path=device).open(DUMP)
    other = make_device(tmp_path / "other")
    save_dump(RawTarget(swap_plan(), path=other))
    assert [dump.device for dump in find_raw_dumps([device, other])] == [other]


def test_a_name_that_leads_elsewhere_is_no_name(tmp_path: Path) -> None:
    import hashlib
    import json
    import struct

    device = make_device(tmp_path / "swap")
    save_dump(RawTarget(swap_plan(), path=device))
    block = device.read_bytes()[TABLE_OFFSETS[0] : TABLE_OFFSETS[0] + (64 << 10)]
    magic, version, length, generation = struct.unpack_from("<16sIIQ", block)
    value = json.loads(block[64 : 64 + length])
    value["dumps"][0]["files"][0]["name"] = "../../etc/passwd"
    text = json.dumps(value).encode()
    prefix = struct.pack("<16sIIQ", magic, version, len(text), generation + 9)
    with device.open("r+b") as stream:
        for offset in TABLE_OFFSETS:
            stream.seek(offset)
            stream.write(prefix + hashlib.sha256(prefix + text).digest() + text)
    with pytest.raises(CorruptError, match="no name of a file"):
        find_raw_dumps([device])


def test_a_device_that_is_too_small_is_told(tmp_path: Path) -> None:
    device = make_device(tmp_path / "swap", size=MIB)
    with pytest.raises(NoSpaceError, match=r"has 1\.0 MiB only"):
        RawTarget(swap_plan(), path=device).open(DUMP)


@pytest.mark.parametrize("swap", [True, False])
def test_power_cuts_lose_nothing_that_was_claimed_safe(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    swap: bool,
) -> None:
    device = make_device(tmp_path / "device", size=6 * MIB, swap=swap)
    plan = RawPlan(swap=swap)
    with recording(device, monkeypatch) as record:
        first = save_dump(RawTarget(plan, path=device), "old-20260101-000000", pages=60, mark=record.steps)  # type: ignore[arg-type]
        second = save_dump(RawTarget(plan, path=device), "new-20260102-000000", pages=60, seed=2, mark=record.steps)  # type: ignore[arg-type]
        release_raw_dump(find_raw_dumps([device])[0])
        record.mark("released")
        release_raw_dump(find_raw_dumps([device])[0])
        record.mark("all released")
    assert record.steps.count("sync") > 20
    # What is copied for a look need not be on the disk.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    noise = random.Random(3)
    images = 0
    for count in range(len(record.steps) + 1):
        # Right before a sync most is at stake.
        if count < len(record.steps) and record.steps[count] != "sync" and count % 7:
            continue
        for chance in (None, *[noise] * 5):
            image = record.image_after(count, tmp_path / "cut", chance)
            check_image(image, set(record.marks_before(count)), {"old": first, "new": second}, tmp_path, swap=swap)
            images += 1
    assert images > 100


def check_image(image: Path, marks: set[str], contents: dict[str, bytes], scratch: Path, *, swap: bool) -> None:
    dumps = {dump.name.partition("-")[0]: dump for dump in find_raw_dumps([image])}
    if swap and not dumps:
        # Nothing in between: it is a swap area, or dumps are on it.
        assert blkid(image)["TYPE"] == "swap"
    if "all released" in marks:
        assert not dumps
    for name, other in (("old", "released"), ("new", "all released")):
        stamp = f"{name}-{'20260101' if name == 'old' else '20260102'}-000000"
        # From the mark before on it is being released, and may be gone.
        is_claimed = f"{stamp} dump" in marks
        may_be_gone = other in marks or ("new-20260102-000000 dump" in marks and name == "old") or "released" in marks
        if is_claimed and not may_be_gone:
            assert dumps[name].is_complete
        if f"{stamp} log" in marks and not may_be_gone:
            assert name in dumps
        if name not in dumps:
            continue
        shutil.rmtree(scratch / "out", ignore_errors=True)
        recovered = recover_raw_dump(dumps[name], scratch / "out")
        assert recovered.damaged == ()
        if f"{stamp} log" in marks:
            assert (recovered.directory / "vmcore-dmesg.txt").read_bytes() == LOG
        if dumps[name].is_complete:
            assert (recovered.directory / "vmcore").read_bytes() == contents[name]


def test_the_data_begin_where_the_document_says() -> None:
    assert DATA_OFFSET == 1 << 20
