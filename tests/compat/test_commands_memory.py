"""``vtop``, ``rd``, ``wr``, ``kmem``, ``search`` and their kin: against what the guest said itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from postpanic import open_dump
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.open_dump import OpenDump
from postpanic.dumps.digest import digest_file
from postpanic.dumps.memory import PageState
from postpanic.findings.absent import Absent
from postpanic.units import VirtAddr
from tests.compat.judged import inner, records
from tests.compat.proc_views import ProcViews
from tests.compat.test_judged_memory import last_row, object_states
from tests.vm.lab import Crash

pytestmark = pytest.mark.compat

VIEWED = ("6.1", "6.12")
KPF_BUDDY, KPF_RESERVED = 10, 32


@pytest.fixture(scope="module", params=VIEWED)
def viewed(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Crash:
    return crashed(request.param, scenario="views")


@pytest.fixture(scope="module")
def dump(viewed: Crash) -> Iterator[OpenDump]:
    with open_dump(viewed.raw, debuginfo="synth") as opened:
        yield opened


@pytest.fixture(scope="module", params=("6.12", "newest"))
def kinds(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Iterator[tuple[OpenDump, Crash]]:
    crash = crashed(request.param, scenario="memory-kinds")
    with open_dump(crash.filtered, debuginfo="synth") as opened:
        yield opened, crash


# --- against what the guest said


def test_vtop_finds_the_pages_that_pagemap_named(dump: OpenDump, viewed: Crash) -> None:
    views = ProcViews(viewed.views)
    counts = {"pfn": 0, "swap": 0, "none": 0}
    for vaddr, place in views.pages.items():
        answer = dump.run(f"vtop -c {views.holder} {vaddr:x}")
        paddr = records(answer["translation"])[0]["paddr"]
        counts[place[0]] += 1
        match place:
            case ("pfn", number):
                assert paddr == int(number) * 4096, f"{vaddr:#x}"
                page = records(answer["pages"])[0]
                assert page["paddr"] == paddr
                assert page["count"] >= 0
            case ("swap", type_, offset):
                entry = records(answer["swap_entries"])[0]
                assert (entry["type"], entry["offset"]) == (int(type_), int(offset)), f"{vaddr:#x}"
                assert str(entry["swap"]).startswith("/dev/")
            case _:
                assert isinstance(paddr, Absent), f"{vaddr:#x}"
    assert counts["pfn"] > 50, counts


def test_vtop_follows_the_areas_of_maps(dump: OpenDump, viewed: Crash) -> None:
    views = ProcViews(viewed.views)
    compared = 0
    for area in views.areas(views.holder)[:12]:
        answer = dump.run(f"vtop -c {views.holder} {area.start:x}")
        vmas = [table for table in answer.tables if table.shape.name == "vma"]
        if not vmas:
            assert area.name == "[vsyscall]"
            continue
        row = records(vmas[0])[0]
        assert (row["start"], row["end"]) == (area.start, area.end)
        if area.name.startswith("/"):
            assert row["file"] == area.name
        compared += 1
    assert compared > 5


def test_sums_are_those_of_meminfo(kinds: tuple[OpenDump, Crash]) -> None:
    dump, crash = kinds
    said = re.findall(r"lab: (\w+(?:\(\w+\))?): +(\d+) kB", crash.read_console())
    meminfo = {name: int(kib) // 4 for name, kib in said}
    sums = {row["name"]: row["pages"] for row in records(dump.run("kmem -i").table)}
    for table in dump.run("kmem -i").tables:
        sums |= {row["name"]: row["pages"] for row in records(table)}
    exact = {"TOTAL MEM": "MemTotal", "TOTAL SWAP": "SwapTotal", "COMMIT LIMIT": "CommitLimit"}
    for name, other in exact.items():
        assert sums[name] == meminfo[other], name
    # Between the last look at /proc and the crash a process was started and some pages were written.
    near = {
        "FREE": "MemFree", "BUFFERS": "Buffers", "CACHED": "Cached", "SLAB": "Slab", "SWAP FREE": "SwapFree",
        "COMMITTED": "Committed_AS",
    }  # fmt: skip
    for name, other in near.items():
        assert abs(sums[name] - meminfo[other]) <= max(400, meminfo[other] // 20), name
    assert sums["USED"] == sums["TOTAL MEM"] - sums["FREE"]
    assert sums["TOTAL HUGE"] == sum(row["total"] * _size(row["size"]) // 4096 for row in _pools(dump))


def _pools(dump: OpenDump) -> list[dict[str, Any]]:
    return records(dump.run("kmem -h").table)


def _size(text: str) -> int:
    return int(text[:-2]) << {"GB": 30, "MB": 20, "KB": 10}[text[-2:]]


def test_page_types_are_those_of_kpageflags(kinds: tuple[OpenDump, Crash]) -> None:
    """The guest wrote down what each page was right before it crashed; of a free block, it names all pages."""
    dump, crash = kinds
    said = np.fromfile(crash.page_flags, dtype="<u8")
    structs = page_structs(dump.workspace)
    reserved_bit = dict(structs.flag_bits)["PG_reserved"]
    free, reserved = np.zeros(len(said), dtype=bool), np.zeros(len(said), dtype=bool)
    slabs = 0
    for block in structs.blocks(0, len(said)):
        flags = block.u64(structs.flags_offset) >> np.uint64(reserved_bit) & np.uint64(1)
        reserved[block.first_pfn : block.first_pfn + len(flags)] = flags != 0
        orders = block.u64(structs.private_offset).tolist()
        for row, mapcount in enumerate(block.u32(structs.mapcount_offset).tolist()):
            if structs.type_name(mapcount) == "buddy":
                first = block.first_pfn + row
                free[first : first + (1 << orders[row])] = True
        slabs += int(structs.are_slabs(block).sum())
    for ours, bit in ((free, KPF_BUDDY), (reserved, KPF_RESERVED)):
        theirs = said >> np.uint64(bit) & np.uint64(1) != 0
        both, either = int((ours & theirs).sum()), int((ours | theirs).sum())
        assert both > 1000
        assert both >= 0.9 * either, (bit, both, either)
    assert slabs > 1000


def test_slabs_counted_by_lists_and_by_pages_are_the_same(dump: OpenDump) -> None:
    """Two ways that share nothing but the struct pages: the allocator's lists, and a pass over all of memory."""
    from postpanic.analysis.memory.slabs.allocator import slab_allocator
    from postpanic.analysis.memory.slabs.pages import find_all_slabs
    from postpanic.analysis.memory.slabs.usage import read_usage

    allocator = slab_allocator(dump.workspace)
    by_pages = find_all_slabs(dump.workspace, page_structs(dump.workspace), allocator)
    compared = 0
    for cache in allocator.caches([]):
        usage = read_usage(dump.workspace, cache, [])
        found = by_pages.get(cache.vaddr)
        assert usage.total == (int(found.objects.sum()) if found is not None else 0), cache.name
        assert usage.slabs == (len(found.pfns) if found is not None else 0), cache.name
        held = sum(len(cpu.freelist) + sum(len(one.objects) for one in cpu.sheaves) for cpu in usage.cpus)
        held += sum(len(one.objects) for node in usage.nodes for one in node.sheaves)
        assert usage.allocated == (int(found.inuse.sum()) - held if found is not None else 0), cache.name
        compared += usage.total
    assert compared > 50_000


