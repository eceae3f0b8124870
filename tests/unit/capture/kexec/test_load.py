from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from postpanic.capture.host import Host
from postpanic.capture.kexec import system_calls
from postpanic.capture.kexec.legacy import LegacyOptions, find_errno, spell_command
from postpanic.capture.kexec.load import LoadRequest, load, unload
from postpanic.capture.kexec.refusals import LoadRefusedError, check_before, explain_errno
from postpanic.errors import FileFaultError, NotReadyError
from tests.builders.boot_images import build_arm64_image, build_bzimage

MIB = 1 << 20


def make_host(root: Path, *, is_root: bool = True, machine: str = "x86_64", **changes: str | None) -> Host:
    """Write a host's files; names have ``__`` for ``/``, None takes one away."""
    files: dict[str, str | None] = {
        "sys__kernel__kexec_crash_size": str(64 * MIB),
        "sys__kernel__kexec_crash_loaded": "0",
        "proc__sys__kernel__kexec_load_disabled": "0",
        "proc__cmdline": "quiet crashkernel=64M",
        "sys__kernel__security__lockdown": "[none] integrity confidentiality",
    }
    for name, text in (files | changes).items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text + "\n")
    (root / "vmlinuz").write_bytes(build_bzimage(bytes(MIB), init_size=40 * MIB))
    (root / "initrd").write_bytes(b"070701" * 1000)
    return Host(root, machine, "6.1.0-test", is_root)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"is_root": False}, "only root"),
        ({"sys__kernel__kexec_crash_size": None}, "kernel 6.1.0-test cannot have a capture kernel"),
        (
            {
                "sys__kernel__kexec_crash_size": None,
                "boot__config-6.1.0-test": "CONFIG_KEXEC_CORE=y\n# CONFIG_CRASH_DUMP is not set",
            },
            "cannot have a capture kernel: CONFIG_CRASH_DUMP not set",
        ),
        ({"proc__sys__kernel__kexec_load_disabled": "1"}, "kexec_load_disabled is 1"),
        ({"proc__sys__kernel__kexec_load_limit_panic": "0"}, "kexec_load_limit_panic is 0"),
        ({"sys__kernel__kexec_crash_size": "0"}, "crashkernel=64M reserved nothing"),
        ({"sys__kernel__kexec_crash_size": "0", "proc__cmdline": "quiet"}, "has no crashkernel="),
        (
            {"sys__kernel__security__lockdown": "none [integrity] confidentiality"},
            "lockdown=integrity): kexec_load is forbidden",
        ),
    ],
)
def test_reasons_that_lie_in_the_host(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    host = make_host(tmp_path, **changes)  # type: ignore[arg-type]
    with pytest.raises(NotReadyError) as caught:
        check_before(host, legacy=True)
    assert says in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_status == 4


def test_new_places_of_sysfs(tmp_path: Path) -> None:
    host = make_host(tmp_path, sys__kernel__kexec_crash_size=None, sys__kernel__kexec__crash_size="4096")
    check_before(host)
    assert host.read_crash_size_bytes() == 4096


@pytest.mark.parametrize(
    ("kernel", "line", "says"),
    [
        (build_arm64_image(bytes(5000)), "", "a kernel for aarch64, this machine is x86_64"),
        (build_bzimage(bytes(100), is_64bit=False), "", "a kernel for i686"),
        (build_bzimage(bytes(100)), "x" * 2018, "a command line of 2018 bytes, 2017 fit"),
        (build_bzimage(bytes(100), cmdline_size=255), "x" * 226, "a command line of 226 bytes, 225 fit"),
        (build_bzimage(bytes(100)), "a\nb", "line break"),
        (
            build_bzimage(bytes(100), init_size=63 * MIB),
            "",
            "kernel (63.0 MiB) and initramfs (5.9 KiB) do not fit into the 64.0 MiB",
        ),
    ],
)
def test_reasons_that_lie_in_what_is_loaded(kernel: bytes, line: str, says: str, tmp_path: Path) -> None:
    host = make_host(tmp_path)
    (tmp_path / "vmlinuz").write_bytes(kernel)
    with pytest.raises(LoadRefusedError) as caught:
        load(host, LoadRequest(tmp_path / "vmlinuz", tmp_path / "initrd", line))
    assert says in str(caught.value)


@pytest.mark.parametrize(("initrd", "says"), [(Path("missing"), "cannot read the initramfs"), (b"", "is empty")])
def test_initrd_that_cannot_be(initrd: Path | bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match=says):
        load(make_host(tmp_path), LoadRequest(tmp_path / "vmlinuz", initrd, ""))


@pytest.mark.parametrize(
    ("code", "lockdown", "says"),
    [
        (errno.EPERM, "none", "permission denied, though we are root"),
        (errno.EPERM, "integrity", "locked down (lockdown=integrity) and does not trust this kernel's signature"),
        (errno.ENOSYS, "none", "CONFIG_KEXEC_FILE"),
        (errno.EKEYREJECTED, "none", "signature of the capture kernel is not accepted"),
        (errno.ENOKEY, "integrity", "does not have the key that signed the capture kernel (lockdown=integrity)"),
        (errno.ENODATA, "none", "is not signed"),
        (errno.EBADMSG, "none", "signature of the capture kernel is damaged"),
        (errno.ENOEXEC, "none", "not a kernel image that it can load"),
        (errno.EADDRNOTAVAIL, "none", "no room in the reserved memory"),
        (errno.EBUSY, "none", "another load is going on"),
        (errno.EXDEV, "none", os.strerror(errno.EXDEV).lower()),
    ],
)
def test_each_errno_has_its_own_words(code: int, lockdown: str, says: str, tmp_path: Path) -> None:
    states = " ".join(f"[{name}]" if name == lockdown else name for name in ("none", "integrity", "confidentiality"))
    error = explain_errno(code, make_host(tmp_path, sys__kernel__security__lockdown=states))
    assert says in str(error)
    assert error.errno == code
    assert error.hint


def test_unloading_nothing_and_what_may_not_go(tmp_path: Path) -> None:
    assert unload(make_host(tmp_path)) is False
    with pytest.raises(NotReadyError, match="only root"):
        unload(make_host(tmp_path / "user", is_root=False))
    fixed = make_host(
        tmp_path / "fixed", sys__kernel__kexec_crash_loaded="1", proc__sys__kernel__kexec_load_disabled="1"
    )
    with pytest.raises(NotReadyError, match="stays until the next boot"):
        unload(fixed)


def test_machine_without_the_system_call() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)) as caught:
        system_calls.file_load("alpha", 0, 0, b"")
    assert caught.value.errno == errno.ENOSYS


