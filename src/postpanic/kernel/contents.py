"""
What variables of the kernel hold, by which they are told from others: interrupts stand under their numbers.

Each of these answers for one variable whether it may be at an address; an :class:`.AbsentError` says that it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from postpanic.errors import FactAbsentError
from postpanic.kernel.btf.decode import Btf
from postpanic.kernel.btf.layout import Kind
from postpanic.kernel.btf.struct import StructLayout
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.memory import KernelMemory

__all__ = [
    "KernelData",
    "is_area_tree",
    "is_block_class",
    "is_block_major_table",
    "is_call_table",
    "is_class_set",
    "is_device_map",
    "is_device_table",
    "is_file_system_list",
    "is_interrupt_tree",
    "is_map_tree",
    "is_memory_bus",
    "is_pointer_to_text",
    "is_pool_tree",
    "is_power_of_two",
    "is_program_tree",
    "is_softirq_table",
    "is_swap_table",
    "is_taint",
    "is_timekeeper",
    "is_unit_size",
    "is_wait_queue",
    "list_swap_devices",
]

_KERNEL_HALF = 1 << 63
_TEXT_BYTES = 256
_MAJORS = 255
"""``CHRDEV_MAJOR_HASH_SIZE``, and the length of ``kobj_map.probes``."""
_MAJOR_SHIFT = 20
_ENTRIES_ASKED = 8
_FEWEST = 3
_MOST_SWAP_DEVICES = 32
_MOST_FILE_SYSTEMS = 500
_MOST_STEPS = 10_000
"""Of a walk through an array: of so many entries only the first are asked for."""
_SYS_READ = 63
"""``__NR_read`` of ``include/uapi/asm-generic/unistd.h``; ``__NR_write`` is the next."""
_TIMER_SOFTIRQ, _TASKLET_SOFTIRQ = 1, 6
"""``include/linux/interrupt.h``."""
_TAINTS = 32
_IDR_MARK = 4
"""``ROOT_IS_IDR`` (``include/linux/radix-tree.h``)."""
_GFP_ROOT_BITS = 0xF
_INTERNAL = 2
"""``xa_is_internal()``: the lowest two bits of an entry that leads on."""


@dataclass(frozen=True, slots=True)
class KernelData:
    """What is asked of a kernel."""

    memory: KernelMemory
    table: SymbolTable
    btf: Btf

    @property
    def data_range(self) -> tuple[int, int]:
        """Where the image has its data, ``[start, end)``."""
        start, end = self.memory.layout.image_range
        return self.table.get("_etext") or start, end

    def place_of(self, name: str) -> int:
        """Give the address of a symbol; raises :class:`FactAbsentError` if there is none."""
        vaddr = self.table.get(name)
        if vaddr is None:
            raise FactAbsentError(f"no symbol {name}")
        return vaddr

    def word(self, vaddr: int) -> int:
        """Read a word."""
        return self.memory.read_u64(vaddr)

    def words(self, vaddr: int, count: int) -> list[int]:
        """Read words."""
        found: list[int] = self.memory.read_array(vaddr, np.uint64, count).tolist()
        return found

    def offset(self, struct: str, member: str) -> int:
        """Give where a member is, in bytes."""
        return self.struct(struct).offset_of(member)

    def struct(self, name: str) -> StructLayout:
        """Give the layout of a structure."""
        return self.btf.find_struct(name)

    def pointer(self, vaddr: int) -> int:
        """Read a pointer into the kernel's half; raises :class:`FactAbsentError` if it is another."""
        found = self.word(vaddr)
        if found < _KERNEL_HALF:
            raise FactAbsentError(f"no pointer at {vaddr:#x}")
        return found

    def text(self, vaddr: int) -> str:
        """Read a text; empty if it is not one."""
        data = self.memory.read_c_string(vaddr, _TEXT_BYTES * 16)
        found = data.decode("ascii", "replace").rstrip("\n")
        return found if found.isprintable() and found.isascii() else ""


def is_timekeeper(kernel: KernelData, vaddr: int) -> bool:
    """
    ``kernel/time/timekeeping.c``: a sequence count, and a ``struct timekeeper`` whose clocks have names.

    Kernels with a ``struct tk_data`` have an array of several, by another name.
    """
    if kernel.btf.detect("tk_data", Kind.STRUCT) is not None:
        return False
    count = kernel.struct("seqcount_raw_spinlock").size_bytes
    start = vaddr + (count + 7) // 8 * 8
    clock = kernel.offset("timekeeper", "tkr_mono.clock"), kernel.offset("timekeeper", "tkr_raw.clock")
    name = kernel.offset("clocksource", "name")
    return all(kernel.text(kernel.pointer(kernel.pointer(start + place) + name)) for place in clock)