def test_every_task_is_an_object_in_use(dump: OpenDump) -> None:
    """An independent list of objects that must be in use: the tasks."""
    answer = dump.run("kmem -S task_struct")
    states = object_states(answer)
    tasks = [row["task"] for row in records(dump.run("ps").table) if row["pid"]]
    assert len(tasks) > 40
    assert all(states[task] for task in tasks)
    row = records(answer.table)[0]
    assert row["allocated"] == sum(states.values())
    assert row["total"] == len(states)


# --- writing


def test_wr_changes_what_everybody_reads_and_not_the_file(viewed: Crash, tmp_path: Path) -> None:
    for number, path in enumerate((viewed.raw, viewed.filtered)):
        before = digest_file(path)
        with open_dump(path, debuginfo="synth") as dump:
            task = dump.workspace.task
            comm = int(task.comm.address_)
            stack = int(task.stack.value_())
            row = last_row(dump, f"wr {comm:x} 0064656c6c616320", "changes")
            assert bytes.fromhex("2063616c6c656400") == row["after"].to_bytes(8, "little")
            dump.run(f"wr -8 {stack + 4096:x} a5")
            assert task.comm.string_() == b" called"
            assert dump.workspace.memory.read_c_string(comm) == b" called"
            assert last_row(dump, f"rd -8 {stack + 4096:x}", "words")["words"].split() == ["a5"]
            assert records(dump.run(f"ps {comm - task.comm.address_ + int(task.value_()):x}").table)[0]["command"] == (
                " called"
            )
            saved = tmp_path / f"saved{number}"
            written = last_row(dump, f"wr --save-as {saved}", "saved")
            assert written["changed"] == 2
        assert digest_file(path) == before
        with open_dump(saved, debuginfo="synth") as changed:
            assert changed.workspace.memory.read_c_string(comm) == b" called"
            assert changed.workspace.prog.read(stack + 4096, 1) == b"\xa5"
            assert len(changed.run("ps").table) == len(changed.run("ps").table)


