"""The kernel's tables in real dumps, judged by vmlinux, by makedumpfile and by what the console showed."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from postpanic.dumps.memory import Dump
from postpanic.dumps.open import open_dump
from postpanic.kernel.kallsyms import SymbolTable, read_kallsyms
from postpanic.kernel.ksymtab import read_exported_symbols
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.kernel.printk import read_log
from postpanic.kernel.uts import read_banner, read_utsname
from postpanic.kernel.vmcoreinfo import parse_vmcoreinfo
from postpanic.process import run
from tests.vm.lab import Crash, MemoryDumps

KERNELS = ("5.10", "6.1", "6.12", "newest")
PERCPU_END = 1 << 32


@pytest.fixture(scope="module", params=[*KERNELS, "6.12-la57"])
def crash(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Crash:
    kernel, _, special = request.param.partition("-")
    return crashed(kernel, cpu="max,la57=on") if special else crashed(kernel)


@pytest.fixture(params=["raw", "filtered"])
def memory(request: pytest.FixtureRequest, crash: Crash) -> Iterator[KernelMemory]:
    path: Path = getattr(crash, request.param)
    with open_dump(path) as dump:
        yield open_kernel_memory(dump)


def _pairs(table: SymbolTable) -> set[tuple[str, int]]:
    return {(symbol.name, symbol.vaddr) for symbol in table}


def test_five_levels_are_used_where_the_processor_has_them(crash: Crash) -> None:
    with open_dump(crash.raw) as dump:
        levels = len(open_kernel_memory(dump).layout.level_names)
    assert levels == (5 if "la57=on" in crash.recipe.cpu else 4)


def test_page_tables_agree_with_the_direct_mapping_of_the_image(memory: KernelMemory) -> None:
    stext = memory.vmcoreinfo.symbol("_stext")
    assert memory.tables.translate(stext) == memory.translate(stext)
    pages = memory.tables.translate_pages(stext, 1024)
    assert pages.tolist() == [memory.translate(stext) + 4096 * number for number in range(1024)]


def test_kallsyms_puts_every_symbol_where_vmcoreinfo_has_it(memory: KernelMemory) -> None:
    table = read_kallsyms(memory)
    compared = 0
    for name, vaddr in memory.vmcoreinfo.symbols.items():
        # With sparse memory this entry is the value of the pointer, not its address.
        if name != "mem_section" and name in table:
            assert vaddr in {symbol.vaddr for symbol in table.find_all(name)}
            compared += 1
    assert compared >= 8
    assert len(table) > 80_000


def test_kallsyms_is_found_by_its_shape_as_vmcoreinfo_names_it(memory: KernelMemory) -> None:
    named = read_kallsyms(memory)
    text = b"\n".join(line for line in memory.vmcoreinfo.text.split(b"\n") if b"kallsyms" not in line)
    memory.vmcoreinfo = parse_vmcoreinfo(text)
    found = read_kallsyms(memory)
    assert found.names == named.names
    assert np.array_equal(found.vaddrs, named.vaddrs)


def test_exported_symbols_are_those_of_kallsyms(memory: KernelMemory) -> None:
    table = read_kallsyms(memory)
    exported = read_exported_symbols(memory)
    listed = [symbol for symbol in table if symbol.name.startswith("__ksymtab_")]
    assert len(exported) == len(listed) > 5000
    assert _pairs(exported) <= _pairs(table)


def test_log_is_as_makedumpfile_reads_it(
    crash: Crash, memory: KernelMemory, tmp_path: Path, installed: Callable[[str], str]
) -> None:
    output = tmp_path / "dmesg"
    run([installed("makedumpfile"), "--dump-dmesg", crash.raw, output])
    expected = [line.lstrip() for line in output.read_bytes().split(b"\n")]
    lines = []
    for record in read_log(memory):
        seconds, rest = divmod(record.timestamp_ns, 10**9)
        head, *more = record.text.split(b"\n")
        lines += [b"[%5d.%06d] %s" % (seconds, rest // 1000, head), *more]
        assert not record.damage
        assert record.is_finalized
    assert [line.lstrip() for line in lines] == expected[: len(lines)]
    assert len(lines) > 300
    assert not b"".join(expected[len(lines) :])


def test_kernel_names_itself_as_its_console_did(crash: Crash, memory: KernelMemory) -> None:
    names = read_utsname(memory)
    banner = read_banner(memory, read_kallsyms(memory))
    assert names.release == memory.vmcoreinfo.osrelease == crash.release
    assert names.sysname == "Linux"
    assert banner.startswith(f"Linux version {names.release} ")
    assert banner.endswith(names.version)
    assert banner in crash.console.read_text(errors="replace")


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_kallsyms_is_what_vmlinux_has(
    kernel: str, crashed: Callable[..., Crash], installed: Callable[[str], str]
) -> None:
    crash = crashed(kernel)
    assert crash.vmlinux is not None
    linked: dict[str, set[int]] = defaultdict(set)
    for line in (run([installed("nm"), crash.vmlinux]).stdout or b"").decode().splitlines():
        vaddr, _, name = line[:16], line[17:18], line[19:]
        if vaddr.strip():
            linked[name].add(int(vaddr, 16))
    with open_dump(crash.filtered) as dump:
        memory = open_kernel_memory(dump)
        table = read_kallsyms(memory)
        for symbol in table:
            moved = 0 if symbol.vaddr < PERCPU_END else memory.kaslr_offset
            assert symbol.vaddr - moved in linked[symbol.name]


class _WithoutNote:
    """A dump whose file says nothing of the kernel."""

    def __init__(self, dump: Dump) -> None:
        self._dump = dump
        self.description = dataclasses.replace(
            dump.description, vmcoreinfo=b"", notes=b"", machine="", segments=(), phys_base=None
        )

    def __getattr__(self, name: str) -> object:
        return getattr(self._dump, name)


def _find_without_note(path: Path, *, has_crashed: bool) -> None:
    with open_dump(path) as dump:
        named = open_kernel_memory(dump)
        found = open_kernel_memory(_WithoutNote(dump))  # type: ignore[arg-type]
        assert found.vmcoreinfo.source.startswith("found in memory")
        symbols = {key: value for key, value in found.vmcoreinfo.entries.items() if key != "CRASHTIME"}
        assert symbols == {key: value for key, value in named.vmcoreinfo.entries.items() if key != "CRASHTIME"}
        assert (named.vmcoreinfo.crash_time_s is not None) == has_crashed
        assert [record.text for record in read_log(found)] == [record.text for record in read_log(named)]


@pytest.mark.parametrize("kernel", ["5.10", "6.1"])
def test_vmcoreinfo_is_found_in_the_memory_of_a_kernel_that_crashed(kernel: str, crashed: Callable[..., Crash]) -> None:
    _find_without_note(crashed(kernel).raw, has_crashed=True)
    _find_without_note(crashed(kernel).filtered, has_crashed=True)


def test_vmcoreinfo_is_found_in_the_memory_that_a_hypervisor_wrote(memory_dumped: Callable[[str], MemoryDumps]) -> None:
    dumps = memory_dumped("6.1")
    for path in (dumps.elf, dumps.kdump):
        _find_without_note(path, has_crashed=False)
