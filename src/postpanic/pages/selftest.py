"""
The self-test: proof on a written file that a debugger can work with it.

Everything is looked up in the written file as a debugger would: VMCOREINFO in
its notes, a few symbols in kallsyms, the layout of ``task_struct`` in BTF, the
rest through page tables. With the source at hand, what the source does not have
either is not demanded, and contents are compared. Nothing here knows how pages
were chosen, so that a mistake there does not repeat itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from postpanic.dumps.memory import Dump
from postpanic.errors import AbsentError, CorruptError, FactAbsentError, PostpanicError
from postpanic.kernel.btf import decode_btf
from postpanic.kernel.btf.layout import BTF_MAGIC, HEADER_SIZE_BYTES
from postpanic.kernel.memory import KernelMemory
from postpanic.kernel.printk import read_log
from postpanic.kernel.printk.ring import find_ring_tables
from postpanic.pages.checks import CheckResult, Outcome, SelfTest
from postpanic.pages.coverage import Coverage, VirtualRange
from postpanic.pages.crash_site import find_crash_site
from postpanic.pages.inspection import DATA, FREED_BSS, ORC, TEXT, Inspection
from postpanic.units import VirtAddr

__all__ = ["CheckResult", "Outcome", "SelfTest", "check_dump"]

_BTF_MAGIC = BTF_MAGIC.to_bytes(2, "little")
_COMM_BYTES = 16
"""``TASK_COMM_LEN``."""

_QUICK_SAMPLE_PAGES, _WHOLE_SAMPLE_PAGES = 32, 1 << 18
_QUICK_TASKS, _MOST_TASKS = 256, 1 << 17
_TASKS_TOGETHER = 1 << 12


def check_dump(
    written: Dump,
    *,
    source: Dump | None = None,
    source_kernel: KernelMemory | None = None,
    quick: bool = True,
    is_lean: bool = False,
) -> SelfTest:
    """
    Check that a dump holds what a debugger cannot do without.

    Parameters
    ----------
    written : Dump
        The file that was written, opened anew.
    source : Dump, optional
        What it was made from.
    source_kernel : KernelMemory, optional
        The kernel in the source, where it is open already.
    quick : bool
        Look at a sample of the text, at the states of pages instead of their
        contents, and at the first few hundred tasks; else at everything.
    is_lean : bool
        Whether memory is short. Of a kernel whose kallsyms has functions only, items that need data or types are not
        applicable then: to search for them takes some 80 MiB.

    Returns
    -------
    SelfTest
        One result for each item. What a dump lacks is a result, not an error.
    """
    started = time.perf_counter()
    test = _Test(Inspection(written, source, source_kernel, is_lean=is_lean), quick=quick)
    results = tuple(test.run(name) for name in test.items)
    return SelfTest(results, time.perf_counter() - started)


class _DefiniteError(AbsentError):
    """Something is missing or wrong for certain, whatever the source is like."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A ``struct task_struct``, as far as it matters here."""

    vaddr: int
    stack: int


