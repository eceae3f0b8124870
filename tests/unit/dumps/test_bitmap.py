from __future__ import annotations

import numpy as np
import pytest

from postpanic.dumps import bitmap as bitmap_module
from postpanic.dumps.bitmap import Bitmap


def make_bitmap(raw: bytes, bit_count: int | None = None) -> Bitmap:
    data = b"head" + raw
    return Bitmap(
        lambda offset, size: data[offset : offset + size], 4, len(raw) * 8 if bit_count is None else bit_count
    )


def random_bits(count: int, density: float, seed: int = 1) -> tuple[np.ndarray, bytes]:
    bits = np.random.default_rng(seed).random(count) < density
    return bits, np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 2047, 2048, 2049, 262_143, 262_144, 262_145, 700_001])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_tests_ranks_and_runs_are_those_of_the_bits(count: int, density: float) -> None:
    bits, raw = random_bits(count, density)
    bitmap = make_bitmap(raw, count)
    ranks = np.concatenate([[0], np.cumsum(bits)])
    assert bitmap.total == ranks[-1]
    assert bitmap.known_bits == count
    asked = np.unique(np.concatenate([[0, count - 1, count, count + 1], np.arange(0, count, max(count // 97, 1))]))
    inside = asked[asked < count]
    assert [bitmap.test(bit) for bit in inside.tolist()] == bits[inside].tolist()
    assert not bitmap.test(count)
    assert not bitmap.test(-1)
    assert [bitmap.rank(bit) for bit in asked.tolist()] == ranks[np.minimum(asked, count)].tolist()
    shuffled = np.random.default_rng(3).permutation(np.concatenate([asked, asked]))
    assert bitmap.rank_many(shuffled).tolist() == ranks[np.minimum(shuffled, count)].tolist()
    assert bitmap.test_many(inside).tolist() == bits[inside].tolist()
    everything = np.zeros(count, dtype=bool)
    previous = -1
    for start, end in bitmap.runs().tolist():
        assert previous < start < end
        everything[start:end] = True
        previous = end
    assert (everything == bits).all()


def test_bits_beyond_the_count_are_clear() -> None:
    bitmap = make_bitmap(b"\xff" * 300, 13)
    assert bitmap.total == 13
    assert bitmap.runs().tolist() == [[0, 13]]
    assert bitmap.test_many(np.array([12, 13, 14, -1])).tolist() == [True, False, False, False]


def test_bits_that_the_file_does_not_hold_are_clear_and_known_to_be_so() -> None:
    bitmap = make_bitmap(b"\xff" * 100, 5000)
    assert bitmap.known_bits == 800
    assert bitmap.total == 800
    assert not bitmap.test(800)
    assert bitmap.rank(4000) == 800
    assert bitmap.runs().tolist() == [[0, 800]]
    assert make_bitmap(b"", 5000).known_bits == 0
    assert make_bitmap(b"", 5000).runs().tolist() == []


def test_counting_without_the_call_of_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    bits, raw = random_bits(100_000, 0.3)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert make_bitmap(raw, 100_000).total == bits.sum()


def test_few_chunks_are_kept() -> None:
    _, raw = random_bits(64 * 262_144, 0.2)
    bitmap = make_bitmap(raw * 3)
    numbers = np.arange(0, bitmap.bit_count, 100_000)
    first = bitmap.rank_many(numbers)
    assert len(bitmap._chunks) == bitmap_module._KEPT_CHUNKS
    assert bitmap.rank_many(numbers).tolist() == first.tolist()
