"""
What a filter cannot be faster than, measured one thing at a time and printed as JSON.

::

    python benchmarks/filter_probes.py bandwidth         copying memory, on one thread and on two
    python benchmarks/filter_probes.py read DUMP         reading the whole dump from the cache
    python benchmarks/filter_probes.py write DIRECTORY   writing a file there
    python benchmarks/filter_probes.py scan DUMP         deciding which pages to keep, on one thread and on two
    python benchmarks/filter_probes.py codec DUMP NAME   compressing pages that are already in memory
    python benchmarks/filter_probes.py count DUMP        how much of the dump is memory, and how much is not zero

Each is a process of its own, so that none pays for another's memory.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from postpanic.dumps.kdump.codecs import Compression
from postpanic.dumps.kdump.encoders import open_encoder
from postpanic.dumps.open import open_dump
from postpanic.dumps.writing import PageBatch
from postpanic.kernel.memory import open_kernel_memory
from postpanic.pages.classify import select_pages

GIB = 1 << 30
COPY_BYTES = 256 << 20
COPY_ROUNDS = 5
BLOCK_BYTES = 4 << 20
WRITE_BYTES = 1 << 30
SAMPLE_BYTES = 512 << 20
PAGE_BYTES = 4096
BATCH_PAGES = 512
THREADS = (1, 2)


def measure_bandwidth() -> dict[str, float]:
    """Return GiB copied a second; the memory bus carries twice as much."""
    results = {}
    for threads in THREADS:
        pairs = [np.ones((2, COPY_BYTES // threads), dtype=np.uint8) for _ in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            times = [_time(lambda: list(pool.map(_copy, pairs))) for _ in range(COPY_ROUNDS)]  # noqa: B023 - called at once
        results[f"copy_gib_s_{threads}"] = COPY_BYTES / GIB / min(times)
    return results


def _copy(pair: NDArray[np.uint8]) -> None:
    np.copyto(pair[1], pair[0])


def measure_read(dump: Path) -> dict[str, float]:
    """Return GiB read a second, holes of the file included."""
    buffer = bytearray(BLOCK_BYTES)

    def read_all() -> None:
        with dump.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass

    return {"read_gib_s": dump.stat().st_size / GIB / _time(read_all)}


def measure_write(directory: Path) -> dict[str, float]:
    """Return GiB written a second, as far as the page cache."""
    block = os.urandom(BLOCK_BYTES)

    def write_all(descriptor: int) -> None:
        for _ in range(WRITE_BYTES // BLOCK_BYTES):
            os.write(descriptor, block)

    with tempfile.NamedTemporaryFile(dir=directory) as stream:
        elapsed_s = _time(lambda: write_all(stream.fileno()))
    return {"write_gib_s": WRITE_BYTES / GIB / elapsed_s}


def measure_scan(path: Path, threads: int, *, by_worth: bool) -> dict[str, float]:
    """
    Return seconds to classify all pages at level 31, in a process that has done nothing before.

    Parameters
    ----------
    by_worth : bool
        Find out besides which pages are the most valuable; makedumpfile does nothing like it.
    """
    # As the command line has it.
    gc.set_threshold(100_000, 20, 20)
    with open_dump((path,)) as dump:
        kernel = open_kernel_memory(dump)
        return {"scan_s": _time(lambda: select_pages(dump, kernel, 31, threads=threads, by_worth=by_worth))}


def count_pages(path: Path) -> dict[str, float]:
    """Return GiB of memory, and GiB that are not zero; the segments of ``/proc/vmcore`` start at page boundaries."""
    with open_dump((path,)) as dump:
        ram_gib = int((dump.ram_ranges[:, 1] - dump.ram_ranges[:, 0]).sum()) / GIB
    whole = np.memmap(path, dtype=np.uint8, mode="r")
    kept = 0
    for first in range(0, len(whole), BLOCK_BYTES):
        block = whole[first : first + BLOCK_BYTES]
        pages = block[: len(block) // PAGE_BYTES * PAGE_BYTES].view(np.uint64).reshape(-1, PAGE_BYTES // 8)
        kept += int(np.count_nonzero(pages.any(axis=1)))
    return {"ram_gib": ram_gib, "kept_gib": kept * PAGE_BYTES / GIB}


def measure_codec(path: Path, name: str) -> dict[str, float]:
    """
    Return seconds and bytes per byte to compress pages that are not zero, a sample from all over the dump.

    Parameters
    ----------
    name : str
        ``zstd``, ``zlib``, ``snappy`` or ``lzo``.
    """
    compression = Compression[name.upper()]
    pages = _sample_pages(path)
    total_bytes = pages.nbytes
    results = {"sample_gib": total_bytes / GIB}
    for threads in THREADS:
        shares = np.array_split(pages, threads)
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            stored = sum(pool.map(lambda share: _encode_all(share, compression), shares))
            results[f"s_per_gib_{threads}"] = (time.perf_counter() - started) / (total_bytes / GIB)
        results["size_ratio"] = stored / total_bytes
    return results


def _encode_all(pages: NDArray[np.uint8], compression: Compression) -> int:
    encode = open_encoder(compression, None, PAGE_BYTES)
    stored = 0
    for first in range(0, len(pages), BATCH_PAGES):
        batch = pages[first : first + BATCH_PAGES]
        none = np.zeros(len(batch), dtype=np.bool_)
        pfns = np.arange(first, first + len(batch), dtype=np.uint64)
        stored += int(encode(PageBatch(pfns, batch, none, none)).sizes.sum())
    return stored


def _sample_pages(path: Path) -> NDArray[np.uint8]:
    """Take blocks at even distances; the segments of ``/proc/vmcore`` start at page boundaries."""
    whole = np.memmap(path, dtype=np.uint8, mode="r")
    blocks = len(whole) // BLOCK_BYTES
    step = max(1, blocks * BLOCK_BYTES // (2 * SAMPLE_BYTES))
    taken = []
    for number in range(0, blocks, step):
        pages = whole[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES].reshape(-1, PAGE_BYTES)
        taken.append(pages[pages.any(axis=1)])
    return np.ascontiguousarray(np.concatenate(taken)[: SAMPLE_BYTES // PAGE_BYTES])


def _time(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main(words: Sequence[str]) -> None:
    """Measure what the command line names."""
    probes: dict[str, Callable[..., dict[str, float]]] = {
        "bandwidth": measure_bandwidth,
        "read": lambda dump: measure_read(Path(dump)),
        "write": lambda directory: measure_write(Path(directory)),
        "count": lambda dump: count_pages(Path(dump)),
        "scan": lambda dump, threads: measure_scan(Path(dump), int(threads), by_worth=False),
        "scan-worth": lambda dump, threads: measure_scan(Path(dump), int(threads), by_worth=True),
        "codec": lambda dump, name: measure_codec(Path(dump), name),
    }
    print(json.dumps(probes[words[0]](*words[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