class _Test:
    """The items; each says in words what is there, or raises what is wrong."""

    def __init__(self, inspection: Inspection, *, quick: bool) -> None:
        self.quick = quick
        self.found = inspection
        self.items: dict[str, Callable[[], str]] = {
            "VMCOREINFO": self.check_vmcoreinfo,
            "kallsyms": self.check_kallsyms,
            "BTF": self.check_btf,
            "ORC": self.check_orc,
            "kernel text": self.check_text,
            "kernel data": self.check_data,
            "page tables": self.check_page_tables,
            "printk buffer": self.check_printk,
            "crashing task": self.check_crashing_task,
            "crashing stack": self.check_crashing_stack,
            "tasks": self.check_tasks,
        }

    def run(self, name: str) -> CheckResult:
        """Check one item."""
        try:
            return CheckResult(name, Outcome.OK, self.items[name]())
        except FactAbsentError as exc:
            return CheckResult(name, Outcome.NOT_APPLICABLE, exc.message)
        except _DefiniteError as exc:
            return CheckResult(name, Outcome.FAILED, exc.message)
        except PostpanicError as exc:
            source = self.found.source
            if source is not None:
                alone = _Test(Inspection(source, None, None, is_lean=self.found.is_lean), quick=True).run(name)
                if alone.outcome is not Outcome.OK:
                    return CheckResult(name, Outcome.NOT_APPLICABLE, f"as in the source: {alone.detail}")
            return CheckResult(name, Outcome.FAILED, exc.message)

    def _require(self, *ranges: VirtualRange) -> Coverage:
        """Cover ranges, and raise if any page is lost."""
        coverage = self.found.surveyor().cover(ranges)
        if coverage.lost:
            raise _DefiniteError(coverage.text)
        return coverage

    def check_vmcoreinfo(self) -> str:
        ours = self.found.written.description.vmcoreinfo.rstrip(b"\0")
        theirs = self.found.source.description.vmcoreinfo.rstrip(b"\0") if self.found.source is not None else b""
        if not ours and theirs:
            raise _DefiniteError(f"the source has it, {len(theirs):,} bytes; the file does not")
        if ours and theirs and ours != theirs:
            raise _DefiniteError(f"its {len(ours):,} bytes are not the source's {len(theirs):,}")
        try:
            info = self.found.kernel().vmcoreinfo
        except FactAbsentError as exc:
            # Without it nothing else can be checked: of a file that stands alone that is a failure.
            raise AbsentError(exc.message) from None
        equal = ", equal to the source's" if theirs else ""
        return f"{len(info.text):,} bytes, {info.source}{equal}"

    def check_kallsyms(self) -> str:
        try:
            symbols = self.found.symbols()
        except FactAbsentError:
            symbols = self.found.own_symbols()
        coverage = self._require(*symbols.tables)
        self.found.own_symbols()
        return f"{symbols.count:,} symbols, {coverage.text}"

    def check_btf(self) -> str:
        start, end = self.found.find_btf()
        coverage = self._require((start, end - start))
        data = self.found.kernel().read(start, HEADER_SIZE_BYTES if self.quick else end - start)
        if not self.quick:
            return f"{len(decode_btf(data)):,} types, {coverage.text}"
        if data[:2] != _BTF_MAGIC:
            raise CorruptError(f"begins with {data[:2].hex()}, must be {_BTF_MAGIC.hex()}")
        return coverage.text

    def check_orc(self) -> str:
        ranges = [self.found.find_range("ORC", *pair) for pair in ORC]
        return self._require(*((start, end - start) for start, end in ranges)).text

    def check_text(self) -> str:
        start, end = self._text_range()
        coverage = self._require((start, end - start))
        sample = _QUICK_SAMPLE_PAGES if self.quick else _WHOLE_SAMPLE_PAGES
        compared, differs = self.found.surveyor().find_difference([(start, end - start)], sample)
        if differs is not None:
            raise _DefiniteError(f"the page at {differs:#x} is not the source's")
        return f"{coverage.text}, {compared:,} equal to the source's" if compared else coverage.text

    def _text_range(self) -> tuple[int, int]:
        """Where the code lies; of a kernel without symbols, where it begins."""
        try:
            return self.found.find_range("text", *TEXT)
        except FactAbsentError:
            start = self.found.truth().vmcoreinfo.symbol("_stext")
            return start, start + self.found.truth().page_size_bytes

    def check_data(self) -> str:
        ranges: list[VirtualRange] = []
        for first, last in DATA:
            if self.found.symbols().get(first) is not None and self.found.symbols().get(last) is not None:
                start, end = self.found.find_range("data", first, last)
                ranges.append((start, end - start))
        if not ranges:
            return self._check_named_data()
        freed_start, freed_end = (self.found.symbols().get(name) for name in FREED_BSS)
        if freed_start is not None and freed_end is not None:
            ranges = [part for one in ranges for part in _cut(one, freed_start, freed_end)]
        return self._require(*ranges).text

    def _check_named_data(self) -> str:
        """Check the variables that can be known where kallsyms has functions only."""
        ranges, count = self.found.list_data()
        if not ranges:
            raise FactAbsentError("kallsyms has no symbols of data (CONFIG_KALLSYMS_ALL), and nothing is exported")
        return f"{self._require(*ranges).text} of {count:,} variables that have names"

    def check_page_tables(self) -> str:
        targets = {"kernel text": int(self.found.truth().vmcoreinfo.symbol("_stext"))}
        prb = self.found.truth().vmcoreinfo.get_symbol("prb")
        if prb is not None:
            targets["printk's buffer"] = prb
        targets |= self._crash_addresses()
        steps = 0
        for name, vaddr in targets.items():
            walk = self.found.kernel().walk(VirtAddr(vaddr))
            if (
                walk.paddr is None
                and self.found.truth().walk(VirtAddr(vaddr)).paddr is None
                and self.found.source is not None
            ):
                continue
            if walk.paddr is None:
                raise AbsentError(f"to {name} at {vaddr:#x}: {walk.reason}")
            steps += len(walk.steps)
        return f"{steps} entries on the way to {_spell(list(targets))}"

    def _crash_addresses(self) -> dict[str, int]:
        """Give what must be reached of the crash, as far as it can be told."""
        try:
            site = self.found.site()
            found = {"the crashing task": site.task} if site.task is not None else {}
            stacks = self.found.find_stacks()
        except PostpanicError:
            # Another item says so.
            return {}
        names = ["its stack"] if len(stacks) == 1 else ["the stack that it was on", "its stack"]
        return found | {name: stack[0] for name, stack in zip(names, stacks, strict=False)}

    def check_printk(self) -> str:
        info = self.found.truth().vmcoreinfo
        if info.get_symbol("prb") is not None:
            tables = find_ring_tables(self.found.truth())
        elif info.get_symbol("log_buf") is not None:
            size = self.found.truth().read_u32(info.symbol("log_buf_len"))
            tables = ((VirtAddr(self.found.truth().read_u64(info.symbol("log_buf"))), size),)
        else:
            raise FactAbsentError("VMCOREINFO describes no kernel log")
        text = self._require(*tables).text
        if self.quick:
            return text
        records = read_log(self.found.kernel())
        damaged = sum(bool(record.damage) for record in records)
        return f"{len(records):,} records{f', {damaged} of them damaged' if damaged else ''}, {text}"

    def check_crashing_task(self) -> str:
        site = self.found.site()
        if site.task is None:
            raise FactAbsentError(f"the kernel does not tell which task ran on CPU {site.cpu}")
        types = self.found.types()
        coverage = self._require((site.task, types.size_bytes))
        own = find_crash_site(self.found.kernel(), self.found.symbols(), self.found.written.description)
        if own != site:
            raise _DefiniteError(
                f"the file has it at {own.task or 0:#x} on CPU {own.cpu}, the source at {site.task:#x}"
            )
        pid = self.found.kernel().read_u32(site.task + types.offsets["pid"])
        comm = self.found.kernel().read(site.task + types.offsets["comm"], _COMM_BYTES).split(b"\0", 1)[0]
        if site.pid is not None and pid != site.pid & 0xFFFF_FFFF:
            raise CorruptError(f"{site.task:#x} has PID {pid}, the registers of CPU {site.cpu} are of PID {site.pid}")
        name = comm.decode("utf-8", "backslashreplace")
        return f'{site.task:#x}, PID {pid}, "{name}" on CPU {site.cpu}, {coverage.text}'

    def check_crashing_stack(self) -> str:
        ranges = self.found.find_stacks()
        if not ranges:
            raise FactAbsentError(f"CPU {self.found.site().cpu} left neither registers nor a task")
        coverage = self._require(*ranges)
        sp = self.found.site().sp
        return f"{coverage.text} from {ranges[0][0]:#x} on{'' if sp is not None else ', registers were not saved'}"

    def check_tasks(self) -> str:
        tasks, ended = self._read_tasks()
        size, stack_size = self.found.types().size_bytes, self.found.thread_size()
        coverage = Coverage(0)
        for first in range(0, len(tasks), _TASKS_TOGETHER):
            part = tasks[first : first + _TASKS_TOGETHER]
            stacks = [(task.stack, stack_size) for task in part if task.stack]
            coverage += self.found.surveyor().cover([*((task.vaddr, size) for task in part), *stacks])
        if coverage.lost:
            raise _DefiniteError(coverage.text)
        return f"{'' if ended else 'the first '}{len(tasks):,} tasks with their stacks, {coverage.text}"

    def _read_tasks(self) -> tuple[list[_Task], bool]:
        """Follow the list of tasks; whether its end was reached."""
        first = self.found.symbols().get("init_task")
        if first is None:
            raise FactAbsentError("neither kallsyms nor a table of exports has init_task")
        offsets = self.found.types().offsets
        most = _QUICK_TASKS if self.quick else _MOST_TASKS
        tasks: dict[int, _Task] = {}
        vaddr = int(first)
        while len(tasks) < most:
            if vaddr in tasks:
                if vaddr == first:
                    return list(tasks.values()), True
                raise CorruptError(f"the list of tasks comes back to {vaddr:#x} after {len(tasks):,}")
            try:
                tasks[vaddr] = _Task(vaddr, self.found.truth().read_u64(vaddr + offsets["stack"]))
                vaddr = self.found.truth().read_u64(vaddr + offsets["tasks"]) - offsets["tasks"]
            except AbsentError as exc:
                raise AbsentError(f"the list breaks after {len(tasks):,}: {exc.message}") from None
        return list(tasks.values()), False


def _cut(one: VirtualRange, start: int, end: int) -> list[VirtualRange]:
    """Take a range out of another."""
    low, high = one[0], one[0] + one[1]
    if end <= low or high <= start or end <= start:
        return [one]
    parts = ((low, start - low), (end, high - end))
    return [part for part in parts if part[1] > 0]


def _spell(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
