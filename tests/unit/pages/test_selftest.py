"""The self-test passes what a debugger can work with, and names what is lost of all else."""

from __future__ import annotations

import dataclasses
import random
import struct

import pytest

from postpanic.dumps.memory import PageState
from postpanic.pages.checks import Outcome, SelfTest
from postpanic.pages.selftest import check_dump
from tests.builders.kallsyms import LAYOUTS, build_kallsyms
from tests.unit.kernel.memories import PAGE, PLACE, STEXT, DictDump
from tests.unit.pages import whole_kernel as k
from tests.unit.pages.whole_kernel import WholeKernel, build_whole_kernel, copy_dump


@pytest.fixture(name="kernel", scope="module")
def _kernel() -> WholeKernel:
    return build_whole_kernel()


def _detail(test: SelfTest, name: str, outcome: Outcome) -> str:
    result = next(result for result in test.results if result.name == name)
    assert result.outcome is outcome, result
    return result.detail


def _failed(test: SelfTest) -> list[str]:
    return [result.name for result in test.failures]


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("with_source", [True, False])
def test_whole_dump_passes(kernel: WholeKernel, quick: bool, with_source: bool) -> None:
    source = copy_dump(kernel.dump) if with_source else None
    test = check_dump(kernel.dump, source=source, quick=quick)
    assert [result.name for result in test.results] == list(k.ITEMS)
    assert [result.outcome for result in test.results] == [Outcome.OK] * len(k.ITEMS), test.summary
    assert test.passed
    assert test.summary == "passed (11 items)"


def test_details_say_what_was_found(kernel: WholeKernel) -> None:
    test = check_dump(kernel.dump, source=copy_dump(kernel.dump))
    details = {result.name: result.detail for result in test.results}
    assert details["VMCOREINFO"].endswith("equal to the source's")
    assert details["kernel text"] == "17 pages, 17 equal to the source's"
    assert details["crashing task"] == f'{k.TASK:#x}, PID 440, "panic-maker" on CPU 1, 2 pages'
    assert details["crashing stack"] == f"2 pages from {k.SP:#x} on"
    assert details["tasks"].startswith("3 tasks with their stacks, ")


LOSSES = {
    "text": (STEXT + 5 * PAGE, {"kernel text"}),
    "last page of text": (k.ETEXT, {"kernel text"}),
    "rodata": (k.END_RODATA - 1, {"kernel data"}),
    "first table of kallsyms": (k.KALLSYMS, {"kallsyms", "kernel data"}),
    "kallsyms": (k.KALLSYMS + 2 * PAGE, {"kallsyms", "kernel data"}),
    "BTF": (k.BTF, {"BTF", "kernel data"}),
    "ORC": (k.ORC_END - 1, {"ORC"}),
    "bss": (k.BSS_END - 1, {"kernel data"}),
    "printk's text": (k.RING + 0x400, {"printk buffer", "kernel data"}),
    "task": (k.TASK + PAGE, {"crashing task", "tasks"}),
    "stack": (k.STACK + k.THREAD_SIZE - 1, {"crashing stack", "tasks"}),
    "stack pointer's page": (k.SP, {"crashing stack", "tasks"}),
    "stack below": (k.STACK, {"tasks"}),
    "other task": (k.SLEEPER, {"tasks"}),
    "other task's stack": (k.SLEEPER_STACK + PAGE, {"tasks"}),
}


@pytest.mark.parametrize("what", LOSSES)
@pytest.mark.parametrize("state", [PageState.EXCLUDED, PageState.LOST, PageState.HOLE])
def test_page_that_is_lost_is_named(kernel: WholeKernel, what: str, state: PageState) -> None:
    vaddr, items = LOSSES[what]
    test = check_dump(kernel.without(vaddr, state=state), source=kernel.dump)
    assert set(_failed(test)) == items, test.summary
    assert not test.passed
    assert test.summary.startswith("FAILED: ")
    why = "lost: never written" if state is PageState.LOST else "left out by the filter"
    for name in items:
        detail = _detail(test, name, Outcome.FAILED)
        assert " of " in detail
        assert f"first at {vaddr // PAGE * PAGE:#x} ({why}" in detail


@pytest.mark.parametrize("what", LOSSES)
def test_page_that_is_lost_fails_without_a_source_too(kernel: WholeKernel, what: str) -> None:
    vaddr, items = LOSSES[what]
    failed = set(_failed(check_dump(kernel.without(vaddr))))
    # Without symbols nothing else can be found, without types no task: that is said once.
    assert failed == ({"kallsyms"} if "kallsyms" in items else items)


