"""Memory that ran out, by logs alone: who had it, whom the kernel killed, which pieces were too small."""

from __future__ import annotations

import pytest

from postpanic.analysis.triage import triage_log
from postpanic.analysis.triage.memory.sheet import UNACCOUNTED, sheet_of_report, spell_pages
from postpanic.evidence.memory_report import find_memory_reports
from postpanic.findings.verdict import Cause, Confidence, Role, Verdict
from tests.unit.analysis.triage.context.test_context import of, panic
from tests.unit.evidence.test_memory_report import OOM
from tests.unit.evidence.texts import PAGE_FAULT, stamped

END = panic("Out of memory: compulsory panic_on_oom is enabled", "out_of_memory.cold+0x42/0x7e", comm="web", pid=812)
REPORT = OOM[: OOM.index("oom-kill:")].replace("820000KB", "  9000KB")
# The hog is small, and the kernel's own part large.
KERNEL = (
    REPORT.replace("110855   110148   100000      148     10000", "1108     1101     1000      101         0")
    .replace("inactive_anon:150643", "inactive_anon:1506")
    .replace("slab_unreclaimable:4900", "slab_unreclaimable:160000")
    .replace("  9000KB", "620000KB")
)
FRAMES = """\
 __alloc_pages+0x305/0x330
 allocate_slab+0x64/0x300
 ___slab_alloc+0x3a1/0xa30
 kmalloc_trace+0x2a/0xa0
 widget_new+0x1b/0x40 [widget]
 widget_ioctl+0x58/0x90 [widget]
 </TASK>
Mem-Info:"""


def judge(report: str, end: str = END) -> Verdict:
    return triage_log(stamped(report + end).encode())


def test_the_process_that_has_most_is_named_and_who_asked_last_is_a_victim() -> None:
    verdict = judge(REPORT)
    assert (verdict.kind, verdict.cause, verdict.confidence) == (
        "out-of-memory",
        Cause.MEMORY_EXHAUSTED,
        Confidence.LIKELY,
    )
    assert "a name with words (PID 453)" in verdict.sentence
    assert "391 MiB, 55%" in verdict.sentence
    assert [victim.comm for victim in verdict.victims] == ["web"]
    assert verdict.function == verdict.module == ""
    assert any("asked for memory last" in who for who in verdict.not_to_blame)


def test_who_asked_last_and_has_most_is_not_acquitted() -> None:
    verdict = judge(REPORT.replace("web invoked", "a name with words invoked").replace("PID: 812 Comm: web",
                    "PID: 453 Comm: a name with words"),
                    END.replace("PID: 812 Comm: web", "PID: 453 Comm: a name with words"))  # fmt: skip
    assert verdict.victims == ()
    assert not any("asked for memory last" in who for who in verdict.not_to_blame)


def test_many_small_processes_of_one_name_count_together() -> None:
    head, _, tail = REPORT.partition("[    453]")
    columns = "9000     4000     3900      100         0    90112        0             0 job"
    rows = [f"[{pid:>7}]     0 {pid:>5}     {columns}" for pid in range(500, 530)]
    verdict = judge(head + "\n".join(rows) + tail[tail.index("\n") :])
    assert "30 processes called job together" in verdict.sentence
    assert verdict.cause is Cause.MEMORY_EXHAUSTED


def test_a_slab_cache_far_above_the_others_is_a_leak() -> None:
    verdict = judge(KERNEL)
    assert verdict.cause is Cause.MEMORY_LEAK
    assert "slab cache widget_cache" in verdict.sentence
    assert verdict.subject is not None
    assert verdict.subject.name == "widget_cache"
    # Nothing tells who took it.
    assert verdict.function == verdict.module == ""


def test_the_trace_of_who_asked_tells_which_module_takes_it() -> None:
    verdict = judge(KERNEL.replace(" </TASK>\nMem-Info:", FRAMES))
    assert (verdict.function, verdict.module, verdict.confidence) == ("widget_new", "widget", Confidence.LIKELY)
    assert verdict.victims == ()


def test_the_kernels_own_account_names_the_function() -> None:
    site = "Memory allocations:\n     605 MiB   812345 drivers/widget/cache.c:81 [widget] func:widget_stash\n"
    verdict = judge(KERNEL + site)
    assert (verdict.function, verdict.module) == ("widget_stash", "widget")


def test_what_nobody_accounts_for_is_a_leak_of_pages() -> None:
    lost = KERNEL.replace("slab_unreclaimable:160000", "slab_unreclaimable:4900").replace("620000KB", "  9000KB")
    verdict = judge(lost)
    assert verdict.cause is Cause.MEMORY_LEAK
    assert "nobody accounts for" in verdict.sentence
    (report,) = find_memory_reports(lost.encode())
    sheet = sheet_of_report(report)
    assert sheet is not None
    assert sum(line.pages for line in sheet.lines) + sheet.unaccounted == sheet.total
    assert UNACCOUNTED in sheet.evidence()[0].what


def test_a_control_group_at_its_limit_is_not_the_machine() -> None:
    verdict = judge(REPORT.replace("Mem-Info:", "memory: usage 409600kB, limit 409600kB, failcnt 31\nMem-Info:"))
    assert "ontrol group" in verdict.sentence
    assert "400 MiB" in verdict.sentence
    assert "a name with words" in verdict.sentence


FAILED = """\
web: page allocation failure: order:{order}, mode:0x40dc0(GFP_KERNEL|__GFP_ZERO), nodemask=(null),cpuset=/
Mem-Info:
active_anon:1469 inactive_anon:150643 isolated_anon:0
 free:9347 free_pcp:533 free_cma:0
Node 0 DMA32: 900*4kB (UE) 400*8kB (UE) 100*16kB (UME) 0*32kB 0*64kB {large}*128kB = 8400kB
262002 pages RAM
78455 pages reserved
"""


@pytest.mark.parametrize(("order", "large", "is_found"), [(5, 0, True), (5, 40, False), (0, 0, False), (1, 0, False)])
def test_free_memory_in_pieces_that_are_too_small_is_fragmentation(order: int, large: int, is_found: bool) -> None:
    verdict = triage_log(stamped(FAILED.format(order=order, large=large)).encode())
    found = of(verdict, "fragmentation")
    assert bool(found) is is_found
    if found:
        assert "128 KiB in one piece (order 5)" in found[0].sentence
        assert found[0].cause is Cause.FRAGMENTATION


def test_processes_killed_before_a_crash_of_another_kind_are_background() -> None:
    verdict = triage_log((stamped(OOM) + stamped(PAGE_FAULT, start_s=60.0)).encode())
    assert verdict.kind == "null-dereference"
    (found,) = of(verdict, "memory-growth")
    assert found.role is Role.BACKGROUND
    assert "hog killed to make room" in found.sentence
    assert "shortly before" in found.sentence


@pytest.mark.parametrize(("pages", "text"), [(1, "4 KiB"), (2560, "10 MiB"), (262144, "1.0 GiB"), (1 << 26, "256 GiB")])
def test_pages_are_spelled_as_people_do(pages: int, text: str) -> None:
    assert spell_pages(pages) == text
