"""What a self-test finds out about a dump before it can judge: kernel, symbols, types, the place of the crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from postpanic.dumps.memory import Dump
from postpanic.errors import AbsentError, CorruptError, FactAbsentError, PostpanicError
from postpanic.kernel.btf import decode_btf
from postpanic.kernel.btf.find import search_kernel_btf
from postpanic.kernel.btf.layout import HEADER_SIZE_BYTES, MAX_DATA_BYTES
from postpanic.kernel.btf.peek import PeekedStruct, peek_struct
from postpanic.kernel.kallsyms.lookup import FoundSymbols, find_symbols
from postpanic.kernel.memory import KernelMemory, open_kernel_memory
from postpanic.kernel.paging.tables import EntryKind
from postpanic.kernel.recovered import AllSymbols, read_all_symbols
from postpanic.pages import crash_site
from postpanic.pages.coverage import Surveyor, VirtualRange
from postpanic.pages.crash_site import CrashSite, find_crash_site, find_thread_size
from postpanic.units import VirtAddr

__all__ = ["BTF", "DATA", "FREED_BSS", "ORC", "TEXT", "Inspection"]

TEXT = ("_stext", "_etext")
DATA = (("__start_rodata", "__end_rodata"), ("_sdata", "_edata"), ("__bss_start", "__bss_stop"))
"""What the kernel keeps: code and data for its start, and the room between, are freed after it (``free_initmem()``)."""
FREED_BSS = ("__start_bss_decrypted_unused", "__end_bss_decrypted")
"""Freed where memory is not encrypted (``mem_encrypt_free_decrypted_mem()``, x86)."""
ORC = (("__start_orc_unwind_ip", "__stop_orc_unwind_ip"), ("__start_orc_unwind", "__stop_orc_unwind"))
BTF = ("__start_BTF", "__stop_BTF")

_SYMBOLS = (
    *TEXT,
    *FREED_BSS,
    *BTF,
    *(name for pair in (*DATA, *ORC) for name in pair),
    "_end",
    "init_task",
    "arch_task_struct_size",
    *crash_site.SYMBOLS,
)
_TASK_MEMBERS = ("stack", "tasks", "pid", "comm")

_MARKS = frozenset({"_end", "__per_cpu_start", "__per_cpu_end"})
"""Names of places at which something ends that is not kept, as is the image's own copy of per-CPU variables."""

_NO_ROOM = "kallsyms has no data (CONFIG_KALLSYMS_ALL), and there is no memory to search for it"

_T = TypeVar("_T")


class _Once(Generic[_T]):
    """A value that is made when first asked for; what goes wrong goes wrong in the same way each time."""

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._made: tuple[_T] | PostpanicError | None = None

    def __call__(self) -> _T:
        if self._made is None:
            try:
                self._made = (self._make(),)
            except PostpanicError as exc:
                self._made = exc
        if isinstance(self._made, PostpanicError):
            raise self._made
        return self._made[0]


