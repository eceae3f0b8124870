"""
Where generic kernel code calls a function that somebody else registered.

What runs below such a place belongs to one driver, protocol or file system;
what runs above it belongs to everybody.
"""

from __future__ import annotations

import re
from functools import lru_cache

from postpanic.evidence.oops.frames import base_name
from postpanic.evidence.oops.functions import dispatchers, syscall_name

__all__ = ["calls_back"]

# Subsystems that call through a pointer: timers, softirqs, workqueues, kthreads; network devices, sockets and netlink;
# the virtual file system; page faults; USB and the driver core.
_DISPATCHERS = r"""
    call_timer_fn expire_timers run_hrtimer hrtimer_run_queues hrtimer_run_softirq tasklet_action\w*
    irq_work_\w+ handle_softirqs do_softirq rcu_do_batch rcu_process_callbacks process_one_work kthread
    worker_thread task_work_run ret_from_fork\w* do_one_initcall run_ksoftirqd smpboot_thread_fn
    netif_receive_skb\w* deliver_skb napi_poll napi_gro_receive net_rx_action dev_gro_receive process_backlog
    rtnetlink_rcv_msg netlink_rcv_skb genl_(?:family_)?rcv_msg\w* netlink_dump nfnetlink_rcv_msg tcf_action_\w+
    sock_(?:sendmsg|recvmsg)\w* sock_write_iter sock_read_iter sock_ioctl sock_do_ioctl (?:__)?sock_release
    sock_close inet_ioctl vfs_(?:read|write|ioctl|fsync\w*|iter_\w+|readv|writev|fallocate|llseek) do_iter_\w+
    do_readv_writev do_loop_readv_writev\w* new_sync_(?:read|write) call_(?:read|write)_iter do_vfs_ioctl
    file_ioctl do_dentry_open vfs_open fput iterate_dir evict do_fault do_read_fault do_shared_fault
    do_cow_fault mmap_region call_mmap do_syscall_\w+ invoke_syscall el0_svc_common entry_\w+ ret_fast_syscall
    do_fast_syscall_\w+ system_call\w* do_int80_\w+ usb_hcd_giveback_urb usb_probe_interface
    usb_unbind_interface really_probe call_driver_probe device_release_driver\w* platform_probe pci_device_probe
    blk_mq_dispatch_rq_list input_handle_event input_event snd_timer_\w+ sock_common_setsockopt
    sock_common_getsockopt do_sock_setsockopt do_sock_getsockopt
"""
_PATTERN = re.compile("|".join(_DISPATCHERS.split()))


@lru_cache(maxsize=16384)
def calls_back(function: str) -> bool:
    """
    Tell whether a function calls others that were registered with it.

    >>> calls_back("call_timer_fn"), calls_back("vfs_write"), calls_back("ext4_sync_file")
    (True, True, False)
    """
    call = syscall_name(function)
    if call:
        return call in {"ioctl", "compat_ioctl"}
    name = base_name(function).lstrip("_")[:128]
    return _PATTERN.fullmatch(name) is not None or name in dispatchers()