def test_damaged_slab_lists_end_and_are_counted_by_pages(viewed: Crash) -> None:
    """The list of partial slabs of one cache leads into a loop, another cache has impossible sizes."""
    from postpanic.analysis.memory.slabs.allocator import slab_allocator

    with open_dump(viewed.filtered, debuginfo="synth") as dump:
        whole = {row["name"]: row for row in records(dump.run("kmem -s").table)}
        allocator = slab_allocator(dump.workspace)
        caches = {cache.name: cache for cache in allocator.caches([])}
        victim, node = next(
            (cache, node)
            for cache in caches.values()
            for node in [allocator.node(cache, cache.nodes[0], [])]
            if len(node.partial) > 1
        )
        first = node.partial[0].vaddr + allocator.layout.slab.list
        dump.workspace.write_virtual(first, first.to_bytes(8, "little"))
        odd = caches["kmalloc-32"]
        dump.workspace.write_virtual(odd.vaddr + allocator.layout.cache.object_size, b"\0\0\0\0")
        answer = dump.run("kmem -s")
        found = {row["name"]: row for row in records(answer.table)}
        assert "kmalloc-32" not in found
        assert found[victim.name] == whole[victim.name]
        texts = " ".join(problem.what for problem in answer.problems)
        assert "a loop" in texts
        assert "no cache has them" in texts
        assert {name for name in whole if name not in found} == {"kmalloc-32"}
        # The list of caches leads into nowhere; from its other end all are found but the odd one.
        middle = list(caches.values())[len(caches) // 2]
        link = middle.vaddr + allocator.layout.cache.list
        dump.workspace.write_virtual(link, (0xDEAD000000000100).to_bytes(8, "little"))
        answer = dump.run("kmem -s")
        assert {row["name"] for row in records(answer.table)} == set(found)
        assert "the list slab_caches stops" in " ".join(problem.what for problem in answer.problems)


# --- new commands


def test_whereis_knows_an_address_from_all_sides(dump: OpenDump) -> None:
    workspace = dump.workspace
    task = int(workspace.task.value_())
    stack = int(workspace.task.stack.value_())
    frame = workspace.prog.stack_trace(workspace.task)[1]
    pid, comm = int(workspace.task.pid.value_()), workspace.task.comm.string_().decode()

    def kinds_of(line: str) -> dict[str, dict[str, Any]]:
        return {row["kind"]: row for row in records(dump.run(line).table)}

    found = kinds_of(f"whereis {task + 8:x}")
    assert found["slab"]["name"] == "task_struct"
    assert (found["slab"]["start"], found["slab"]["offset"], found["slab"]["state"]) == (task, 8, "in use")
    assert f'"{comm}"' in found["task"]["text"]
    assert {"before", "behind"} & set(found)
    found = kinds_of(f"whereis {frame.sp:x}")
    assert found["stack"]["name"] == f'task {pid} "{comm}"'
    assert found["stack"]["start"] == stack
    assert "#" in found["stack"]["state"]
    assert found["vmalloc"]["start"] <= frame.sp < found["vmalloc"]["start"] + found["vmalloc"]["size_bytes"]
    assert kinds_of("whereis init_task+8")["symbol"]["text"].startswith("init_task+8 (")
    assert kinds_of("whereis linux_banner+3")["symbol"]["text"] == "linux_banner+3"
    paddr = int(workspace.memory.translate(VirtAddr(task)))
    assert "mapped" in kinds_of(f"whereis -p {paddr:x}")
    offset = workspace.prog.symbol("runqueues").address
    base = next(row["offset"] for row in records(dump.run("kmem -o").table) if row["cpu"] == 1)
    assert kinds_of(f"whereis {(base + offset) & (1 << 64) - 1:x}")["per-CPU"]["name"] == "runqueues of CPU 1"


def test_owners_of_a_task(dump: OpenDump) -> None:
    """The parent's list of children, the signal structure and the PID must point to a task."""
    workspace = dump.workspace
    task = int(workspace.task.value_())
    size = workspace.prog.type("struct task_struct").size
    rows = records(dump.run(f"owners {task:x}")["owners"])
    by_address = {row["address"]: row for row in rows}
    pid = workspace.task.thread_pid
    for pointer in (
        pid.tasks[0].first.address_,
        workspace.task.signal.curr_target.address_,
        workspace.task.signal.thread_head.next.address_,
    ):
        assert task <= by_address[int(pointer)]["value"] < task + size
    assert by_address[int(pid.tasks[0].first.address_)]["kind"] == "slab"
    assert {"stack", "slab", "per-CPU"} <= {row["kind"] for row in rows}
    exact = records(dump.run(f"owners -e {task:x}")["owners"])
    assert {row["value"] for row in exact} == {task}
    assert len(exact) < len(rows)


def test_ptov_and_back(dump: OpenDump) -> None:
    vaddr = last_row(dump, "ptov 56e000", "addresses")["vaddr"]
    assert last_row(dump, f"vtop {vaddr:x}", "translation")["paddr"] == 0x56E000
    rows = records(dump.run("ptov b0c0:a")["per_cpu"])
    bases = {row["cpu"]: row["offset"] for row in records(dump.run("kmem -o").table)}
    assert {row["cpu"]: row["vaddr"] - 0xB0C0 for row in rows} == bases


def test_damaged_page_tables_end_every_command(viewed: Crash) -> None:
    """A stack that is mapped beyond all memory, a table that leads to itself, a PMD that is garbage."""
    with open_dump(viewed.filtered, debuginfo="synth") as dump:
        workspace = dump.workspace
        stack = int(workspace.task.stack.value_())
        walk = workspace.memory.walk(VirtAddr(stack))
        beyond = 0x000F_FFFF_0000_0063
        workspace.opened.overlay.write(walk.steps[-1].entry_paddr, beyond.to_bytes(8, "little"))
        entries = records(dump.run(f"vtop {stack:x}")["walk"])
        assert entries[-2]["entry"] == beyond
        assert records(dump.run(f"vtop {stack:x}")["translation"])[0]["paddr"] == beyond & 0x000F_FFFF_FFFF_F000
        answer = dump.run(f"rd {stack:x} 2")
        assert "not RAM" in answer.problems[0].what
        assert isinstance(inner(records(answer.table)[0]["values"])[0]["value"], Absent)
        assert records(dump.run(f"rd {stack + 4096:x} 2").table)[0]["words"].count("?") == 0
        # The PMD leads to the table that it is in.
        pmd = walk.steps[-2]
        looped = pmd.entry_paddr & ~0xFFF | 0x63
        workspace.opened.overlay.write(pmd.entry_paddr, looped.to_bytes(8, "little"))
        for line in (
            f"vtop {stack:x}",
            f"rd {stack:x} 4",
            f"kmem {stack:x}",
            f"whereis {stack:x}",
            f"search -s {stack:x} -l 16384 0",
            f"search -T {stack:x}",
            "search -V deadbeefdeadbeef",
            "kmem -v",
            "kmem -s",
        ):
            dump.run(line)
        workspace.opened.overlay.write(pmd.entry_paddr, bytes(8))
        answer = dump.run(f"vtop {stack:x}")
        assert isinstance(records(answer["translation"])[0]["paddr"], Absent)
        assert records(answer["walk"])[-1]["entry"] == 0
        assert "not present" in dump.run(f"rd {stack:x}").problems[0].what


def test_page_members_name_the_slabs_of_a_cache(dump: OpenDump) -> None:
    """As crash's own help tells: the pages whose slab_cache is a cache are its slabs."""
    cache = next(row for row in records(dump.run("kmem -s task_struct").table))
    named = [
        row["page"]
        for row in records(dump.run("kmem -m slab_cache").table)
        if inner(row["values"])[0]["value"] == cache["cache"]
    ]
    slabs = {
        slab["slab"]
        for row in records(dump.run("kmem -S task_struct")["cache_details"])
        for place in inner(row["places"])
        if place["slabs"] is not None
        for slab in inner(place["slabs"])
    }
    assert slabs <= set(named)
    assert len(slabs) == cache["slabs"]


def test_free_pages_are_found_in_their_blocks(dump: OpenDump) -> None:
    """Every page of a block that the free lists have, is known to be in it; the first page behind it is not."""
    areas = [
        area
        for zone in records(dump.run("kmem -F")["free_zones"])
        if zone["areas"] is not None
        for area in inner(zone["areas"])
        if area["blocks"]
    ]
    structs = page_structs(dump.workspace)
    for area in areas[:12]:
        first = structs.pfn_of(inner(area["heads"])[0]["page"])
        assert first is not None
        for pfn in (first, first + (1 << area["order"]) - 1):
            assert structs.free_block_of(pfn) == (first, area["order"])
            found = {row["kind"]: row for row in records(dump.run(f"whereis -p {pfn * 4096:x}").table)}
            assert found["free"]["start"] == first * 4096
        assert structs.free_block_of(first + (1 << area["order"])) != (first, area["order"])
    assert len(areas) > 3


def test_excluded_pages_read_as_zeroes_only_when_asked(viewed: Crash) -> None:
    with open_dump(viewed.filtered, debuginfo="synth") as dump:
        memory = dump.workspace.memory.physical
        start, end = memory.ram_ranges[-1].tolist()
        pfns = np.arange(start // 4096, end // 4096, dtype=np.uint64)
        paddr = int(pfns[memory.page_states(pfns) == PageState.EXCLUDED][0]) * 4096
        answer = dump.run(f"rd -p {paddr:x} 2")
        assert "left out" in answer.problems[0].what
    with open_dump(viewed.filtered, debuginfo="synth", zero_excluded=True) as dump:
        answer = dump.run(f"rd -p {paddr:x} 2")
        assert answer.problems == ()
        assert records(answer.table)[0]["words"].split() == ["0" * 16] * 2
