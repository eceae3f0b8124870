"""The pages kept of arm64 memory are those that makedumpfile keeps: Debian's own for arm64, run in emulation."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.open import open_dump
from postpanic.errors import ProcessError
from postpanic.kernel.memory import open_kernel_memory
from postpanic.pages.classify import select_pages
from postpanic.pages.verdict import Verdict
from postpanic.process import find_program, run
from postpanic.rehearse.programs import UnpackedProgram
from tests.vm.arm64 import LARGE_PAGES, MEMORY_MIB
from tests.vm.arm64_memory import Arm64Memory, fetch_memory
from tests.vm.arm64_programs import fetch_makedumpfile
from tests.vm.lab import Lab

pytestmark = pytest.mark.matrix

EHDR_BYTES, PHDR_BYTES = 64, 56
E_PHOFF, E_PHNUM = 32, 56
"""Of ``Elf64_Ehdr``; behind the one is ``e_shoff``, behind the other what describes sections."""
LEVELS = (0, 1, 2, 4, 8, 16, 31)
COUNTED = {
    "Non-private cache pages": Verdict.CACHE,
    "Private cache pages": Verdict.CACHE_PRIVATE,
    "User process data pages": Verdict.USER,
    "Free pages": Verdict.FREE,
    "Hwpoison pages": Verdict.HWPOISON,
    "Offline pages": Verdict.OFFLINE,
}


@pytest.fixture(scope="module")
def fetch(crash_lab: Lab, installed: Callable[[str], str]) -> Callable[[str], Arm64Memory]:
    installed("qemu-system-aarch64")
    return partial(fetch_memory, crash_lab)


# Of others makedumpfile 1.7.8 reads none, see below.
@pytest.fixture(scope="module", params=["6.1", LARGE_PAGES], ids=lambda key: f"arm64-{key}")
def memory(request: pytest.FixtureRequest, fetch: Callable[[str], Arm64Memory]) -> Arm64Memory:
    return fetch(request.param)


@pytest.fixture(scope="module")
def makedumpfile(crash_lab: Lab) -> UnpackedProgram:
    return fetch_makedumpfile(crash_lab.cache_dir)


@pytest.fixture(scope="module")
def readable(memory: Arm64Memory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with qemu_memory(memory, tmp_path_factory.mktemp("memory") / "memory.elf") as copy:
        yield copy


@contextmanager
def qemu_memory(memory: Arm64Memory, copy: Path) -> Iterator[Path]:
    """
    Give the memory as makedumpfile can read it.

    It looks for program headers right behind the file's header, and not where that says that they are
    (``get_elf64_phdr()``); QEMU has section headers there.
    """
    run([find_program("cp"), "--sparse=always", memory.path, copy])
    with copy.open("r+b") as file:
        header = bytearray(file.read(EHDR_BYTES))
        (place,), (count,) = struct.unpack_from("<Q", header, E_PHOFF), struct.unpack_from("<H", header, E_PHNUM)
        file.seek(place)
        headers = file.read(PHDR_BYTES * count)
        assert EHDR_BYTES + len(headers) <= place
        struct.pack_into("<QQ", header, E_PHOFF, EHDR_BYTES, 0)
        struct.pack_into("<HHH", header, E_PHNUM + 2, 0, 0, 0)
        file.seek(0)
        file.write(header + headers)
    yield copy
    copy.unlink()


@contextmanager
def filtered(makedumpfile: UnpackedProgram, raw: Path, level: int, directory: Path) -> Iterator[tuple[Dump, str]]:
    target = directory / f"level{level}"
    finished = run([*makedumpfile.command, "--message-level", "31", "-l", "-d", str(level), raw, target])
    try:
        with open_dump([target]) as dump:
            yield dump, ((finished.stdout or b"") + finished.stderr).decode(errors="replace")
    finally:
        target.unlink()


@pytest.mark.parametrize("level", LEVELS)
def test_pages_are_makedumpfiles(
    memory: Arm64Memory, readable: Path, makedumpfile: UnpackedProgram, level: int, tmp_path: Path
) -> None:
    with open_dump(memory.path) as dump:
        ours = select_pages(dump, open_kernel_memory(dump), level)
        with filtered(makedumpfile, readable, level, tmp_path) as (theirs, said):
            pfns = ours.ram.members(0, ours.ram.limit)
            states = theirs.page_states(pfns)
        page_bytes = dump.page_size_bytes
    differ = pfns[ours.kept.contains(pfns) != (states == PageState.PRESENT)]
    assert differ.tolist() == []
    assert ours.notes == ()
    assert len(pfns) == (MEMORY_MIB << 20) // page_bytes
    if not level:
        return
    assert np.count_nonzero(states == PageState.PRESENT) > len(pfns) // 40
    for name, verdict in COUNTED.items():
        found = re.search(rf"{name}\s*: 0x([0-9a-f]+)", said)
        assert found, name
        assert int(found[1], 16) == ours.counts.get(verdict, 0), name


@pytest.mark.parametrize("kernel", ["6.12", "newest"], ids=lambda key: f"arm64-{key}")
def test_makedumpfile_reads_no_kernel_built_for_52_bits(
    kernel: str, fetch: Callable[[str], Arm64Memory], makedumpfile: UnpackedProgram, tmp_path: Path
) -> None:
    """Whether or not the machine has such addresses: ``calculate_plat_config()`` takes 48 bits with pages of 4 KiB."""
    memory = fetch(kernel)
    with qemu_memory(memory, tmp_path / "memory.elf") as copy, pytest.raises(ProcessError, match="VA Bits 52 not supp"):
        run([*makedumpfile.command, "-d", "31", copy, tmp_path / "level31"])
    # Ours does, and what it keeps opens.
    with open_dump(memory.path) as dump:
        opened = open_kernel_memory(dump)
        assert opened.layout.va_bits == 52
        ours = select_pages(dump, opened, 31)
    assert ours.notes == ()
    assert ours.counts[Verdict.FREE] > 10_000
    assert ours.counts[Verdict.USER] > 20
