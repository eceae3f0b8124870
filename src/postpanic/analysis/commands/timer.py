"""``timer``: what timers will do, and when."""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Object
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.timekeeping import ktime_get_coarse_ns
from drgn.helpers.linux.timer import hrtimer_clock_base_for_each, timer_base_for_each, timer_base_names

from postpanic.analysis.cells import guarded, problem
from postpanic.analysis.commands.arguments import Arguments, Option
from postpanic.analysis.commands.registry import Example, command
from postpanic.analysis.commands.runq import shown_cpus
from postpanic.analysis.context import UNREADABLE
from postpanic.analysis.workspace import Workspace
from postpanic.errors import FactAbsentError
from postpanic.findings.absent import Absent, Reason
from postpanic.findings.table import Answer, Cell, Column, Kind, Layout, Problem, Shape

__all__ = ["timer"]

_FUNCTION = (
    Column("function", Kind.ADDRESS, title="FUNCTION", help="Address of the function."),
    Column("function_name", help="Its name.", prefix="<", suffix=">"),
)
_JIFFIES = Shape("jiffies", (Column("jiffies", Kind.NUMBER, help="jiffies_64."),), Layout.LINES, "JIFFIES\n{jiffies}")
_TIMERS = Shape(
    "timers",
    (
        Column("expires", Kind.NUMBER, title="EXPIRES", help="Jiffies at which it is due."),
        Column("tte", Kind.NUMBER, title="TTE", help="Jiffies until then; negative: it is late."),
        Column("timer_list", Kind.ADDRESS, title="TIMER_LIST", align="^", help="Address of the struct timer_list."),
        *_FUNCTION,
    ),
    indent=2,
)
_BASES = Shape(
    "timer_bases",
    (
        Column("cpu", Kind.NUMBER, help="The CPU."),
        Column("base", help="BASE_LOCAL, BASE_GLOBAL and BASE_DEF; BASE_STD and BASE_DEF before 6.9."),
        Column("address", Kind.ADDRESS, help="Address of the struct timer_base."),
        Column("timers", Kind.ROWS, help="Its timers, the next one first.", shape=_TIMERS),
    ),
    Layout.LINES,
    "TIMER_BASES[{cpu}][{base}]: {address}",
)
_HRTIMERS = Shape(
    "hrtimers",
    (
        Column("softexpires", Kind.NUMBER, title="SOFTEXPIRES", help="When it may be run, ns of its clock."),
        Column("expires", Kind.NUMBER, title="EXPIRES", help="When it must be run, ns of its clock."),
        Column("tte", Kind.NUMBER, title="TTE", help="Nanoseconds until then; negative: it is late."),
        Column("hrtimer", Kind.ADDRESS, title="HRTIMER", align="^", help="Address of the struct hrtimer."),
        *_FUNCTION,
    ),
    indent=2,
)
_CLOCKS = Shape(
    "clocks",
    (
        Column(
            "clock", Kind.NUMBER, help="Its index: HRTIMER_BASE_MONOTONIC, REALTIME, BOOTTIME, TAI, then the soft ones."
        ),
        Column("address", Kind.ADDRESS, help="Address of the struct hrtimer_clock_base."),
        Column("source", help="What tells its time.", prefix="  [", suffix="]"),
        Column("current", Kind.NUMBER, help="Its time, ns, as of the last tick."),
        Column("hrtimers", Kind.ROWS, help="Its timers, the next one first.", shape=_HRTIMERS),
    ),
    Layout.LINES,
    "  CLOCK: {clock}  HRTIMER_CLOCK_BASE: {address}{source}\n     CURRENT\n  {current}",
    gap=True,
)
_HRTIMER_BASES = Shape(
    "hrtimer_bases",
    (
        Column("cpu", Kind.NUMBER, help="The CPU."),
        Column("address", Kind.ADDRESS, help="Address of the struct hrtimer_cpu_base."),
        Column("clocks", Kind.ROWS, help="Its clocks.", shape=_CLOCKS),
    ),
    Layout.LINES,
    "CPU: {cpu}  HRTIMER_CPU_BASE: {address}",
    gap=True,
)
_CLOCK_NAMES = ("ktime_get", "ktime_get_real", "ktime_get_boottime", "ktime_get_clocktai")