def is_interrupt_tree(kernel: KernelData, vaddr: int) -> bool:
    """``kernel/irq/irqdesc.c``, up to 6.4: descriptors under their numbers."""
    number = kernel.offset("irq_desc", "irq_data.irq")
    entries = list(islice(_walk_xarray(kernel, vaddr), _ENTRIES_ASKED))
    return bool(entries) and all(kernel.memory.read_u32(entry + number) == index for index, entry in entries)


def is_pool_tree(kernel: KernelData, vaddr: int) -> bool:
    """``kernel/workqueue.c``: pools of workers under their numbers."""
    number = kernel.offset("worker_pool", "id")
    entries = list(islice(_walk_xarray(kernel, vaddr), _ENTRIES_ASKED))
    return bool(entries) and all(kernel.memory.read_u32(entry + number) == index for index, entry in entries)


def is_program_tree(kernel: KernelData, vaddr: int) -> bool:
    """``kernel/bpf/syscall.c``: programs under their numbers, or nothing yet."""
    aux, number = kernel.offset("bpf_prog", "aux"), kernel.offset("bpf_prog_aux", "id")
    entries = list(islice(_walk_xarray(kernel, vaddr), _ENTRIES_ASKED))
    return _is_idr(kernel, vaddr) and all(
        kernel.memory.read_u32(kernel.pointer(entry + aux) + number) == index for index, entry in entries
    )


def is_map_tree(kernel: KernelData, vaddr: int) -> bool:
    """``kernel/bpf/syscall.c``: maps under their numbers, or nothing yet."""
    number = kernel.offset("bpf_map", "id")
    entries = list(islice(_walk_xarray(kernel, vaddr), _ENTRIES_ASKED))
    return _is_idr(kernel, vaddr) and all(kernel.memory.read_u32(entry + number) == index for index, entry in entries)


def _is_idr(kernel: KernelData, vaddr: int) -> bool:
    flags = kernel.memory.read_u32(vaddr + kernel.offset("idr", "idr_rt.xa_flags"))
    return flags & _GFP_ROOT_BITS == _IDR_MARK


def _walk_xarray(kernel: KernelData, vaddr: int) -> Iterator[tuple[int, int]]:
    """Give what a ``struct xarray`` holds, with its index (``include/linux/xarray.h``)."""
    node = kernel.struct("xa_node")
    slots, count = node.offset_of("slots"), node.size_of("slots") // 8
    shift_at = node.offset_of("shift")
    pending = [(kernel.word(vaddr + kernel.offset("xarray", "xa_head")), 0)]
    for _ in range(_MOST_STEPS):
        if not pending:
            return
        entry, index = pending.pop()
        if entry & 3 == _INTERNAL and entry >= _KERNEL_HALF:
            at = entry - _INTERNAL
            shift = kernel.memory.read_u8(at + shift_at)
            children = kernel.words(at + slots, count)
            below = [(child, index + (slot << shift)) for slot, child in enumerate(children) if child]
            pending += below[::-1]
        elif entry:
            if entry < _KERNEL_HALF or entry & 3:
                raise FactAbsentError(f"no entry of an array at {vaddr:#x}")
            yield index, entry
    raise FactAbsentError(f"an array without end at {vaddr:#x}")


def is_block_class(kernel: KernelData, vaddr: int) -> bool:
    """``block/genhd.c``: a ``struct class`` of that name."""
    return kernel.text(kernel.pointer(vaddr + kernel.offset("class", "name"))) == "block"


def is_device_table(kernel: KernelData, vaddr: int) -> bool:
    """``fs/char_dev.c``: lists of devices, by their major number."""
    major = kernel.offset("char_device_struct", "major")
    lists = [(slot, entry) for slot, entry in enumerate(kernel.words(vaddr, _MAJORS)) if entry]
    return len(lists) >= _FEWEST and all(
        kernel.memory.read_u32(entry + major) % _MAJORS == slot for slot, entry in lists
    )


def is_device_map(kernel: KernelData, vaddr: int) -> bool:
    """``fs/char_dev.c``: a pointer to a map of devices by their major number, of which all others share one entry."""
    probes = kernel.words(kernel.pointer(vaddr) + kernel.offset("kobj_map", "probes"), _MAJORS)
    number = kernel.offset("probe", "dev")
    others = max(set(probes), key=probes.count)
    own = [(slot, probe) for slot, probe in enumerate(probes) if probe != others]
    return len(own) >= _FEWEST and all(
        (kernel.memory.read_u32(probe + number) >> _MAJOR_SHIFT) % _MAJORS == slot for slot, probe in own
    )


def is_class_set(kernel: KernelData, vaddr: int) -> bool:
    """``drivers/base/class.c``: a pointer to the ``struct kset`` of that name."""
    return kernel.text(kernel.pointer(kernel.pointer(vaddr) + kernel.offset("kset", "kobj.name"))) == "class"


