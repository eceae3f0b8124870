"""The SSH target against OpenSSH's server: what arrives, and what is said when it does not."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.digest import FileDigest, digest_file
from postpanic.dumps.sink import FileSink, Sink
from postpanic.errors import NoSpaceError, OutputError
from postpanic.saver.plan import RetentionPlan
from postpanic.saver.targets.sftp_sink import SftpSink
from postpanic.saver.targets.ssh import SshTarget
from tests.compat.ssh_server import SFTP_SERVER, SshServer, find_missing, make_key

pytestmark = [pytest.mark.compat, pytest.mark.skipif(bool(find_missing()), reason=find_missing())]
NAME = "node-20260131-235959"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    server = SshServer(tmp_path)
    server.prepare()
    yield server
    server.kill()


@pytest.fixture
def target(server: SshServer) -> Iterator[SshTarget]:
    server.start()
    target = SshTarget(server.plan)
    yield target
    target.close()


def list_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fill(sink: Sink, seed: int) -> None:
    """Write as a dump's writer does: a head, data behind a table, rows here and there, the head again."""
    rng = random.Random(seed)
    row_bytes, rows = 24, 20000
    table_at, data_at = 8192, 8192 + row_bytes * rows
    sink.reserve(data_at)
    sink.write_at(0, [b"first head", bytes(100)])
    at = data_at
    numbers = list(range(rows))
    rng.shuffle(numbers)
    for batch in range(40):
        parts = [rng.randbytes(rng.choice((1, 100, 4096, 70000))) for _ in range(8)]
        sink.write_at(at, parts)
        at += sum(len(part) for part in parts)
        some = np.array(sorted(numbers[batch * 400 : batch * 400 + 400]), dtype=np.int64)
        content = np.frombuffer(rng.randbytes(400 * row_bytes), dtype=np.uint8).reshape(400, row_bytes)
        sink.write_rows(table_at, some, content)
    sink.extend(at + 5000)
    sink.flush()
    sink.write_at(0, [b"last head", memoryview(rng.randbytes(50))])


def test_the_file_is_the_one_that_a_disk_gets(target: SshTarget, tmp_path: Path) -> None:
    target.open(NAME)
    sink = target.open_dump("vmcore")
    fill(sink, 1)
    local = FileSink(tmp_path / "local", overwrite=False)
    fill(local, 1)
    assert sink.finish() == local.finish()
    directory = target._plan.path + "/" + NAME
    assert list_names(Path(directory)) == ["vmcore-incomplete"]
    target.commit()
    path = Path(directory, "vmcore")
    assert path.read_bytes() == (tmp_path / "local").read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert Path(directory).stat().st_mode & 0o777 == 0o700
    assert target.dump_files == ("vmcore",)
    assert target.place.endswith(f"@127.0.0.1:{directory}")


def test_long_file_is_hashed_while_it_is_sent(target: SshTarget) -> None:
    target.open(NAME)
    sink = target.open_dump("vmcore")
    block = random.Random(2).randbytes(1 << 20)
    for number in range(150):
        sink.write_at(number << 20, [block])
    sink.write_at(10, [b"changed"])
    digest = sink.finish()
    assert len(digest.sha256_chunks) == 3
    assert digest == digest_file(Path(target._plan.path, NAME, "vmcore-incomplete"))


def test_what_cannot_be_read_back_in_time_is_left_unhashed(server: SshServer) -> None:
    server.start()
    target = SshTarget(server.plan)
    target.open(NAME)
    sink = SftpSink(target._get_client(), f"{server.dumps}/slow", refuse=lambda error: error, read_back_s=0.0)
    sink.write_at(100, [b"behind"])
    sink.write_at(0, [b"before"])
    assert sink.finish() == FileDigest(106)
    assert (server.dumps / "slow").read_bytes() == b"before" + bytes(94) + b"behind"
    target.close()


def test_small_files_replace_each_other(target: SshTarget) -> None:
    target.open(NAME)
    target.put("vmcore-dmesg.txt", b"one")
    target.put("vmcore-dmesg.txt", b"two and more")
    target.put("empty", b"")
    directory = Path(target._plan.path, NAME)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        "vmcore-dmesg.txt": b"two and more",
        "empty": b"",
    }