def test_loss_is_counted(kernel: WholeKernel) -> None:
    lost = [STEXT + number * PAGE for number in (3, 4, 9)]
    test = check_dump(kernel.without(*lost), source=kernel.dump)
    assert _detail(test, "kernel text", Outcome.FAILED) == (
        f"3 of 17 pages, first at {lost[0]:#x} (left out by the filter)"
    )


@pytest.mark.parametrize("with_source", [True, False])
def test_page_table_that_is_lost_is_named(with_source: bool) -> None:
    kernel = build_whole_kernel(sp=k.OTHER_STACK + 0x100)
    source = kernel.dump if with_source else None
    named = 0
    for frame in kernel.tables:
        test = check_dump(kernel.lacking([frame]), source=source)
        assert not test.passed, frame
        named += "page tables" in _failed(test)
        if with_source and "page tables" in _failed(test):
            assert "table cannot be read" in _detail(test, "page tables", Outcome.FAILED)
    # All but the one that leads to the per-CPU data alone, which the crashing task's item misses.
    assert named == len(kernel.tables) - 1 or not with_source


def test_stack_that_no_page_table_leads_to_is_lost(kernel: WholeKernel) -> None:
    written = copy_dump(kernel.dump)
    table = next(frame for frame in kernel.tables if _maps(written, frame))
    at = 8 * ((k.SLEEPER_STACK >> 12) & 511)
    written.pages[table][at : at + 8] = bytes(8)
    detail = _detail(check_dump(written, source=kernel.dump), "tasks", Outcome.FAILED)
    assert f"first at {k.SLEEPER_STACK:#x} (no page table leads there)" in detail


def _maps(dump: DictDump, table: int) -> bool:
    """Tell whether a page table holds the first entry of the sleeper's stack."""
    (slot,) = struct.unpack_from("<Q", dump.pages[table], 8 * ((k.SLEEPER_STACK >> 12) & 511))
    return bool(slot & 0x000F_FFFF_FFFF_F000 == (0x600 + 3 * 4) * PAGE)


def test_what_the_source_lacks_is_not_demanded(kernel: WholeKernel) -> None:
    for vaddr, _ in LOSSES.values():
        source = kernel.without(vaddr)
        test = check_dump(copy_dump(source), source=source)
        assert not test.failures, test.summary


def test_loss_beside_one_of_the_source_is_still_named(kernel: WholeKernel) -> None:
    source = kernel.without(STEXT + PAGE)
    written = kernel.without(STEXT + PAGE, STEXT + 2 * PAGE)
    detail = _detail(check_dump(written, source=source), "kernel text", Outcome.FAILED)
    assert detail.startswith("1 of 16 pages, first at ")


def test_hole_where_the_source_has_zeroes_is_no_loss(kernel: WholeKernel) -> None:
    written = kernel.without(k.BSS + PAGE, state=PageState.HOLE)
    assert check_dump(written, source=kernel.dump).passed
    alone = check_dump(written)
    assert alone.passed
    assert "1 of them zero or excluded: the file does not tell" in _detail(alone, "kernel data", Outcome.OK)


def test_nothing_but_holes_is_a_loss(kernel: WholeKernel) -> None:
    holes = range(STEXT, k.ETEXT, PAGE)
    assert "kernel text" in _failed(check_dump(kernel.without(*holes, state=PageState.HOLE)))


def test_text_that_is_not_the_sources_is_named(kernel: WholeKernel) -> None:
    written = copy_dump(kernel.dump)
    written.pages[kernel.frame_of(STEXT + 3 * PAGE)][7] ^= 1
    detail = _detail(check_dump(written, source=kernel.dump), "kernel text", Outcome.FAILED)
    assert detail == f"the page at {STEXT + 3 * PAGE:#x} is not the source's"


def test_vmcoreinfo_that_is_not_the_sources_is_named(kernel: WholeKernel) -> None:
    written = copy_dump(kernel.dump)
    text = written.description.vmcoreinfo
    written.description = dataclasses.replace(written.description, vmcoreinfo=text + b"NEW=1\n")
    assert "are not the source's" in _detail(check_dump(written, source=kernel.dump), "VMCOREINFO", Outcome.FAILED)


def test_dump_without_its_sources_vmcoreinfo_fails(kernel: WholeKernel) -> None:
    written = copy_dump(kernel.dump)
    written.description = dataclasses.replace(written.description, vmcoreinfo=b"")
    test = check_dump(written, source=kernel.dump)
    assert "the file does not" in _detail(test, "VMCOREINFO", Outcome.FAILED)


def test_memory_without_a_kernel_fails_alone_and_is_not_applicable_beside_such_a_source() -> None:
    dump = DictDump(machine="")
    dump.write(0, bytes(range(256)) * 16)
    alone = check_dump(dump)
    assert _failed(alone) == ["VMCOREINFO"]
    assert not alone.passed
    beside = check_dump(dump, source=copy_dump(dump))
    assert not beside.failures
    assert not beside.passed
    assert beside.summary.startswith("nothing to check: as in the source: no VMCOREINFO")


