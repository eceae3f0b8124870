"""What a machine lacks for a rehearsal: QEMU, KVM, room, the right to read. One line each, before anything is built."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from postpanic.cli.app import main
from postpanic.errors import NotReadyError
from postpanic.process import find_program
from postpanic.rehearse.accelerators import find_kvm_fault
from postpanic.rehearse.requirements import find_needed
from postpanic.rehearse.stand_ins import make_stand_in
from postpanic.saver.plan import BlockPlan, FilePlan

TARGET = '[[target]]\nkind = "file"\npath = "/crash"\ndevice = "LABEL=x"\nfilesystem = "ext4"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "lib/modules/6.1.0").mkdir(parents=True)
    (root / "etc/postpanic.toml").write_text(TARGET)
    return root


def spell(root: Path, *words: str) -> list[str]:
    return ["rehearse", "--root", str(root), "--kernel", "6.1.0", "--crashkernel", "160M", *words]


def take_line(error: str) -> str:
    """Give the error's line; behind it there may be a hint."""
    line, *hints = error.splitlines()
    assert len(hints) <= 1
    assert all(hint.startswith("  hint: ") for hint in hints)
    return line


def without_privilege() -> list[str]:
    """Give what runs a program so that it may read no more than modes of files say, whoever runs it."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_missing_qemu(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(spell(root)) == 4
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "error[not-ready]: qemu-system-x86_64: program not found",
        "  hint: install qemu-system-x86",
    ]
    assert captured.out == ""


def test_missing_programs_for_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    # The directories for the administrator's programs are searched in any case.
    with pytest.raises(NotReadyError, match="no-such-program: program not found") as failure:
        find_needed("no-such-program", "no-such-package")
    assert failure.value.hint == "install no-such-package"
    if shutil.which("mkfs.btrfs", path="/usr/local/sbin:/usr/sbin:/sbin") is None:
        plan = FilePlan(name="x", device=BlockPlan(label="x"), path="/crash", filesystem="btrfs")
        with pytest.raises(NotReadyError, match=r"mkfs\.btrfs: program not found"):
            make_stand_in(plan, 1 << 30, tmp_path / "disk")


def test_missing_kvm_is_said_with_its_reason(tmp_path: Path) -> None:
    if platform.machine() == "x86_64":
        assert find_kvm_fault(device=tmp_path / "kvm") == f"{tmp_path}/kvm: no such file or directory"
    assert find_kvm_fault("riscv64") == f"guests of riscv64 on {platform.machine()} are emulated"


@pytest.mark.parametrize("way", ["TMPDIR", "--keep"])
def test_missing_room(root: Path, tmp_path: Path, way: str) -> None:
    """Use a real file system of 8 MiB, in a mount namespace of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    place = tmp_path / "small"
    place.mkdir()
    words = [sys.executable, "-m", "postpanic", *spell(root), *(["--keep", "kept"] if way == "--keep" else [])]
    script = f"mount -t tmpfs -o size=8m none {place} || exit 99; cd {place}; {shlex.join(words)}; echo $?; ls"
    finished = subprocess.run(
        [find_program("unshare"), "--map-root-user", "--mount", "sh", "-c", script],
        env={**os.environ, "TMPDIR": str(place) if way == "TMPDIR" else str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode == 99 or "unshare:" in finished.stderr:
        pytest.skip(f"no file system can be mounted here: {finished.stderr.strip()}")
    line = take_line(finished.stderr)
    assert line.startswith(f"error[no-space]: {place}/")
    assert line.endswith("8.0 MiB are free, a rehearsal takes up to 2.0 GiB")
    # Nothing is left behind but the directory that was asked for.
    assert finished.stdout.split() == (["1", "kept"] if way == "--keep" else ["1"])


def test_a_configuration_that_must_not_be_read(root: Path) -> None:
    (root / "etc/postpanic.toml").chmod(0)
    finished = subprocess.run(
        [*without_privilege(), sys.executable, "-m", "postpanic", *spell(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 64
    assert take_line(finished.stderr).endswith("/etc/postpanic.toml: cannot be read: permission denied")


def test_a_kernel_that_must_not_be_read(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(0x202) + b"HdrS")
    kernel.chmod(0)
    program = (
        "from pathlib import Path; from postpanic.errors import NotReadyError\n"
        "from postpanic.rehearse.boards import find_board\n"
        f"try: find_board('x86_64').check_kernel(Path({str(kernel)!r}))\n"
        "except NotReadyError as exc: print(exc, exc.hint, sep='|')\n"
    )
    finished = subprocess.run(
        [*without_privilege(), sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert finished.stdout == f"{kernel}: permission denied|run it as root\n", finished.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--arch", "arm64"), "--arch arm64: which kernel?"),
        (("--modules", "."), "--modules .: goes with --arch and --kernel"),
        (("--arch", "mips", "--kernel", "Image"), "--arch mips: must be one of aarch64, amd64, arm64, x86_64"),
        (("--arch", "arm64", "--kernel", "no-image"), "no-image: cannot read the kernel: No such file or directory"),
    ],
)
def test_kernel_without_a_host(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rehearse", *words]) in {2, 64}
    assert said in take_line(capsys.readouterr().err)


def test_architecture_that_is_not_that_of_the_tree(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    assert main(spell(root, "--arch", other)) == 64
    assert f"--arch {other}: the programs of {root} are of {platform.machine()}" in take_line(capsys.readouterr().err)
