"""
What part a function plays in a trace: which ones report, which ones only serve.

A function that reports the crash, enters the kernel for it, or is a service that
everybody uses (copying, allocating, locking) is seldom the one at fault; the
one that called it is. The parts are told by the kernel's own way of naming, and by the
file that a function is compiled from (a table, made of several kernels' debug information).
"""

from __future__ import annotations

import gzip
import re
from functools import cache, lru_cache
from importlib import resources

from postpanic.evidence.oops.demangle import demangle
from postpanic.evidence.oops.frames import base_name
from postpanic.evidence.oops.places import Part, part_of_place

__all__ = ["Part", "dispatchers", "part_of", "plain_name", "syscall_name"]


def _any(words: str) -> str:
    return "|".join(words.split())


# kernel/panic.c, lib/bug.c, mm/kasan, mm/kfence, mm/kmsan, kernel/kcsan, lib/ubsan.c, kernel/locking/lockdep.c,
# lib/{list_debug,refcount,debugobjects,fault-inject,stackdepot}.c, kernel/printk, arch dumpstack and unwinders
_REPORTING = _any(
    r"""
    console_(?:unlock|flush_all|emit_next_record|trylock_spinning) fs_reclaim_\w+_debug hlock_class
    graph_lock\w* rcu_set_runtime_mode
    dump_(?:stack|backtrace|header|page|task|cpu_task|regs|mem|instr|kernel_instr)\w*
    show_(?:stack|regs|trace|opcodes|mem)\w* print_trace\w* (?:nmi_)?panic panic_\w+ warn
    warn_(?:slowpath|printk|invalid|alloc)\w* report_bug\w* add_taint get_taint test_taint print_tainted
    v?printk\w* print_modules check_panic_on_warn k(?:asan|msan|csan|fence)_\w+
    (?:asan|hwasan|msan|tsan|ubsan|sanitizer)_\w+ check_memory_region\w* check_region_\w+ memory_is_poisoned\w*
    print_address_description print_(?:error_)?report (?:start|end)_report describe_(?:object|address)\w*
    object_err slab_err slab_(?:bug|fix|pad_check) print_trailer print_section
    check_(?:bytes_and_report|object|slab|poison_obj) handle_overflow handle_bug val_to_string fortify_panic
    fortify_report usercopy_\w+ check_object_size check_heap_object check_bogus_address check_stack_object
    list_(?:add|del|del_entry|add_entry)(?:_entry)?_?(?:valid|valid_or_report|corruption)\w* list_(?:add|del)
    refcount_\w+ kref_\w+ debug_print_object debug_object\w* debug_check_no_\w+
    debug_(?:dma|spin|rt_mutex|mutex|rwlock|write|read|locks)\w* check_no_obj_freed debug_lockdep_\w+
    should_fail\w* should_failslab fail_dump fault_(?:create|in)_\w+ schedule_bug schedule_debug
    might_(?:sleep|fault|resched)\w* cant_\w+ check_preemption_disabled debug_smp_processor_id
    this_cpu_preempt_check print_\w*(?:bug|deadlock|inversion|dependency|usage|cycle|bad_page|backtrace|lock)\w*
    lockdep_\w+
    lock_(?:acquire|acquired|release|contended|is_held|is_held_type|downgrade|set_class|pin_lock|unpin_lock)\w*
    mark_(?:lock|usage|held_locks|all_held)\w*
    check_(?:noncircular|prev_add|prevs_add|irq_usage|wait_context|deadlock|usage|redundant|flags|chain_key)\w*
    validate_chain register_lock_class look_up_lock_class assign_lock_key \w+_is_static_object warn_bogus_\w+
    ass(?:ert)?fail assertion_failed hex_dump\w* print_hex_dump\w* df_debug print_vma_addr skb_panic
    skb_over_panic skb_under_panic add_lock_to_list lookup_chain_cache\w* find_held_lock match_held_lock
    reacquire_held_locks save_trace valid_state trace_hardirqs_\w+ trace_(?:soft|hard)irqs\w* trace_lock\w*
    stack_trace_\w+ save_stack\w* set_track\w* unwind_(?:backtrace|frame|get_\w+|next_frame|stack)\w*
    arch_stack_walk\w* walk_stackframe stack_depot\w* depot_\w+ dump_trace print_context_stack\w*
    kernel_text_address is_\w*_text_address in_gate_area\w* return_address orc_\w+
    ftrace_(?:call|regs_call|graph_call|ops_\w+|caller) perf_trace_\w+ trace_event_\w+ bad_page\w* bad_range
    print_bad_pte print_page_allocation_failure alloc_pages_slowpath_fail rcu_lockdep_current_cpu_online
    rcu_is_watching rcu_read_lock_\w*held rcu_lockdep\w* spin_(?:bug|dump) rwlock_bug nmi_cpu_backtrace\w*
    nmi_trigger\w* arch_trigger_\w+ trigger_\w+
    rcu_(?:dump|print|check_gp|check_callbacks|sched_clock|pending|stall|grace_period_is)\w*
    print_(?:cpu|other_cpu)_stall\w* check_cpu_stall watchdog\w* softlockup_\w+ sched_show_task show_state\w*
    debug_show_all_locks check_hung\w* csd_lock_\w+ cfi_\w+ rust_helper_BUG asymm_\w+ stack_chk_fail
    debug_locks_off\w* kmemleak_\w+ add_lock\w* \w+_panic \w*assert(?:ion)?_?fail\w* \w+_bug(?:_on)?
    dev_(?:printk|emerg|alert|crit|err|warn|notice|info)\w* netdev_(?:printk|emerg|alert|crit|err|warn|notice|info)
    """
)
# arch/*/kernel/traps.c, arch/*/mm/fault.c, arch/*/entry
_EXCEPTION = _any(
    r"""
    (?:asm_|noist_|kernel_|safe_stack_)?exc_\w+ asm_\w+ async_page_fault (?:do_|kernel_)?page_fault\w*
    page_fault_oops bad_area\w* no_context kernelmode_fixup\w* mm_fault_error do_(?:user|kern)_addr_fault
    do_(?:error_trap|trap\w*|invalid_op|general_protection|int3|divide_error|double_fault|debug|nmi|machine_check|stack_segment|alignment_check|overflow|bounds|coprocessor\w*)
    general_protection invalid_op divide_error double_fault int3 stack_segment alignment_check machine_check
    simd_coprocessor_error error_(?:entry|exit|code|return) common_exception\w* trap_\w+ ret_from_exception
    handle_(?:exception|page_fault|fpu_exception|double_fault) fixup_(?:bug|exception)\w* math_error notify_die
    notifier_call_chain atomic_notifier_call_chain die(?:_\w+)? oops_\w+ arm_notify_die vc_\w+ el[01]\w*
    do_(?:mem_abort|translation_fault|bad_area|kernel_fault|tag_check_fault|sp_pc_abort|debug_exception|undefinstr|sea|serror|bad|alignment_fault|el\w+)
    brk_handler bug_handler call_break_hook arm64_\w*(?:serror|notify)\w* bad_mode bad_el\w+
    (?:dabt|und|pabt|irq|fiq)_(?:svc|usr|invalid) und_fault (?:v7|v8)_early_abort do_(?:DataAbort|PrefetchAbort)
    do_page_fault do_sect_fault do_unexp_fault undef_\w*hook bad_page_fault \w*program_check\w*
    (?:data|instruction)_access\w* h?data_storage\w* alignment_(?:common|exception)\w* exception\w* do_break
    interrupt_(?:return|exit)\w* bad_kernel_pc hash_page\w* do_hash\w* do_(?:dat|protection|asce|pgm|trap)_\w+
    pgm_check\w* do_trap_\w+ do_pgm_check save_stack_trace\w* handle_sys\w* do_insn_fault unaligned_\w+
    handle_(?:tlb\w*|bp|ri|fpe|watch|ade[sl]?|ale|bce|ibe|dbe|reserved\w*) tlb_do_page_fault\w*
    do_(?:ade|ale|bce|bp|ri|fpe|be|reserved|watch|lasx|lsx) \w+_common_(?:virt|real)\w* machine_kexec_mask\w*
    (?:mcck|pgm)_int_handler
    """
)
_INTERRUPT = _any(
    r"""
    (?:do_)?handle_IPI ipi_handler (?:asm_)?sysvec_\w+ (?:smp_)?(?:trace_)?\w*apic_timer_interrupt
    (?:asm_)?common_interrupt irq_(?:enter|exit)\w* do_IRQ ret_from_intr (?:do|invoke|handle|run)_softirqs?\w*
    do_softirq\w* local_bh_enable\w* irqentry_\w+
    handle_(?:irq|domain_irq|percpu\w*|edge_irq|level_irq|fasteoi_irq|simple_irq|IRQ)\w*
    generic_handle_\w*irq\w* gic_handle_irq arch_timer_handler\w* gic_\w+irq\w* call_on_(?:irq_)?stack\w*
    do_interrupt_handler irq_(?:svc|usr) hrtimer_(?:interrupt|run_queues)\w* run_hrtimer
    tick_(?:sched|nohz|periodic|do|handle_(?!r)|broadcast|irq|setup|check|program)\w* update_process_times
    call_timer_fn expire_timers run_timer_softirq exiting_irq entering_irq timer_\w*interrupt tasklet_action\w*
    net_rx_action rcu_(?:core|do_batch|process_callbacks)\w* smp_\w*interrupt\w* flush_smp_call\w*
    generic_smp_call\w* reschedule_interrupt irq_work_\w+ run_ksoftirqd smpboot_thread_fn
    account_(?:idle|process|system|user|steal|irq)_\w+ retint_\w+ restore_(?:all|regs)\w* timer_expire\w*
    do_notify_\w* (?:io|ext)_int_handler do_(?:io|ext)_irq do_vint handle_(?:v?int|riscv_irq) ret_from_irq
    plat_irq_dispatch decrementer_\w+ h?doorbell_\w+ riscv_intc_\w+ irq_thread\w*
    """
)
_ENTRY = _any(
    r"""
    \w+_sys_call sys_trace_return do_syscall_\w+ do_(?:fast|int80)_\w*syscall\w* entry_\w+ syscall_\w+
    invoke_syscall el0_svc\w* do_el0_svc ret_(?:fast|slow)_syscall system_call\w* tracesys\w*
    ret_from_(?:fork|kernel_thread|syscall)\w* start_kernel_thread kthread worker_thread
    process_(?:one_work|scheduled_works) start_secondary secondary_startup\w* cpu_startup_entry do_idle
    default_idle\w* cpuidle_\w+ arch_cpu_idle start_kernel rest_init x86_64_start_\w+ arch_call_rest_init
    primary_map_switched do_initcall\w* kernel_init\w* do_one_initcall sysenter_\w+ ia32_\w+ ret_to_user
    work_(?:pending|resched) stub_\w+ int_ret_\w+ riscv_\w*syscall\w* do_trap_ecall\w*
    """
)
_LIBRARY = _any(
    r"""
    seq_(?:printf|puts|putc|write|vprintf|put)\w* timer_shutdown\w* tasklet_(?:kill|unlock|disable)\w*
    hrtimer_(?:cancel|try_to_cancel|active|start)\w* (?:drop|inc|clear|set)_nlink
    usb_(?:submit_urb|control_msg|bulk_msg|start_wait_urb)\w* do_read_cache_\w+ netif_receive_skb\w*
    (?:arch_|raw_)?atomic(?:64|_long)?_\w+ instrument_\w+
    (?:arch_)?(?:test|set|clear|change)_(?:and_\w+_)?bit\w* (?:read|write)_once\w* READ_ONCE\w* native_\w+
    pv_\w+ xchg cmpxchg\w* try_cmpxchg\w* arch_\w+xchg\w* mem(?:cpy|set|move|cmp|chr|scan|dup)\w* rep_\w+
    str(?:len|nlen|cpy|ncpy|lcpy|scpy|cat|lcat|ncat|cmp|ncmp|casecmp|ncasecmp|chr|rchr|str|nstr|sep|spn|cspn|pbrk|nchr|chrnul)\w*
    v?s?n?c?printf v?scnprintf vsnprintf kvasprintf\w* kasprintf format_decode string_nocheck string pointer
    number sscanf vsscanf
    (?:raw_|arch_|_)?copy_(?:from|to|in|user|page)_?(?:user|iter|kernel|highpage|full|from|to|generic|enhanced|handle|flushcache|mc|nofault)?\w*
    copyin copyout copy_user_\w+ arm_copy_\w+ arch_copy_\w+ simple_copy_to_iter
    iterate_(?:bvec|iovec|kvec|xarray|all|and)\w* strncpy_from_user strnlen_user do_strn\w+
    (?:put|get|clear)_user(?:_(?!pages|ns|arg)\w+)? probe_(?:kernel|user)_\w+ csum_\w+ checksum\w* do_csum
    crc\w+ crypto_shash_\w+ jhash\w* siphash\w* xxh\w+
    rb_(?:insert|erase|next|prev|first|last|replace|set_parent|link)\w* list_\w+ hlist_\w+ llist_\w+
    find_(?:next|first|last)\w*bit\w* bitmap_\w+ hweight\w* sort_r sort bsearch ida_\w+ idr_\w+ div\w*_u64\w*
    nla_put\w* nla_reserve\w* skb_put\w* skb_pull\w* skb_push\w* pskb_\w*pull\w* skb_copy_(?:to|from)_linear\w*
    aes_?\w* aesti_\w+ (?:crypto|xts|ecb|cbc|ctr|gcm|ghash|sha\d+|md5|chacha\w*|poly1305)_\w+ xas_\w+ xa_\w+
    radix_tree_\w+ find_lock_entr\w+ find_get_entr\w+ truncate_inode_pages\w* truncate_pagecache\w* iput
    \w*dput\w* kobject_\w+ rollback_registered\w* (?:un)?register_net(?:device|dev)\w* sget_\w+ mntput\w*
    path_put (?:put|get)_device device_(?:del|unregister|remove_file\w*|create_file\w*|add|register)
    sysfs_(?:remove|create|add)_\w+ kobject_(?:del|add|create)\w*
    usb_(?:kill|poison|unlink|free|anchor|unanchor)_\w*urb\w* proc_(?:register|create\w*|mkdir\w*|remove\w*)
    remove_proc_\w+ try_to_grab_pending kobject_(?:put|get|cleanup|release) raw_(?:read|write)[bwlq]
    logic_(?:in|out)[bwl] (?:in|out)s?[bwl] (?:read|write)[bwlq] current_\w+stack\w* task_pid_nr\w* get_current
    preempt_count\w* rcu_read_\w+ arch_local_\w+ arch_irqs\w* uaccess_\w+ fls\w* ffs\w* init_timer_key\w*
    init_\w*wait\w* crc32_\w+ get_unaligned\w* put_unaligned\w* ref_tracker_\w+ dev_(?:hold|put)\w*
    netdev_(?:hold|put)\w* percpu_\w+ per_cpu_\w* queue_?work\w* mod_delayed_work\w* queue_(?:delayed_)?work\w*
    insert_work schedule_(?:delayed_)?work\w* del_timer\w* timer_delete\w* try_to_del_timer\w* mod_timer\w*
    add_timer\w* lock_timer_base
    """
)
_ALLOCATOR = _any(
    r"""
    alloc_skb\w* sk_(?:free|destruct) sock_wfree sock_rfree skb_(?:clone|copy|orphan) create_object delete_object\w*
    kfree_skb\w* consume_skb skb_release_\w+ (?:napi|dev)_(?:consume|kfree)_skb\w* sk_skb_reason_drop
    skb_free_\w+ free_skb\w* k[zvmc]?[mc]?alloc\w* krealloc\w* kv?z?free\w* kv?m?alloc\w* kcalloc\w* kmem_\w+
    slab_\w+ do_slab_free (?:cache|slub)_(?:alloc|free|grow)\w*
    free_(?:block|unref|hot_cold|debug|loop|large|to_partial|one)\w* allocate_slab new_slab\w* drain_array
    do_cache_free ksize memcg_\w*kmem\w* memcg_slab\w* obj_cgroup_\w+ (?:do_)?alloc_pages?\w*
    alloc_(?:frozen|bulk)_\w+ get_(?:free|zeroed)_pages? free_pages?\w* free_\w*pages?_\w+
    get_page_from_freelist prep_new_page post_alloc_hook rmqueue\w* get_any_partial get_partial\w* put_page
    folio_(?:alloc|put)\w* free_folio\w* v[mz]alloc\w* vfree\w* vunmap\w* vmap alloc_vmap_area
    (?:remove|map|get)_vm_area\w* mempool_\w+ page_frag_\w+ skb_page_frag\w* qlist_\w+ quarantine_\w+ memdup_\w+
    kmemdup\w* kstr\w*dup\w* pcpu_alloc\w* alloc_percpu\w* free_percpu devm_k\w+ dma_pool_\w+ cache_alloc\w*
    kfree_\w*bulk arena_\w+ sk_prot_alloc sk_alloc (?:net|netdev|napi|dev)?_?alloc_skb\w*_ip_align bio_alloc\w*
    bvec_alloc\w* poison_\w+ unpoison_\w+ setup_object\w* virt_to_\w+ kvfree\w* rcu_free\w* call_rcu\w*
    """
)
_LOCKING = _any(
    r"""
    folio_(?:lock|unlock|end|trylock)\w* unlock_page\w* end_page_\w+ seqprop_\w+ \w*rq_lock\w* \w*rq_unlock\w*
    read_seq\w+ write_seq\w+ (?:do_)?(?:raw_)?(?:spin|read|write|rw)_(?:try|un)?lock\w* do_raw_\w+ queued_\w+
    pv_queued\w* mutex_(?!fini)\w+ ww_mutex\w*
    (?:down|up|down_interruptible)(?:_(?:read|write|trylock|killable|interruptible|timeout|common)\w*)?
    (?:down|up|downgrade)_(?:read|write)\w* rwsem_\w+ call_rwsem\w* rwbase_\w+ rt_(?:mutex|spin|read|write)\w*
    rtlock\w* percpu_(?:down|up)_\w+ percpu_rwsem\w* lock_sock\w* release_sock\w* osq_\w+ seqcount\w*
    lockref_\w+ bit_spin_\w+ local_lock\w* ldsem_\w+ arch_spin_\w+ ticket_\w+ lock_page\w* folio_lock\w*
    lock_buffer\w* pagefault_(?:dis|en)able futex_(?!wait)\w*unlock bh_lock\w* dec_and_(?:raw_)?\w*lock\w*
    """
)
_WAITING = _any(
    r"""
    wake_up(?!_new)\w* kthread_\w+ sk_(?:stop|reset)_timer\w* stop_(?:machine|two|one)\w* cpu_stopper\w*
    schedule\w* preempt_schedule\w* io_schedule\w* (?:do_)?wait_(?:for|on|event|woken|task|current|iff)\w*
    (?:out_of_line_)?wait_on_\w+ bit_wait\w* (?:prepare_to|finish)_wait\w* folio_wait\w* sleep_on_\w+ usleep\w*
    msleep\w* fsleep do_nanosleep hrtimer_nanosleep (?:start_)?flush_(?:work|delayed_work|workqueue|rcu_work)\w*
    drain_workqueue cancel_(?:delayed_)?work\w* destroy_workqueue kthread_(?:stop|park|flush)\w* freezer_\w+
    try_to_freeze\w* cond_resched\w* context_switch switch_to\w* rcu_note_context\w* completion_\w+ swait_\w+
    complete(?:_all|_on_current_cpu)? refrigerator exp_funnel_lock blk_wait\w* finish_task_switch schedule_tail
    d_alloc_parallel d_wait\w* find_inode_fast_wait wait_rcu_gp\w* rcu_(?:barrier_wait|exp_wait)\w*
    """
)
_TRACING = _any(
    r"""
    sanitizer_cov_\w+ fentry mcount\w* cfi_\w+ x86_(?:return|indirect)_thunk\w* write_comp_data pfx_\w+
    check_kcov_mode kcov_\w+ stack_erasing stackleak_\w* bpf_trampoline\w* kprobe\w* uprobe\w*
    """
)