def test_kernel_that_did_not_crash_is_not_blamed() -> None:
    test = check_dump(build_whole_kernel(panic_cpu=-1).dump)
    assert not test.failures
    for name in ("crashing task", "crashing stack"):
        assert _detail(test, name, Outcome.NOT_APPLICABLE) == "no CPU has crashed"
    assert test.summary == "passed (9 items; not applicable: crashing task, crashing stack)"


def test_kernel_without_types_has_its_stack_checked_by_alignment(kernel: WholeKernel) -> None:
    dump = copy_dump(kernel.dump)
    other = WholeKernel(dump, kernel.frames)
    other.write(k.BTF, bytes(8))
    test = check_dump(dump)
    assert _failed(test) == ["BTF"]
    assert _detail(test, "tasks", Outcome.NOT_APPLICABLE) == "there are no types to find it by"
    assert _detail(check_dump(dump), "crashing stack", Outcome.OK).startswith("2 pages from ")


STACK_POINTERS = {
    "in the middle": (k.SP, 2, k.SP),
    "at the bottom": (k.STACK, 4, k.STACK),
    "at the very top": (k.STACK + k.THREAD_SIZE, 1, k.STACK + k.THREAD_SIZE - 8),
    "on another stack": (k.OTHER_STACK + 0x100, k.OTHER_PAGES + 4, k.OTHER_STACK + 0x100),
    "below, in the guard page": (k.STACK - 64, 4, k.STACK),
    "nowhere": (0xFFFFC9000FFFF000, 4, k.STACK),
    "in a program": (0x7FFC12345678, 4, k.STACK),
}


@pytest.mark.parametrize("where", STACK_POINTERS)
def test_stack_is_checked_from_its_pointer_to_its_end(where: str) -> None:
    sp, pages, start = STACK_POINTERS[where]
    kernel = build_whole_kernel(sp=sp)
    test = check_dump(kernel.dump)
    assert _detail(test, "crashing stack", Outcome.OK).startswith(
        f"{pages} page{'s' if pages > 1 else ''} from {start:#x}"
    )
    assert test.passed
    for lost in {start, k.STACK + k.THREAD_SIZE - 1}:
        assert "crashing stack" in _failed(check_dump(kernel.without(lost), source=kernel.dump))


def test_dump_of_a_hypervisor_has_its_notes_in_the_order_of_cpus() -> None:
    kernel = build_whole_kernel(note_pid=None)
    notes = k.build_prstatus(1, 0) + k.build_prstatus(2, k.STACK + 0x3F00)
    kernel.dump.description = dataclasses.replace(kernel.dump.description, notes=notes)
    test = check_dump(kernel.dump)
    assert _detail(test, "crashing stack", Outcome.OK) == f"1 page from {k.STACK + 0x3F00:#x} on"


def test_dump_without_registers_has_its_whole_stack_checked() -> None:
    test = check_dump(build_whole_kernel(note_pid=None).dump)
    assert _detail(test, "crashing stack", Outcome.OK) == f"4 pages from {k.STACK:#x} on, registers were not saved"


def test_task_that_is_not_that_of_the_registers_is_named() -> None:
    test = check_dump(build_whole_kernel(note_pid=PID_OF_ANOTHER).dump)
    assert "has PID 440, the registers of CPU 1 are of PID 441" in _detail(test, "crashing task", Outcome.FAILED)


PID_OF_ANOTHER = k.PID + 1


def test_room_of_a_task_that_is_not_allocated_is_not_demanded(kernel: WholeKernel) -> None:
    assert (k.TASK + k.TASK_BYTES) // PAGE > (k.TASK + k.ALLOCATED_BYTES) // PAGE
    assert _detail(check_dump(kernel.dump), "crashing task", Outcome.OK).endswith("2 pages")


@pytest.mark.parametrize("size", [0, 16, 1 << 30])
def test_size_of_tasks_that_cannot_be_is_not_believed(kernel: WholeKernel, size: int) -> None:
    dump = copy_dump(kernel.dump)
    WholeKernel(dump, kernel.frames).write(k.VARIABLES + 32, struct.pack("<Q", size))
    assert "of 3 pages" in _detail(check_dump(dump), "crashing task", Outcome.FAILED)


def test_list_of_tasks_that_goes_in_circles_ends(kernel: WholeKernel) -> None:
    dump = copy_dump(kernel.dump)
    WholeKernel(dump, kernel.frames).write(k.SLEEPER + k.TASKS_OFFSET, struct.pack("<Q", k.TASK + k.TASKS_OFFSET))
    assert "comes back to" in _detail(check_dump(dump), "tasks", Outcome.FAILED)


