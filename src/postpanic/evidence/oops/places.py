"""
What part a function plays, told by the file that it is compiled from.

The kernel's source tree is divided by what code is for: what lies in
``kernel/locking`` takes locks for everybody, what lies in ``mm/kasan`` reports.
A symbolised log names the file of each frame; for the others, the names that the
functions of these files have are kept in a table (scripts/generate_services.py).
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

__all__ = ["Part", "dispatches", "part_of_place"]


class Part(StrEnum):
    """The part a function plays; the spelling is the reason that is shown."""

    REPORTING = "reports the problem"
    EXCEPTION = "enters the kernel for an exception"
    INTERRUPT = "enters the kernel for an interrupt"
    ENTRY = "enters the kernel, or starts a task"
    LIBRARY = "copies, compares or counts for others"
    ALLOCATOR = "allocates memory for others"
    LOCKING = "takes locks for others"
    WAITING = "waits or schedules for others"
    TRACING = "instruments the code"


_OWN_WORK = (
    # Tests, and parts of the directories below that have users of their own.
    r"(?:[\w-]{1,64}/){1,12}[\w-]{0,64}?(?:test|kunit)[\w-]{0,64}(?:\.[ch]|/.{1,200})",
    r"lib/(?:timerqueue|maple_tree|rhashtable|assoc_array|iov_iter|dim/\w+)\.[ch]",
    r"crypto/(?:af_alg|algif\w*|crypto_user\w*|algapi|api|tcrypt|testmgr|simd|cryptd|pcrypt|asymmetric_keys/.*)\.[ch]",
)

_FILES: tuple[tuple[Part, tuple[str, ...]], ...] = (
    (
        Part.REPORTING,
        (
            r"mm/(?:kasan|kfence|kmsan)/.*|kernel/kcsan/.*|mm/(?:kmemleak|usercopy|page_owner|page_poison|debug)\.c",
            r"kernel/(?:panic|kallsyms|stacktrace|fail_function|kcov|watchdog\w*|hung_task|ksyms_common)\.c",
            r"kernel/locking/(?:lockdep\w*|irqflag-debug)\.[ch]|kernel/printk/.*|kernel/trace/trace_preemptirq\.c",
            (
                r"lib/(?:bug|ubsan|dump_stack|hexdump|debugobjects|fault-inject\w*|refcount|list_debug|stackdepot|ref_tracker"
                r"|smp_processor_id|nmi_backtrace|debug_locks)\.c|kernel/rcu/tree_stall\.h|rust/helpers/.*"
            ),
            r"arch/\w+/kernel/(?:dumpstack\w*|stacktrace|unwind\w*|return_address|perf_callchain)\.[cS]",
            (
                r"include/linux/(?:kasan\S*|kmsan\S*|kcsan\S*|kfence|instrumented|fault-inject\S*|debugobjects|printk|bug"
                r"|lockdep\w*|ref_tracker|kmemleak|stackdepot|stacktrace|once\w*|tracepoint\w*)\.h"
            ),
        ),
    ),
    (
        Part.EXCEPTION,
        (
            r"arch/\w+/kernel/(?:traps\w*|entry-common|debug-monitors|unaligned\w*)\.c|arch/\w+/kernel/trap\.c",
            r"arch/\w+/mm/(?:fault\w*|extable)\.c|kernel/notifier\.c|arch/x86/entry/entry_\w+\.S",
        ),
    ),
    (Part.INTERRUPT, (r"kernel/softirq\.c|kernel/irq/(?:handle|irqdesc|chip)\.c|kernel/irq_work\.c",)),
    (
        Part.ALLOCATOR,
        (
            r"mm/(?:slub|slab|slob|slab_common|util|vmalloc|nommu|page_alloc|mempool|dmapool|percpu\w*|page_frag\w*|slab)\.[ch]",
            r"lib/percpu\w*\.c|include/linux/(?:slab\w*|gfp|vmalloc|mempool|percpu\w*|alloc_tag)\.h",
        ),
    ),
    (
        Part.LOCKING,
        (
            r"kernel/locking/.*|lib/(?:lockref|dec_and_lock)\.c",
            (
                r"include/linux/(?:spinlock\w*|rwlock\w*|mutex\w*|rwsem|seqlock\w*|bit_spinlock|local_lock\w*|ww_mutex"
                r"|percpu-rwsem|rtmutex|semaphore|lockref|osq_lock|list_bl)\.h|include/asm-generic/q\w+lock\w*\.h"
            ),
            r"arch/\w+/include/asm/\w*(?:spinlock|rwlock)\w*\.h",
        ),
    ),
    (
        Part.WAITING,
        (
            r"kernel/(?:workqueue|kthread|smp|stop_machine|smpboot|up|freezer)\.c",
            r"kernel/sched/(?:completion|wait|wait_bit|swait)\.c|kernel/time/sleep_timeout\.c",
            r"include/linux/(?:wait\w*|completion|swait|freezer|workqueue|kthread|smp|delay)\.h",
        ),
    ),
    (
        Part.LIBRARY,
        (
            r"lib/(?:(?:crypto|crc|math|raid6|xz)/)?[\w-]{1,64}\.[cS]|arch/\w+/(?:lib|crypto)/.*|crypto/.*",
            r"mm/(?:maccess|list_lru|highmem)\.c|kernel/time/(?:timer|hrtimer)\.c",
            r"drivers/base/(?:core|dd|bus|driver|class|devres|map|attribute_container|transport_class)\.c",
            r"fs/seq_file\.c|fs/sysfs/.*|fs/proc/generic\.c",
            (
                r"include/linux/(?:list\w*|rculist\w*|llist|hashtable|hash|jhash|bit\w*|cpumask\w*|nodemask|find|atomic/.*"
                r"|string\w*|fortify-string|uaccess|refcount\w*|kref|xarray|radix-tree|idr|rbtree\w*|uio|iov_iter|highmem\w*"
                r"|math\w*|err|kobject|ctype|log2|sort|crc\w*|siphash|ktime|jiffies|compiler\w*|overflow|unaligned.*"
                r"|byteorder/.*|timer|hrtimer\w*|rcupdate\w*|srcu\w*|preempt|irqflags|thread_info|sched/(?:signal|task).*)\.h"
            ),
            r"include/(?:asm-generic|crypto)/.*|include/vdso/.*",
            (
                r"arch/\w+/include/asm/(?:(?:arch_)?atomic\w*|bitops\w*|cmpxchg\w*|string\w*|uaccess\w*|io\w*|checksum\w*"
                r"|barrier|percpu|preempt|irqflags|current|word-at-a-time|page\w*|paravirt\w*|msr|special_insns|delay"
                r"|jump_label|smap|unaligned|cacheflush)\.h"
            ),
        ),
    ),
)
"""Which files serve, in the order in which a part is chosen."""

_DISPATCHERS = re.compile(
    r"kernel/(?:softirq|workqueue|kthread|task_work|irq_work)\.c|kernel/time/(?:timer|hrtimer|posix-timers)\.c"
    r"|kernel/irq/(?:handle|chip|irqdesc)\.c|fs/(?:read_write|ioctl|open|file_table|readdir|sync|select|eventpoll)\.c"
    r"|net/socket\.c|net/netlink/genetlink\.c|net/netfilter/nfnetlink\.c"
    r"|drivers/base/dd\.c|drivers/usb/core/driver\.c|drivers/pci/pci-driver\.c"
)
"""Which files call, through a pointer, what others registered."""

_ROOT = re.compile(
    r"(?:^|/)((?:arch|block|crypto|drivers|fs|include|init|io_uring|ipc|kernel|lib|mm|net|rust|security|sound|virt)/"
    r"[\w./+-]{1,200})$"
)
_OWN = re.compile("|".join(_OWN_WORK))
_PARTS = tuple((part, re.compile("|".join(patterns))) for part, patterns in _FILES)


def dispatches(path: str) -> bool:
    """
    Tell whether the functions of a source file call what others registered.

    >>> dispatches("fs/read_write.c"), dispatches("fs/ext4/file.c")
    (True, False)
    """
    return _DISPATCHERS.fullmatch(path) is not None


@lru_cache(maxsize=4096)
def part_of_place(path: str) -> Part | None:
    """
    Tell the part of the functions of a source file; None: they do work of their own.

    >>> part_of_place("/build/linux/kernel/locking/mutex.c").name, part_of_place("fs/ext4/inode.c")
    ('LOCKING', None)
    """
    match = _ROOT.search(path[:512])
    if match is None or ".." in match[1] or _OWN.fullmatch(match[1]):
        return None
    return next((part for part, pattern in _PARTS if pattern.fullmatch(match[1])), None)