_PARTS: tuple[tuple[re.Pattern[str], Part], ...] = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (_REPORTING, Part.REPORTING),
        (_TRACING, Part.TRACING),
        (_ENTRY, Part.ENTRY),
        (_EXCEPTION, Part.EXCEPTION),
        (_INTERRUPT, Part.INTERRUPT),
        (_ALLOCATOR, Part.ALLOCATOR),
        (_LOCKING, Part.LOCKING),
        (_WAITING, Part.WAITING),
        (_LIBRARY, Part.LIBRARY),
    )
)

_TABLE = "services.tsv.gz"
_DISPATCHER = "DISPATCHER"
_NOT_SERVICES = re.compile(
    r"console_\w+|kernfs_\w+|process_one_work|\w*unwind_start|fs_reclaim_(?:acquire|release)"
    # What runs timers and keeps their queues; their users call the others.
    r"|\w*run_(?:hr)?timer\w*|\w*hrtimer_run\w*|(?:en|de)queue_(?:hr)?timer|\w*expire\w*|(?:un)?lock_hrtimer_base"
    r"|migrate_(?:hr)?timer\w*|process_timeout"
)
"""Names in the table whose own work is as often at fault."""


@cache
def _table() -> dict[str, str]:
    """Read the functions of generic files, by what these files are for; see scripts/generate_services.py."""
    raw = resources.files("postpanic.evidence.oops").joinpath(_TABLE).read_bytes()
    lines = gzip.decompress(raw).decode().splitlines()
    return {kind: names for kind, _, names in (line.partition("\t") for line in lines)}


