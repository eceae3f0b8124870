"""The unwind tables of the kernel and of its modules, one row at a time."""

from __future__ import annotations

from drgn import MainModule, Module, Object, Program

from postpanic.analysis.context import UNREADABLE
from postpanic.errors import CorruptError, FactAbsentError, FileFaultError, PostpanicError
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.orc import OrcEntry, OrcTable, OrcType, decode_orc

__all__ = ["OrcRows"]

_LIMIT_BYTES = 32 << 20
_MODULE_LIMIT = 1 << 20


class OrcRows:
    """
    All unwind tables of a kernel on x86-64.

    Raises
    ------
    AbsentError
        If the kernel has no ORC (``CONFIG_UNWINDER_ORC``), or the dump does not hold it.
    CorruptError
        If the tables are damaged.
    """

    def __init__(self, prog: Program, memory: KernelMemory) -> None:
        self._prog = prog
        self._memory = memory
        self.kernel = self._read_kernel()
        self._modules: dict[str, OrcTable | None] = {}
        self._text = _text_range(prog)

    def find(self, vaddr: int) -> OrcEntry | None:
        """Find the row that covers an address; None: there is none, or it says that nothing is known."""
        table: OrcTable | None = self.kernel
        if not self._text[0] <= vaddr < self._text[1]:
            table = self._find_table(vaddr)
        if table is None or not len(table):
            return None
        try:
            entry = table.find(vaddr)
        except (FactAbsentError, ValueError):
            return None
        return None if entry.type is OrcType.UNDEFINED else entry

    def _find_table(self, vaddr: int) -> OrcTable | None:
        try:
            module = self._prog.module(vaddr)
        except LookupError:
            return None
        return self.find_module(module)

    def find_module(self, module: Module) -> OrcTable | None:
        """Find the table of a module, or of the kernel; None: it has none, or it cannot be read."""
        if isinstance(module, MainModule):
            return self.kernel
        if module.name not in self._modules:
            try:
                self._modules[module.name] = self._read_module(module.object)
            except (*UNREADABLE, FileFaultError):
                self._modules[module.name] = None
        return self._modules[module.name]

    def _read_module(self, module: Object) -> OrcTable | None:
        """``struct mod_arch_specific`` of x86 (``arch/x86/include/asm/module.h``)."""
        arch = module.arch
        count = int(arch.num_orcs)
        if not 0 < count <= _MODULE_LIMIT:
            return None
        ip_vaddr = int(arch.orc_unwind_ip)
        ips = self._memory.read(ip_vaddr, 4 * count)
        entries = self._memory.read(int(arch.orc_unwind), 6 * count)
        return decode_orc(ip_vaddr, ips, entries, where=f"ORC at {ip_vaddr:#x}", layout=self.kernel.layout)

    def _read_kernel(self) -> OrcTable:
        blocks = []
        ip_vaddr = 0
        for name in ("orc_unwind_ip", "orc_unwind"):
            try:
                start = self._prog.symbol(f"__start_{name}").address
                size = self._prog.symbol(f"__stop_{name}").address - start
            except LookupError as exc:
                raise FactAbsentError(f"the kernel has no {name}: {exc}") from None
            if not 0 < size <= _LIMIT_BYTES:
                raise CorruptError(f"the kernel's {name} has {size} bytes")
            ip_vaddr = ip_vaddr or start
            blocks.append(self._memory.read(start, size))
        return decode_orc(ip_vaddr, *blocks, where=f"ORC at {ip_vaddr:#x}")


def _text_range(prog: Program) -> tuple[int, int]:
    try:
        return prog.symbol("_stext").address, prog.symbol("_etext").address
    except (LookupError, PostpanicError):
        return 0, 0
