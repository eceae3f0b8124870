"""What the kernel prints of its memory: sums, tables, free blocks, whom it killed."""

from __future__ import annotations

import pytest

from postpanic.evidence.memory_report import find_memory_reports
from tests.unit.evidence.texts import stamped

OOM = """\
web invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, oom_score_adj=0
CPU: 1 PID: 812 Comm: web Not tainted 6.12.1-test #7
Call Trace:
 <TASK>
 dump_stack_lvl+0x44/0x5c
 out_of_memory.cold+0x42/0x7e
 </TASK>
Mem-Info:
active_anon:1469 inactive_anon:150643 isolated_anon:0
 active_file:4 inactive_file:16 isolated_file:0
 unevictable:1024 dirty:0 writeback:0
 slab_reclaimable:3646 slab_unreclaimable:4900
 mapped:2594 shmem:6188 pagetables:1544
 sec_pagetables:0 bounce:0
 kernel_misc_reclaimable:0
 free:9347 free_pcp:533 free_cma:0
Node 0 active_anon:5876kB inactive_anon:602572kB kernel_stack:4320kB pagetables:6176kB all_unreclaimable? yes
Node 0 DMA free:3500kB boost:0kB min:760kB low:948kB high:1136kB reserved_highatomic:0KB active_anon:0kB
lowmem_reserve[]: 0 686 686 686 686
Node 0 DMA32: 32*4kB (UE) 34*8kB (UE) 19*16kB (UME) 0*32kB = 704kB
Node 0 hugepages_total=8 hugepages_free=6 hugepages_surp=0 hugepages_size=2048kB
6192 total pagecache pages
0 pages in swap cache
Free swap  = 12kB
Total swap = 65532kB
262002 pages RAM
0 pages HighMem/MovableOnly
78455 pages reserved
Unreclaimable slab info:
Name                      Used          Total
widget_cache         812345KB     820000KB
kmalloc-64              124KB        200KB
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
[    199]     0   199      271      191      100       91         0    28672        0             0 init
[    453]  1000   453   110855   110148   100000      148     10000   917504       12             0 a name with words
oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/,task=hog,pid=453,uid=0
Out of memory: Killed process 453 (hog) total-vm:443420kB, anon-rss:440000kB, file-rss:592kB, shmem-rss:0kB
"""


def test_all_parts_of_a_report_are_read() -> None:
    (report,) = find_memory_reports(OOM.encode())
    assert (report.comm, report.order, report.is_failure) == ("web", 0, False)
    assert report.counts["free"] == 9347
    assert report.counts["shmem"] == 6188
    assert report.managed_pages == 262002 - 78455
    assert (report.swap_total_kib, report.swap_free_kib, report.huge_kib) == (65532, 12, 8 * 2048)
    assert report.kernel_stack_kib == 4320
    assert [(slab.name, slab.total_kib) for slab in report.slabs] == [("widget_cache", 820000), ("kmalloc-64", 200)]
    assert report.free_blocks == {"node 0, zone DMA32": {4: 32, 8: 34, 16: 19, 32: 0}}
    assert report.zones == {"node 0, zone DMA": (3500, 760, 948, 1136)}
    assert (report.victim, report.victim_pid) == ("hog", 453)
    assert not report.is_of_group


def test_the_columns_of_the_table_of_tasks_are_those_of_its_head() -> None:
    (report,) = find_memory_reports(OOM.encode())
    assert [(task.pid, task.comm, task.rss, task.shmem, task.swap) for task in report.tasks] == [
        (199, "init", 191, 0, 0),
        (453, "a name with words", 110148, 10000, 12),
    ]
    older = OOM.replace(" rss_anon rss_file rss_shmem", "").replace("      100       91         0 ", " ")
    older = older.replace("   100000      148     10000 ", " ")
    (report,) = find_memory_reports(older.encode())
    assert [(task.comm, task.rss) for task in report.tasks] == [("init", 191), ("a name with words", 110148)]


@pytest.mark.parametrize("caller", ["", "T812"])
def test_what_is_before_the_lines_makes_no_difference(caller: str) -> None:
    (plain,) = find_memory_reports(OOM.encode())
    (with_time,) = find_memory_reports(stamped(OOM, caller).encode())
    assert with_time.time_s == 12.5
    assert (with_time.counts, with_time.slabs, with_time.tasks) == (plain.counts, plain.slabs, plain.tasks)


def test_each_search_for_a_process_to_kill_is_a_report_of_its_own() -> None:
    reports = find_memory_reports((OOM + OOM.replace("hog", "second")).encode())
    assert [(report.victim, len(report.tasks)) for report in reports] == [("hog", 2), ("second", 2)]


def test_a_kill_without_its_report_is_known() -> None:
    text = b"[   99.000000] Out of memory: Killed process 7 (cat) total-vm:1kB, anon-rss:1kB\n"
    (report,) = find_memory_reports(text)
    assert (report.victim, report.victim_pid, report.time_s, report.managed_pages) == ("cat", 7, 99.0, None)


def test_a_control_group_that_has_no_more_is_told_apart() -> None:
    text = OOM.replace(
        "constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom",
        "constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/web",
    ).replace("Mem-Info:", "memory: usage 102400kB, limit 102400kB, failcnt 31\nMem-Info:")
    (report,) = find_memory_reports(text.encode())
    assert (report.is_of_group, report.group, report.group_limit_kib) == (True, "/web", 102400)


def test_a_failed_allocation_is_no_search_for_a_process() -> None:
    text = b"modprobe: page allocation failure: order:4, mode:0x40dc0(GFP_KERNEL|__GFP_ZERO), nodemask=(null)\n"
    (report,) = find_memory_reports(text)
    assert (report.comm, report.order, report.is_failure) == ("modprobe", 4, True)


def test_the_kernels_own_account_of_allocations_is_read() -> None:
    text = OOM + "Memory allocations:\n     812 MiB   812345 drivers/widget/cache.c:81 [widget] func:widget_new\n"
    (report,) = find_memory_reports(text.encode())
    (site,) = report.sites
    assert (site.function, site.module, site.size_bytes, site.calls) == ("widget_new", "widget", 812 << 20, 812345)


@pytest.mark.parametrize("cut", range(0, len(OOM), 97))
def test_a_text_that_ends_anywhere_is_read_as_far_as_it_goes(cut: int) -> None:
    reports = find_memory_reports(OOM.encode()[:cut])
    assert len(reports) <= 1


def test_text_that_only_talks_of_it_is_no_report() -> None:
    assert find_memory_reports(b"the oom-killer was not there\nno page allocation here\n") == []