def is_memory_bus(kernel: KernelData, vaddr: int) -> bool:
    """``drivers/base/memory.c``: a ``struct bus_type`` of that name."""
    names = kernel.offset("bus_type", "name"), kernel.offset("bus_type", "dev_name")
    return all(kernel.text(kernel.pointer(vaddr + place)) == "memory" for place in names)


def is_block_major_table(kernel: KernelData, vaddr: int) -> bool:
    """``block/genhd.c``: lists of drivers, by their major number."""
    major, name = kernel.offset("blk_major_name", "major"), kernel.offset("blk_major_name", "name")
    lists = [(slot, entry) for slot, entry in enumerate(kernel.words(vaddr, _MAJORS)) if entry]
    return bool(lists) and all(
        kernel.memory.read_u32(entry + major) % _MAJORS == slot and kernel.text(entry + name) for slot, entry in lists
    )


def is_unit_size(kernel: KernelData, vaddr: int) -> bool:
    """``mm/percpu.c``: how far the areas of two CPUs that follow each other are apart."""
    first, second = kernel.words(kernel.place_of("__per_cpu_offset"), 2)
    return vaddr % 4 == 0 and kernel.memory.read_u32(vaddr) == second - first


def is_softirq_table(kernel: KernelData, vaddr: int) -> bool:
    """``kernel/softirq.c``: what softirqs call."""
    size = kernel.struct("softirq_action").size_bytes // 8
    actions = kernel.words(vaddr, (_TASKLET_SOFTIRQ + 1) * size)[::size]
    wanted = kernel.table.get("run_timer_softirq"), kernel.table.get("tasklet_action")
    return (actions[_TIMER_SOFTIRQ], actions[_TASKLET_SOFTIRQ]) == wanted


def is_call_table(kernel: KernelData, vaddr: int) -> bool:
    """``arch/arm64/kernel/sys.c``: what system calls call."""
    read, write = kernel.words(vaddr + 8 * _SYS_READ, 2)
    return (read, write) == (kernel.table.get("__arm64_sys_read"), kernel.table.get("__arm64_sys_write"))


def is_swap_table(kernel: KernelData, vaddr: int) -> bool:
    """``mm/swapfile.c``: devices, each of which knows its number; without any nothing tells."""
    number = kernel.offset("swap_info_struct", "type")
    devices = list_swap_devices(kernel, vaddr)
    return bool(devices) and all(kernel.memory.read_u8(device + number) == slot for slot, device in enumerate(devices))


def list_swap_devices(kernel: KernelData, vaddr: int) -> list[int]:
    """Give the devices of the table of swap devices."""
    found = kernel.words(vaddr, _MOST_SWAP_DEVICES)
    return found[: found.index(0)] if 0 in found else []


def is_file_system_list(kernel: KernelData, vaddr: int) -> bool:
    """``fs/filesystems.c``: a list of types of file systems, all with names."""
    name, after = kernel.offset("file_system_type", "name"), kernel.offset("file_system_type", "next")
    names = []
    at = kernel.word(vaddr)
    while at:
        names.append(kernel.text(kernel.pointer(at + name)))
        at = kernel.word(at + after)
        if len(names) > _MOST_FILE_SYSTEMS:
            return False
    return all(names) and {"proc", "sysfs"} <= set(names)


def is_area_tree(kernel: KernelData, vaddr: int) -> bool:
    """``mm/vmalloc.c``, up to 6.8: the tree whose first area is the first of ``vmap_area_list``."""
    head = kernel.memory.vmcoreinfo.symbol("vmap_area_list")
    first = kernel.pointer(head) - kernel.offset("vmap_area", "list")
    node, left = kernel.pointer(vaddr), kernel.offset("rb_node", "rb_left")
    if kernel.word(node + kernel.offset("rb_node", "__rb_parent_color")) & ~3:
        return False
    for _ in range(64):
        below = kernel.word(node + left)
        if not below:
            break
        node = below
    return node - kernel.offset("vmap_area", "rb_node") == first


def is_wait_queue(kernel: KernelData, vaddr: int) -> bool:
    """Tell whether it is a ``struct wait_queue_head``, whose list leads back to it."""
    head = vaddr + kernel.offset("wait_queue_head", "head")
    after, before = kernel.words(head, 2)
    return kernel.word(after + 8) == head and kernel.word(before) == head


def is_pointer_to_text(kernel: KernelData, vaddr: int) -> bool:
    """Tell whether it points to text."""
    return bool(kernel.text(kernel.pointer(vaddr)))


def is_power_of_two(kernel: KernelData, vaddr: int) -> bool:
    """``drivers/base/memory.c``: how many sections a block has is a power of two."""
    value = kernel.memory.read_u32(vaddr)
    return vaddr % 4 == 0 and 0 < value <= 1 << 16 and not value & value - 1


def is_taint(kernel: KernelData, vaddr: int) -> bool:
    """``kernel/panic.c``: a word of which only the lowest bits are used."""
    return vaddr % 8 == 0 and not kernel.word(vaddr) >> _TAINTS