def test_words_for_the_program() -> None:
    options = LegacyOptions(reset_vga=True, console_vga=True, core_headers="elf64", hotplug=True, extra=("--debug",))
    assert spell_command(Path("/k"), Path("/i"), "a b", options) == [
        *(
            "--load-panic",
            "--kexec-syscall",
            "--reset-vga",
            "--console-vga",
            "--elf64-core-headers",
            "--hotplug",
            "--debug",
        ),
        *("--initrd=/i", "--command-line=a b", "/k"),
    ]
    assert spell_command(Path("/k"), None, "", LegacyOptions()) == [
        *("--load-panic", "--kexec-syscall", "--command-line=", "/k")
    ]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("kexec_load failed: Operation not permitted\nentry       = 0x3ef54760 flags = 0x3e0001", errno.EPERM),
        ("kexec_load failed: Cannot assign requested address", errno.EADDRNOTAVAIL),
        ("kexec_load failed: Function not implemented", errno.ENOSYS),
        ("Memory for crashkernel is not reserved\nPlease reserve memory", errno.EADDRNOTAVAIL),
        ("Could not find a free area of memory of 0x3378000 bytes...", errno.EADDRNOTAVAIL),
        ("Cannot determine the file type of /boot/garbage", errno.ENOEXEC),
        ("Cannot load /boot/vmlinuz", errno.ENOEXEC),
        ("something else", errno.EINVAL),
        ("", errno.EINVAL),
    ],
)
def test_what_the_program_says_is_understood(said: str, code: int) -> None:
    assert find_errno(said) == code
