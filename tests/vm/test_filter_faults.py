"""What can go wrong while a real dump is filtered: full disks, cut pipes, signals, damaged memory."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.memory import PageState
from postpanic.dumps.open import open_dump
from postpanic.errors import PostpanicError
from postpanic.kernel.memory import open_kernel_memory
from postpanic.pages.mem_map import find_mem_map
from postpanic.process import find_program, run
from tests.vm.lab import Crash

PAGE = 4096
PT_LOAD = 1
TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def raw(crashed: Callable[..., Crash]) -> Path:
    return crashed("6.1").raw


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Filter with nothing going wrong."""
    path = tmp_path_factory.mktemp("whole") / "dump"
    assert run_filter("-d", "31", raw, path).returncode == 0
    return path


@pytest.fixture
def damaged(raw: Path, tmp_path: Path) -> Iterator[Path]:
    """Copy the raw dump, to be spoilt."""
    path = tmp_path / "vmcore"
    run([find_program("cp"), "--sparse=always", raw, path])
    yield path
    path.unlink()


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "postpanic", *map(str, words)]


def run_filter(*words: str | Path, limit_bytes: int = 0) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(
        command("filter", *words), capture_output=True, text=True, timeout=TIMEOUT_S, check=False, preexec_fn=limit
    )


def present_frames(path: Path) -> set[int]:
    with open_dump(path) as dump:
        frames: set[int] = set()
        for start, end in dump.ram_ranges.tolist():
            pfns = np.arange(start // PAGE, end // PAGE, dtype=np.uint64)
            frames.update(pfns[dump.page_states(pfns) == PageState.PRESENT].tolist())
        return frames


def check_contents(path: Path, raw: Path, frames: set[int]) -> None:
    """Compare some pages of a dump with the raw one."""
    chosen = np.array(sorted(random.Random(1).sample(sorted(frames), min(len(frames), 500))), dtype=np.uint64)
    with open_dump(path) as dump, open_dump(raw) as source:
        pages, states = dump.read_pages(chosen)
        assert not states.any()
        assert np.array_equal(pages, source.read_pages(chosen)[0])


def check_incomplete(path: Path, raw: Path, whole: Path, *, mark: str = "marked incomplete") -> set[int]:
    """Check that a dump that was cut opens, says so, and holds nothing wrong."""
    with open_dump(path) as dump:
        assert mark in dump.description.incomplete
        assert open_kernel_memory(dump).vmcoreinfo.osrelease
    frames = present_frames(path)
    assert frames < present_frames(whole)
    check_contents(path, raw, frames)
    return frames


def has_kernel_text(path: Path) -> bool:
    with open_dump(path) as dump:
        kernel = open_kernel_memory(dump)
        stext = kernel.vmcoreinfo.symbol("_stext")
        try:
            kernel.read(stext, 4 * PAGE)
        except PostpanicError:
            return False
        return True


def one_error(finished: subprocess.CompletedProcess[str], code: str) -> str:
    lines = finished.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error[")]
    assert len(errors) == 1, finished.stderr
    assert errors[0].startswith(f"error[{code}]")
    assert "Traceback" not in finished.stderr
    return errors[0]


@pytest.mark.parametrize("tenth", range(1, 10))
def test_no_room_leaves_the_best_pages(raw: Path, whole: Path, tmp_path: Path, tenth: int) -> None:
    limit = whole.stat().st_size * tenth // 10
    out = tmp_path / "dump"
    finished = run_filter("-d", "31", raw, out, limit_bytes=limit)
    assert finished.returncode == 1
    assert "are missing" in one_error(finished, "no-space")
    assert out.stat().st_size <= limit
    frames = check_incomplete(out, raw, whole)
    written = int(finished.stderr.split("; ")[1].split(" of ")[0])
    # Of the batch that did not fit some pages may be there.
    assert len(frames) >= written
    # The image comes first: from a point on it is always there.
    if tenth >= 5:
        assert has_kernel_text(out)
    manifest = json.loads((tmp_path / "dump.manifest.json").read_text())
    assert manifest["complete"] is False
    assert manifest["incomplete"]


@pytest.mark.parametrize("form", ["-E", "-F"])
def test_no_room_in_other_formats(raw: Path, tmp_path: Path, form: str) -> None:
    full = tmp_path / "full"
    assert run_filter("-d", "31", form, raw, full).returncode == 0
    out = tmp_path / "dump"
    finished = run_filter("-d", "31", form, raw, out, limit_bytes=full.stat().st_size * 6 // 10)
    assert finished.returncode == 1
    one_error(finished, "no-space")
    check_incomplete(out, raw, full)


def test_the_next_level_is_taken_when_the_first_does_not_fit(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "dump"
    finished = run_filter("-d", "0,31", "-L", "60M", raw, out)
    assert finished.returncode == 0
    assert "level 0 does not fit" in finished.stderr
    with open_dump(out) as dump:
        assert dump.description.dump_level == 31
        assert not dump.description.incomplete


def test_a_pipe_that_closes(raw: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "cut.flat"
    words = command("filter", "-d", "31", "-F", raw)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        out.write_bytes(writer.stdout.read(whole.stat().st_size * 7 // 10))
        writer.stdout.close()
        messages = writer.stderr.read().decode()
        assert writer.wait(TIMEOUT_S) == 141
    assert "error[output-gone]" in messages
    assert "Traceback" not in messages
    # crash believes the first header of a stream, so that one has the mark in another form.
    frames = check_incomplete(out, raw, whole, mark="the file ends before its pages do")
    assert frames
    assert has_kernel_text(out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_in_the_middle(raw: Path, tmp_path: Path, number: signal.Signals) -> None:
    full = tmp_path / "full"
    assert run_filter("-d", "0", raw, full).returncode == 0
    out = tmp_path / "dump"
    # The slowest codec there is leaves time.
    words = command("filter", "-d", "0", "-c", "--compression-level", "9", "--num-threads", "1", raw, out)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + TIMEOUT_S
    while not out.exists() or out.stat().st_size < 20 << 20:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it was done before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(number)
    _, messages = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in messages
    if number != signal.SIGKILL:
        assert f"interrupted by {number.name}" in messages
    check_incomplete(out, raw, full)
    assert has_kernel_text(out)


def test_a_truncated_source(damaged: Path, tmp_path: Path) -> None:
    os.truncate(damaged, damaged.stat().st_size * 6 // 10)
    out = tmp_path / "dump"
    finished = run_filter("-d", "31", damaged, out)
    assert finished.returncode in {2, 3}
    assert "Traceback" not in finished.stderr
    assert "could not be read" in finished.stderr
    with open_dump(out) as dump:
        assert "incomplete" in dump.description.incomplete
    check_contents(out, damaged, present_frames(out))
    manifest = json.loads((tmp_path / "dump.manifest.json").read_text())
    assert manifest["complete"] is False
    assert manifest["pages"]["lost"] > 0
    assert manifest["pages"]["lost_ranges"]


def file_offset(path: Path, paddr: int) -> int:
    """Find a physical address in an ELF file; by the specification, not by our code."""
    with path.open("rb") as stream:
        header = stream.read(64)
        offset, count = struct.unpack_from("<Q", header, 32)[0], struct.unpack_from("<H", header, 56)[0]
        stream.seek(offset)
        for _ in range(count):
            kind, _, place, _, start, size, _, _ = struct.unpack("<IIQQQQQQ", stream.read(56))
            if kind == PT_LOAD and start <= paddr < start + size:
                return int(place + paddr - start)
    raise AssertionError(f"{paddr:#x} is not in the dump")


def spoil(path: Path, vaddrs: list[int], data: Callable[[], bytes]) -> None:
    """Overwrite kernel memory in a raw dump."""
    with open_dump(path) as dump:
        kernel = open_kernel_memory(dump)
        places = [file_offset(path, kernel.tables.translate(vaddr)) for vaddr in vaddrs]  # type: ignore[arg-type]
    with path.open("r+b") as stream:
        for place in places:
            stream.seek(place)
            stream.write(data())


def test_corrupt_struct_pages(raw: Path, damaged: Path, tmp_path: Path) -> None:
    noise = random.Random(7)
    with open_dump(damaged) as dump:
        info = open_kernel_memory(dump).vmcoreinfo
        array = _find_struct_pages(damaged)
        size = info.size("page")
    # Whole pages of the array, of noise and of what means something else where it stands.
    fillings = [
        lambda: noise.randbytes(PAGE),
        lambda: b"\xff" * PAGE,
        lambda: struct.pack("<Q", 1 << 16) * (PAGE // 8),
        lambda: bytes(48) + struct.pack("<i", -129) * ((PAGE - 48) // 4),
    ]
    for number, filling in enumerate(fillings):
        spoil(damaged, [array + (40 * number + step) * PAGE for step in range(0, 40, 2)], filling)
    out = tmp_path / "dump"
    finished = run_filter("-d", "31", damaged, out)
    assert "Traceback" not in finished.stderr
    assert finished.returncode in {0, 3}, finished.stderr
    frames = present_frames(out)
    # What the sound part of the array says is not touched by the rest.
    untouched_from = 4 * 40 * PAGE // size + (1 << 10)
    good = {pfn for pfn in present_frames_of_filter(raw, tmp_path) if pfn >= untouched_from}
    assert {pfn for pfn in frames if pfn >= untouched_from} >= good
    check_contents(out, damaged, frames)


def present_frames_of_filter(raw: Path, tmp_path: Path) -> set[int]:
    out = tmp_path / "sound"
    assert run_filter("-d", "31", raw, out).returncode == 0
    return present_frames(out)


def _find_struct_pages(path: Path) -> int:
    """Find where the struct page of frame 0 is."""
    with open_dump(path) as dump:
        kernel = open_kernel_memory(dump)
        mem_map = find_mem_map(kernel, kernel.vmcoreinfo.size("page"), 1 << 15)
        return next(int(vaddr) for _, _, vaddr in mem_map.extents(0, 1 << 15))


@pytest.mark.parametrize("seed", range(4))
def test_garbage_in_mem_section(damaged: Path, tmp_path: Path, seed: int) -> None:
    noise = random.Random(seed)
    with open_dump(damaged) as dump:
        kernel = open_kernel_memory(dump)
        table = kernel.vmcoreinfo.symbol("mem_section")
        vaddrs = [int(table)] if seed % 2 else [kernel.read_u64(table)]
        if vaddrs[0] < 1 << 40:
            vaddrs = [int(table)]
    spoil(damaged, vaddrs, lambda: noise.randbytes(256) if seed < 2 else b"\xff" * 256)
    out = tmp_path / "dump"
    finished = run_filter("-d", "31", damaged, out)
    assert "Traceback" not in finished.stderr
    assert finished.returncode in {0, 3}, finished.stderr
    # What cannot be told is kept, and said.
    assert "warning: " in finished.stderr
    with open_dump(out) as dump:
        pfns = np.arange(256, 1024, dtype=np.uint64)
        assert int((dump.page_states(pfns) == PageState.PRESENT).sum()) > 0
    manifest = json.loads((tmp_path / "dump.manifest.json").read_text())
    assert manifest["notes"]


def test_the_output_is_never_the_input(damaged: Path) -> None:
    before = damaged.stat().st_size
    finished = run_filter("-f", "-d", "31", damaged, damaged)
    assert finished.returncode == 1
    one_error(finished, "output")
    assert damaged.stat().st_size == before


def test_a_real_full_disk(raw: Path, whole: Path, tmp_path: Path) -> None:
    """Use a file system of a few MiB, in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    place = tmp_path / "small"
    place.mkdir()
    keep = tmp_path / "dump"
    words = " ".join(command("filter", "-d", "31", raw, place / "dump"))
    script = (
        f"mount -t tmpfs -o size=12m none {place} || exit 99; {words}; status=$?; cp {place}/dump {keep}; exit $status"
    )
    finished = subprocess.run(
        [find_program("unshare"), "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if finished.returncode == 99 or "unshare:" in finished.stderr:
        pytest.skip(f"no file system can be mounted here: {finished.stderr.strip()}")
    assert finished.returncode == 1
    assert "no space left" in one_error(finished, "no-space")
    check_incomplete(keep, raw, whole)