def test_list_that_the_crash_itself_broke_is_not_the_filters_fault(kernel: WholeKernel) -> None:
    dump = copy_dump(kernel.dump)
    WholeKernel(dump, kernel.frames).write(k.SLEEPER + k.TASKS_OFFSET, struct.pack("<Q", 0x1234))
    assert "breaks after 3" in _detail(check_dump(dump), "tasks", Outcome.FAILED)
    detail = _detail(check_dump(copy_dump(dump), source=dump), "tasks", Outcome.NOT_APPLICABLE)
    assert detail.startswith("as in the source: the list breaks after 3")


def test_symbols_of_the_source_help_where_the_files_own_are_lost(kernel: WholeKernel) -> None:
    lost = [k.KALLSYMS + number * PAGE for number in range(4)]
    test = check_dump(kernel.without(*lost, k.TASK + PAGE), source=kernel.dump)
    assert set(_failed(test)) == {"kallsyms", "kernel data", "crashing task", "tasks"}


def test_symbols_that_contradict_each_other_are_a_failure(kernel: WholeKernel) -> None:
    symbols = k.build_symbols(len(k.build_btf()))
    moved = [(name, letter, vaddr + (END_BEHIND if name == "__start_rodata" else 0)) for name, letter, vaddr in symbols]
    image = build_kallsyms([moved[0], *sorted(moved[1:], key=lambda symbol: symbol[2])], k.KALLSYMS, LAYOUTS["6.4"])
    dump = copy_dump(kernel.dump)
    WholeKernel(dump, kernel.frames).write(k.KALLSYMS, image.data)
    text = dump.description.vmcoreinfo + b"".join(
        b"SYMBOL(%s)=%x\n" % (name.encode(), vaddr) for name, vaddr in image.symbols.items()
    )
    dump.description = dataclasses.replace(dump.description, vmcoreinfo=text)
    assert "behind __end_rodata" in _detail(check_dump(dump), "kernel data", Outcome.FAILED)


END_BEHIND = k.END_RODATA - PLACE + PAGE


def test_kernel_of_the_source_may_be_open_already(kernel: WholeKernel) -> None:
    from postpanic.kernel.memory import open_kernel_memory

    source = copy_dump(kernel.dump)
    opened = open_kernel_memory(source)
    source.description = dataclasses.replace(source.description, vmcoreinfo=b"")
    assert check_dump(kernel.dump, source=source, source_kernel=opened).passed


SEARCHED_FOR = {"BTF", "ORC", "kernel data", "crashing task", "crashing stack", "tasks"}


@pytest.mark.parametrize("with_source", [True, False])
def test_what_only_a_search_would_find_is_not_applicable_where_memory_is_short(with_source: bool) -> None:
    kernel = build_whole_kernel(has_data_symbols=False)
    source = copy_dump(kernel.dump) if with_source else None
    with_room, lean = (check_dump(kernel.dump, source=source, is_lean=is_lean) for is_lean in (False, True))
    assert _detail(with_room, "BTF", Outcome.OK)
    detail = _detail(lean, "BTF", Outcome.NOT_APPLICABLE)
    assert detail == "kallsyms has no data (CONFIG_KALLSYMS_ALL), and there is no memory to search for it"
    skipped = {result.name for result in lean.results if result.outcome is Outcome.NOT_APPLICABLE}
    assert skipped == SEARCHED_FOR
    assert lean.passed
    # What needs no search is still held to be there.
    assert _failed(check_dump(kernel.without(STEXT + PAGE), source=source, is_lean=True)) == ["kernel text"]


def test_memory_that_is_short_changes_nothing_where_symbols_of_data_lead(kernel: WholeKernel) -> None:
    assert check_dump(kernel.dump, is_lean=True).summary == "passed (11 items)"


@pytest.mark.parametrize("seed", range(40))
def test_damage_anywhere_is_a_result_and_no_error(kernel: WholeKernel, seed: int) -> None:
    dump = copy_dump(kernel.dump)
    chance = random.Random(seed)
    frames = sorted(dump.pages)
    for _ in range(chance.choice([1, 10, 200])):
        page = dump.pages[chance.choice(frames)]
        page[chance.randrange(PAGE)] = chance.randrange(256)
    for frame in chance.sample(frames, chance.choice([0, 3, len(frames) // 2])):
        dump.states[frame] = chance.choice([PageState.EXCLUDED, PageState.HOLE, PageState.LOST])
        del dump.pages[frame]
    for source in (None, kernel.dump):
        test = check_dump(dump, source=source, quick=bool(seed % 2))
        assert [result.name for result in test.results] == list(k.ITEMS)
        assert test.to_json()["passed"] == test.passed
