"""Redaction of real dumps, judged by drgn, with the kernel's real debug information where there is any."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import drgn
import numpy as np
import pytest
from drgn.helpers.linux.mm import follow_phys
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.slab import find_slab_cache, slab_cache_for_each_allocated_object, slab_object_info
from numpy.typing import NDArray

from postpanic.analysis.debug_files import DebugPolicy
from postpanic.analysis.program import open_program
from postpanic.dumps.memory import Dump, PageState
from postpanic.dumps.open import open_dump
from postpanic.errors import FactAbsentError, UsageError
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.pages.redaction import ERASED_BYTE, Erasure, plan_erasure
from tests.vm.lab import Crash
from tests.vm.oracle import open_real

KERNELS = ("5.10", "6.1", "6.12", "newest")
PAGE = 4096


@dataclass
class Case:
    dump: Dump
    kernel: KernelMemory
    prog: drgn.Program


@pytest.fixture(scope="module", params=KERNELS)
def case(
    request: pytest.FixtureRequest, crashed: Callable[..., Crash], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    crash = crashed(request.param)
    with contextlib.ExitStack() as stack:
        dump = stack.enter_context(open_dump(crash.raw))
        if crash.vmlinux is not None:
            prog = open_real(crash.raw, crash.vmlinux, [])
        else:
            # Debian has none for its oldest kernel any more: drgn's own walk with the kernel's own types then.
            cache = tmp_path_factory.mktemp("debuginfo")
            opened = open_program([crash.raw], policy=DebugPolicy.SYNTHESIZED, cache_directory=cache)
            prog = stack.enter_context(opened).prog
        yield Case(dump, open_kernel_memory(dump), prog)


def _batches(dump: Dump) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint8]]]:
    for start, end in dump.ram_ranges.tolist():
        for first in range(start // PAGE, end // PAGE, 4096):
            pfns = np.arange(first, min(first + 4096, end // PAGE), dtype=np.uint64)
            pages, states = dump.read_pages(pfns)
            yield pfns[states == PageState.PRESENT], pages[states == PageState.PRESENT]


def _changed(dump: Dump, erasure: Erasure) -> dict[int, int]:
    """Apply to all of memory; give the physical address and length of each run of bytes that are X now."""
    found: dict[int, int] = {}
    total = 0
    for pfns, pages in _batches(dump):
        before = pages.copy()
        total += erasure.apply(pfns, pages)
        different = np.flatnonzero((before != pages).any(axis=1))
        covered = np.zeros(pages.shape, dtype=bool)
        inside = np.isin(erasure.pfns, pfns)
        for pfn, offset, length in zip(
            erasure.pfns[inside].tolist(),
            erasure.offsets[inside].tolist(),
            erasure.lengths[inside].tolist(),
            strict=True,
        ):
            covered[np.searchsorted(pfns, np.uint64(pfn)), offset : offset + length] = True
            found[pfn * PAGE + offset] = length
        assert (pages[covered] == ERASED_BYTE).all()
        assert np.array_equal(pages[~covered], before[~covered])
        assert covered[different].any(axis=1).all()
    assert total == sum(found.values())
    joined: dict[int, int] = {}
    last = 0
    for paddr, length in sorted(found.items()):
        # What crosses the end of a page comes in two pieces.
        if joined and last + joined[last] == paddr:
            joined[last] += length
        else:
            joined[paddr] = length
            last = paddr
    return joined


def _paddr(prog: drgn.Program, vaddr: int) -> int:
    return int(follow_phys(prog["init_mm"].address_of_(), vaddr))


def test_name_of_every_task_is_erased_and_nothing_else(case: Case) -> None:
    prog = case.prog
    erasure = plan_erasure(case.kernel, ["task_struct.comm"], [])
    changed = _changed(case.dump, erasure)
    tasks = [prog["init_task"].address_of_(), *for_each_task(prog)]
    assert len(tasks) > 50
    for task in tasks:
        assert changed.get(_paddr(prog, task.comm.address_of_().value_())) == 16, task.comm.string_()
    init = _paddr(prog, prog["init_task"].comm.address_of_().value_())
    offset = drgn.offsetof(prog.type("struct task_struct"), "comm")
    names = 0
    for paddr in changed:
        if paddr != init:
            vaddr = _direct(case, paddr)
            found = slab_object_info(prog, vaddr)
            assert found is not None
            assert found.slab_cache.name.string_() == b"task_struct"
            assert found.address + offset == vaddr
            names += 1
    assert names == erasure.records[0].objects - 1
    assert erasure.gaps == ()


def _direct(case: Case, paddr: int) -> int:
    return int(case.prog["page_offset_base"].value_()) + paddr


@pytest.mark.parametrize(
    ("request_", "struct", "cache"),
    [
        ("dentry.d_name", "struct dentry", "dentry"),
        ("mm_struct.saved_auxv", "struct mm_struct", "mm_struct"),
        ("files_struct.fd_array@files_cache", "struct files_struct", "files_cache"),
    ],
)
def test_member_is_erased_in_every_object_that_drgn_knows(case: Case, request_: str, struct: str, cache: str) -> None:
    erasure = plan_erasure(case.kernel, [request_], [])
    starts = set((erasure.pfns * np.uint64(PAGE) + erasure.offsets).tolist())
    member = request_.partition("@")[0].partition(".")[2]
    offset = drgn.offsetof(case.prog.type(struct), member)
    found = find_slab_cache(case.prog, cache)
    assert found is not None
    count = 0
    for item in slab_cache_for_each_allocated_object(found, struct):
        assert _paddr(case.prog, item.value_() + offset) in starts
        count += 1
    assert 10 < count <= erasure.records[0].objects


def test_uids_in_a_merged_cache_are_found_and_the_cache_is_named(case: Case) -> None:
    erasure = plan_erasure(case.kernel, ["user_struct.uid"], [])
    init = case.prog["init_task"].cred.user.uid.address_of_().value_()
    starts = set((erasure.pfns * np.uint64(PAGE) + erasure.offsets).tolist())
    assert _paddr(case.prog, init) in starts
    notes = " ".join(erasure.records[0].notes)
    assert "merged" in notes
    assert "uid_cache" in notes


def test_credentials_of_all_tasks_are_found_wherever_the_cache_was_merged(case: Case) -> None:
    erasure = plan_erasure(case.kernel, ["cred.uid"], [])
    starts = set((erasure.pfns * np.uint64(PAGE) + erasure.offsets).tolist())
    for task in for_each_task(case.prog):
        assert _paddr(case.prog, task.cred.uid.address_of_().value_()) in starts


def test_variables_have_the_size_of_their_type(case: Case) -> None:
    prog = case.prog
    erasure = plan_erasure(case.kernel, [], ["init_task.comm", "init_uts_ns.name.nodename", "slab_caches"])
    expected = {
        _paddr(prog, item.address_of_().value_()): drgn.sizeof(item)
        for item in (prog["init_task"].comm, prog["init_uts_ns"].name.nodename, prog["slab_caches"])
    }
    assert _changed(case.dump, erasure) == expected


def test_command_line_is_erased_where_the_variable_points(case: Case) -> None:
    text = case.prog["saved_command_line"]
    erasure = plan_erasure(case.kernel, [], ["saved_command_line->"])
    length = len(text.string_()) + 1
    assert length > 20
    assert _changed(case.dump, erasure) == {_paddr(case.prog, text.value_()): length}


def test_every_cpu_has_its_copy_erased(case: Case) -> None:
    prog = case.prog
    erasure = plan_erasure(case.kernel, [], ["runqueues:64", "kstat"])
    changed = _changed(case.dump, erasure)
    for cpu in (0, 1):
        rq = per_cpu(prog["runqueues"], cpu)
        assert changed[_paddr(prog, rq.address_of_().value_())] >= 64
    assert [record.objects for record in erasure.records] == [2, 2]


def test_what_there_is_not_is_named(case: Case) -> None:
    for request, text in (
        ("task_strct.comm", "no struct task_strct"),
        ("task_struct.cmm", "no member cmm"),
        ("task_struct.comm.x", "no member x"),
        ("task_struct.comm@task_struc", "no slab cache task_struc"),
        ("file_system_type.name@nope", "no slab cache nope"),
    ):
        with pytest.raises(FactAbsentError, match=text):
            plan_erasure(case.kernel, [request], [])
    with pytest.raises(FactAbsentError, match="no symbol init_tsk") as caught:
        plan_erasure(case.kernel, [], ["init_tsk"])
    assert "init_task" in caught.value.hint
    with pytest.raises(UsageError, match="a function"):
        plan_erasure(case.kernel, [], ["schedule"])
    with pytest.raises(UsageError, match="objects of slab cache"):
        plan_erasure(case.kernel, ["task_struct.comm@key_jar"], [])


def test_filtered_dump_is_planned_as_the_raw_one(crashed: Callable[..., Crash]) -> None:
    crash = crashed("6.12")
    plans = []
    for path in (crash.raw, Path(crash.filtered)):
        with open_dump(path) as dump:
            plans.append(plan_erasure(open_kernel_memory(dump), ["task_struct.comm"], ["init_uts_ns.name"]))
    assert np.array_equal(plans[0].pfns, plans[1].pfns)
    assert np.array_equal(plans[0].offsets, plans[1].offsets)
