"""Variables found by the code that uses them and by what they hold, in an arm64 kernel put together by hand."""

from __future__ import annotations

import struct

import pytest

from postpanic.kernel.btf import decode_btf
from postpanic.kernel.btf.decode import Btf
from postpanic.kernel.kallsyms import SymbolTable
from postpanic.kernel.kallsyms.symbols import make_table_of_names
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.kernel.variables_by_use import find_used_variables
from tests.builders.btf import BtfBuilder
from tests.builders.page_tables import PageTableBuilder
from tests.builders.vmcoreinfo import build_aarch64_vmcoreinfo
from tests.unit.kernel.memories import DictDump

STEXT, VOFFSET = 0xFFFF800080010000, 0xFFFF800040000000
SWAPPER = STEXT + 0x1000000
CODE, DATA = STEXT + 0x1000, STEXT + 0x200000
CODE_BYTES = 0x100
RETURN = 0xD65F03C0
TIMER, TASKLET = STEXT + 0x8000, STEXT + 0x8100


def use(vaddr: int, pc: int) -> list[int]:
    """``adrp x0, page; add x0, x0, #offset`` (Arm ARM, C6.2)."""
    pages = (vaddr >> 12) - (pc >> 12) & 0x1FFFFF
    return [0x90000000 | (pages & 3) << 29 | pages >> 2 << 5, 0x91000000 | (vaddr & 0xFFF) << 10]


def make_types() -> Btf:
    """Make what the recipes ask for, with offsets of its own."""
    types = BtfBuilder()
    word, byte = types.int_("unsigned long", 8), types.int_("unsigned char", 1)
    half = types.int_("unsigned int", 4)
    text = types.ptr(byte)
    types.struct("class", 32, [("owner", word, 0), ("name", text, 16 * 8)])
    types.struct("softirq_action", 8, [("action", word, 0)])
    types.struct("xarray", 16, [("xa_lock", half, 0), ("xa_flags", half, 32), ("xa_head", word, 64)])
    slots = types.array(word, half, 4)
    types.struct("xa_node", 48, [("shift", byte, 0), ("slots", slots, 16 * 8)])
    inner = types.struct("irq_data", 16, [("mask", half, 0), ("irq", half, 32)])
    types.struct("irq_desc", 32, [("common", word, 0), ("irq_data", inner, 64)])
    return decode_btf(types.build())


class Kernel:
    """A kernel with functions that use addresses, and data."""

    def __init__(self, functions: dict[str, list[int]], data: dict[int, bytes]) -> None:
        info = build_aarch64_vmcoreinfo(
            stext=STEXT, swapper=SWAPPER, kimage_voffset=VOFFSET, page_size=4096, va_bits=48, t1sz=16
        )
        dump = DictDump(machine="aarch64", vmcoreinfo=info.text(), page_size=4096)
        tables = PageTableBuilder("arm", tables_paddr=SWAPPER - VOFFSET)
        for page in (CODE, DATA, DATA + 0x1000):
            tables.map(page, page - VOFFSET)
        names = {"_stext": STEXT, "_etext": DATA, "run_timer_softirq": TIMER, "tasklet_action": TASKLET}
        for number, (name, vaddrs) in enumerate(functions.items()):
            start = CODE + number * CODE_BYTES
            words = [word for vaddr in vaddrs for word in use(vaddr, start)]
            # Each pair is at the same page as the function's start.
            dump.write(start - VOFFSET, struct.pack(f"<{len(words) + 1}I", *words, RETURN))
            names |= {name: start, f"behind {name}": start + CODE_BYTES}
        for vaddr, content in data.items():
            dump.write(vaddr - VOFFSET, content)
        for paddr, contents in tables.pages().items():
            dump.write(paddr, contents)
        self.memory: KernelMemory = open_kernel_memory(dump)
        self.table: SymbolTable = make_table_of_names(names.items())

    def find(self, table: SymbolTable | None = None) -> dict[str, int]:
        return dict(find_used_variables(self.memory, table or self.table, make_types()))


def quads(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


BLOCK, OTHER, NAMES = DATA + 0x100, DATA + 0x200, DATA + 0x800
CLASSES = {BLOCK: quads(0, 0, NAMES), OTHER: quads(0, 0, NAMES + 16), NAMES: b"block\0".ljust(16, b"\0") + b"input\0"}


def test_class_is_the_one_of_that_name() -> None:
    assert Kernel({"__alloc_disk_node": [OTHER, BLOCK]}, CLASSES).find() == {"block_class": BLOCK}


def test_two_that_fit_are_none() -> None:
    twins = {**CLASSES, OTHER: quads(0, 0, NAMES)}
    assert Kernel({"__alloc_disk_node": [BLOCK], "blk_lookup_devt": [OTHER]}, twins).find() == {}


def test_what_has_a_name_is_another_variable() -> None:
    kernel = Kernel({"__alloc_disk_node": [BLOCK]}, CLASSES)
    named = kernel.table.merge(make_table_of_names([("elsewhere", BLOCK)]))
    assert kernel.find(named) == {}


def test_code_is_no_variable() -> None:
    assert Kernel({"__alloc_disk_node": [CODE]}, {**CLASSES, CODE + 0x800: b"block\0"}).find() == {}


@pytest.mark.parametrize(("timer", "found"), [(TIMER, {"softirq_vec": BLOCK}), (TASKLET, {})])
def test_table_of_softirqs_calls_what_it_must(timer: int, found: dict[str, int]) -> None:
    table = quads(TIMER + 8, timer, 0, 0, 0, 0, TASKLET, 0)
    assert Kernel({"open_softirq": [BLOCK]}, {BLOCK: table}).find() == found


TREE, NODE, DESCS = DATA + 0x300, DATA + 0x400, DATA + 0x600


def make_interrupts(*numbers: int) -> dict[int, bytes]:
    """Make a ``struct xarray`` of descriptors; each says its own number."""
    places = [DESCS + 32 * slot for slot in range(len(numbers))]
    node = b"\0" * 16 + quads(*places)
    descs = b"".join(struct.pack("<QII16x", 0, 0, number) for number in numbers)
    return {TREE: struct.pack("<IIQ", 0, 0, NODE | 2), NODE: node, DESCS: descs}


@pytest.mark.parametrize(
    ("numbers", "found"),
    [((0, 1, 2), {"irq_desc_tree": TREE}), ((0, 7, 2), {}), ((), {})],
)
def test_interrupts_stand_under_their_numbers(numbers: tuple[int, ...], found: dict[str, int]) -> None:
    assert Kernel({"irq_to_desc": [TREE]}, make_interrupts(*numbers)).find() == found


def test_loops_of_nodes_end() -> None:
    round_and_round = make_interrupts(0) | {NODE: b"\0" * 16 + quads(NODE | 2, NODE | 2, NODE | 2, NODE | 2)}
    assert Kernel({"irq_to_desc": [TREE]}, round_and_round).find() == {}
