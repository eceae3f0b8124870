"""The capture image, judged by those who have to live with it: cpio, the dynamic loader, the interpreter in it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard

from postpanic.capture.initramfs.image import BuiltImage, ImageRequest, build_image
from postpanic.capture.initramfs.libraries import find_libraries
from postpanic.errors import FactAbsentError, ProcessError
from postpanic.process import run
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.store import PackageStore
from postpanic.saver.plan import FilePlan, HttpPlan, NetworkPlan, NfsPlan, RawPlan, SavePlan, SshPlan
from tests.builders.kernel_module import make_module
from tests.vm.host_disk import resolve_packages
from tests.vm.lab import Crash, Lab
from tests.vm.python_root import fetch_python_root

EVERYTHING = SavePlan(
    targets=(FilePlan(), RawPlan(), SshPlan(), HttpPlan(), NfsPlan()), network=NetworkPlan(), node="host"
)
LOCAL = SavePlan(targets=(FilePlan(name="there"),), node="host")
ISSUE_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4", "xfs", "btrfs", "vfat", "nfsv4", "nfsv3")
SUITES = {"trixie": ("trixie", "trixie-security"), "sid": ("sid",)}
START = "#!{python} -BOOPSsXutf8\nimport postpanic_start\n"

IMPORT_ALL = """
import importlib, sys
names = [name for name in sys.meta_path[-1]._table if isinstance(name, str)]
for name in sorted(names):
    importlib.import_module(name)
print("imported", len(names), "host".encode("idna"), sys.path, len(sys.meta_path))
"""
ARRAYS = """
import json, sys, zlib
import numpy as np
values = np.arange(40, dtype=np.uint64).reshape(8, 5) % np.uint64(7)
record = np.zeros(3, dtype=[("a", "<u4"), ("b", "<u8")])
record["b"] = [3, 1, 2]
results = {
    "unique": np.unique(values).tolist(),
    "isin": np.isin(values[0], [2, 4]).tolist(),
    "diff": np.diff(values.astype(np.int64).ravel()).tolist(),
    "order": np.argsort(record, order="b").tolist(),
    "clip": np.clip(values.astype(np.int64), 2, 4).sum().item(),
    "split": [part.tolist() for part in np.split(np.arange(6), [2, 4])],
    "stack": np.column_stack([np.arange(3), np.arange(3)]).tolist(),
    "search": np.searchsorted(np.arange(10), [3, 7]).tolist(),
    "bits": np.packbits(np.unpackbits(np.frombuffer(b"abc", dtype=np.uint8))).tolist(),
    "count": np.bincount(values.ravel().astype(np.int64)).tolist(),
    "append": np.append(values[0], values[1]).tolist(),
    "delete": np.delete(np.arange(5), 2).tolist(),
    "reduce": np.bitwise_or.reduceat(values.ravel(), [0, 5]).tolist(),
    "mean": float(values.mean()),
    "text": str(values[:2]) + repr(record),
    "linspace": np.linspace(0, 1, 3).tolist(),
}
print(json.dumps(results, sort_keys=True))
"""
SAVE = """
import sys
from pathlib import Path
from postpanic.dumps.open import open_dump
from postpanic.saver.console import Console
from postpanic.saver.plan import FilePlan, SavePlan
from postpanic.saver.session import save
from postpanic.saver.targets.directory import DirectoryTarget
with open_dump(Path("/data/vmcore")) as dump:
    plan = SavePlan(targets=(FilePlan(name="there"),), node="host")
    outcome = save(plan, dump, Console(), lambda _: DirectoryTarget(Path("/out")))
