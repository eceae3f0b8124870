"""
The examples of crash's help, made to fit a dump of ours.

What an example names (addresses, PIDs, commands, symbols that kernels no longer
have) is of the machine that its author sat at. :data:`REPLACEMENTS` says word by
word what stands for it: a place in the dump, or something of the same kind that
our kernels have. Nothing else is changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from drgn import Object, Program, container_of
from drgn.helpers.linux.block import for_each_disk
from drgn.helpers.linux.mm import for_each_vma, virt_to_page
from drgn.helpers.linux.pid import find_task

__all__ = ["REPLACEMENTS", "find_places", "fit_example"]

REPLACEMENTS: dict[str, str] = {
    # Tasks: addresses, PIDs and names.
    **dict.fromkeys(("f2814000", "f9dec000", "c2fe8000", "c20ab0b0", "c169a000", "ffff8100145d2080"), "{task}"),
    **dict.fromkeys(("ffff88012b98e040", "ffff8800b66a0000", "ffff88011653e250", "ffff81002c0a3050"), "{task}"),
    "ffff8100181190c0": "{task}",
    "0xffff880109b8e3d0": "{tasks_list}",
    "task_struct.wait_chldexit": "signal_struct.wait_chldexit",
    "c5496000": "{signal}",
    **dict.fromkeys(("1592", "462", "1954", "4249", "10318", "13896", "2618", "2517", "8970", "2578", "2958"), "1"),
    **dict.fromkeys(("386", "4777", "3875", "1359"), "1"),
    **dict.fromkeys(("kwm", "firefox", "multi-thread", "automount", "bash"), "load"),
    "nfsd": "kthreadd",
    # Memory.
    "c02943c0": "{page}",
    "c25a9c00": "{page}",
    "c101196c": "{page}",
    "c40425b0": "{page}",
    **dict.fromkeys(("c03576b8", "c3fbdb60"), "{task}"),
    "ffffea0001dafb20": "{page}",
    "slab_cache": "mapping",
    "ffff880215802e00": "{mapping}",
    "arp_cache": "kmalloc-64",
    "kmalloc-8192": "kmalloc-8k",
    "c532c000": "{task}",
    "_etext": "_sdata",
    "f6e31f70": "{task}",
    "c009bf2c": "{task}",
    "c009bf60": "{task_end}",
    "ffff810022e7d080": "{mm}",
    "0xffff9034c006aec0": "{mm_mt}",
    **dict.fromkeys(("c1e44f10", "f5604f2c", "c47d4000"), "{vma}"),
    "80b4000": "{user}",
    "40104000": "{user}",
    "40121000": "{user}",
    "c806e000": "{task}",
    "81ec624": "{user}",
    # Files.
    **dict.fromkeys(("f745fd60", "ffff9c585b81a180", "0xe813cb4", "0x3661344"), "{dentry}"),
    "ffff9c585b81a220": "{dentry_children}",
    "dentry.d_subdirs": "dentry.{children}",
    "dentry.d_child": "dentry.{sibling}",
    "f59b90fc": "{inode}",
    "c5000aa8": "{super_block}",
    "ffff8801f4245e40": "{mount}",
    "/usr/lib/libkfm.so.2.0.0": "/bin/busybox",
    "pts/4": "/dev/console",
    "c08ea3cc": "{inode}",
    **dict.fromkeys(("ffff88012d364de0", "0xffff94c235e76828"), "{mapping}"),
    "address_space.page_tree": "address_space.i_pages",
    **dict.fromkeys(("0xffff8801238add71", "0xffff94c23c1566ca"), "{xa_head}"),
    "page.flags,_count": "page.flags,_refcount",
    "ffff880473a28250": "{task}",
    # Symbols and types that are gone, or were never in these kernels.
    "sys_signal": "ksys_read",
    "sys_read": "ksys_read",
    "(do_no_page+65)": "(handle_mm_fault+65)",
    "vfs_read+320": "vfs_read+20",
    "dentry_kill": "dput",
    "0xffffffff811dcfb4": "{text}",
    **dict.fromkeys(("c0213ae0", "c0109944"), "{text}"),
    "f88878d1": "{module_text}",
    "uart401": "virtio_net",
    "kernel_version": "linux_banner",
    "irq_stat": "runqueues",
    "irq_stat:1": "runqueues:1",
    "my_debug_flag": "panic_timeout",
    "buffer_wait": "log_wait",
    "c3534098": "{wait_queue}",
    "kmem_bufctl_s": "list_head",
    "kmem_bufctl_t": "pid_t",
    "kdev_t": "dev_t",
    "anon_inode_inode": "init_task",
    "(__down_interruptible+191)": "(schedule+5)",
    "task_struct.p_pptr": "task_struct.real_parent",
    "136": "{real_parent_offset}",
    "c03adc90": "{file_systems}",
    "runqueue_head": "init_task",
    "task_struct.run_list": "task_struct.tasks",
    "60": "{tasks_offset}",
    "vfsmntlist": "{mounts}",
    "vfsmount.mnt_list": "{mount_list}",
    "vfsmount": "mount",
    "task_struct.se.on_rq,pids[2]": "task_struct.se.on_rq,pid_links[1]",
    "pids[2]": "pid_links[1]",
    "ngroups,groups": "cred,real_cred",
    "tcp_sl_timer": "list_head",
    "tcp_slt_array": "init_task",
    "hd_struct.dkstats": "task_struct.comm",
    "ffff8802450e2848": "{task}",
    "disk_stats": "rq",
    "0x60fdb48026c8:a": "runqueues:a",
    "page.flags,virtual": "page.flags,mapping",
    "bdflush_param": "sigval",
    "bdf_prm": "init_task",
    "0xffff880128c508d8": "{vmap_node}",
    # Since 6.9 the areas in use are in a tree for each node, the free ones still in one.
    "vmap_area_root": "free_vmap_area_root",
    "'event.*'": "'kworker.*'",
    "mm_struct.mm_rb": "anon_vma.rb_root",
    "ffff880128b5a300": "{anon_vma}",
    "0xffff880074b5be80": "{anon_vma}",
    "0x38": "{anon_node_offset}",
    "vm_area_struct.vm_rb": "anon_vma_chain.rb",
    "vm_area_struct.vm_start": "anon_vma_chain.vma",
    "se_session": "request_queue",
    "iscsi_cmd": "request",
    "0xc0000000e118c760": "{queue}",
    "0xc0000000671c0000": "{requests}",
    "sess_cmd_map": "elevator",
    "sbitmap_queue": "blk_mq_tag_set",
    "state": "__state",
    "c0000000e118c808": "{sbitmap_queue}",
    # Machines with more, or with other, processors and interrupts.
    "18": "1",
    "21": "4",
    "0,2": "0,1",
    "-c3": "-c1",
    "b0c0:a": "1000:a",
    "20": "{bpf_program}",
    "13": "{bpf_program}",
    "34": "{bpf_map}",
}
"""Words of the examples, and what stands for them; in braces: see :func:`find_places`."""

_IDS = frozenset({"13", "20", "34"})
"""In ``bpf`` the numbers of programs and maps, elsewhere just numbers."""


def fit_example(line: str, places: Mapping[str, str]) -> str:
    """Put what is in the dump in place of what was on the author's machine."""
    words = re.split(r"(\s+)", line)
    fitted = (word if word in _IDS and words[0] != "bpf" else REPLACEMENTS.get(word, word) for word in words)
    return "".join(word.format(**places) if "{" in word else word for word in fitted)


