"""``kmem``, ``vtop``, ``rd``, ``swap``, cell by cell against crash."""

from __future__ import annotations

from typing import Any

import pytest
from drgn.helpers.linux.percpu import percpu_counter_sum

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
from tests.compat.crash_text.system import parse_swap
from tests.compat.judged import Judged, differences, inner, records

pytestmark = pytest.mark.compat


def all_records(judged: Judged, line: str) -> list[dict[str, Any]]:
    return [row for table in judged.run(line).tables for row in records(table)]


def test_kmem_i_sums_up_memory(judged: Judged) -> None:
    ours = {row["name"]: (row["pages"], row["percent"], row["of"] or "") for row in all_records(judged, "kmem -i")}
    theirs = {name: (row.pages, row.percent, row.of) for name, row in judged.parsed("kmem -i", parse_kmem_i).items()}
    committed, _, _ = ours["COMMITTED"]
    # The counter has parts in every CPU; crash forgets them, /proc/meminfo does not.
    counter = judged.dump.prog["vm_committed_as"]
    assert committed == percpu_counter_sum(counter.address_of_())
    assert theirs["COMMITTED"][0] == counter.count.value_()
    assert differences(ours.items(), (theirs | {"COMMITTED": ours["COMMITTED"]}).items()) == []


def test_kmem_s_counts_objects_of_every_cache(judged: Judged) -> None:
    names = ("cache", "object_bytes", "allocated", "total", "slabs", "slab_kib", "name")
    ours = [tuple(row[name] for name in names) for row in records(judged.run("kmem -s").table)]
    assert differences(ours, judged.parsed("kmem -s", parse_kmem_s)) == []
    assert len(ours) > 150


def test_kmem_capital_s_tells_free_objects(judged: Judged) -> None:
    cache, theirs = judged.parsed("kmem -S kmalloc-64", parse_slab_objects)
    row = records(judged.run("kmem -S kmalloc-64").table)[0]
    slabs = [slab for place in inner(row["places"]) for slab in inner(place["slabs"])]
    ours = {one["address"]: one["allocated"] for slab in slabs for one in inner(slab["objects"])}
    assert row["allocated"] == cache.allocated
    assert {address: ours.get(address) for address in theirs} == theirs
    assert len(theirs) > 100


def test_kmem_v_lists_mapped_areas(judged: Judged) -> None:
    names = ("area", "vm", "start", "end", "size")
    ours = [tuple(row[name] for name in names) for row in records(judged.run("kmem -v").table)]
    assert differences(ours, judged.parsed("kmem -v", parse_kmem_v)) == []


def test_kmem_capital_v_shows_counters(judged: Judged) -> None:
    ours = {
        str(table.title).strip(" :"): {row["name"]: row["value"] for row in records(table)}
        for table in judged.run("kmem -V").tables
    }
    for section, theirs in judged.parsed("kmem -V", parse_counters).items():
        assert {name: ours[section].get(name) for name in theirs} == theirs
        # Enumerators that only mark where others begin are no names to crash.
        assert all(name.endswith("_BASE") for name in ours[section].keys() - theirs.keys())


def test_kmem_o_and_kmem_g(judged: Judged) -> None:
    offsets = {row["cpu"]: row["offset"] for row in records(judged.run("kmem -o").table)}
    assert offsets == judged.parsed("kmem -o", parse_per_cpu_offsets)
    bits = {row["name"]: row["bit"] for row in records(judged.run("kmem -g").table)}
    assert bits == judged.parsed("kmem -g", parse_page_flags)


def test_swap_lists_areas(judged: Judged) -> None:
    names = ("swap_info", "type", "size", "used", "percent", "priority", "file")
    ours = [tuple(row[name] for name in names) for row in records(judged.run("swap").table)]
    assert differences(ours, judged.parsed("swap", parse_swap)) == []


def find_addresses(judged: Judged) -> list[str]:
    """Choose addresses of every kind: kernel text and data, the direct map, vmalloc, a module, a process."""
    prog = judged.dump.prog
    task = records(judged.run("ps 1").table)[0]["task"]
    stack = int(prog["init_task"].stack)
    current = records(judged.run("bt").table)[0]
    module = prog.symbol("virtnet_probe").address
    init = [area for area in inner(records(judged.run("vm 1").table)[0]["areas"]) if area["file"]]
    kernel = [prog.symbol("schedule").address, stack, task, module, inner(current["frames"])[0]["sp"]]
    user = [init[0]["start"], init[1]["start"] + 0x123, init[-1]["start"], init[5]["start"]]
    return [f"vtop {vaddr:x}" for vaddr in kernel] + [f"vtop -c 1 {vaddr:x}" for vaddr in user]


def test_vtop_walks_as_crash_does(judged: Judged) -> None:
    lines = find_addresses(judged)
    for line, text in judged.ask(lines).items():
        theirs = parse_vtop(text)
        answer = judged.run(line)
        tables = {table.shape.name: records(table) for table in answer.tables}
        translation = tables["translation"][0]
        assert translation["vaddr"] == theirs.vaddr, line
        assert (translation["paddr"] if isinstance(translation["paddr"], int) else None) == theirs.paddr, line
        walk = [row for row in tables.get("walk", []) if row["level"] != "PAGE"]
        # crash calls the top level's table a directory, and gives its address; the entries are the same.
        entries = {row["entry_paddr"]: row["entry"] for row in walk}
        levels = [level for level in theirs.levels if level[0] != "PGD" or level[1] in entries]
        assert {paddr: entries.get(paddr) for _, paddr, _ in levels} == {paddr: entry for _, paddr, entry in levels}
        assert len(levels) >= 2, line
        if theirs.flags:
            assert tables["entries"][0]["flags"] == "|".join(theirs.flags), line
        if theirs.page is not None:
            page = tables["pages"][0]
            ours = [page[name] for name in ("page", "paddr", "mapping", "index", "count", "flags")]
            assert ours == list(theirs.page)[:6], line
            assert set(theirs.page.names) <= set(page["names"].split(",")) | set((page["type"] or "").split()), line
        if theirs.vma is not None:
            assert tables["vma"][0]["vma"] == theirs.vma, line


@pytest.mark.parametrize(
    "line",
    ["rd linux_banner 28", "rd -8 linux_banner 8", "rd -16 linux_banner 4", "rd -32 linux_banner 2"],
)
def test_rd_reads_the_same_words(judged: Judged, line: str) -> None:
    theirs = [(address, words) for address, words in judged.parsed(line, parse_words)]
    ours = [(row["address"], row["words"].split()) for row in records(judged.run(line).table)]
    assert ours == theirs