@cache
def _services() -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for kind, names in _table().items():
        if kind != _DISPATCHER:
            parts.update(dict.fromkeys(names.split(), Part[kind]))
    return parts


@cache
def dispatchers() -> frozenset[str]:
    """Return the functions of the files that call, through a pointer, what others registered."""
    return frozenset(_table()[_DISPATCHER].split())


_RUST_RUNTIME = re.compile(r"<?(?:core|alloc|std|__rustc|_*rustc)(?:::| as )")
_SYSCALL = re.compile(
    r"(?:__)?(?:(?:x64|ia32|x32|arm64|s390x?|riscv|powerpc|se|do|ia32_compat|x32_compat|arm64_compat|se_compat|do_compat)_)?"
    r"(?:compat_)?(?:sys|SyS|SYSC|C_SYSC|compat_SyS|compat_sys)_(\w+)"
)


@lru_cache(maxsize=16384)
def part_of(function: str, location: str = "", module: str = "") -> Part | None:
    """
    Tell the part a function plays; None: it does work of its own.

    Parameters
    ----------
    location : str
        ``file:line`` of the function, where a symbolised log tells it.
    module : str
        That the function is in. The kernel's ways of naming say nothing of what strangers call their functions, so
        that in modules only those count that are known by their files.

    >>> part_of("kasan_report").value, part_of("memcpy_erms").name, part_of("ext4_evict_inode")
    ('reports the problem', 'LIBRARY', None)
    >>> part_of("depot_fill").name, part_of("depot_fill", module="warehouse")
    ('REPORTING', None)
    """
    if function.startswith("_R"):
        return Part.REPORTING if _RUST_RUNTIME.match(demangle(function)) else None
    name = base_name(function).lstrip("_")[:128]
    for pattern, part in _PARTS if not module else ():
        if pattern.fullmatch(name):
            return part
    if _NOT_SERVICES.fullmatch(name):
        return None
    part_by_table = _services().get(name) or _services().get(name.removesuffix("_noprof"))
    return part_by_table or (part_of_place(location.partition(":")[0]) if location else None)


def syscall_name(function: str) -> str:
    """
    Return the system call that a function is the body of; empty: none.

    >>> syscall_name("__x64_sys_rmdir"), syscall_name("SyS_pause"), syscall_name("vfs_read")
    ('rmdir', 'pause', '')
    """
    match = _SYSCALL.fullmatch(function)
    return match[1] if match is not None and match[1] not in {"call", "trace_return"} else ""


@lru_cache(maxsize=16384)
def plain_name(function: str) -> str:
    """
    Name a function so that compilers, architectures and ABIs agree on it.

    >>> plain_name("__arm64_sys_mount"), plain_name("kfree.part.0")
    ('mount', 'kfree')
    """
    if function.startswith(("_R", "_Z")) and (readable := demangle(function)) != function:
        return readable
    name = base_name(function)
    return syscall_name(name) or name