print(outcome.targets[0].state.value)
"""


@functools.cache
def find_isolation() -> tuple[str, ...]:
    """Return what runs a command with another root: root's chroot, or a user namespace's."""
    unshare = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")
    usable = shutil.which("unshare") and run([*unshare, "chroot", "/", "true"], check=False).returncode == 0
    return unshare if usable else ()


class Unpacked:
    """An image that is unpacked, to run its Python in it."""

    def __init__(self, image: BuiltImage, directory: Path, busybox: str) -> None:
        assert image.compression == "none"
        run([busybox, "cpio", "-i"], stdin=image.data, cwd=directory)
        self.directory = directory
        self.python = next(path for path in image.files if path.startswith("usr/bin/python3"))

    def run(self, text: str, *, data: Path | None = None, start: str = START) -> tuple[int, str, str]:
        """Run a program as /init would be, or without *start* as a hook; *data* is seen as ``/data``."""
        first = start.format(python=f"/{self.python}") or f"#!/{self.python}\n"
        (self.directory / "probe").write_text(first + text)
        (self.directory / "probe").chmod(0o755)
        (self.directory / "data").mkdir(exist_ok=True)
        bind = f"mount --bind '{data}' '{self.directory}/data' && " if data else ""
        command = f"{bind}exec chroot '{self.directory}' /probe"
        environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"}
        finished = run([*find_isolation(), "sh", "-c", command], env=environment, check=False, timeout_s=300)
        return finished.returncode, finished.stdout.decode(), finished.stderr.decode()


@pytest.fixture(scope="module")
def modules_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kernel") / "6.1.0-none"
    (directory / "kernel").mkdir(parents=True)
    (directory / "kernel/first.ko").write_bytes(make_module())
    (directory / "kernel/second-one.ko").write_bytes(make_module(depends="first"))
    return directory


@pytest.fixture(scope="module")
def fetch_root(crash_lab: Lab) -> Callable[[str], Path]:
    """Return a function that gives a tree: the running one, Debian 12's, or a newer Python's."""

    def fetch(name: str) -> Path:
        try:
            if name == "running":
                return Path("/")
            if name == "debian":
                return fetch_python_root(crash_lab)
            store = PackageStore(crash_lab.cache_dir, "unpacked")
            return store.fetch(SUITES[name], "python3 python3-numpy python3-zstandard", resolve_packages)[1]
        except (ProcessError, FactAbsentError) as exc:
            pytest.skip(f"{name} is neither in the cache nor to be fetched: {exc}")

    return fetch


@pytest.fixture(scope="module")
def unpack(
    modules_dir: Path,
    fetch_root: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    installed: Callable[[str], str],
) -> Callable[[str], Unpacked]:
    if not find_isolation():
        pytest.skip("neither root nor user namespaces: no program can be run in the image")

    @functools.cache
    def build(root: str) -> Unpacked:
        request = ImageRequest(
            plan=EVERYTHING, modules_dir=modules_dir, root=fetch_root(root), compression="none", https=True
        )
        return Unpacked(build_image(request), tmp_path_factory.mktemp(root), installed("busybox"))

    return build


TREES = pytest.mark.parametrize(
    "root",
    [
        "running",
        "debian",
        pytest.param("trixie", marks=pytest.mark.matrix),
        pytest.param("sid", marks=pytest.mark.matrix),
    ],
)


@TREES
def test_every_module_of_the_image_can_be_imported_in_it(unpack: Callable[[str], Unpacked], root: str) -> None:
    status, output, errors = unpack(root).run(IMPORT_ALL)
    assert (status, errors) == (0, "")
    assert output.startswith("imported ")
    assert int(output.split()[1]) > 200
    # What is in the image is found by one finder, nothing by looking around.
    assert output.endswith("b'host' [] 3\n")


@TREES
def test_arrays_give_what_the_whole_numpy_gives(unpack: Callable[[str], Unpacked], root: str) -> None:
    status, output, errors = unpack(root).run(ARRAYS)
    assert (status, errors) == (0, "")
    expected = run([sys.executable, "-c", ARRAYS])
    ours, theirs = json.loads(output), json.loads(expected.stdout)
    if root == "debian" and not np.__version__.startswith("1."):
        # Before 2.0 arrays were shown in another way.
        assert "[0 1 2 3 4]" in ours["text"]
        del ours["text"], theirs["text"]
    assert ours == theirs


@TREES
def test_saver_writes_the_same_dump_as_with_all_of_python(
    unpack: Callable[[str], Unpacked], root: str, crashed: Callable[..., Crash], tmp_path: Path
) -> None:
    crash = crashed("6.1")
    image = unpack(root)
    status, output, errors = image.run(SAVE, data=crash.directory)
    assert status == 0, errors
    assert output == "saved\n"
    host = SAVE.replace("/data/vmcore", str(crash.raw)).replace("/out", str(tmp_path / "out"))
    run([sys.executable, "-c", host])
    (ours,) = (image.directory / "out").glob("*/vmcore")
    (theirs,) = (tmp_path / "out").glob("*/vmcore")
    assert ours.read_bytes() == theirs.read_bytes()
    assert ours.stat().st_size > 10 << 20


@TREES
def test_hook_in_python_finds_the_modules_of_the_image(unpack: Callable[[str], Unpacked], root: str) -> None:
    status, output, errors = unpack(root).run("import json, re, subprocess\nprint(json.dumps([1]))", start="")
    assert (status, output, errors) == (0, "[1]\n", "")


@TREES
def test_linear_algebra_is_not_there_and_says_so(unpack: Callable[[str], Unpacked], root: str) -> None:
    image = unpack(root)
    status, _, errors = image.run("import numpy as np\nnp.dot(np.ones(9), np.ones(9))\n")
    assert status in {-signal.SIGILL, 128 + signal.SIGILL}
    assert "is not in this image, and was called" in errors
    status, _, errors = image.run("import numpy as np\nnp.random\n")
    assert status == 1
    assert errors.endswith("AttributeError: numpy.random is not in this image\n")


def test_equal_requests_make_equal_images(modules_dir: Path) -> None:
    request = ImageRequest(plan=LOCAL, modules_dir=modules_dir, modules={"second_one": "debug=1"}, compression="zstd")
    image = build_image(request)
    again = f"""
