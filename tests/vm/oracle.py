"""
The oracle: what drgn's crash commands say with the kernel's real debug information.

The same command line is run twice on the same dump, once on a program that
drgn set up by itself with the real vmlinux and module files, once on a program
that postpanic opened with nothing but the dump. The texts must be equal after
:func:`normalise`, which takes out only what DWARF alone has.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import drgn

from postpanic.analysis.crash_commands import CommandFailedError, capture_crash_command, load_plugins

COMMANDS = (
    "sys",
    "sys config",
    "bt",
    "bt -a",
    "bt -c 1",
    "bt -f",
    "bt -F",
    "bt -FF",
    "bt -l",
    "bt -p",
    "bt 1",
    "foreach bt",
    "foreach ps",
    "foreach task -R pid,comm,stack,mm,files,signal,sched_info",
    "foreach files",
    "foreach vm",
    "foreach sig",
    "foreach vtop -k {init_task:x}",
    "foreach set",
    "foreach user bt",
    "ps",
    "ps -k",
    "ps -u",
    "ps -G",
    "ps -s",
    "ps -p 1",
    "ps -c 1",
    "ps -t",
    "ps -l",
    "ps -m",
    "ps -a",
    "ps -g",
    "ps -r",
    "ps -S",
    "ps -A",
    "ps -y RR",
    "task",
    "task 1",
    "task -R pid,comm,mm 1",
    "files",
    "files -c",
    "files 1",
    "files -d {init_dentry:x}",
    "vm",
    "vm 1",
    "mount",
    "mount -n 1",
    "net",
    "net -a",
    "dev",
    "dev -i",
    "dev -p",
    "dev -d",
    "dev -D",
    "irq",
    "irq -u",
    "irq -b",
    "irq -a",
    "irq -s",
    "irq -d",
    "timer",
    "timer -r",
    "timer -C 0",
    "runq",
    "runq -t",
    "runq -T",
    "runq -m",
    "runq -g",
    "runq -c 0",
    "mod",
    "mod -t",
    "log",
    "log -T",
    "log -t",
    "swap",
    "sig",
    "sig -l",
    "sig 1",
    "sig -g 1",
    "ipcs",
    "ipcs -s",
    "ipcs -m",
    "ipcs -q",
    "sym schedule",
    "sym {schedule:x}",
    "sym -l",
    "sym -p schedule",
    "sym -n schedule",
    "sym -q alloc_pages",
    "struct task_struct",
    "struct page",
    "struct list_head {init_task:x}",
    "struct task_struct.comm,pid {init_task:x}",
    "struct task_struct {init_task:x}",
    "struct -l task_struct.tasks list_head {init_tasks:x}",
    "struct rq runqueues:a",
    "struct inode",
    "struct net_device",
    "struct mm_struct",
    "struct dentry",
    "struct file_operations",
    "struct module",
    "struct sk_buff",
    "struct bio",
    "struct kmem_cache",
    "union sigval",
    "list_head",
    "*list_head {init_tasks:x}",
    "p init_task.comm",
    "p jiffies",
    "p runqueues:0",
    "p runqueues:a",
    "p init_net",
    "p vm_zone_stat",
    "p slab_caches",
    "p -x _totalram_pages",
    "p linux_banner",
    "p init_uts_ns",
    "p saved_command_line",
    "p super_blocks",
    "p chrdevs",
    "p irq_desc_tree",
    "p node_data",
    "p sys_call_table",
    "p init_mm",
    "p vmemmap_base",
    "p console_drivers",
    "p panic_notifier_list",
    "p file_systems",
    "p system_wq",
    "whatis init_task",
    "whatis schedule",
    "whatis do_exit",
    "whatis task_struct",
    "whatis slab_caches",
    "whatis jiffies_64",
    "whatis modules",
    "whatis runqueues",
    "whatis pid_t",
    "list -H {slab_caches:x} -o kmem_cache.list -s kmem_cache.name",
    "list modules",
    "tree -t maple {panic_mm_mt:x}",
    "rd {init_task:x} 16",
    "rd -8 linux_banner 64",
    "rd -32 linux_banner 8",
    "rd -a linux_banner",
    "rd -s {init_task:x} 64",
    "rd -S {init_task:x} 64",
    "kmem -i",
    "kmem -s",
    "kmem -v",
    "kmem -V",
    "kmem -n",
    "kmem -z",
    "kmem -o",
    "kmem -h",
    "kmem -g",
    "kmem -f",
    "kmem -F",
    "kmem -p",
    "kmem -m flags,_refcount",
    "kmem {init_task:x}",
    "kmem {panic_task:x}",
    "kmem {schedule:x}",
    "kmem -s kmalloc-64",
    "waitq log_wait",
    "vtop {init_task:x}",
    "vtop {schedule:x}",
    "vtop {panic_task:x}",
    "ptob 1234",
    "btop 512a000",
    "ptov 56e000",
    "eval 128m",
    "ascii",
    "ascii 62696c2f7273752f",
    "set",
    "set 1",
    "bpf",
    "help",
    "help ps",
)
"""Command lines of every command in the namespace; ``{name:x}`` is an address of the dump."""


def open_real(dump: Path, vmlinux: Path, modules: list[Path]) -> drgn.Program:
    """Open a dump the way a drgn user does, with real debug information."""
    prog = drgn.Program()
    prog.set_core_dump(dump)
    prog.set_enabled_debug_info_finders([])
    main = prog.main_module("kernel", create=True)
    main.try_file(vmlinux)
    assert main.debug_file_status == drgn.ModuleFileStatus.HAVE, f"{vmlinux} is not the dump's"
    prog.create_loaded_modules()
    with contextlib.suppress(drgn.MissingDebugInfoError):
        prog.load_debug_info(modules)
    load_plugins()
    return prog


def addresses(prog: drgn.Program) -> dict[str, int]:
    """Addresses that the command lines name."""
    panic_task = prog.crashed_thread().object
    return {
        "init_task": prog["init_task"].address_of_().value_(),
        "init_tasks": prog["init_task"].tasks.address_of_().value_(),
        "init_dentry": prog["init_task"].fs.root.dentry.value_(),
        "slab_caches": prog["slab_caches"].address_of_().value_(),
        "schedule": prog.symbol("schedule").address,
        "panic_mm_mt": panic_task.mm.mm_mt.address_of_().value_(),
        "panic_task": panic_task.value_(),
    }


def run(prog: drgn.Program, line: str) -> str:
    """Run one command line; an error is part of the answer."""
    try:
        return capture_crash_command(prog, line)
    except CommandFailedError as error:
        return f"error: {error}\n"


EXCEPTIONS = {
    "bt -F": "vmlinux names string literals (.LC3) and sizes labels in assembly code, kallsyms does neither",
    "bt -FF": "as bt -F",
    "sym -l": "vmlinux lists absolute symbols and sections of the build that kallsyms leaves out; compared by content",
    "p linux_banner": "DWARF has only its declaration, an array of unknown length: the dump tells more",
    "p sys_call_table": "every kernel has another number of system calls, and nothing in the dump tells this one",
}
"""Command lines whose texts may differ, and why."""


def normalise(line: str, text: str) -> str:
    """
    Take out of a command's text what only DWARF, or only a name on the disk, decides.

    - Inlined frames and source lines; the frames are numbered anew.
    - Source positions behind functions; drgn prints an empty one where there is no line table.
    - Names of files, and reasons why memory cannot be read: two readers, two wordings.
    - Assembler labels of string literals, and which of two symbols at one address is shown.
    - Labels inside assembly code: vmlinux has the sizes of functions there, kallsyms only what is nearest.
    - ``[0]``: BTF does not tell a flexible array from one of length zero.
    """
    name = line.split(maxsplit=1)[0]
    if name in {"bt", "foreach"}:
        text = _renumber_frames(text)
    elif name == "sym":
        text = re.sub(r" +(?:(?:\./|/)?[\w./-]+\.[chS])?: \d+$", "", text, flags=re.MULTILINE)
    elif name == "mod":
        text = re.sub(r"(\d+)  \S.*$", r"\1", text, flags=re.MULTILINE)
    elif name == "sys":
        text = re.sub(r"^( +(?:KERNEL|DUMPFILE)): .*$", r"\1", text, flags=re.MULTILINE)
    elif name == "rd":
        text = re.sub(r" +", " ", text)
    text = re.sub(r"(0x[0-9a-f]+): [^:\n]*(?:not|Excluded)[^\n]*$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^(\w+): .*: (0x[0-9a-f]+)$", r"\1: cannot read \2", text, flags=re.MULTILINE)
    text = re.sub(r"\(const char \*\)[\w.]+\+0x[0-9a-f]+ = (0x[0-9a-f]+)", r"(const char *)\1", text)
    text = re.sub(r"\bentry_SYSCALL_64_after_hwframe\b", "entry_SYSCALL_64", text)
    text = re.sub(r"\b(?:secondary_startup_64_no_verify|common_startup_64)\b", "secondary_startup_64", text)
    text = re.sub(r"\b__end_rodata_aligned\b", "init_stack", text)
    return text.replace("[0]", "[]")


def _renumber_frames(text: str) -> str:
    kept: list[str] = []
    number = 0
    for line in text.splitlines():
        if re.match(r"\s*#\d+ \(inline\)", line) or re.match(r"    [\w./-]+\.[chS]: \d+$", line):
            continue
        if line.startswith(("PID:", "CPU ")):
            number = 0
        found = re.match(r"\s*#\d+ (.*)", line)
        if found:
            kept.append(f"#{number} {found.group(1)}")
            number += 1
        else:
            kept.append(line)
    return "\n".join(kept)
