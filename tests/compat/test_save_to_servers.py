"""A whole save to servers: one read to SSH and HTTP at once, with connections that drop; other readers open it."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.memory import Dump
from postpanic.dumps.open import open_dump
from postpanic.dumps.sink import FileSink
from postpanic.pages.classify import select_pages
from postpanic.pages.filtering import WritePlan, write_dump
from postpanic.saver.console import Console
from postpanic.saver.plan import HttpPlan, RetentionPlan, SavePlan, SshPlan
from postpanic.saver.session import Outcome, save
from postpanic.saver.target_run import TargetState
from postpanic.saver.targets.opening import make_target
from tests.builders.elfcore import EM_X86_64, Segment, build_elf_core
from tests.compat.http_store import HttpServer, drop_now_and_then
from tests.compat.ssh_server import SshServer, find_missing
from tests.unit.dumps.pages import make_noise, make_page

pytestmark = [pytest.mark.compat, pytest.mark.skipif(bool(find_missing()), reason=find_missing())]
FRAMES = 8000


@pytest.fixture(scope="module")
def source_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "vmcore"
    pages = [make_noise(pfn) if pfn % 3 == 0 else make_page(pfn) for pfn in range(FRAMES)]
    path.write_bytes(build_elf_core([Segment(0, b"".join(pages))], machine=EM_X86_64).raw)
    return path


@pytest.fixture
def source(source_path: Path) -> Iterator[Dump]:
    with open_dump(source_path) as dump:
        yield dump


@pytest.fixture(scope="module")
def expected(source_path: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("expected") / "vmcore"
    with open_dump(source_path) as dump:
        sink = FileSink(path, overwrite=True, synced=False)
        write_dump(dump, None, select_pages(dump, None, 31), [sink], WritePlan(compression=Compression.ZSTD))
    return path.read_bytes()


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[SshServer]:
    server = SshServer(tmp_path)
    server.prepare()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def http() -> Iterator[HttpServer]:
    server = HttpServer()
    server.start()
    yield server
    server.stop()


def run(dump: Dump, *targets: SshPlan | HttpPlan, fallbacks: tuple[SshPlan | HttpPlan, ...] = ()) -> Outcome:
    plan = SavePlan(node="n", targets=targets, fallbacks=fallbacks)
    return save(plan, dump, Console(), make_target)


def read_dump(directory: Path) -> bytes:
    (dump,) = directory.iterdir()
    manifest = json.loads((dump / "vmcore.manifest.json").read_text())
    assert manifest["complete"] is True
    assert (dump / "saver.log").exists()
    assert not (dump / "vmcore-incomplete").exists()
    return (dump / "vmcore").read_bytes()


def make_plans(ssh: SshServer, http: HttpServer) -> tuple[SshPlan, HttpPlan]:
    plan = HttpPlan(name="http", url=f"{http.url}/{{name}}/{{file}}", part_bytes=1 << 20, timeout_s=10.0)
    return replace(ssh.plan, retention=RetentionPlan(keep_count=3)), plan


def test_one_read_to_two_servers(
    source: Dump, expected: bytes, ssh: SshServer, http: HttpServer, tmp_path: Path
) -> None:
    http.store.drop_after = drop_now_and_then(7, 0.3, 1 << 20)
    outcome = run(source, *make_plans(ssh, http))
    assert [target.state for target in outcome.targets] == [TargetState.COMPLETE] * 2, outcome
    assert read_dump(ssh.dumps) == expected
    names = sorted(path for path in http.store.objects if path.rpartition(".")[2].isdigit())
    stream = tmp_path / "stream"
    stream.write_bytes(b"".join(http.store.objects[name] for name in names))
    with open_dump(stream) as dump, open_dump(tmp_path / "stream") as _:
        assert dump.description.page_size_bytes == 4096
    (manifest,) = [json.loads(http.store.objects[path]) for path in http.store.objects if "manifest" in path]
    assert manifest["complete"] is True
    assert [file["name"] for file in manifest["output"]["files"]] == ["vmcore.flat"]
    assert f"{Path(names[0]).name} to {Path(names[-1]).name}" in manifest["notes"][-1]
    chunks = b"".join(
        hashlib.sha256(stream.read_bytes()[at : at + (64 << 20)]).digest()
        for at in range(0, stream.stat().st_size, 64 << 20)
    )
    assert hashlib.sha256(chunks).hexdigest() in json.dumps(manifest)


def test_server_that_dies_and_comes_back(source: Dump, expected: bytes, ssh: SshServer, http: HttpServer) -> None:
    plan = replace(make_plans(ssh, http)[0], timeout_s=10.0)

    killed: list[bool] = []

    def restart() -> None:
        deadline = time.monotonic() + 30
        while not any(ssh.dumps.glob("*/vmcore-incomplete")) and time.monotonic() < deadline:
            time.sleep(0.001)
        ssh.kill()
        killed.append(any(ssh.dumps.glob("*/vmcore-incomplete")))
        time.sleep(0.5)
        ssh.start()

    thread = threading.Thread(target=restart)
    thread.start()
    outcome = run(source, plan)
    thread.join()
    assert killed == [True]
    assert outcome.is_complete, outcome
    assert read_dump(ssh.dumps) == expected


def test_dead_server_costs_the_other_nothing(source: Dump, expected: bytes, ssh: SshServer, http: HttpServer) -> None:
    dead = HttpPlan(name="dead", url="http://127.0.0.1:1/{name}/{file}", timeout_s=2.0, attempts=2)
    outcome = run(source, dead, ssh.plan, fallbacks=(make_plans(ssh, http)[1],))
    assert [target.state for target in outcome.targets] == [TargetState.FAILED, TargetState.COMPLETE]
    assert "connection refused" in outcome.targets[0].error
    assert read_dump(ssh.dumps) == expected
    assert not http.store.objects


def test_whole_stream_with_its_length(source: Dump, http: HttpServer, ssh: SshServer, tmp_path: Path) -> None:
    http.store.takes_chunks = False
    plan = replace(make_plans(ssh, http)[1], mode="whole")
    outcome = run(source, plan)
    assert outcome.is_complete, outcome
    (stream,) = [content for path, content in http.store.objects.items() if path.endswith(".flat")]
    (tmp_path / "stream").write_bytes(stream)
    with open_dump(tmp_path / "stream") as dump:
        assert dump.description.page_size_bytes == 4096
