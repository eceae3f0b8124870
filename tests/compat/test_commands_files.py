"""``files``, ``mount``, ``vm`` and ``fuser`` against what /proc said right before the crash."""
# ruff: noqa: S108 - names of files in the guest

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from drgn import Object
from drgn.helpers.linux.pid import find_task

from postpanic import open_dump
from postpanic.analysis.open_dump import OpenDump
from postpanic.findings.absent import Absent
from postpanic.findings.table import Table
from postpanic.units import VirtAddr
from tests.compat.proc_views import ProcViews
from tests.vm.lab import Crash

KERNELS = ("6.1", "6.12")


@pytest.fixture(scope="module", params=KERNELS)
def crash(request: pytest.FixtureRequest, crashed: Callable[..., Crash]) -> Crash:
    return crashed(request.param, scenario="views")


@pytest.fixture(scope="module")
def dump(crash: Crash) -> Iterator[OpenDump]:
    with open_dump(crash.filtered) as opened:
        yield opened


@pytest.fixture(scope="module")
def views(crash: Crash) -> ProcViews:
    return ProcViews(crash.views)


def _nested(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    table = row[name]
    assert isinstance(table, Table), table
    return table.records()


def test_open_files_are_those_of_proc(dump: OpenDump, views: ProcViews) -> None:
    compared = 0
    alive = {row["pid"] for row in dump.run("files 'view-holder' 'server' 'holder' 'poller'").table.records()}
    for pid in sorted(alive & set(views.pids)):
        row = dump.run("files", task=pid).table.records()[0]
        entries = _nested(row, "files")
        assert {str(entry["fd"]): entry["path"] for entry in entries} == views.links(f"{pid}/fd"), pid
        assert {name: row[name] for name in ("root", "cwd")} == views.links(str(pid)), pid
        compared += len(entries)
    assert compared > 100


def test_types_of_open_files(dump: OpenDump, views: ProcViews) -> None:
    entries = {
        entry["fd"]: entry for entry in _nested(dump.run("files", task=views.holder).table.records()[0], "files")
    }
    kinds = {entry["path"]: entry["type"] for entry in entries.values()}
    expected = {
        "/dev/null": "CHR",
        "/tmp/held": "DIR",
        "/tmp/held/fifo": "FIFO",
        "/tmp/held/link": "LNK",
        "/dev/vdc": "BLK",
    }
    assert {path: kinds[path] for path in expected} == expected
    assert {entry["type"] for entry in entries.values() if entry["path"].startswith("socket:")} == {"SOCK"}
    cached = _nested(dump.run("files", task=views.holder, cached=True).table.records()[0], "files")
    pages = {entry["path"]: entry["pages"] for entry in cached}
    # Half of its 64 pages were written to.
    assert pages["/tmp/mapped"] == 32


def test_files_by_reference(dump: OpenDump, views: ProcViews) -> None:
    (row,) = dump.run("foreach files -R gone").table.records()
    assert row["pid"] == views.holder
    whole = dump.run("files", task=views.holder).table.records()[0]
    regular = next(entry for entry in _nested(whole, "files") if entry["path"] == "/tmp/held/regular")
    for name in ("file", "dentry", "inode"):
        found = dump.run(f"files -R {regular[name]:x} {views.holder}").table.records()[0]
        assert regular["fd"] in {entry["fd"] for entry in _nested(found, "files")}
    dentry = dump.run(f"files -d {regular['dentry']:x}").table.records()[0]
    # The file system is mounted twice.
    assert dentry["path"] in {"/tmp/held/regular", "/mnt/bind/held/regular"}
    assert dentry["inode"] == regular["inode"]


def test_cached_pages_of_an_inode(dump: OpenDump, views: ProcViews) -> None:
    entries = _nested(dump.run("files", task=views.holder).table.records()[0], "files")
    mapped = next(entry for entry in entries if entry["path"] == "/tmp/mapped")
    answer = dump.run(f"files -p {mapped['inode']:x}")
    pages = answer["pages"].records()
    assert [page["index"] for page in pages] == list(range(0, 64, 2))
    area = next(area for area in views.areas(views.holder) if area.name == "/tmp/mapped")
    frames = {area.start + 4096 * int(page["index"]): page["paddr"] >> 12 for page in pages}
    assert frames == {vaddr: int(views.pages[vaddr][1]) for vaddr in frames}
    nodes = dump.run(f"files -n {mapped['inode']:x}")["nodes"].records()
    assert nodes == [{"node": 0, "pages": 32}]


def test_mounts_are_those_of_proc(dump: OpenDump, views: ProcViews) -> None:
    found = dump.run("mount").table.records()
    shown = {(row["type"], row["device"], row["directory"]) for row in found}
    # The disk that the view was written to was mounted only for that.
    expected = {entry for entry in views.mounts("self/mountinfo") if entry[2] != "/out"}
    assert shown == expected
    sleeper = next(
        int(name.split("/")[2]) for name in views.sections if name.endswith("/mountinfo") and "self" not in name
    )
    inside = dump.run("mount", namespace=sleeper).table.records()
    assert {(row["type"], row["device"], row["directory"]) for row in inside} == set(
        views.mounts(f"{sleeper}/mountinfo")
    )
    assert not {row["mount"] for row in inside} & {row["mount"] for row in found}


def test_mounts_by_what_they_are(dump: OpenDump, views: ProcViews) -> None:
    tmp = next(row for row in dump.run("mount").table.records() if row["directory"] == "/tmp")
    held = next(
        entry
        for entry in _nested(dump.run("files", task=views.holder).table.records()[0], "files")
        if entry["path"] == "/tmp/held"
    )
    assert {row["directory"] for row in dump.run(f"mount {tmp['mount']:x}").table.records()} == {"/tmp"}
    for word in (f"{tmp['superblock']:x}", f"{held['dentry']:x}", f"{held['inode']:x}"):
        assert {row["directory"] for row in dump.run(f"mount {word}").table.records()} == {"/tmp", "/mnt/bind"}
    (loop,) = dump.run("mount /dev/loop0").table.records()
    assert loop["directory"] == "/mnt/loop"
    (opened,) = dump.run("mount -f /tmp").table.records()
    assert {"/held", "/held/fifo", "/held/gone away"} <= {entry["path"] for entry in _nested(opened, "open_files")}


def test_memory_areas_are_those_of_proc(dump: OpenDump, views: ProcViews) -> None:
    compared = 0
    alive = {row["pid"] for row in dump.run("files 'view-holder' 'server' 'user' 'poller' 'swapped'").table.records()}
    for pid in sorted(alive & set(views.pids)):
        row = dump.run("vm", task=pid).table.records()[0]
        found = [(area["start"], area["end"], area["file"]) for area in _nested(row, "areas")]
        # A memory area above the user's, the same for all, has no vm_area_struct.
        expected = [(area.start, area.end, area.name) for area in views.areas(pid) if area.name != "[vsyscall]"]
        assert found == expected, pid
        assert row["total_vm"] <= sum(area.end - area.start for area in views.areas(pid)) >> 10
        compared += len(found)
    assert compared > 100


def test_pages_are_those_of_proc(dump: OpenDump, views: ProcViews) -> None:
    areas = _nested(dump.run("vm -p", task=views.holder).table.records()[0], "areas")
    places = {page["vaddr"]: page for area in areas for page in _nested(area, "pages")}
    seen = set()
    for vaddr, (kind, *rest) in views.pages.items():
        page = places.pop(vaddr)
        if kind == "pfn":
            assert page["paddr"] == int(rest[0]) << 12, hex(vaddr)
        elif kind == "swap":
            assert (page["swap"], page["swap_offset"]) == ("/dev/vdd", int(rest[1])), hex(vaddr)
        else:
            assert page["paddr"] is None, hex(vaddr)
            assert page["swap"] is None, hex(vaddr)
            assert page["file"] or page["state"] == "not mapped", hex(vaddr)
        seen.add(kind)
    assert seen == {"pfn", "swap", "none"}
    assert places == {}


def test_memory_by_reference(dump: OpenDump, views: ProcViews) -> None:
    area = next(area for area in views.areas(views.holder) if area.name == "/tmp/mapped")
    vaddr = area.start + 2 * 4096
    (found,) = _nested(dump.run(f"vm -R {vaddr + 5:x} {views.holder}").table.records()[0], "areas")
    (page,) = _nested(found, "pages")
    assert page["paddr"] >> 12 == int(views.pages[vaddr][1])
    (again,) = _nested(dump.run(f"vm -P {found['vma']:x} {views.holder}").table.records()[0], "areas")
    assert len(_nested(again, "pages")) == 64
    users = [row["pid"] for row in dump.run("foreach vm -R mapped").table.records()]
    assert users == [views.holder]
    assert dump.run("vm -f 875").table.records() == [
        {"value": 0x875, "names": "READ|EXEC|MAYREAD|MAYWRITE|MAYEXEC|DENYWRITE"}
    ]
    members = _nested(dump.run(f"vm -m {views.holder}").table.records()[0], "structures")
    assert members[0]["text"] == "struct mm_struct {"
    arguments = next(member for member in members if member["name"].endswith("arg_start"))
    stack = next(area for area in views.areas(views.holder) if area.name == "[stack]")
    assert stack.start < arguments["number"] < stack.end
    verbose = _nested(dump.run(f"vm -vx {views.holder}").table.records()[0], "structures")
    starts = [member["number"] for member in verbose if member["name"].endswith("vm_start")]
    assert starts == [area.start for area in views.areas(views.holder) if area.name != "[vsyscall]"]


def _damage(dump: OpenDump, place: int, value: int) -> None:
    memory = dump.workspace.memory
    dump.workspace.opened.overlay.write(memory.translate(VirtAddr(place)), value.to_bytes(8, "little"))
    dump.workspace.forget()


def test_damage_spoils_what_it_hits_and_no_more(crash: Crash, views: ProcViews) -> None:
    with open_dump(crash.filtered) as dump:
        whole = dump.run("files", task=views.holder).table.records()[0]
        by_path = {entry["path"]: entry for entry in _nested(whole, "files")}
        regular = Object(dump.prog, "struct dentry *", by_path["/tmp/held/regular"]["dentry"])
        _damage(dump, regular.d_parent.d_parent.address_ or 0, regular.value_())
        files = find_task(dump.prog, views.holder).files.fdt.fd.value_()
        _damage(dump, files + 8 * by_path["/tmp/mapped"]["fd"], 0x41)
        after = {
            entry["fd"]: entry for entry in _nested(dump.run("files", task=views.holder).table.records()[0], "files")
        }
        assert len(after) == len(_nested(whole, "files"))
        circle = after[by_path["/tmp/held/regular"]["fd"]]["path"]
        assert isinstance(circle, Absent)
        assert "does not end" in circle.detail
        assert isinstance(after[by_path["/tmp/mapped"]["fd"]]["inode"], Absent)
        hit = {entry["fd"] for path, entry in by_path.items() if "/held" in path or path == "/tmp/mapped"}
        before = {entry["fd"]: entry for entry in _nested(whole, "files") if "/held/" not in entry["path"]}
        assert len(hit) > 4
        assert {fd: after[fd] for fd in before if fd not in hit} == {fd: before[fd] for fd in before if fd not in hit}


def test_a_circle_in_the_tree_of_cached_pages_ends(crash: Crash, views: ProcViews) -> None:
    with open_dump(crash.filtered) as dump:
        files = _nested(dump.run("files", task=views.holder).table.records()[0], "files")
        inode = next(entry["inode"] for entry in files if entry["path"] == "/tmp/mapped")
        head = Object(dump.prog, "struct inode *", inode).i_mapping.i_pages.xa_head.value_()
        node = Object(dump.prog, "struct xa_node *", head & ~3)
        _damage(dump, node.slots[0].address_ or 0, head)
        answer = dump.run(f"files -p {inode:x}")
        assert len(answer["pages"].rows) == 31
        assert "twice" in answer.problems[0].what
