from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from postpanic.capture.kexec.images import KernelImage, decode_image, find_release, read_image
from postpanic.errors import CorruptError, FileFaultError, PostpanicError, UnsupportedError
from tests.builders.boot_images import build_arm64_image, build_bzimage, build_zboot
from tests.builders.elfcore import EM_X86_64, Segment, build_elf_core

PAYLOAD = b"what is put into memory" * 1000
ARM64 = build_arm64_image(PAYLOAD)


def test_bzimage_is_what_comes_after_its_setup() -> None:
    image = decode_image(build_bzimage(PAYLOAD, init_size=0x300000, cmdline_size=4095))
    assert (image.format, image.machine, image.packing) == ("bzImage", "x86_64", "")
    assert image.payload == PAYLOAD
    assert (image.memory_bytes, image.command_line_limit) == (0x300000, 4095)
    assert decode_image(build_bzimage(PAYLOAD, is_64bit=False)).machine == "i686"


def test_vmlinux_is_its_first_load() -> None:
    raw = build_elf_core([Segment(0x1000000, PAYLOAD, 0xFFFFFFFF81000000)], notes=b"", kind=2, machine=EM_X86_64).raw
    image = decode_image(raw)
    assert (image.format, image.machine, image.payload) == ("vmlinux", "x86_64", PAYLOAD)


@pytest.mark.parametrize(
    ("packed", "packing"),
    [
        (gzip.compress(ARM64), "gzip"),
        (lzma.compress(ARM64), "xz"),
        (bz2.compress(ARM64), "bzip2"),
        (zstandard.compress(ARM64), "zstd"),
        (lzma.compress(ARM64, lzma.FORMAT_ALONE), "lzma"),
        (build_zboot(gzip.compress(ARM64), b"gzip"), "EFI zboot, gzip"),
        (build_zboot(zstandard.compress(ARM64), b"zstd22"), "EFI zboot, zstd22"),
    ],
)
def test_packed_images_are_unpacked(packed: bytes, packing: str) -> None:
    image = decode_image(packed)
    assert (image.format, image.machine, image.packing) == ("Image", "aarch64", packing)
    assert image.payload == image.content == ARM64
    assert image.memory_bytes == 0x4000


@pytest.mark.skipif(shutil.which("lz4") is None, reason="lz4 is not installed")
def test_lz4_needs_the_program() -> None:
    packed = subprocess.run(
        [shutil.which("lz4") or "lz4", "-c", "-l"], input=ARM64, capture_output=True, check=True
    ).stdout
    assert decode_image(packed).content == ARM64


@pytest.mark.parametrize(
    "damaged",
    [
        gzip.compress(ARM64)[:-9],
        lzma.compress(ARM64)[:60],
        zstandard.compress(ARM64)[:40],
        bz2.compress(ARM64)[:30],
        b"\x1f\x8b" * 40,
    ],
)
def test_damaged_compression_is_one_error(damaged: bytes) -> None:
    with pytest.raises(FileFaultError):
        decode_image(damaged, where="vmlinuz")


@pytest.mark.parametrize(
    ("raw", "error"), [(b"", CorruptError), (b"text " * 200, UnsupportedError), (b"MZ" * 600, UnsupportedError)]
)
def test_what_is_no_kernel(raw: bytes, error: type[PostpanicError]) -> None:
    with pytest.raises(error):
        decode_image(raw)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFaultError, match="cannot read the kernel"):
        read_image(tmp_path / "vmlinuz")


@given(st.integers(0, 1200), st.binary(max_size=16), st.sampled_from([build_bzimage(b"x" * 600), ARM64[:2000]]))
def test_any_bytes_are_an_image_or_one_error(at: int, noise: bytes, base: bytes) -> None:
    raw = base[:at] + noise + base[at + len(noise) :]
    with contextlib.suppress(PostpanicError):
        assert isinstance(decode_image(raw), KernelImage)


def test_release_is_found_in_every_kind_of_kernel() -> None:
    banner = b"\0Linux version %s\0\0Linux version 6.18.0-rc2+ (a@b) (gcc 14) #1\n"
    assert find_release(decode_image(build_arm64_image(banner))) == "6.18.0-rc2+"
    assert find_release(decode_image(gzip.compress(build_arm64_image(banner)))) == "6.18.0-rc2+"
    assert find_release(decode_image(build_arm64_image(b"Linux version %s (%s)"))) == ""
    assert find_release(decode_image(build_bzimage(banner))) == ""
