"""``vtop``, ``rd``, ``kmem`` and ``search``, number by number against crash."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.open_dump import OpenDump
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer
from tests.compat.crash_text.memory import (
    parse_counters,
    parse_kmem_i,
    parse_kmem_s,
    parse_kmem_v,
    parse_page_flags,
    parse_per_cpu_offsets,
    parse_slab_objects,
    parse_vtop,
    parse_words,
)
from tests.compat.judged import Judged, differences, inner, records

pytestmark = pytest.mark.compat


def object_states(answer: Answer) -> dict[int, bool]:
    """Tell of each object of ``kmem -S`` whether it is in use."""
    return {
        one["object"]: one["allocated"]
        for row in records(answer["cache_details"])
        for place in inner(row["places"])
        if place["slabs"] is not None
        for slab in inner(place["slabs"])
        for one in inner(slab["objects"])
    }


def last_row(dump: OpenDump, line: str, table: str) -> dict[str, Any]:
    return records(dump.run(line)[table])[-1]


def test_slab_caches_are_crashs(judged: Judged) -> None:
    ours = [tuple(row.values()) for row in records(judged.run("kmem -s").table)]
    assert differences(ours, [tuple(row) for row in judged.parsed("kmem -s", parse_kmem_s)]) == []


def test_slab_objects_are_crashs(judged: Judged) -> None:
    """Slabs without a free object, which crash does not list, are there; of all others both say the same."""
    cache, theirs = judged.parsed("kmem -S kmalloc-64", parse_slab_objects)
    answer = judged.run("kmem -S kmalloc-64")
    ours = object_states(answer)
    assert {vaddr: ours[vaddr] for vaddr in theirs} == theirs
    assert len(ours) == cache.total > len(theirs)
    assert sum(ours.values()) == cache.allocated


def test_sums_are_crashs(judged: Judged) -> None:
    theirs = judged.parsed("kmem -i", parse_kmem_i)
    ours = {row["name"]: row for table in judged.run("kmem -i").tables for row in records(table)}
    assert list(ours) == list(theirs)
    for name, row in ours.items():
        if name == "COMMITTED":
            # crash leaves out what the CPUs have counted and not yet added; /proc/meminfo has it.
            continue
        assert (row["pages"], row["percent"], row["of"] or "") == (
            theirs[name].pages,
            theirs[name].percent,
            theirs[name].of,
        ), name


def test_vmalloc_areas_are_crashs(judged: Judged) -> None:
    rows = records(judged.run("kmem -v").table)
    ours = sorted((row["area"], row["vm"], row["start"], row["end"], row["size"]) for row in rows)
    assert differences(ours, sorted(tuple(row) for row in judged.parsed("kmem -v", parse_kmem_v))) == []
    named = [row["caller"] for row in rows if row["caller"]]
    assert any("clone" in name or "fork" in name or "dup_task" in name for name in named)


def test_counters_are_crashs(judged: Judged) -> None:
    theirs = judged.parsed("kmem -V", parse_counters)
    ours = {
        (table.title or "").strip(" :"): {row["name"]: row["value"] for row in records(table)}
        for table in judged.run("kmem -V").tables
    }
    compared = 0
    for section, counters in theirs.items():
        if section in ours:
            for name, value in counters.items():
                assert ours[section][name] == max(value, 0), (section, name)
                compared += 1
    assert compared > 80


def test_flags_and_offsets_are_crashs(judged: Judged) -> None:
    flags = {row["name"]: row["bit"] for row in records(judged.run("kmem -g").table)}
    assert flags == judged.parsed("kmem -g", parse_page_flags)
    offsets = {row["cpu"]: row["offset"] for row in records(judged.run("kmem -o").table)}
    assert offsets == judged.parsed("kmem -o", parse_per_cpu_offsets)


def test_free_lists_are_crashs(judged: Judged) -> None:
    theirs = [
        (int(row[1]), int(row[2], 16), int(row[3]), int(row[4]))
        for row in re.finditer(r"^ *(\d+) +\d+k  ([0-9a-f]{16}) +(\d+) +(\d+)$", judged.said("kmem -f"), re.MULTILINE)
    ]
    answer = judged.run("kmem -f")
    ours = [
        (area["order"], area["list"], area["blocks"], area["pages"])
        for zone in records(answer["free_zones"])
        if zone["areas"] is not None
        for area in inner(zone["areas"])
    ]
    assert differences(ours, theirs) == []
    verified = records(answer["verified"])[0]
    said = re.search(r"nr_free_pages: (\d+)  \((?:verified|found (\d+))\)", judged.said("kmem -f"))
    assert said is not None
    assert (verified["counted"], verified["found"]) == (int(said[1]), int(said[2] or said[1]))


def test_zones_are_crashs(judged: Judged) -> None:
    theirs = re.findall(
        r'NODE: (\d+)  ZONE: (\d+)  ADDR: ([0-9a-f]+)  NAME: "(\w+)"\n'
        r"(?:  SIZE: (\d+)(?:  PRESENT: (\d+))?  MIN/LOW/HIGH: (\d+)/(\d+)/(\d+)|  \[unpopulated\])",
        judged.said("kmem -z"),
    )
    ours = records(judged.run("kmem -z").table)
    assert len(theirs) == len(ours) > 3
    for row, other in zip(ours, theirs, strict=True):
        assert (row["node"], row["zone"], f"{row['address']:x}", row["name"]) == (
            int(other[0]),
            int(other[1]),
            *other[2:4],
        )
        if other[4]:
            numbers = tuple(row[name] for name in ("size", "present", "min", "low", "high"))
            # Where all of a zone is there, its size says so.
            assert numbers == tuple(int(number or other[4]) for number in other[4:])


RD_LINES = (
    "rd linux_banner 28", "rd -8 linux_banner 8", "rd -16 linux_banner 4", "rd -32 linux_banner 2",
    "rd -d linux_banner 4",
)  # fmt: skip


@pytest.mark.parametrize("line", RD_LINES)
def test_rd_shows_what_crash_shows(judged: Judged, line: str) -> None:
    ours = [(row["address"], row["words"].split()) for row in records(judged.run(line).table)]
    assert ours == judged.parsed(line, parse_words)


def test_rd_a_ends_where_crash_ends(judged: Judged) -> None:
    text = "".join(row["text"] for row in records(judged.run("rd -a linux_banner").table))
    assert text == "".join(line.split(":  ", 1)[1] for line in judged.said("rd -a linux_banner").splitlines())
    assert text.startswith("Linux version ")


def test_translations_are_crashs(judged: Judged) -> None:
    task = int(judged.dump.workspace.task.value_())
    stack = int(judged.dump.workspace.task.stack.value_())
    banner = judged.dump.workspace.prog.symbol("linux_banner").address
    page = page_structs(judged.dump.workspace).vaddr_of(0x1000) or 0
    addresses = (task, stack, banner, page, 0xFFFFC90000000000)
    texts = judged.ask([f"vtop {vaddr:x}" for vaddr in addresses])
    mapped = 0
    for vaddr in addresses:
        theirs = parse_vtop(texts[f"vtop {vaddr:x}"])
        answer = judged.dump.run(f"vtop {vaddr:x}")
        paddr = records(answer["translation"])[0]["paddr"]
        if isinstance(paddr, Absent):
            # Where the uppermost entry is empty, crash goes on with a table at physical address 0 and
            # gives an address beyond all memory.
            assert theirs.paddr is None or theirs.paddr >= 1 << 40
            continue
        mapped += 1
        assert paddr == theirs.paddr, f"{vaddr:#x}"
        walk = [(row["level"], row["entry"]) for row in records(answer["walk"]) if row["entry"] is not None]
        assert [step for step in walk if step[0] in {"PUD", "PMD", "PTE"}] == [
            (level, entry) for level, _, entry in theirs.levels if level in {"PUD", "PMD", "PTE"}
        ]
        flags = records(answer["entries"])[0]["flags"]
        assert tuple(flags.split("|")) == theirs.flags
        ours = records(answer["pages"])[0]
        assert theirs.page is not None
        assert (ours["page"], ours["paddr"], ours["count"], ours["flags"]) == (
            theirs.page.page,
            theirs.page.paddr,
            theirs.page.references,
            theirs.page.flags,
        )
    assert mapped == 4


@pytest.mark.parametrize("line", ["pte d8e067", "pte 8000000001001063"])
def test_pte_says_what_crash_says(judged: Judged, line: str) -> None:
    row = records(judged.run(line).table)[0]
    found = re.search(r"^ *([0-9a-f]+) +([0-9a-f]+) +\((.*)\)", judged.said(line), re.MULTILINE)
    assert found is not None
    assert (f"{row['entry']:x}", f"{row['paddr']:x}", row["flags"]) == found.groups()


def test_search_finds_what_crash_finds(judged: Judged) -> None:
    prog = judged.dump.workspace.prog
    task = int(judged.dump.workspace.task.value_())
    lines = (f"search {task:x}", f"search -t {task:x}", f"search -p {task:x}", "search -c panic-maker")
    texts = judged.ask(lines)
    for line in lines:
        theirs = {int(found, 16) for found in re.findall(r"^([0-9a-f]+): ", texts[line], re.MULTILINE)}
        answer = judged.run(line)
        tables = answer.tables
        if "-t" in line:
            tables = tuple(row["matches"] for row in records(answer.table))
        ours = {row["address"] for table in tables for row in records(table)}
        assert len(ours) >= 1
        for address in theirs - ours:
            # crash takes all memory behind the kernel image for a part of it, mapped or not.
            assert prog.symbol("_end").address <= address or address < prog.symbol("_text").address, f"{address:#x}"
            assert isinstance(last_row(judged.dump, f"vtop {address:x}", "translation")["paddr"], Absent)
        assert ours - theirs == set(), line


def test_excluded_pages_are_said_and_not_made_up(judged: Judged) -> None:
    vaddr = _excluded_vaddr(judged.dump)
    answer = judged.dump.run(f"rd {vaddr:x} 2")
    row = records(answer.table)[0]
    assert set(row["words"].replace(" ", "")) == {"?"}
    cells = [value["value"] for value in inner(row["values"])]
    assert all(isinstance(cell, Absent) and cell.reason is Reason.EXCLUDED for cell in cells)
    assert "left out" in answer.problems[0].what


def _excluded_vaddr(dump: OpenDump) -> int:
    from drgn.helpers.linux.mm import phys_to_virt

    memory = dump.workspace.memory.physical
    start, end = memory.ram_ranges[-1].tolist()
    pfns = np.arange(start // 4096, end // 4096, dtype=np.uint64)
    missing = pfns[memory.page_states(pfns) == 1]
    return int(phys_to_virt(dump.workspace.prog, int(missing[0]) * 4096).value_())