def test_second_dump_of_a_name_gets_a_number(target: SshTarget, server: SshServer) -> None:
    (server.dumps / NAME).mkdir()
    target.open(NAME)
    target.put("saver.log", b"x")
    target.close()
    # After a failure the same place is used again.
    target.open(NAME)
    target.put("saver.log", b"y")
    assert list_names(server.dumps) == [NAME, f"{NAME}-1"]
    assert (server.dumps / f"{NAME}-1" / "saver.log").read_bytes() == b"y"


def test_directories_are_made(server: SshServer) -> None:
    server.start()
    target = SshTarget(replace(server.plan, path=f"{server.dumps}/a/b/c/"))
    target.open(NAME)
    assert (server.dumps / "a" / "b" / "c" / NAME).is_dir()
    assert target.room_bytes() == pytest.approx(shutil.disk_usage(server.dumps).free, rel=0.1)
    target.close()


def expect_failure(target: SshTarget) -> OutputError:
    started = time.monotonic()
    with pytest.raises(OutputError) as caught:
        target.open(NAME)
    target.close()
    assert time.monotonic() - started < 15
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("ssh test: ")
    return caught.value


def test_changed_host_key_is_refused(server: SshServer, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    server.trust(tmp_path / "other.pub")
    server.start()
    error = expect_failure(SshTarget(server.plan))
    assert "host key is not the one that is known" in str(error)
    assert "known_hosts" in error.hint


def test_unknown_host_key_is_refused(server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "known_hosts").write_text("")
    server.start()
    assert "host key is not known" in str(expect_failure(SshTarget(server.plan)))


def test_refused_key(server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "authorized").write_text("")
    server.start()
    error = expect_failure(SshTarget(server.plan))
    assert "refuses the key" in str(error)
    assert "authorized_keys" in error.hint


@pytest.mark.parametrize("content", [None, "garbage\n"])
def test_unusable_key(server: SshServer, tmp_path: Path, content: str | None) -> None:
    (tmp_path / "user").unlink()
    if content is not None:
        (tmp_path / "user").write_text(content)
        (tmp_path / "user").chmod(0o600)
    server.start()
    error = expect_failure(SshTarget(server.plan))
    assert ("is not there" if content is None else "private key cannot be read") in str(error)


def test_nobody_listens(server: SshServer) -> None:
    assert "refuses connections" in str(expect_failure(SshTarget(server.plan)))


def test_address_that_does_not_answer(server: SshServer) -> None:
    # TEST-NET-1 of RFC 5737: nobody is there.
    plan = replace(server.plan, server="192.0.2.254", timeout_s=3.0)
    error = expect_failure(SshTarget(plan))
    assert "does not answer" in str(error) or "no route" in str(error)


def test_server_without_sftp(server: SshServer) -> None:
    server.subsystem = ""
    server.start()
    assert "offers no SFTP" in str(expect_failure(SshTarget(server.plan)))


def test_login_script_that_prints(server: SshServer) -> None:
    script = server.base / "talkative"
    script.write_text(f"#!/bin/sh\necho Welcome to this machine\nexec {SFTP_SERVER}\n")
    script.chmod(0o755)
    server.subsystem = str(script)
    server.start()
    error = expect_failure(SshTarget(server.plan))
    assert "Welcome to this machine" in str(error)
    assert "login script" in error.hint


def test_server_that_must_not_be_written_to(server: SshServer) -> None:
    server.subsystem = f"{SFTP_SERVER} -R"
    server.start()
    error = expect_failure(SshTarget(server.plan))
    assert "permission denied" in str(error)
    assert "must be allowed to write" in error.hint


def test_path_that_is_a_file(server: SshServer) -> None:
    server.start()
    (server.dumps / "file").write_text("")
    assert "is no directory" in str(expect_failure(SshTarget(replace(server.plan, path=f"{server.dumps}/file"))))


def test_server_that_dies_while_it_is_written_to(target: SshTarget, server: SshServer) -> None:
    target.open(NAME)
    sink = target.open_dump("vmcore")
    block = os.urandom(1 << 20)
    started = time.monotonic()

    def write() -> None:
        for number in range(1000):
            if number == 5:
                server.kill()
            sink.write_at(number << 20, [block])
        sink.flush()

    with pytest.raises(OutputError) as caught:
        write()
    assert time.monotonic() - started < 15
    assert str(caught.value).startswith("ssh test: ")
    with pytest.raises(OutputError):
        sink.flush()
    with pytest.raises(OutputError):
        target.put("saver.log", b"")
    target.close()
    # The server comes back, and the same place takes the next attempt.
    server.start()
    target.open(NAME)
    target.open_dump("vmcore").write_at(0, [b"again"])
    assert list_names(server.dumps) == [NAME]


def test_server_that_answers_no_more(server: SshServer) -> None:
    server.start()
    target = SshTarget(replace(server.plan, timeout_s=3.0))
    target.open(NAME)
    sink = target.open_dump("vmcore")
    server.freeze()
    started = time.monotonic()

    def write() -> None:
        for number in range(1000):
            sink.write_at(number << 20, [bytes(1 << 20)])

    with pytest.raises(OutputError, match=r"nothing moved|answer any more"):
        write()
    target.close()
    assert time.monotonic() - started < 12


@pytest.fixture
def small_disk(server: SshServer) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(server.dumps)], check=True)
    yield server.dumps
    subprocess.run(["/usr/bin/umount", "-l", str(server.dumps)], check=True)


