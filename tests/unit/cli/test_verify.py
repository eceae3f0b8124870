"""``postpanic verify`` on files built from the specification, with manifests of our own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from postpanic.dumps.digest import digest_file
from postpanic.pages.manifest import Manifest, OutputFile, OutputRecord, PageRecord, manifest_path, write_manifest
from tests.builders.kdump import INCOMPLETE, ZLIB, KdumpImage, KdumpSpec, build_kdump
from tests.unit.cli.conftest import Outcome
from tests.unit.cli.test_bad_input import MAKERS
from tests.unit.pages import whole_kernel as k
from tests.unit.pages.test_manifest import make_manifest
from tests.unit.pages.whole_kernel import WholeKernel, build_whole_kernel

CHUNK = 4096
RunCli = Callable[..., Outcome]


@pytest.fixture(name="kernel", scope="module")
def _kernel() -> WholeKernel:
    return build_whole_kernel()


def _build(kernel: WholeKernel, *, lacking: tuple[int, ...] = (), **spec: object) -> KdumpImage:
    gone = {kernel.frame_of(vaddr) for vaddr in lacking}
    pages = {frame: bytes(page) for frame, page in kernel.dump.pages.items() if frame not in gone}
    description = kernel.dump.description
    fields: dict[str, object] = {
        "pages": pages,
        "ram": kernel.dump.pages,
        "compression": ZLIB,
        "vmcoreinfo": description.vmcoreinfo,
        "notes": description.notes,
        "utsname": {"machine": "x86_64"},
    }
    return build_kdump(KdumpSpec(**(fields | spec)))  # type: ignore[arg-type]


@dataclasses.dataclass
class Written:
    """A dump on disk with its manifest."""

    path: Path
    image: KdumpImage
    manifest: Manifest

    def change(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as stream:
            stream.seek(offset)
            stream.write(data)

    def save(self, **changes: object) -> None:
        write_manifest(manifest_path(self.path), dataclasses.replace(self.manifest, **changes))  # type: ignore[arg-type]


@pytest.fixture(name="written")
def _written(kernel: WholeKernel, tmp_path: Path) -> Written:
    path = tmp_path / "dump"
    image = _build(kernel)
    path.write_bytes(image.raw)
    written = Written(path, image, _describe([path], len(image.descriptors)))
    written.save()
    return written


def _describe(paths: list[Path], pages: int) -> Manifest:
    files = tuple(OutputFile(path.name, digest_file(path, chunk_size_bytes=CHUNK)) for path in paths)
    return make_manifest(
        output=OutputRecord("kdump-compressed v6", "zlib", files),
        pages=PageRecord(4096, {"kernel": pages}, pages, 1),
        incomplete=(),
        redactions=(),
        self_test=None,
    )


def _rows(outcome: Outcome, key: str) -> list[str]:
    return [line.partition(":")[2].strip() for line in outcome.out.splitlines() if line.startswith(f"{key}:")]


@pytest.mark.parametrize("options", [[], ["--deep"]])
def test_good_dump_is_good(run_cli: RunCli, written: Written, options: list[str]) -> None:
    outcome = run_cli("verify", *options, written.path)
    assert (outcome.status, outcome.err) == (0, "")
    assert _rows(outcome, "manifest") == [f"{written.path}.manifest.json"]
    assert _rows(outcome, "written") == ["2026-01-31 23:59:59 UTC by postpanic 1.2.3"]
    assert _rows(outcome, "SHA-256") == ["ok, as in the manifest"]
    assert _rows(outcome, "structure") == ["ok, complete"]
    assert _rows(outcome, "read") == ([f"{len(written.image.descriptors):,} pages"] if options else [])
    for item in k.ITEMS:
        assert _rows(outcome, item)[0].startswith("ok, ")
    assert _rows(outcome, "verdict") == ["good"]


def test_dump_without_manifest_says_so_and_checks_the_rest(run_cli: RunCli, written: Written) -> None:
    manifest_path(written.path).unlink()
    outcome = run_cli("verify", written.path)
    assert outcome.status == 0
    assert _rows(outcome, "manifest") == ["(none: sizes and SHA-256 cannot be compared)"]
    assert _rows(outcome, "tasks")[0].startswith("ok, 3 tasks")


def test_blocks_that_changed_are_named(run_cli: RunCli, written: Written) -> None:
    size = written.path.stat().st_size
    assert size > 5 * CHUNK
    for chunk in (1, 3, 4):
        written.change(chunk * CHUNK + 77, b"\xff\x00\xff")
    outcome = run_cli("verify", written.path)
    assert outcome.status == 2
    count = -(-size // CHUNK)
    wrong = (
        f"3 of {count} blocks are not as they were written: 1, 3-4; the first is block 1, 4.0 KiB from {CHUNK:#x} on"
    )
    assert _rows(outcome, "SHA-256") == [f"FAILED: {wrong}"]
    assert _rows(outcome, "verdict") == ["bad file"]
    assert outcome.err.startswith(f"error[corrupt]: {written.path}: {wrong}")


def test_one_block_that_changed_is_named(run_cli: RunCli, written: Written) -> None:
    written.change(2 * CHUNK, b"\xff")
    fault = f"block 2, 4.0 KiB from {2 * CHUNK:#x} on, is not as it was written"
    assert fault in run_cli("verify", written.path).err


def test_digest_of_all_that_is_not_that_of_the_chunks_is_a_contradiction(run_cli: RunCli, written: Written) -> None:
    (file,) = written.manifest.output.files
    digest = dataclasses.replace(file.digest, sha256="0" * 64)
    written.save(output=dataclasses.replace(written.manifest.output, files=(OutputFile(file.name, digest),)))
    outcome = run_cli("verify", written.path)
    assert "the manifest contradicts itself" in outcome.err
    assert outcome.status == 2


def test_manifest_without_digests_still_has_the_size(run_cli: RunCli, written: Written) -> None:
    (file,) = written.manifest.output.files
    digest = dataclasses.replace(file.digest, sha256="", sha256_chunks=())
    written.save(output=dataclasses.replace(written.manifest.output, files=(OutputFile(file.name, digest),)))
    outcome = run_cli("verify", written.path)
    assert outcome.status == 0
    assert _rows(outcome, "SHA-256") == ["(none in the manifest)"]
    with written.path.open("ab") as stream:
        stream.write(b"more")
    assert "bytes, the manifest says" in run_cli("verify", written.path).err


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_dump_that_was_cut_is_at_fault_with_and_without_manifest(
    run_cli: RunCli, written: Written, share: float
) -> None:
    size = written.path.stat().st_size
    with written.path.open("r+b") as stream:
        stream.truncate(int(size * share))
    outcome = run_cli("verify", written.path)
    assert outcome.status == 2
    assert _rows(outcome, "size") == [f"FAILED: {int(size * share):,} bytes, the manifest says {size:,}"]
    manifest_path(written.path).unlink()
    assert run_cli("verify", written.path).status == 2


def test_dump_whose_headers_are_gone_still_has_its_files_checked(run_cli: RunCli, written: Written) -> None:
    written.change(0, b"GARBAGE!")
    outcome = run_cli("verify", written.path)
    assert outcome.status == 2
    assert "block 0" in _rows(outcome, "SHA-256")[0]
    assert _rows(outcome, "structure")[0].startswith("FAILED: ")
    assert json.loads(run_cli("verify", "--json", written.path).out)["structure"] is None


def test_dump_marked_incomplete_is_at_fault(run_cli: RunCli, kernel: WholeKernel, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(_build(kernel, status=ZLIB | INCOMPLETE).raw)
    outcome = run_cli("verify", path)
    assert outcome.status == 2
    assert _rows(outcome, "structure") == ["FAILED: marked incomplete by its writer"]


def test_dump_whose_manifest_says_incomplete_is_at_fault(run_cli: RunCli, written: Written) -> None:
    written.save(incomplete=("no space left on device",))
    outcome = run_cli("verify", written.path)
    assert outcome.status == 2
    assert _rows(outcome, "structure") == ["FAILED: no space left on device"]


def test_descriptor_that_points_nowhere_is_counted(run_cli: RunCli, kernel: WholeKernel, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(_build(kernel, unwritten=[kernel.frame_of(k.OTHER_STACK)]).raw)
    outcome = run_cli("verify", path)
    assert outcome.status == 2
    frame = kernel.frame_of(k.OTHER_STACK)
    assert f"FAILED: 1 pages cannot be read, the first is frame {frame:#x}" in _rows(outcome, "structure")


def test_page_that_does_not_decompress_is_found_by_deep_alone(run_cli: RunCli, written: Written) -> None:
    manifest_path(written.path).unlink()
    frame = build_whole_kernel().frame_of(k.OTHER_STACK)
    row = written.image.descriptors[frame]
    offset = int.from_bytes(written.image.raw[row : row + 8], "little")
    written.change(offset, b"\xff\xff")
    assert run_cli("verify", written.path).status == 0
    outcome = run_cli("verify", "--deep", written.path)
    assert outcome.status == 2
    assert _rows(outcome, "structure") == [f"FAILED: 1 pages cannot be read, the first is frame {frame:#x}"]
    report = json.loads(run_cli("verify", "--json", "--deep", written.path).out)
    assert report["structure"]["lost_ranges"] == [[frame, frame + 1]]


def test_pages_that_the_manifest_knows_to_be_lost_are_not_counted_again(
    run_cli: RunCli, kernel: WholeKernel, tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    frame = kernel.frame_of(k.OTHER_STACK)
    image = _build(kernel, unwritten=[frame])
    path.write_bytes(image.raw)
    manifest = _describe([path], len(image.descriptors))
    pages = dataclasses.replace(manifest.pages, lost=1, lost_ranges=((frame, frame + 1),))
    reasons = ("1 pages could not be read",)
    write_manifest(manifest_path(path), dataclasses.replace(manifest, pages=pages, incomplete=reasons))
    outcome = run_cli("verify", path)
    assert outcome.status == 2
    assert _rows(outcome, "lost") == ["1 pages could not be read when it was written"]
    assert "FAILED: 1 pages could not be read" in _rows(outcome, "structure")
    assert not any("cannot be read, the first" in row for row in _rows(outcome, "structure"))


def test_dump_with_other_pages_than_its_manifest_says_is_at_fault(run_cli: RunCli, written: Written) -> None:
    pages = len(written.image.descriptors)
    written.save(pages=PageRecord(4096, {}, pages + 5, 0))
    outcome = run_cli("verify", written.path)
    assert f"the file has {pages:,} pages, the manifest says {pages + 5:,}" in outcome.err
    assert outcome.status == 2


def test_sound_file_that_no_debugger_can_use_is_status_3(run_cli: RunCli, kernel: WholeKernel, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(_build(kernel, lacking=(k.TASK, k.STACK + 0x3000)).raw)
    outcome = run_cli("verify", path)
    assert outcome.status == 3
    assert _rows(outcome, "structure") == ["ok, complete"]
    assert _rows(outcome, "crashing task")[0].startswith("FAILED: ")
    assert _rows(outcome, "verdict") == ["not usable"]
    assert outcome.err.startswith(f"error[absent]: {path}: crashing task: ")


def test_file_that_is_at_fault_comes_before_what_is_not_in_it(
    run_cli: RunCli, kernel: WholeKernel, tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(_build(kernel, lacking=(k.TASK,), status=ZLIB | INCOMPLETE).raw)
    assert run_cli("verify", path).status == 2


def test_json_says_the_same(run_cli: RunCli, written: Written) -> None:
    report = json.loads(run_cli("verify", "--json", written.path).out)
    assert report["verdict"] == "good"
    assert report["faults"] == []
    assert report["files"][0]["hashed"] is True
    assert report["structure"]["pages"]["present"] == len(written.image.descriptors)
    assert [result["outcome"] for result in report["self_test"]["results"]] == ["ok"] * len(k.ITEMS)
    written.change(2 * CHUNK, b"\xff")
    broken = run_cli("verify", "--json", written.path)
    assert broken.status == 2
    report = json.loads(broken.out)
    assert report["verdict"] == "bad file"
    assert report["files"][0]["bad_chunks"] == [2]
    assert report["faults"] == [f"{written.path}: {report['files'][0]['faults'][0]}"]


def test_dump_may_be_renamed_with_its_manifest(run_cli: RunCli, written: Written, tmp_path: Path) -> None:
    new = tmp_path / "new name"
    manifest_path(written.path).rename(manifest_path(new))
    written.path.rename(new)
    assert run_cli("verify", new).status == 0


def test_manifest_may_lie_elsewhere(run_cli: RunCli, written: Written, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = manifest_path(written.path).rename(tmp_path / "elsewhere" / "m")
    outcome = run_cli("verify", "--manifest", moved, written.path)
    assert _rows(outcome, "SHA-256") == ["ok, as in the manifest"]
    assert run_cli("verify", "--manifest", tmp_path / "none", written.path).status == 2


@pytest.fixture(name="parts")
def _parts(kernel: WholeKernel, tmp_path: Path) -> list[Path]:
    frames = sorted(kernel.dump.pages)
    middle, end = frames[len(frames) // 2], frames[-1] + 1
    paths = [tmp_path / "part1", tmp_path / "part2"]
    for path, split in zip(paths, ((0, middle), (middle, end)), strict=True):
        path.write_bytes(_build(kernel, split=split, max_mapnr=end).raw)
    write_manifest(manifest_path(paths[0]), _describe(paths, len(frames)))
    return paths


def test_first_part_of_a_set_is_enough(run_cli: RunCli, parts: list[Path]) -> None:
    outcome = run_cli("verify", parts[0])
    assert (outcome.status, outcome.err) == (0, "")
    assert _rows(outcome, "SHA-256") == ["ok, as in the manifest"] * 2
    assert run_cli("verify", *reversed(parts)).status == 0


def test_part_that_is_missing_is_named(run_cli: RunCli, parts: list[Path]) -> None:
    parts[1].unlink()
    outcome = run_cli("verify", parts[0])
    assert outcome.status == 2
    assert _rows(outcome, "set") == [f"FAILED: {parts[1]} is missing, a part of the set"]


def test_file_that_the_manifest_does_not_name_is_named(run_cli: RunCli, parts: list[Path]) -> None:
    other = parts[1].rename(parts[1].with_name("other"))
    outcome = run_cli("verify", parts[0], other)
    assert outcome.status == 2
    assert f"FAILED: {other} is not named in the manifest" in _rows(outcome, "set")


def test_damaged_manifest_is_one_clear_error(run_cli: RunCli, written: Written) -> None:
    manifest_path(written.path).write_text('{"schema_version": 1}')
    outcome = run_cli("verify", written.path)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err == f"error[corrupt]: {written.path}.manifest.json: tool is missing\n"


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.strip("_"))
def test_what_is_no_dump_is_status_2(make: Callable[[Path], None], run_cli: RunCli, tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    make(path)
    outcome = run_cli("verify", path)
    assert outcome.status == 2
    errors = [line for line in outcome.err.splitlines() if not line.startswith("  hint: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error[")
    assert str(path) in errors[0]
