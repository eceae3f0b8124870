"""A small x86-64 kernel that has crashed, with all that a debugger needs, in physical memory held in a dictionary."""

from __future__ import annotations

import copy
import dataclasses
import struct
from dataclasses import dataclass, field

from postpanic.dumps.memory import PageState
from tests.builders.btf import BtfBuilder
from tests.builders.elfcore import build_note
from tests.builders.kallsyms import LAYOUTS, build_kallsyms
from tests.builders.page_tables import PageTableBuilder
from tests.builders.printk_ring import Message, RingBuilder
from tests.builders.vmcoreinfo import build_x86_64_vmcoreinfo
from tests.unit.kernel.memories import PAGE, PHYS_BASE, PLACE, STEXT, SWAPPER, DictDump, image_paddr

ETEXT = STEXT + 0x10123
KALLSYMS = PLACE + 0x1000
BTF = PLACE + 0x40000
END_RODATA = PLACE + 0x60000
ORC_IP, ORC, ORC_END = PLACE + 0x60000, PLACE + 0x62000, PLACE + 0x65000
DATA = PLACE + 0x80000
INIT_TASK = DATA + 0x4000
VARIABLES = DATA + 0x8000
RING = DATA + 0x9000
EDATA = PLACE + 0xA0000
BSS, FREED, FREED_END, BSS_END = EDATA, EDATA + 0x3000, EDATA + 0x5000, EDATA + 0x8000
END = PLACE + 0xB0000

DIRECT = 0xFFFF888000000000
"""Memory from physical address 0 on, as far as it is mapped here."""
PER_CPU = DIRECT + 0x300000
TASK, SLEEPER = DIRECT + 0x400200, DIRECT + 0x410000
STACK, SLEEPER_STACK, OTHER_STACK = 0xFFFFC90000010000, 0xFFFFC90000020000, 0xFFFFFE0000001000
THREAD_SIZE = 0x4000
OTHER_PAGES = 2
CURRENT_TASK, CRASH_NOTE = 0x100, 0x800
CPU = 1
PID = 440
SP = STACK + 0x2A40

TASK_BYTES, ALLOCATED_BYTES = 9000, 6000
"""The type ends in room for registers that this processor does not have."""
STACK_OFFSET, TASKS_OFFSET, PID_OFFSET, COMM_OFFSET = 32, 64, 80, 96

ITEMS = (
    *("VMCOREINFO", "kallsyms", "BTF", "ORC", "kernel text", "kernel data", "page tables"),
    *("printk buffer", "crashing task", "crashing stack", "tasks"),
)


@dataclass
class WholeKernel:
    """The kernel, and what is where."""

    dump: DictDump
    frames: dict[int, int] = field(default_factory=dict)
    """Virtual page to frame, where that is not the image."""
    tables: tuple[int, ...] = ()
    """Frames that hold page tables."""

    def frame_of(self, vaddr: int) -> int:
        page = vaddr // PAGE
        return self.frames[page] if page in self.frames else image_paddr(vaddr) // PAGE

    def write(self, vaddr: int, data: bytes) -> None:
        for at in range(0, len(data), 8):
            self.dump.write(self.frame_of(vaddr + at) * PAGE + (vaddr + at) % PAGE, data[at : at + 8])

    def without(self, *vaddrs: int, state: PageState = PageState.EXCLUDED) -> DictDump:
        """Give a copy of the dump that lacks the pages of some addresses."""
        return self.lacking([self.frame_of(vaddr) for vaddr in vaddrs], state)

    def lacking(self, frames: list[int], state: PageState = PageState.EXCLUDED) -> DictDump:
        """Give a copy of the dump that lacks some frames."""
        dump = copy_dump(self.dump)
        for frame in frames:
            dump.pages.pop(frame, None)
            dump.states[frame] = state
        return dump


def copy_dump(dump: DictDump) -> DictDump:
    new = copy.copy(dump)
    new.pages = {frame: bytearray(page) for frame, page in dump.pages.items()}
    new.states = dict(dump.states)
    return new


def build_btf(*, is_large: bool = False) -> bytes:
    """Build the types; *is_large*: with so many that they are taken for a kernel's where no symbol leads to them."""
    b = BtfBuilder()
    number, char = b.int_("int", 4), b.int_("char", 1)
    void = b.ptr(0)
    b.struct("list_head", 16, [("next", void, 0), ("prev", void, 64)])
    comm = b.array(char, number, 16)
    members = [
        ("__state", number, 0),
        ("stack", void, 8 * STACK_OFFSET),
        ("tasks", 4, 8 * TASKS_OFFSET),
        ("pid", number, 8 * PID_OFFSET),
        ("comm", comm, 8 * COMM_OFFSET),
    ]
    b.struct("task_struct", TASK_BYTES, members)
    for _ in range(6000 if is_large else 0):
        b.ptr(0)
    return b.build()


def build_symbols(btf_bytes: int) -> list[tuple[str, str, int]]:
    named = {
        "_stext": STEXT, "_etext": ETEXT, "__start_rodata": PLACE, "__end_rodata": END_RODATA, "_sdata": DATA,
        "__start_BTF": BTF, "__stop_BTF": BTF + btf_bytes, "__start_init_task": DATA,
        "__end_init_task": DATA + THREAD_SIZE, "init_task": INIT_TASK, "panic_cpu": VARIABLES,
        "crashing_cpu": VARIABLES + 8, "crash_notes": VARIABLES + 16, "__per_cpu_offset": VARIABLES + 64,
        "_edata": EDATA, "__bss_start": BSS, "__start_bss_decrypted_unused": FREED, "__end_bss_decrypted": FREED_END,
        "__bss_stop": BSS_END, "_end": END, "__start_orc_unwind_ip": ORC_IP, "__stop_orc_unwind_ip": ORC,
        "__start_orc_unwind": ORC, "__stop_orc_unwind": ORC_END,
        "arch_task_struct_size": VARIABLES + 32,
    }  # fmt: skip
    symbols = [(name, "D", vaddr) for name, vaddr in named.items()]
    symbols += [(f"do_something_{number}", "t", STEXT + 16 * number) for number in range(2400)]
    return [("current_task", "A", CURRENT_TASK), *sorted(symbols, key=lambda symbol: symbol[2])]


