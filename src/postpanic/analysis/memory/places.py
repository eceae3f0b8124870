"""
What lies at an address: everything that is known, from several sides.

A kernel address may be at once a symbol, in a module, on a stack, in a slab
object, in a per-CPU area, in an area of vmalloc, and in a page with a use of its
own. Each side that knows the address gives one :class:`Place`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from drgn import Object
from drgn.helpers.linux.mm import find_vmap_area, vma_find
from drgn.helpers.linux.percpu import per_cpu_ptr

from postpanic.analysis.cells import decode, problem
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.filesystems.paths import Paths, file_path
from postpanic.analysis.memory.direct_map import direct_vaddr
from postpanic.analysis.memory.member_names import member_at, member_of_variable
from postpanic.analysis.memory.page_structs import page_structs
from postpanic.analysis.memory.place import Place, describe_frame
from postpanic.analysis.memory.slabs.objects import ObjectInfo, find_object, find_slab
from postpanic.analysis.memory.spaces import AddressKind, process_memory
from postpanic.analysis.stacks.engine import open_stacks
from postpanic.analysis.tasks import TaskFacts
from postpanic.analysis.tasks.facts import read_all_facts
from postpanic.analysis.tasks.lists import possible_cpus
from postpanic.analysis.workspace import Workspace
from postpanic.errors import PostpanicError
from postpanic.findings.table import Problem
from postpanic.units import VirtAddr

__all__ = ["Places", "open_places"]

_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class _Stack:
    start: int
    end: int
    facts: TaskFacts


class Places:
    """What lies where in one dump; made by :func:`open_places`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._prog = workspace.prog

    def find(self, address: int, kind: AddressKind, problems: list[Problem]) -> list[Place]:
        """Tell everything that is known of an address; what cannot be told is a problem."""
        if kind is AddressKind.USER:
            sides: tuple[tuple[str, Callable[[int], Iterator[Place]]], ...] = (
                ("vm_area_struct", self._vma),
                ("page", self._user_page),
            )
        elif kind is AddressKind.PHYSICAL:
            sides = (("physical", self._physical), ("page", self._frame), ("direct mapping", self._aliases))
        else:
            sides = (
                ("symbol", self._symbol),
                ("module", self._module),
                ("task", self._task),
                ("stack", self._stack),
                ("slab", self._slab),
                ("per-CPU", self._per_cpu),
                ("vmalloc", self._vmalloc),
                ("struct page", self._page_struct),
                ("page", self._kernel_page),
            )
        places: list[Place] = []
        for what, side in sides:
            try:
                places += side(address)
            except UNREADABLE as exc:
                problems.append(problem(f"{what} of {address:#x}", exc))
        return places

    def short(self, vaddr: int) -> Place | None:
        """Tell in one line what a kernel address is in: the most telling of all sides; None if none knows it."""
        for side in (
            self._symbol,
            self._stack,
            self._slab,
            self._per_cpu,
            self._module,
            self._vmalloc,
            self._kernel_page,
        ):
            try:
                for place in side(vaddr):
                    return place
            except UNREADABLE:
                continue
        return None

    def is_named(self, vaddr: int) -> bool:
        """Tell whether an address is one by which the kernel uses a place: a symbol, in a module, or on a stack."""
        try:
            self._prog.symbol(vaddr)
        except LookupError:
            return bool(self._module_name(vaddr)) or self.task_of_stack(vaddr) is not None
        return True

    def _symbol(self, vaddr: int) -> Iterator[Place]:
        try:
            symbol = self._prog.symbol(vaddr)
        except LookupError:
            return
        offset = vaddr - symbol.address
        module = self._module_name(vaddr)
        text = f"{symbol.name}+{offset}" if offset else symbol.name
        member = member_of_variable(self._prog, symbol.name, offset) if offset else ""
        if member:
            text += f" ({member})"
        if module:
            text += f" [{module}]"
        yield Place("symbol", symbol.name, text, symbol.address, symbol.size, offset)

    def _module_name(self, vaddr: int) -> str:
        try:
            name = str(self._prog.module(vaddr).name)
        except LookupError:
            return ""
        return "" if name == "kernel" else name

    def _module(self, vaddr: int) -> Iterator[Place]:
        name = self._module_name(vaddr)
        if not name:
            return
        ranges = self._prog.module(vaddr).address_ranges or ()
        for start, end in ranges:
            if start <= vaddr < end:
                text = f"module {name}, {start:#x}-{end:#x}"
                yield Place("module", name, text, start, end - start, vaddr - start)
                return

    @cached_property
    def _tasks(self) -> list[TaskFacts]:
        return read_all_facts(self._workspace, [])

    @cached_property
    def _stacks(self) -> tuple[list[int], list[_Stack]]:
        size = open_stacks(self._workspace).thread_size
        stacks = []
        for facts in self._tasks:
            try:
                start = facts.number("stack")
            except UNREADABLE:
                continue
            if start:
                stacks.append(_Stack(start, start + size, facts))
        stacks.sort(key=lambda stack: stack.start)
        return [stack.start for stack in stacks], stacks

    def task_of_stack(self, vaddr: int) -> tuple[int, int, TaskFacts] | None:
        """Find the task on whose stack an address is: where the stack begins and ends, and the task."""
        starts, stacks = self._stacks
        index = bisect_right(starts, vaddr) - 1
        if index < 0 or vaddr >= stacks[index].end:
            return None
        return stacks[index].start, stacks[index].end, stacks[index].facts

    def task_at(self, vaddr: int) -> TaskFacts | None:
        """Find the task in whose ``task_struct`` an address is."""
        size = self._prog.type("struct task_struct").size or 0
        return next((facts for facts in self._tasks if facts.vaddr <= vaddr < facts.vaddr + size), None)

    def _task(self, vaddr: int) -> Iterator[Place]:
        facts = self.task_at(vaddr)
        if facts is not None:
            name = f'task {facts.pid} "{facts.comm}"'
            size = self._prog.type("struct task_struct").size
            yield Place("task", name, f"task_struct of {name}", facts.vaddr, size, vaddr - facts.vaddr)

    def _stack(self, vaddr: int) -> Iterator[Place]:
        found = self.task_of_stack(vaddr)
        if found is not None:
            start, end, facts = found
            name = f'task {facts.pid} "{facts.comm}"'
            frame = self._frame_of(vaddr, facts)
            text = f"stack of {name}" + (f", in frame {frame}" if frame else "")
            yield Place("stack", name, text, start, end - start, vaddr - start, frame)
            return
        for area in open_stacks(self._workspace).areas:
            if vaddr in area:
                name = f"CPU {area.cpu} {area.title}"
                yield Place("stack", name, name, area.start, area.end - area.start, vaddr - area.start)

    def _frame_of(self, vaddr: int, facts: TaskFacts) -> str:
        """Name the frame of a stack that an address is in: ``#2 do_sys_open``; empty where there is none."""
        try:
            trace = open_stacks(self._workspace).trace(facts)
        except UNREADABLE:
            return ""
        below = None
        for number, frame in enumerate(trace.frames):
            if below is not None and below <= vaddr < frame.sp:
                previous = trace.frames[number - 1]
                place = previous.place
                return (
                    f"#{number - 1} {place.function if place is not None and place.function else f'{previous.pc:#x}'}"
                )
            below = frame.sp if frame.area is None or frame.area.cpu < 0 else None
        return ""

    def _slab(self, vaddr: int) -> Iterator[Place]:
        info = find_object(self._workspace, vaddr, [])
        if info is None:
            slab = find_slab(self._workspace, vaddr)
            if slab is not None:
                text = f"slab of {slab.cache.name}, behind its last object"
                yield Place("slab", slab.cache.name, text, slab.vaddr, None, vaddr - slab.vaddr)
            return
        state = "in use" if info.object.allocated else f"free{f', {info.object.keeper}' if info.object.keeper else ''}"
        cache = info.slab.cache
        member = member_at(self._prog, cache, info.offset)
        text = f"{cache.name} object {info.object.vaddr:016x}+{info.offset}{f' ({member})' if member else ''}, {state}"
        yield Place("slab", cache.name, text, info.object.vaddr, cache.object_bytes, info.offset, state)

    def neighbours(self, vaddr: int) -> list[Place]:
        """Tell which objects are before and behind the one that an address is in."""
        info = find_object(self._workspace, vaddr, [])
        if info is None:
            return []
        found = []
        for side, number in (("before", info.index - 1), ("behind", info.index + 1)):
            if not 0 <= number < info.slab.head.objects:
                continue
            at = info.slab.first_object + number * info.slab.cache.size_bytes
            other: ObjectInfo | None = find_object(self._workspace, at, [])
            if other is None:
                continue
            state = "in use" if other.object.allocated else "free"
            name = info.slab.cache.name
            size = info.slab.cache.object_bytes
            found.append(Place(side, name, f"{name} object {at:016x}, {state}", at, size, None, state))
        return found

    @cached_property
    def _per_cpu_bases(self) -> list[tuple[int, int]]:
        zero = Object(self._prog, "void *", 0)
        bases = []
        for cpu in possible_cpus(self._workspace):
            try:
                bases.append((cpu, int(per_cpu_ptr(zero, cpu).value_())))
            except UNREADABLE:
                continue
        return bases

    @cached_property
    def _per_cpu_sizes(self) -> tuple[int, int, int]:
        """Offset and size of the static per-CPU symbols, and the size of the unit of each CPU in the first chunk."""
        start = int(self._prog.symbol("__per_cpu_start").address)
        end = int(self._prog.symbol("__per_cpu_end").address)
        unit = int(self._prog["pcpu_unit_size"].value_())
        return start, end - start, unit

    def _per_cpu(self, vaddr: int) -> Iterator[Place]:
        start, static, unit = self._per_cpu_sizes
        for cpu, base in self._per_cpu_bases:
            first = base + start & _WORD
            if not first <= vaddr < first + unit:
                continue
            offset = vaddr - base & _WORD
            name = f"CPU {cpu}, offset {offset:#x}"
            if vaddr < first + static:
                symbol, member = self._per_cpu_symbol(offset)
                if symbol:
                    name = f"{symbol}{f' ({member})' if member else ''} of CPU {cpu}"
            else:
                name += ", allocated"
            yield Place("per-CPU", name, f"per-CPU {name}", first, unit, vaddr - first)
            return

    @cached_property
    def _per_cpu_symbols(self) -> tuple[list[int], list[tuple[str, int]]]:
        """
        Give the per-CPU symbols by address: where each is, its name and size.

        Up to 6.14 they are numbers from 0 on, which no module of drgn claims.
        """
        start, size, _ = self._per_cpu_sizes
        marks = {"__per_cpu_start", "__per_cpu_end", "__per_cpu_load"}
        found = sorted(
            (int(symbol.address), str(symbol.name), int(symbol.size))
            for symbol in self._prog.symbols()
            if start <= symbol.address < start + size and symbol.name not in marks
        )
        return [address for address, _, _ in found], [(name, length) for _, name, length in found]

    def _per_cpu_symbol(self, offset: int) -> tuple[str, str]:
        """Name the per-CPU symbol that an offset is in, and the member of it."""
        addresses, symbols = self._per_cpu_symbols
        index = bisect_right(addresses, offset) - 1
        if index < 0:
            return "", ""
        name, size = symbols[index]
        inside = offset - addresses[index]
        if inside >= max(size, 1):
            return "", ""
        return (f"{name}+{inside}", member_of_variable(self._prog, name, inside)) if inside else (name, "")

    def _vmalloc(self, vaddr: int) -> Iterator[Place]:
        area = find_vmap_area(self._prog, vaddr)
        if not area:
            return
        start, end = int(area.va_start.value_()), int(area.va_end.value_())
        caller = ""
        if area.vm:
            at = int(area.vm.caller.value_())
            caller = self._prog.symbol(at).name if at else ""
        text = f"vmalloc area {start:016x}-{end:016x}" + (f", allocated by {caller}" if caller else "")
        yield Place("vmalloc", caller, text, start, end - start, vaddr - start)

    def _page_struct(self, vaddr: int) -> Iterator[Place]:
        structs = page_structs(self._workspace)
        pfn = structs.pfn_of(vaddr)
        if pfn is None:
            return
        start = structs.vaddr_of(pfn) or vaddr
        paddr = pfn * self._workspace.memory.page_size_bytes
        text = f"struct page of {paddr:#x}: {describe_frame(structs, pfn)}"
        yield Place("struct page", f"frame {pfn:#x}", text, start, structs.size_bytes, vaddr - start)

    def _kernel_page(self, vaddr: int) -> Iterator[Place]:
        paddr = int(self._workspace.memory.translate(VirtAddr(vaddr)))
        yield from self._frame(paddr)

    def _user_page(self, vaddr: int) -> Iterator[Place]:
        memory = process_memory(self._workspace, self._workspace.task)
        yield from self._frame(int(memory.translate(VirtAddr(vaddr))))

    def _frame(self, paddr: int) -> Iterator[Place]:
        structs = page_structs(self._workspace)
        size = self._workspace.memory.page_size_bytes
        pfn = paddr // size
        text = f"physical {paddr:#x}: {describe_frame(structs, pfn)}"
        yield Place("page", f"frame {pfn:#x}", text, pfn * size, size, paddr % size, self._state(paddr))
        block = structs.free_block_of(pfn)
        if block is not None:
            first, order = block
            text = f"free block of order {order} at physical {first * size:#x}, struct page {structs.vaddr_of(first):x}"
            yield Place("free", f"order {order}", text, first * size, size << order, paddr - first * size, "free")

    def _state(self, paddr: int) -> str:
        try:
            self._workspace.memory.physical.read(paddr, 1)  # type: ignore[arg-type]
        except PostpanicError:
            return "not in the dump"
        return ""

    def _vma(self, vaddr: int) -> Iterator[Place]:
        task = self._workspace.task
        vma = vma_find(task.mm, vaddr)
        if not vma:
            return
        start, end = int(vma.vm_start.value_()), int(vma.vm_end.value_())
        name = ""
        if vma.vm_file:
            name = Paths(self._prog).of_path(file_path(vma.vm_file.read_()))
        pid, comm = int(task.pid.value_()), decode(task.comm.string_())
        text = f'{start:x}-{end:x} of task {pid} "{comm}"' + (f", {name}" if name else "")
        yield Place("vma", name, text, start, end - start, vaddr - start)

    def _physical(self, paddr: int) -> Iterator[Place]:
        ranges = self._workspace.opened.dump.ram_ranges.tolist()
        for start, end in ranges:
            if start <= paddr < end:
                text = f"RAM {start:#x}-{end:#x}"
                yield Place("physical", "RAM", text, start, end - start, paddr - start, self._state(paddr))
                return
        yield Place("physical", "no RAM", "no RAM that the dump describes", state="not in the dump")

    def _aliases(self, paddr: int) -> Iterator[Place]:
        """Give the kernel addresses of a physical one, and what these are in."""
        direct = direct_vaddr(self._workspace, paddr)
        voffset = self._workspace.memory.layout.image_voffset
        for vaddr, name in ((direct, "direct mapping"), (paddr + voffset & _WORD, "kernel image")):
            try:
                if int(self._workspace.memory.translate(VirtAddr(vaddr))) != paddr:
                    continue
                if name == "kernel image" and self._prog.symbol(vaddr) is None:
                    continue
            except (LookupError, PostpanicError):
                continue
            yield Place("mapped", name, f"{vaddr:016x} in the {name}", vaddr)
            if name == "direct mapping":
                yield from self._slab(vaddr)
                yield from self._per_cpu(vaddr)
                yield from self._task(vaddr)
            else:
                yield from self._symbol(vaddr)


def open_places(workspace: Workspace) -> Places:
    """Give what lies where; what it needs is read once for the session."""
    return workspace.once("places", lambda: Places(workspace))
