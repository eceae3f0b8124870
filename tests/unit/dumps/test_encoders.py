from __future__ import annotations

import ctypes.util
import importlib
import random
import struct
import zlib
from types import ModuleType

import numpy as np
import pytest

from postpanic.dumps.kdump.codecs import Compression, find_decoder
from postpanic.dumps.kdump.encoders import open_encoder
from postpanic.errors import UnsupportedError, UsageError
from tests.unit.dumps.pages import make_noise, make_page
from tests.unit.dumps.writing import make_batch

EVERY = (None, *Compression)
LEVELS = [(Compression.ZLIB, 1), (Compression.ZLIB, 9), (Compression.ZSTD, 1), (Compression.ZSTD, 19)]


def make_address_table(seed: int, size: int = 4096) -> bytes:
    """Make neighbouring 32-bit addresses: what repeats is three bytes long."""
    source = random.Random(seed)
    address = 0xFFC2_D000
    words = []
    for _ in range(size // 4):
        address -= source.randrange(1, 200)
        words.append(address)
    return struct.pack(f"<{len(words)}I", *words)


def contents(size: int) -> dict[int, bytes]:
    noise = make_noise(2, size // 16) * 16
    every = [
        make_page(1, size),
        make_noise(3, size),
        noise,
        bytes(size - 1) + b"x",
        make_address_table(4, size),
    ]
    every += [
        make_noise(5, size // 4) + bytes(size - size // 4),
        make_noise(6, size),
        b"the same again " * (size // 15),
    ]
    return {7 * number: page.ljust(size, b"\n") for number, page in enumerate(every)}


def decode(compression: Compression | None, pages: dict[int, bytes], size: int, level: int | None = None) -> list[int]:
    """Check that every page comes back; the sizes."""
    encode = open_encoder(compression, level, size)
    for _ in range(2):
        encoded = encode(make_batch(sorted(pages), pages, size))
        data = b"".join(encoded.data)
        at = 0
        for pfn, stored, flags in zip(
            encoded.pfns.tolist(), encoded.sizes.tolist(), encoded.flags.tolist(), strict=True
        ):
            part = data[at : at + stored]
            at += stored
            if flags == 0:
                assert part == pages[pfn]
            else:
                assert compression is not None
                assert flags == compression
                assert stored < size
                assert find_decoder(flags)(part, size) == pages[pfn]
        assert at == len(data)
    sizes: list[int] = encoded.sizes.tolist()
    return sizes


@pytest.mark.parametrize("size", [4096, 16384, 65536])
@pytest.mark.parametrize("compression", EVERY)
def test_every_page_comes_back(compression: Compression | None, size: int) -> None:
    pages = contents(size)
    sizes = decode(compression, pages, size)
    assert sizes[1] == size
    if compression is not None:
        assert sizes[0] < size
        assert sizes[2] < 0.6 * size
        assert sizes[3] < 0.1 * size


@pytest.mark.parametrize(("compression", "level"), LEVELS)
def test_every_page_comes_back_at_a_level(compression: Compression, level: int) -> None:
    decode(compression, contents(4096), 4096, level)


@pytest.mark.parametrize("compression", EVERY)
def test_zero_pages_and_lost_ones_are_not_encoded(compression: Compression | None) -> None:
    pages = {1: bytes(4096), 2: make_page(1), 3: make_page(2), 4: bytes(4096), 5: make_noise(1)}
    encoded = open_encoder(compression, None, 4096)(make_batch([1, 2, 3, 4, 5], pages, 4096, lost={3}))
    assert (encoded.sizes > 0).tolist() == [False, True, False, False, True]
    assert encoded.is_zero.tolist() == [True, False, False, True, False]
    assert encoded.is_lost.tolist() == [False, False, True, False, False]
    nothing = open_encoder(compression, None, 4096)(make_batch([1, 4], pages, 4096))
    assert len(nothing.data) == 0


def test_pages_that_are_stored_raw_are_not_copied() -> None:
    pages = {number: make_noise(number) for number in range(6)} | {3: bytes(4096)}
    batch = make_batch(sorted(pages), pages, 4096)
    parts = open_encoder(None, None, 4096)(batch).data
    assert [len(part) for part in parts] == [3 * 4096, 2 * 4096]
    batch.pages[0, 0] ^= 0xFF
    assert parts[0][0] == pages[0][0] ^ 0xFF


def test_fast_zlib_is_no_larger_than_zlib_on_tables_of_addresses() -> None:
    pages = {number: make_address_table(number) for number in range(20)}
    fast = sum(decode(Compression.ZLIB, pages, 4096))
    assert fast <= 1.02 * sum(len(zlib.compress(page, 1)) for page in pages.values())


def test_zstd_is_smaller_than_lzo() -> None:
    pages = {number: make_page(number)[:2048] + make_noise(number, 2048) for number in range(20)}
    assert sum(decode(Compression.ZSTD, pages, 4096)) < sum(decode(Compression.LZO, pages, 4096))


def test_an_encoder_with_more_pages_than_before_makes_room() -> None:
    for compression in EVERY:
        encode = open_encoder(compression, None, 4096)
        for count in (1, 50, 2, 300):
            pages = {number: make_noise(number) if number % 2 else make_page(number) for number in range(count)}
            encoded = encode(make_batch(sorted(pages), pages, 4096))
            assert sum(map(len, encoded.data)) == int(encoded.sizes.sum())


@pytest.mark.parametrize(
    ("compression", "package"),
    [
        (Compression.SNAPPY, "cramjam"),
        (Compression.ZSTD, "zstandard"),
        (Compression.LZO, "lzallright"),
    ],
)
def test_a_codec_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, compression: Compression, package: str
) -> None:
    hide(monkeypatch, "cramjam", "zstandard", "lzallright", "isal.isal_zlib")
    with pytest.raises(UnsupportedError, match=str(compression.name).lower()) as caught:
        open_encoder(compression, None, 4096)
    assert package in caught.value.hint
    pages = contents(4096)
    decode(Compression.ZLIB, pages, 4096)
    decode(None, pages, 4096)


def test_lzo_without_its_library_is_done_by_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    decode(Compression.LZO, contents(4096), 4096)


def test_zlib_without_a_probe_compresses_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "cramjam")
    decode(Compression.ZLIB, contents(4096), 4096)


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make packages impossible to import, and liblzo2 to find."""
    real = importlib.import_module

    def refuse(name: str, package: str | None = None) -> ModuleType:
        if name in names:
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)


@pytest.mark.parametrize(
    ("compression", "level"),
    [
        (None, 1),
        (Compression.LZO, 1),
        (Compression.SNAPPY, 3),
        (Compression.ZLIB, 0),
        (Compression.ZLIB, 10),
        (Compression.ZSTD, 0),
        (Compression.ZSTD, 23),
        (Compression.ZSTD, -8),
    ],
)
def test_a_level_that_there_is_not_is_refused(compression: Compression | None, level: int) -> None:
    with pytest.raises(UsageError, match="level"):
        open_encoder(compression, level, 4096)


def test_noise_is_told_from_everything_else() -> None:
    from postpanic.dumps.kdump.deflating import _find_noise

    noise = np.frombuffer(b"".join(make_noise(seed) for seed in range(400)), dtype=np.uint8).reshape(-1, 4096)
    rows = np.arange(len(noise))
    assert np.count_nonzero(_find_noise(noise, rows)) > 395
    structured = [make_address_table(seed) for seed in range(50)]
    structured += [make_noise(seed, 1024) + bytes(3072) for seed in range(50)]
    structured += [bytes(byte & 0x7F for byte in make_noise(seed)) for seed in range(50)]
    structured += [bytes(byte & 0xF7 for byte in make_noise(seed)) for seed in range(50)]
    other = np.frombuffer(b"".join(structured), dtype=np.uint8).reshape(-1, 4096)
    assert not _find_noise(other, np.arange(len(other))).any()
    assert len(_find_noise(other, np.empty(0, dtype=np.int64))) == 0