def build_prstatus(pid: int, sp: int) -> bytes:
    desc = bytearray(336)
    struct.pack_into("<i", desc, 32, pid)
    struct.pack_into("<Q", desc, 112 + 8 * 19, sp)
    return build_note(b"CORE", 1, bytes(desc))


def build_whole_kernel(
    *, sp: int = SP, note_pid: int | None = PID, panic_cpu: int = CPU, has_data_symbols: bool = True
) -> WholeKernel:
    """
    Build it; every page of it is in the dump, and none is all zero but for one of the BSS.

    *note_pid* None leaves the CPU's own note out. Without *has_data_symbols*
    kallsyms has functions only (no ``CONFIG_KALLSYMS_ALL``).
    """
    info = build_x86_64_vmcoreinfo(stext=STEXT, swapper=SWAPPER, phys_base=PHYS_BASE)
    btf = build_btf(is_large=not has_data_symbols)
    symbols = [one for one in build_symbols(len(btf)) if has_data_symbols or STEXT <= one[2] <= ETEXT]
    kallsyms = build_kallsyms(symbols, KALLSYMS, LAYOUTS["6.4"])
    ring = RingBuilder(RING)
    ring.log(Message(b"Kernel panic - not syncing: test"))
    ring_image = ring.build()
    for kind, name, value in ring_image.lines:
        info.line(f"{kind}({name})", f"{value:x}" if kind == "SYMBOL" else value)
    for name, vaddr in kallsyms.symbols.items():
        info.symbol(name, vaddr)
    kernel = WholeKernel(DictDump(vmcoreinfo=info.text()))
    kernel.tables = _map(kernel)
    for start, end in ((STEXT, ETEXT), (PLACE, END_RODATA), (ORC_IP, ORC_END), (DATA, END)):
        for vaddr in range(start, end, PAGE):
            if not FREED <= vaddr < FREED_END:
                kernel.write(vaddr, struct.pack("<Q", vaddr))
    kernel.dump.pages[kernel.frame_of(BSS + PAGE)][:] = bytes(PAGE)
    kernel.write(KALLSYMS, kallsyms.data)
    kernel.write(BTF, btf)
    for vaddr, data in ring_image.parts.items():
        kernel.write(vaddr, data)
    _crash(kernel, sp, note_pid, panic_cpu)
    return kernel


def _map(kernel: WholeKernel) -> tuple[int, ...]:
    tables = PageTableBuilder("x86", tables_paddr=image_paddr(SWAPPER))
    for vaddr in (STEXT, PLACE):
        tables.map(vaddr, image_paddr(vaddr), leaf_level=1)
    direct = [(start, size) for start, size in ((PER_CPU, 1), (TASK, 2), (SLEEPER, 2))]
    pages = [
        (start // PAGE + index, (start - DIRECT) // PAGE + index) for start, size in direct for index in range(size)
    ]
    stacks = ((STACK, 4), (SLEEPER_STACK, 4), (OTHER_STACK, OTHER_PAGES))
    vmalloc = [start // PAGE + index for start, size in stacks for index in range(size)]
    # Behind each other in virtual memory, not so in physical.
    pages += [(page, 0x600 + 3 * number) for number, page in enumerate(vmalloc)]
    for page, frame in pages:
        kernel.frames[page] = frame
        tables.map(page * PAGE, frame * PAGE)
        kernel.dump.write(frame * PAGE, struct.pack("<Q", page))
    for paddr, data in tables.pages().items():
        kernel.dump.write(paddr, data)
    return tuple(paddr // PAGE for paddr in tables.pages())


def _crash(kernel: WholeKernel, sp: int, note_pid: int | None, panic_cpu: int) -> None:
    kernel.write(VARIABLES, struct.pack("<IIIIQ", panic_cpu & 0xFFFFFFFF, 0, 0xFFFFFFFF, 0, CRASH_NOTE))
    kernel.write(VARIABLES + 32, struct.pack("<II", ALLOCATED_BYTES, 0))
    kernel.write(VARIABLES + 64, struct.pack("<QQ", 0, PER_CPU))
    kernel.write(PER_CPU + CURRENT_TASK, struct.pack("<Q", TASK))
    if note_pid is not None:
        note = build_prstatus(note_pid, sp)
        kernel.write(PER_CPU + CRASH_NOTE, note)
        description = kernel.dump.description
        kernel.dump.description = dataclasses.replace(description, notes=build_prstatus(0, 0) + note)
    ring = (INIT_TASK, TASK, SLEEPER)
    for number, (task, stack) in enumerate(zip(ring, (DATA, STACK, SLEEPER_STACK), strict=True)):
        kernel.write(task + STACK_OFFSET, struct.pack("<Q", stack))
        kernel.write(task + TASKS_OFFSET, struct.pack("<Q", ring[(number + 1) % 3] + TASKS_OFFSET))
        kernel.write(task + PID_OFFSET, struct.pack("<I", (0, PID, 7)[number]))
        kernel.write(task + COMM_OFFSET, (b"swapper/0", b"panic-maker", b"sleeper")[number].ljust(16, b"\0"))