from pathlib import Path
from postpanic.capture.initramfs.image import *
from postpanic.saver.plan import *
plan = SavePlan(targets=(FilePlan(name="there"),), node="host")
options = dict(modules_dir=Path({str(modules_dir)!r}), modules={{"second_one": "debug=1"}}, compression="zstd")
print(build_image(ImageRequest(plan=plan, **options)).sha256)
"""
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "LANG": "C"}
        assert run([sys.executable, "-c", again], env=environment).stdout.decode().strip() == image.sha256
    assert image.plan == replace(LOCAL, modules=("/lib/modules/first.ko", "/lib/modules/second_one.ko debug=1"))


def test_archive_is_what_cpio_says_it_is(modules_dir: Path, installed: Callable[[str], str]) -> None:
    files = {"/bin/hook": b"#!/init\n", "/etc/key": b"secret"}
    image = build_image(ImageRequest(plan=LOCAL, modules_dir=modules_dir, files=files, compression="zstd"))
    listed = run([installed("busybox"), "cpio", "-tv"], stdin=zstandard.decompress(image.data)).stdout.decode()
    lines = {line.split()[-1]: line.split() for line in listed.splitlines()}
    assert len(lines) == image.entries
    assert {name for name, words in lines.items() if words[0].startswith("-")} == set(image.files)
    assert {name: int(words[2]) for name, words in lines.items() if words[0].startswith("-")} == image.files
    assert lines["bin/hook"][0] == "-rwx------"
    assert lines["etc/key"][0] == "-rw-------"
    assert lines["etc/postpanic/plan.json"][0] == "-rw-------"
    assert {"dev/console", "dev/null", "dev/urandom"} <= set(lines)
    assert sum(image.categories.values()) == image.unpacked_bytes


def test_image_stays_small(fetch_root: Callable[[str], Path], fetch_kernel: Callable[[str], Kernel]) -> None:
    kernel = fetch_kernel("6.1")
    request = ImageRequest(
        plan=EVERYTHING,
        modules_dir=kernel.modules_dir,
        boot_dir=kernel.image.parent,
        root=fetch_root("debian"),
        modules=dict.fromkeys(ISSUE_MODULES, ""),
        compression="auto",
    )
    image = build_image(request)
    assert image.compression == "zstd"
    print(f"compressed {len(image.data):,}, unpacked {image.unpacked_bytes:,}: {dict(image.categories)}")  # noqa: T201
    assert len(image.data) < 12 * 1000 * 1000
    assert image.unpacked_bytes < 36 * 1000 * 1000
    local = build_image(replace(request, plan=LOCAL, modules=dict.fromkeys(("virtio_pci", "virtio_blk", "ext4"), "")))
    assert len(local.data) < 7 * 1000 * 1000
    assert local.unpacked_bytes < 21 * 1000 * 1000


@pytest.mark.parametrize("program", ["busybox", "gcc", "python3", "makedumpfile", "gdb", "sh"])
def test_libraries_are_those_that_the_loader_names(installed: Callable[[str], str], program: str) -> None:
    path = Path(installed(program)).resolve()
    listed = run([installed("ldd"), path], check=False).stdout.decode()
    words = [line.split() for line in listed.splitlines() if "/" in line]
    expected = {Path(next(word for word in reversed(line) if word.startswith("/"))).resolve() for line in words}
    assert {found.resolve() for found in find_libraries(path)} == expected
