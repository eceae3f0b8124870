"""A small x86-64 kernel with slab caches, per-CPU areas, types and symbols, held in memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from tests.builders.btf import BtfBuilder
from tests.builders.kallsyms import LAYOUTS, build_kallsyms
from tests.builders.slab import (
    LIST_OFFSET,
    PAGE_BYTES,
    Cache,
    Heap,
    build_kernfs_node,
    build_slab_types,
    build_struct_page,
)
from tests.unit.kernel.memories import PLACE, STEXT, DictDump, make_x86_kernel

PER_CPU = PLACE + 0x100000
CPU_OFFSETS = (0x20000, 0x40000)
VARIABLES = PLACE + 0x180000
FREED = PLACE + 0x1C0000


@dataclass
class Block:
    first_pfn: int
    rows: NDArray[np.uint8]


@dataclass
class SlabKernel:
    dump: DictDump
    kernel: KernelMemory
    caches: dict[str, int]
    """Name to address."""
    symbols: dict[str, int]
    """Name to address."""

    def block(self, pages: dict[int, tuple[str, int]], *, count: int = 64) -> list[Block]:
        """Make ``struct page`` of the first frames: frame to the name of its slab's cache, and its objects."""
        rows = [
            build_struct_page(cache=self.caches[pages[pfn][0]], objects=pages[pfn][1])
            if pfn in pages
            else build_struct_page(type_word=0xFFFFFFFF)
            for pfn in range(count)
        ]
        return [Block(0, np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, PAGE_BYTES))]


def build_types(*, page_type: bool = True) -> BtfBuilder:
    b = BtfBuilder()
    ids = build_slab_types(b, page_type=page_type)
    key = b.array(ids["char"], ids["index"], 16)
    rest = b.array(ids["char"], ids["index"], 0)
    inner = b.struct("pin", 8, [("digits", ids["unsigned int"], 32)])
    members = [("id", ids["unsigned long"], 0), ("key", key, 64), ("pin", inner, 192), ("next", ids["pointer"], 256)]
    ids["secret"] = b.struct("secret", 40, [*members, ("rest", rest, 320)])
    b.struct("bits", 8, [("one", ids["unsigned int"], 0, 1), ("other", ids["unsigned int"], 1, 31)])
    counter = b.var("cpu_secret", ids["secret"])
    b.var("the_secret", ids["secret"])
    b.var("secrets", b.array(ids["secret"], ids["index"], 3))
    b.var("freed_secret", ids["secret"])
    b.var("text_pointer", b.ptr(b.const(ids["char"])))
    b.var("secret_pointer", b.ptr(ids["secret"]))
    b.var("null_pointer", ids["pointer"])
    b.datasec(".data..percpu", [(counter, 0, 40)])
    return b


def make_slab_kernel(
    caches: Sequence[Cache],
    *,
    links: Sequence[tuple[str, str]] = (),
    page_type: bool = True,
    types: BtfBuilder | None = None,
    pointers: dict[str, str] | None = None,
    end_of_list: int | None = None,
) -> SlabKernel:
    """
    Make the kernel.

    *links* are names in ``/sys/kernel/slab`` and the cache each leads to;
    *pointers* are variables and the cache each points to.
    """
    heap = Heap(PLACE + 0x20000)
    directories = {cache.name: heap.put(build_kernfs_node()) for cache in caches}
    for cache in caches:
        cache.directory = directories[cache.name]
    nodes = 0
    for name, target in links:
        nodes = 8 + heap.put(build_kernfs_node(name=heap.text(name), target=directories[target], left=nodes, kind=4))
    top = heap.put(build_kernfs_node(children=nodes))
    kset = heap.put(struct.pack("<5Q", 0, 0, 0, top, 0))
    symbols = _place_symbols(pointers or {})
    vaddrs = {cache.name: heap.put(bytes(96)) for cache in caches}
    order = [vaddrs[cache.name] + LIST_OFFSET for cache in caches]
    order.append(symbols["slab_caches"] if end_of_list is None else end_of_list)
    parts = heap.parts
    for number, cache in enumerate(caches):
        parts[vaddrs[cache.name]] = cache.pack(vaddrs[cache.name], heap.text(cache.name), order[number + 1])
    words = {"slab_caches": order[0], "slab_kset": kset, "nr_cpu_ids": 4, "__cpu_possible_mask": 0b0101}
    words |= {"text_pointer": heap.text("top secret"), "secret_pointer": heap.put(bytes(40)), "null_pointer": 0}
    words |= {name: vaddrs[cache] for name, cache in (pointers or {}).items()}
    parts |= {symbols[name]: struct.pack("<Q", value) for name, value in words.items()}
    parts[symbols["__per_cpu_offset"]] = struct.pack("<4Q", CPU_OFFSETS[0], 0, CPU_OFFSETS[1], 0)
    btf = (types or build_types(page_type=page_type)).build()
    btf_place = PLACE + 0x60000
    parts[btf_place] = btf
    symbols |= {"__start_BTF": btf_place, "__stop_BTF": btf_place + len(btf)}
    letters = {name: "T" if name in {"_stext", "a_function", "_etext"} else "D" for name in symbols}
    entries = [(name, letters[name], vaddr) for name, vaddr in sorted(symbols.items(), key=lambda item: item[1])]
    image = build_kallsyms(entries, PLACE, LAYOUTS["6.15"])
    lines = [("SYMBOL", name, vaddr) for name, vaddr in image.symbols.items() if "markers" not in name]
    dump, _ = make_x86_kernel({PLACE: image.data, **parts}, [line for line in lines if "seqs" not in line[1]])
    return SlabKernel(dump, open_kernel_memory(dump), vaddrs, symbols)


def _place_symbols(pointers: dict[str, str]) -> dict[str, int]:
    found = {"_stext": STEXT, "a_function": STEXT + 0x40, "_etext": STEXT + 0x1000}
    sizes = {"slab_caches": 16, "slab_kset": 8, "nr_cpu_ids": 8, "__cpu_possible_mask": 8, "__per_cpu_offset": 32}
    sizes |= {"the_secret": 48, "secrets": 128, "plain": 24, "spacer": 24, "far": 0x2000}
    sizes |= dict.fromkeys(("text_pointer", "secret_pointer", "null_pointer", *pointers), 8)
    at = VARIABLES
    for name, size in sizes.items():
        found[name] = at
        at += size
    found |= {"after": at, "__per_cpu_start": PER_CPU, "cpu_secret": PER_CPU + 0xFE0, "__per_cpu_end": PER_CPU + 0x2000}
    found |= {"__init_begin": FREED, "freed_secret": FREED + 64, "__init_end": FREED + 0x1000, "_end": FREED + 0x2000}
    return found
