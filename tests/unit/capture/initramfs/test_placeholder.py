"""A library with names and nothing behind them: it loads, and whoever calls it is told."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from pathlib import Path

import pytest

from postpanic.capture.initramfs.elf import read_elf
from postpanic.capture.initramfs.placeholder import MACHINES, make_placeholder
from postpanic.process import run

HERE = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}.get(platform.machine(), "")
NAMES = ["cblas_ddot", "cblas_sgemm", *(f"symbol_{number}" for number in range(40))]


@pytest.mark.skipif(not HERE, reason="made for x86-64 and arm64 only")
def test_loader_finds_every_name(tmp_path: Path) -> None:
    path = tmp_path / "libblas.so.3"
    path.write_bytes(make_placeholder("libblas.so.3", NAMES, HERE))
    library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    assert all(getattr(library, name) for name in NAMES)
    with pytest.raises(AttributeError):
        library.cblas_zgemm  # noqa: B018


@pytest.mark.skipif(not HERE, reason="made for x86-64 and arm64 only")
@pytest.mark.parametrize("name", [NAMES[0], NAMES[-1]])
def test_call_ends_in_a_line_and_a_signal(tmp_path: Path, name: str) -> None:
    path = tmp_path / "libblas.so.3"
    path.write_bytes(make_placeholder("libblas.so.3", NAMES, HERE))
    finished = run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(path)!r}).{name}(1, 2)"], check=False)
    assert finished.returncode == -signal.SIGILL
    assert finished.stderr == b"postpanic: libblas.so.3 is not in this image, and was called\n"


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_it_says_what_it_is(machine: str) -> None:
    facts = read_elf(make_placeholder("libx.so", [], machine), "")
    assert (facts.machine, facts.soname, facts.needed) == (machine, "libx.so", ())


def test_arm_code_passes_message_and_length() -> None:
    content = make_placeholder("libx.so", ["one"], "EM_AARCH64")
    message = b"postpanic: libx.so is not in this image, and was called\n"
    at = content.index(message)
    words = [int.from_bytes(content[place : place + 4], "little") for place in range(at - 24, at, 4)]
    # movz x2, #length; adr x1, which stands 16 bytes before the message; then udf.
    assert words[3] >> 5 & 0xFFFF == len(message)
    assert (words[2] >> 5 << 2 | words[2] >> 29 & 3) & 0x1FFFFF == 16
    assert words[5] == 0
