"""What is remembered of the last arming, and when that makes the image stale."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from postpanic.capture.arming.arm import find_stale, policy_of
from postpanic.capture.arming.prepare import CaptureKernel, Prepared, choose_kernel, read_release
from postpanic.capture.arming.state import (
    ArmedState,
    StatePaths,
    hold_state,
    identify_file,
    identify_files,
    read_state,
    write_atomically,
    write_state,
)
from postpanic.capture.config import decode_config
from postpanic.capture.host import Host
from postpanic.capture.kexec.command_line import CaptureCommandLine
from postpanic.capture.policy import SETTINGS, read_policy
from postpanic.capture.resolve import Needs, Resolved
from postpanic.errors import NotReadyError, OutputError
from postpanic.saver.plan import SavePlan


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    kernel = CaptureKernel(tmp_path / "vmlinuz", "6.1.0", tmp_path, is_running=True)
    resolved = Resolved(SavePlan(), (), {}, Needs())
    return Prepared(kernel, resolved, CaptureCommandLine("quiet"), {"the kernel": "1", "postpanic": "2"})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "capture.img"
    path.write_bytes(b"image")
    return path


def state_of(prepared: Prepared, image: Path, inputs: list[Path]) -> ArmedState:
    return ArmedState(fingerprint=dict(prepared.fingerprint), inputs=identify_files(inputs), image=identify_file(image))


def test_nothing_is_stale_when_nothing_has_changed(prepared: Prepared, image: Path) -> None:
    assert find_stale(prepared, state_of(prepared, image, [image]), image) == []


def test_each_change_is_named(prepared: Prepared, image: Path, tmp_path: Path) -> None:
    library = tmp_path / "libc.so.6"
    library.write_bytes(b"old")
    state = state_of(prepared, image, [library])
    assert find_stale(prepared, None, image) == ["nothing is known of the image that is there"]
    assert find_stale(prepared, state, tmp_path / "none") == ["there is no image yet"]
    changed = replace(prepared, fingerprint={"the kernel": "9", "postpanic": "2"})
    assert find_stale(changed, state, image) == ["the kernel changed"]
    os.utime(library, ns=(1, 1))
    assert find_stale(prepared, state, image) == [f"{library} changed"]
    library.unlink()
    assert find_stale(prepared, state, image) == [f"{library} changed"]
    image.write_bytes(b"other image")
    assert find_stale(prepared, state, image) == ["the image was changed since it was built"]


def test_a_file_that_is_replaced_by_one_like_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    before = identify_file(path)
    path.unlink()
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert identify_file(path) != before
    assert identify_file(tmp_path / "none") == ""


def test_state_survives_being_written(tmp_path: Path) -> None:
    state = ArmedState({"a": "b"}, {"/x": "1:2:3:4"}, "1", "/boot/vmlinuz", "2", "quiet", "id", "file")
    write_state(tmp_path / "deep/armed.json", state)
    assert read_state(tmp_path / "deep/armed.json") == state
    assert (tmp_path / "deep/armed.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"schema_version": 2}',
        b'{"schema_version": 1, "fingerprint": []}',
        b'{"schema_version": 1, "inputs": {"a": 1}}',
        b'{"schema_version": 1, "image": null}',
    ],
)
def test_state_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "armed.json").write_bytes(content)
    assert read_state(tmp_path / "armed.json") is None
    assert read_state(tmp_path / "none") is None


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "capture.img"
    write_atomically(path, b"first")
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.mkdir()
    (path / "x").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_atomically(path, b"second")
    assert [entry.name for entry in tmp_path.iterdir()] == ["capture.img"]


def test_nobody_else_arms_meanwhile(tmp_path: Path) -> None:
    paths = StatePaths.of(Host(tmp_path))
    with hold_state(paths), pytest.raises(NotReadyError, match="by somebody else now"), hold_state(paths):
        pass
    with hold_state(paths):
        pass


def test_what_is_kept_is_below_the_root(tmp_path: Path) -> None:
    paths = StatePaths.of(Host(tmp_path))
    assert paths.image == tmp_path / "var/lib/postpanic/capture.img"
    assert paths.policy == tmp_path / "run/postpanic/policy.json"


def test_the_policy_has_the_sysctls_that_are_asked_for() -> None:
    assert policy_of(decode_config(b"", "c").panic) == {"kernel.panic_on_oops": 1}
    text = (
        b"[panic]\npanic=-1\npanic_on_oops=false\nsoftlockup_panic=true\nhardlockup_panic=true\nhung_task_panic=true\n"
    )
    text += b"hung_task_timeout_secs=60\npanic_on_rcu_stall=true\npanic_on_warn=false\npanic_on_oom=2\nsysrq=8\n"
    found = policy_of(decode_config(text, "c").panic)
    assert found == {
        "kernel.panic": -1,
        "kernel.panic_on_oops": 0,
        "kernel.panic_on_warn": 0,
        "kernel.panic_on_rcu_stall": 1,
        "kernel.sysrq": 8,
        "kernel.softlockup_panic": 1,
        "kernel.hardlockup_panic": 1,
        "kernel.hung_task_panic": 1,
        "kernel.hung_task_timeout_secs": 60,
        "vm.panic_on_oom": 2,
    }
    assert set(found) <= set(SETTINGS)


def make_bzimage(release: str) -> bytes:
    """Make a setup header as in Documentation/arch/x86/boot.rst, with the version text at 0x1000."""
    content = bytearray(0x2000)
    content[0x202:0x206] = b"HdrS"
    content[0x20E:0x210] = (0x1000 - 0x200).to_bytes(2, "little")
    text = f"{release} (builder@host) #1 SMP\0".encode()
    content[0x1000 : 0x1000 + len(text)] = text
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "release"),
    [
        ("anything", make_bzimage("6.1.0-1-amd64"), "6.1.0-1-amd64"),
        ("vmlinuz-6.12.1+deb13", b"MZ", "6.12.1+deb13"),
        ("Image-5.10.0.gz", b"", "5.10.0"),
        ("vmlinuz", b"", ""),
    ],
)
def test_the_release_of_a_kernel_is_in_its_header_or_its_name(
    tmp_path: Path, name: str, content: bytes, release: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_release(tmp_path / name) == release


def test_a_kernel_is_chosen_by_release_by_path_or_as_the_one_that_runs(tmp_path: Path) -> None:
    for release in ("6.1.0", "6.12.0"):
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
        (tmp_path / "boot").mkdir(exist_ok=True)
        (tmp_path / f"boot/vmlinuz-{release}").write_bytes(make_bzimage(release))
    host = Host(tmp_path, "x86_64", "6.1.0")
    same = CaptureKernel(tmp_path / "boot/vmlinuz-6.1.0", "6.1.0", tmp_path / "lib/modules/6.1.0", is_running=False)
    assert choose_kernel("same", host) == same
    assert choose_kernel("/boot/vmlinuz-6.1.0", host) == same
    other = choose_kernel("6.12.0", host)
    assert (other.release, other.is_running, other.image.name) == ("6.12.0", False, "vmlinuz-6.12.0")
    for wanted in ("6.13.0", "/boot/none"):
        with pytest.raises(NotReadyError):
            choose_kernel(wanted, host)
    (tmp_path / "boot/odd").write_bytes(b"x")
    with pytest.raises(NotReadyError, match="cannot tell which kernel this is"):
        choose_kernel("/boot/odd", host)


def test_the_sysctls_of_a_running_kernel_are_read() -> None:
    assert read_policy(Host.running())["kernel.panic"] is not None