def test_full_disk_of_the_server(server: SshServer, small_disk: Path) -> None:
    server.start()
    target = SshTarget(server.plan)
    target.open(NAME)
    assert target.room_bytes() == 4 << 20
    sink = target.open_dump("vmcore")
    row, data_at = 32, 1 << 16
    sink.reserve(data_at)
    sink.write_at(0, [bytes(4096)])
    written = 0

    def write() -> None:
        nonlocal written
        for number in range(2000):
            block = hashlib.sha256(str(number).encode()).digest() * 1024
            sink.write_at(data_at + number * len(block), [block])
            digest = np.frombuffer(block[:row], dtype=np.uint8).reshape(1, row)
            sink.write_rows(8192, np.array([number], dtype=np.int64), digest)
            written = number

    with pytest.raises(NoSpaceError, match=r"disk has .* left"):
        write()
    # What is there already can still be changed.
    sink.write_at(0, [b"incomplete"])
    sink.finish()
    assert small_disk.exists()
    content = (small_disk / NAME / "vmcore-incomplete").read_bytes()
    assert content.startswith(b"incomplete")
    # Whatever the table has an entry for is there.
    present = 0
    for number in range(written + 1):
        entry = content[8192 + number * row : 8192 + (number + 1) * row]
        if any(entry):
            start = data_at + number * row * 1024
            assert content[start : start + row * 1024] == entry * 1024
            present += 1
    assert present > 50
    target.close()


def test_old_dumps_go_when_the_new_one_is_safe(server: SshServer) -> None:
    server.start()
    for day in ("01", "02", "03"):
        old = server.dumps / f"node-202601{day}-120000"
        old.mkdir()
        (old / "vmcore").write_bytes(bytes(1000))
        (old / "saver.log").write_text("")
    for name in ("other-20260101-120000", "node-20260101-130000", "keep"):
        (server.dumps / name).mkdir()
    (server.dumps / "other-20260101-120000" / "vmcore").write_bytes(b"")
    (server.dumps / "node-20260101-130000" / "notes").write_text("no dump: stays")
    target = SshTarget(replace(server.plan, retention=RetentionPlan(keep_count=2)))
    target.open(NAME)
    target.open_dump("vmcore").finish()
    assert target.rotate() == []
    target.commit()
    assert target.rotate() == ["node-20260101-120000", "node-20260102-120000"]
    assert list_names(server.dumps) == [
        "keep",
        "node-20260101-130000",
        "node-20260103-120000",
        NAME,
        "other-20260101-120000",
    ]
    target.close()