def find_places(prog: Program) -> dict[str, str]:
    """Find what the examples need in a dump: the task of PID 1, its memory and files, tables of the kernel."""
    task = find_task(prog, 1).read_()
    numbers = {
        **_task_places(prog, task),
        **_file_places(task),
        "text": prog.symbol("schedule").address + 5,
        "module_text": prog.symbol("virtnet_probe").address + 5,
        "wait_queue": prog.symbol("log_wait").address,
        "file_systems": int(prog["file_systems"]),
        "vmap_node": int(prog["free_vmap_area_root"].rb_node),
        **_disk_places(prog),
    }
    task_type = prog.type("struct task_struct")
    # Since 6.8 the children of a dentry are in a hash list: da549bdd15c2.
    has_hlist = prog.type("struct dentry").has_member("d_children")
    return {name: f"{number:x}" for name, number in numbers.items()} | {
        "children": "d_children" if has_hlist else "d_subdirs",
        "sibling": "d_sib" if has_hlist else "d_child",
        "real_parent_offset": str(task_type.member("real_parent").offset),
        "tasks_offset": str(task_type.member("tasks").offset),
        "anon_node_offset": hex(prog.type("struct anon_vma_chain").member("rb").offset),
        "mount_list": "mount.mnt_child",
        "bpf_program": "1",
        "bpf_map": "1",
    }


def _task_places(prog: Program, task: Object) -> dict[str, int]:
    areas = list(for_each_vma(task.mm))
    return {
        "task": int(task),
        "task_end": int(task) + 64,
        "signal": int(task.signal),
        "tasks_list": int(task.tasks.address_of_()),
        "page": int(virt_to_page(prog, task)),
        "mm": int(task.mm),
        "mm_mt": int(task.mm.mm_mt.address_of_()),
        "vma": int(areas[0]),
        "user": int(areas[0].vm_start),
        "anon_vma": next(int(area.anon_vma) for area in areas if area.anon_vma),
    }


def _file_places(task: Object) -> dict[str, int]:
    # A file that is mapped has pages in its mapping.
    file = next(area.vm_file for area in for_each_vma(task.mm) if area.vm_file)
    parent = file.f_path.dentry.d_parent
    children = parent.d_children if hasattr(parent, "d_children") else parent.d_subdirs
    mount = container_of(file.f_path.mnt, "struct mount", "mnt")
    return {
        "dentry": int(parent),
        "dentry_children": int(children.address_of_()),
        "inode": int(file.f_inode),
        "super_block": int(file.f_inode.i_sb),
        "mount": int(mount),
        "mounts": int(mount.mnt_mounts.address_of_()),
        "mapping": int(file.f_mapping),
        "xa_head": int(file.f_mapping.i_pages.xa_head),
    }


def _disk_places(prog: Program) -> dict[str, int]:
    queue = next(disk.queue for disk in for_each_disk(prog) if disk.queue.tag_set)
    tags = queue.tag_set.tags[0]
    return {
        "queue": int(queue),
        "requests": int(tags.static_rqs[0]),
        "sbitmap_queue": int(tags.bitmap_tags.address_of_()),
    }