@command(
    "timer",
    summary="timers in the order in which they are due",
    description=(
        "Show the timer wheels of each CPU, or with -r the high resolution timers. A timer that is late (TTE below 0) "
        "on a CPU whose others are not says that the CPU takes no ticks. The time of high resolution clocks is that of "
        "the last tick."
    ),
    options=(
        Option("-r", "high_resolution", "high resolution timers"),
        Option("-C", "cpus", "only these CPUs", "CPUS"),
    ),
    shapes=(_JIFFIES, _BASES, _HRTIMER_BASES),
    examples=(Example("timer", "the timer wheels"), Example("timer -r -C 0", "high resolution timers of CPU 0")),
)
def timer(workspace: Workspace, arguments: Arguments) -> Answer:
    """Show timers."""
    problems: list[Problem] = []
    cpus = shown_cpus(workspace, arguments.get("cpus"))
    reader = _Reader(workspace, problems)
    if arguments.has("high_resolution"):
        rows = [row for cpu in cpus for row in reader.high_resolution(cpu)]
        return Answer("timer", (_HRTIMER_BASES.table(rows),), tuple(problems))
    jiffies = reader.read_jiffies()
    rows = [row for cpu in cpus for row in reader.wheels(cpu, jiffies)]
    return Answer("timer", (_JIFFIES.table([(jiffies,)]), _BASES.table(rows)), tuple(problems))


class _Reader:
    def __init__(self, workspace: Workspace, problems: list[Problem]) -> None:
        self._workspace = workspace
        self._prog = workspace.prog
        self._problems = problems

    def read_jiffies(self) -> int:
        try:
            address = self._prog.symbol("jiffies_64").address
        except LookupError as exc:
            raise FactAbsentError("the kernel has no jiffies_64") from exc
        return self._workspace.memory.read_u64(address)

    def _function(self, address: int) -> tuple[Cell, Cell]:
        try:
            name: Cell = str(self._prog.symbol(address).name)
        except LookupError:
            name = Absent(Reason.NOT_PRESENT, f"no function at {address:#x}")
        return (address, name)

    def _variable(self, name: str, cpu: int) -> Object:
        try:
            return per_cpu(self._prog[name], cpu)
        except LookupError as exc:
            raise FactAbsentError(f"{name} cannot be found: no symbol, or no type for it") from exc

    def wheels(self, cpu: int, jiffies: int) -> Iterator[tuple[Cell, ...]]:
        bases = self._variable("timer_bases", cpu)
        for name, base in zip(timer_base_names(self._prog), bases, strict=False):
            what = f"timers of CPU {cpu}, {name}"
            found = []
            for entry in guarded(timer_base_for_each(base.address_of_()), what, self._problems):
                try:
                    expires = int(entry.expires.value_())
                    place = int(entry.value_())
                    found.append((expires, expires - jiffies, place, *self._function(int(entry.function.value_()))))
                except UNREADABLE as exc:
                    self._problems.append(problem(f"timer {entry.value_():#x}", exc))
            found.sort(key=lambda row: row[0])
            table = _TIMERS.table(found) if found else None
            yield (cpu, name, int(base.address_of_().value_()), table)

    def high_resolution(self, cpu: int) -> Iterator[tuple[Cell, ...]]:
        base = self._variable("hrtimer_bases", cpu)
        rows: list[tuple[Cell, ...]] = []
        for number, clock in enumerate(base.clock_base):
            try:
                rows.append(self._clock(cpu, number, clock))
            except UNREADABLE as exc:
                self._problems.append(problem(f"clock {number} of CPU {cpu}", exc))
        yield (cpu, int(base.address_of_().value_()), _CLOCKS.table(rows))

    def _clock(self, cpu: int, number: int, clock: Object) -> tuple[Cell, ...]:
        source: Cell
        try:
            source = self._function(int(clock.get_time.value_()))[1]
        except AttributeError:
            # get_time left hrtimer_clock_base in 6.18: the index tells the clock.
            source = _CLOCK_NAMES[number % len(_CLOCK_NAMES)]
        offset = self._offset(number, clock)
        now = int(ktime_get_coarse_ns(self._prog).value_()) + offset
        found: list[tuple[Cell, ...]] = []
        walk = hrtimer_clock_base_for_each(clock.address_of_())
        for entry in guarded(walk, f"clock {number} of CPU {cpu}", self._problems):
            try:
                expires = int(entry.node.expires.value_())
                soft = int(entry._softexpires.value_())  # noqa: SLF001 - the kernel's name
                function = self._function(int(entry.function.value_()))
                found.append((soft, expires, expires - now, int(entry.value_()), *function))
            except UNREADABLE as exc:
                self._problems.append(problem(f"hrtimer {entry.value_():#x}", exc))
        table = _HRTIMERS.table(found) if found else None
        return (number, int(clock.address_of_().value_()), source, now, table)

    def _offset(self, number: int, clock: Object) -> int:
        """Read what a clock is ahead of the monotonic one."""
        try:
            return int(clock.offset.value_())
        except AttributeError:
            names = ("", "offs_real", "offs_boot", "offs_tai")
            name = names[number % len(names)]
            return int(self._prog["tk_core"].timekeeper.member_(name).value_()) if name else 0