class Inspection:
    """
    What can be found out about a written dump, each when it is first asked for.

    Every attribute is a function, which raises what keeps it from being found.

    Parameters
    ----------
    written : Dump
    source : Dump, optional
        What it was made from.
    source_kernel : KernelMemory, optional
        The kernel in the source, where it is open already.
    is_lean : bool
        Whether memory is short: what kallsyms does not have is not searched for.
    """

    def __init__(
        self, written: Dump, source: Dump | None, source_kernel: KernelMemory | None, *, is_lean: bool = False
    ) -> None:
        self.written = written
        self.source = source
        self.is_lean = is_lean
        self.kernel = _Once(lambda: open_kernel_memory(written))
        """The kernel as the written file has it."""
        self.truth = _Once(lambda: self._open_truth(source_kernel))
        """The kernel as the source has it, else as the written file does: says what must be there."""
        self._all_symbols = _Once(lambda: self._read_all(self.kernel()))
        self.own_symbols = _Once(lambda: self._find_few(self.kernel(), self._all_symbols))
        """A few symbols as the written file has them."""
        self.symbols = _Once(self._find_symbols)
        """The same, but those of the source where the written file's are broken."""
        self._found_btf = _Once(self._search_btf)
        self.surveyor = _Once(self._make_surveyor)
        """Looks at pages."""
        self.types = _Once(self._read_types)
        """The layout of ``struct task_struct``, and how much of it is allocated."""
        self.site = _Once(lambda: find_crash_site(self.truth(), self.symbols(), (source or written).description))
        """Where the kernel crashed."""
        self.thread_size = _Once(lambda: find_thread_size(self.truth(), self.symbols()))
        """``THREAD_SIZE``."""

    def find_btf(self) -> tuple[VirtAddr, VirtAddr]:
        """Find where BTF begins and ends."""
        if not self.has_data_symbols():
            return self._found_btf()
        start, end = self.find_range("BTF", *BTF)
        if not HEADER_SIZE_BYTES < end - start <= MAX_DATA_BYTES:
            raise FactAbsentError("the kernel was built without BTF")
        return start, end

    def has_data_symbols(self) -> bool:
        """Tell whether kallsyms has data (``CONFIG_KALLSYMS_ALL``), so that what it does not have is not there."""
        return any(self.symbols().get(first) is not None for first, _ in DATA)

    def _search_btf(self) -> tuple[VirtAddr, VirtAddr]:
        """Search for BTF that no symbol leads to, in the source where there is one."""
        if self.is_lean:
            raise FactAbsentError(_NO_ROOM)
        start, data = search_kernel_btf(self.truth())
        return start, VirtAddr(start + len(data))

    def find_range(self, what: str, first: str, last: str) -> tuple[VirtAddr, VirtAddr]:
        """Find what lies between two symbols."""
        start, end = self.symbols().get(first), self.symbols().get(last)
        if start is None or end is None:
            raise FactAbsentError(f"the kernel has no {what}: no symbol {first}")
        if end < start:
            raise CorruptError(f"kallsyms has {first} at {start:#x} behind {last} at {end:#x}")
        return start, end

    def find_stacks(self) -> list[VirtualRange]:
        """
        Give what must be there of the stacks: from the stack pointer to the end.

        A stack pointer beyond the task's stack is on another (of interrupts, say),
        from which the trace goes on to the task's: all of that must be there.
        """
        size = self.thread_size()
        site = self.site()
        base, sp = self._read_stack(site), site.sp
        if sp is None:
            return [] if base is None else [(base, size)]
        if base is None:
            # Only stacks that begin at a multiple of their size are made.
            sp = sp if sp % size or self.surveyor().count_mapped(sp, 1) else sp - 8
            return [(sp, size - sp % size)]
        if base <= sp <= base + size:
            # At the very end nothing has been pushed yet: what lies below must be there.
            sp = min(sp, base + size - 8)
            return [(sp, base + size - sp)]
        # How far another stack goes is not known; a page that is not mapped guards its end.
        page = self.truth().page_size_bytes
        pages = self.surveyor().count_mapped(sp, size - sp % size)
        if not pages:
            self._require_guard(sp)
        other = [(sp, pages * page - sp % page)] if pages else []
        return [*other, (base, size)]

    def _require_guard(self, vaddr: int) -> None:
        """Raise where an address is not mapped because a page table is missing, and not because nothing is there."""
        walk = self.truth().walk(VirtAddr(vaddr))
        if walk.steps and walk.steps[-1].kind is EntryKind.TABLE:
            raise AbsentError(f"to {vaddr:#x}: {walk.reason}")

    def list_data(self) -> tuple[list[VirtualRange], int]:
        """List the pages of variables that are known where kallsyms has functions only, and count the variables."""
        everything = self._all_symbols()
        image, end = self.truth().layout.image_range
        start, stop = self.find_range("text", *TEXT)
        vaddrs = [
            symbol.vaddr
            for symbol in everything.table
            if symbol.type == "D" and image <= symbol.vaddr < end and not start <= symbol.vaddr <= stop
            if symbol.name not in everything.per_cpu and symbol.name not in _MARKS
        ]
        size = self.truth().page_size_bytes
        return [(page * size, size) for page in sorted({vaddr // size for vaddr in vaddrs})], len(vaddrs)

    def _open_truth(self, source_kernel: KernelMemory | None) -> KernelMemory:
        if source_kernel is not None:
            return source_kernel
        if self.source is not None:
            try:
                return open_kernel_memory(self.source)
            except PostpanicError:
                pass
        return self.kernel()

    def _read_all(self, memory: KernelMemory) -> AllSymbols:
        if self.is_lean:
            raise FactAbsentError(_NO_ROOM)
        return read_all_symbols(memory, by_use=False)

    @staticmethod
    def _find_few(memory: KernelMemory, read_all: Callable[[], AllSymbols]) -> FoundSymbols:
        """Find what is asked for; by all that stands in for kallsyms where that has functions only."""
        found = find_symbols(memory, _SYMBOLS)
        if any(first in found.vaddrs for first, _ in DATA):
            return found
        try:
            table = read_all().table
        except FactAbsentError:
            return found
        vaddrs = {name: vaddr for name in _SYMBOLS if (vaddr := table.get(name)) is not None}
        return FoundSymbols(vaddrs | found.vaddrs, found.tables, found.count)

    def _find_symbols(self) -> FoundSymbols:
        try:
            return self.own_symbols()
        except PostpanicError:
            pass
        try:
            if self.source is not None:
                self._all_symbols = _Once(lambda: self._read_all(self.truth()))
                return self._find_few(self.truth(), self._all_symbols)
        except PostpanicError:
            pass
        # What is wrong with the symbols is said once.
        raise FactAbsentError("there are no symbols to find it by")

    def _read_types(self) -> PeekedStruct:
        start, end = self.find_btf()
        try:
            data = self._read_either(start, end - start)
            found = peek_struct(data, "task_struct", _TASK_MEMBERS)
            if found is None or len(found.offsets) < len(_TASK_MEMBERS):
                # Members may be hidden in an anonymous structure (CONFIG_RANDSTRUCT).
                layout = decode_btf(data).find_struct("task_struct")
                found = PeekedStruct(layout.size_bytes, {name: layout.offset_of(name) for name in _TASK_MEMBERS})
        except PostpanicError:
            # What is wrong with the types is said once.
            raise FactAbsentError("there are no types to find it by") from None
        return PeekedStruct(self._find_task_bytes(found), found.offsets)

    def _read_either(self, vaddr: VirtAddr, size_bytes: int) -> bytes:
        """Read what the written file has, else what the source has."""
        try:
            return self.kernel().read(vaddr, size_bytes)
        except AbsentError:
            return self.truth().read(vaddr, size_bytes)

    def _find_task_bytes(self, task: PeekedStruct) -> int:
        """
        Find how much of a ``task_struct`` is allocated.

        Its type ends in room for all registers that there can be; the kernel allocates
        what the processor has (``fpu__init_task_struct_size()``, x86).
        """
        vaddr = self.symbols().get("arch_task_struct_size")
        if vaddr is None:
            return task.size_bytes
        size = self.truth().read_u32(vaddr)
        return size if max(task.offsets.values()) < size < task.size_bytes else task.size_bytes

    def _make_surveyor(self) -> Surveyor:
        try:
            own_kernel = self.kernel()
        except PostpanicError:
            own_kernel = None
        return Surveyor(self.written, self.source, self.truth(), own_kernel, self._find_image_end())

    def _find_image_end(self) -> int | None:
        try:
            return self.symbols().get("_end")
        except PostpanicError:
            return None

    def _read_stack(self, site: CrashSite) -> int | None:
        """Read where the crashing task's stack begins."""
        try:
            if site.task is None:
                return None
            stack = self.truth().read_u64(site.task + self.types().offsets["stack"])
        except PostpanicError:
            return None
        return stack if stack and stack % self.truth().page_size_bytes == 0 else None
