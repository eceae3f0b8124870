"""Addresses of arm64 are translated as the emulated machine translates them: by QEMU's ``gva2gpa`` after the panic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from drgn.helpers.linux.pid import find_task
from elftools.elf.elffile import ELFFile

from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.page.evidence import run_line
from postpanic.analysis.processes.user_pages import process_tables
from postpanic.analysis.program import OpenedProgram, open_program
from postpanic.analysis.workspace import Workspace
from postpanic.kernel.paging.tables import NOT_MAPPED
from postpanic.report.text import render_text
from postpanic.units import VirtAddr
from tests.vm.arm64 import LARGE_PAGES, fetch_busybox
from tests.vm.arm64_memory import Arm64Memory, fetch_memory
from tests.vm.lab import Lab

pytestmark = pytest.mark.matrix

KEYS = {
    "6.1": (4096, 48, 4),
    "6.12": (4096, 52, 5),
    "6.12-16k": (16384, 52, 4),
    "newest": (4096, 52, 5),
    LARGE_PAGES: (65536, 52, 3),
}
"""Size of a page, bits of an address, levels of tables: what each kernel makes of a processor that has everything."""


@dataclass(frozen=True)
class Machine:
    """A machine's memory, opened, and what QEMU says of it."""

    key: str
    memory: Arm64Memory
    opened: OpenedProgram

    @property
    def known(self) -> dict[int, int | None]:
        """Addresses of the kernel's half."""
        return {vaddr: paddr for vaddr, paddr in self.memory.translations.items() if vaddr >> 63}


@pytest.fixture(scope="module", params=list(KEYS), ids=lambda key: f"arm64-{key}")
def machine(request: pytest.FixtureRequest, crash_lab: Lab, installed: Callable[[str], str]) -> Iterator[Machine]:
    installed("qemu-system-aarch64")
    memory = fetch_memory(crash_lab, request.param)
    with open_program([memory.path], policy=DebugPolicy.SYNTHESIZED) as opened:
        yield Machine(request.param, memory, opened)


def test_tables_are_those_of_the_kernel(machine: Machine) -> None:
    tables = machine.opened.memory.tables
    assert (1 << tables.page_shift, tables.va_bits, len(tables.levels)) == KEYS[machine.key]


def test_every_address_leads_where_the_machine_says(machine: Machine) -> None:
    tables, known = machine.opened.memory.tables, machine.known
    assert {vaddr: tables.walk(VirtAddr(vaddr)).paddr for vaddr in known} == known
    mapped = sum(paddr is not None for paddr in known.values())
    assert mapped > 300
    assert len(known) - mapped > 300


def test_many_at_once_are_translated_as_each_alone(machine: Machine) -> None:
    tables = machine.opened.memory.tables
    page = 1 << tables.page_shift
    for vaddr, paddr in machine.known.items():
        expected = NOT_MAPPED if paddr is None else paddr - paddr % page
        assert tables.translate_pages(VirtAddr(vaddr - vaddr % page), 1).tolist() == [expected]


def test_prompt_shows_the_same(machine: Machine) -> None:
    workspace = Workspace(machine.opened)
    chosen = sorted(machine.known.items())[:: len(machine.known) // 20]
    for vaddr, paddr in chosen:
        text = "\n".join(render_text(run_line(workspace, f"vtop {vaddr:x}")))
        assert f"{vaddr:x}" in text
        assert ("(not mapped)" in text) == (paddr is None)
        if paddr is not None:
            assert text.splitlines()[1].split() == [f"{vaddr:x}", f"{paddr:x}"]


def test_pages_of_a_process_hold_its_program(machine: Machine, crash_lab: Lab) -> None:
    """The user's half, which QEMU does not translate for a CPU in the kernel, is judged by what must lie there."""
    opened = machine.opened
    tables = process_tables(opened.memory, find_task(opened.prog, 1).mm)
    page = 1 << tables.page_shift
    seen = 0
    with fetch_busybox(crash_lab).open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            if segment["p_flags"] & 2:
                continue
            start, data = segment["p_vaddr"], segment.data()
            for vaddr in range(-(-start // page) * page, start + len(data) - page, page):
                paddr = tables.walk(VirtAddr(vaddr)).paddr
                if paddr is not None:
                    assert opened.memory.physical.read(paddr, page) == data[vaddr - start : vaddr - start + page]
                    seen += 1
    assert seen > 5
