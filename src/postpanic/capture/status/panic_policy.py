"""
What makes the kernel panic, and what it does then: the sysctls, each with what it means as it is set.

Sources: ``Documentation/admin-guide/sysctl/kernel.rst`` and ``vm.rst``;
``vpanic()`` in ``kernel/panic.c``; ``kernel/watchdog.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from postpanic.capture.arming.arm import policy_of
from postpanic.capture.policy import SETTINGS, read_policy
from postpanic.capture.status.model import Check, Fact, State
from postpanic.capture.status.subject import Subject

__all__ = ["check_panic"]

GROUP = "panic"

_TEXTS = {
    "kernel.panic_sys_info": "what a panic prints before, by name",
    "kernel.panic_console_replay": "whether a panic prints the whole log again",
    "kernel.ftrace_dump_on_oops": "whether an oops prints the trace buffers, which takes long on a serial line",
    "kernel.traceoff_on_warning": "whether a warning stops tracing",
}

Values = Mapping[str, int | None]
Judgement = tuple[State, str, str]
"""State, what was found, mend."""

_TAINT_WORDS = ("panic_on_taint", "oops", "panic_sys_info", "panic_on_warn", "panic_print", "nmi_watchdog", "mce")


def check_panic(subject: Subject) -> Iterator[Check]:
    """Look at each sysctl that has to do with panics."""
    values = read_policy(subject.host)
    if all(value is None for value in values.values()):
        says = Fact("/proc/sys/kernel", "cannot be read")
        yield Check(GROUP, "sysctls", "unknown", "no sysctls here", (says,))
        return
    wanted = {} if subject.tool is not None or subject.config_problem is not None else policy_of(subject.config.panic)
    for name, value in values.items():
        source = f"/proc/sys/{name.replace('.', '/')}"
        if value is None:
            reading = subject.read(source)
            if reading.is_there and reading.text is None:
                yield Check(GROUP, name, "unknown", reading.problem, (reading.fact,), needs_root=True)
            else:
                yield Check(GROUP, name, "not applicable", "this kernel has no such setting", (reading.fact,))
            continue
        state, found, mend = _judge(name, value, values)
        if subject.is_armed_by_us and name in wanted and wanted[name] != value:
            asked = f"{subject.config_source or 'the default configuration'} asks for {wanted[name]}"
            state, found, mend = "warning", f"{value}, {asked}: something has changed it", "postpanic arm"
        yield Check(GROUP, name, state, found, (Fact(source, str(value)),), mend)
    yield from _check_texts(subject)
    words = subject.find_words(*_TAINT_WORDS)
    if words:
        found = f"{' '.join(words)} at boot"
        yield Check(GROUP, "command line", "ok", found, (Fact("/proc/cmdline", " ".join(words)),))
    yield _check_order(subject)


def _check_texts(subject: Subject) -> Iterator[Check]:
    """Look at the settings that are texts, where the kernel has them."""
    for name, summary in _TEXTS.items():
        reading = subject.read(f"proc/sys/{name.replace('.', '/')}")
        if reading.text is not None:
            yield Check(GROUP, name, "ok", f"{reading.text or 'nothing'}: {summary}", (reading.fact,))


def _judge(name: str, value: int, values: Values) -> Judgement:
    judge = _JUDGES.get(name)
    if judge is not None:
        return judge(value, values)
    summary = SETTINGS[name].summary
    if SETTINGS[name].maximum == 1 and not value:
        summary = _negate(summary)
    return "ok", f"{value}: {summary}", ""


def _negate(summary: str) -> str:
    for yes, no in ((" is a panic", " is no panic"), (" prints ", " does not print ")):
        if yes in summary:
            return summary.replace(yes, no)
    return f"off: {summary}"


def _judge_panic(value: int, _: Values) -> Judgement:
    if value == 0:
        found = "0: when nothing is captured, the machine stands still until somebody resets it"
        return "warning", found, "sysctl -w kernel.panic=10; echo kernel.panic=10 >/etc/sysctl.d/90-panic.conf"
    when = "at once" if value < 0 else f"{value} s after it"
    return "ok", f"{value}: a panic that is not captured ends in a reboot {when}", ""


def _judge_oops(value: int, _: Values) -> Judgement:
    if value:
        return "ok", "1: an oops is a panic, so it is captured", ""
    found = "0: an oops kills its task and is not captured"
    return "warning", found, "sysctl -w kernel.panic_on_oops=1; echo kernel.panic_on_oops=1 >/etc/sysctl.d/90-oops.conf"


def _judge_warn(value: int, _: Values) -> Judgement:
    if value:
        found = "1: every warning of the kernel brings the machine down; for kernels that are being tested"
        return "warning", found, "sysctl -w kernel.panic_on_warn=0"
    return "ok", "0: a warning is not a panic", ""


def _judge_softlockup(value: int, values: Values) -> Judgement:
    seconds = 2 * (values.get("kernel.watchdog_thresh") or 0)
    if not seconds:
        found = f"{value}, but kernel.watchdog_thresh is 0: nothing is looked for"
        return ("warning", found, "sysctl -w kernel.watchdog_thresh=10") if value else ("ok", found, "")
    what = f"a processor that schedules nothing for {seconds} s"
    return "ok", f"{value}: {what} {'is a panic' if value else 'is reported, no panic'}", ""


def _judge_hardlockup(value: int, values: Values) -> Judgement:
    seconds = values.get("kernel.watchdog_thresh") or 0
    if value and not (values.get("kernel.nmi_watchdog") and seconds):
        zero = "kernel.nmi_watchdog" if not values.get("kernel.nmi_watchdog") else "kernel.watchdog_thresh"
        mend = f"sysctl -w {zero}={1 if zero.endswith('nmi_watchdog') else 10}"
        return "warning", f"{value}, but {zero} is 0: nothing is looked for", mend
    what = f"a processor that takes no interrupts for {seconds} s"
    return "ok", f"{value}: {what} {'is a panic' if value else 'is reported, no panic'}", ""


def _judge_hung_task(value: int, values: Values) -> Judgement:
    seconds = values.get("kernel.hung_task_timeout_secs")
    if value and not seconds:
        found = f"{value}, but kernel.hung_task_timeout_secs is 0: nothing is looked for"
        return "warning", found, "sysctl -w kernel.hung_task_timeout_secs=120"
    what = f"a task that sleeps without end for {seconds} s" if seconds else "a task that sleeps without end"
    return "ok", f"{value}: {what} {'is a panic' if value else 'is no panic'}", ""


def _judge_sysrq(value: int, _: Values) -> Judgement:
    # SYSRQ_ENABLE_DUMP of include/linux/sysrq.h is 8; 1 is everything. /proc/sysrq-trigger takes all from root.
    allowed = value == 1 or bool(value & 8)
    keyboard = "the keyboard and serial BREAK may crash it" if allowed else "only root may crash it, by the trigger"
    return "ok", f"{value}: {keyboard}", ""


def _judge_print(value: int, _: Values) -> Judgement:
    names = ("tasks", "memory", "timers", "locks", "ftrace", "the whole log", "all processors", "blocked tasks")
    chosen = [name for bit, name in enumerate(names) if value >> bit & 1]
    return "ok", f"{value}: a panic prints {', '.join(chosen)} before" if chosen else "0: nothing more is printed", ""


def _judge_oom(value: int, _: Values) -> Judgement:
    meanings = {0: "no panic, a process is killed", 1: "a panic", 2: "a panic, also within a control group"}
    return "ok", f"{value}: being out of memory is {meanings.get(value, 'a panic')}", ""


def _judge_nmi_watchdog(value: int, _: Values) -> Judgement:
    looks = "are looked for" if value else "are not looked for"
    return "ok", f"{value}: processors that take no interrupts {looks}", ""


_JUDGES: dict[str, Callable[[int, Values], Judgement]] = {
    "kernel.panic": _judge_panic,
    "kernel.panic_on_oops": _judge_oops,
    "kernel.panic_on_warn": _judge_warn,
    "kernel.softlockup_panic": _judge_softlockup,
    "kernel.hardlockup_panic": _judge_hardlockup,
    "kernel.hung_task_panic": _judge_hung_task,
    "kernel.sysrq": _judge_sysrq,
    "kernel.nmi_watchdog": _judge_nmi_watchdog,
    "kernel.panic_print": _judge_print,
    "vm.panic_on_oom": _judge_oom,
}


def _check_order(subject: Subject) -> Check:
    reading = subject.read("sys/module/kernel/parameters/crash_kexec_post_notifiers")
    name = "crash_kexec_post_notifiers"
    if reading.text is None:
        state: State = "not applicable" if subject.exists("sys/module/kernel") else "unknown"
        return Check(GROUP, name, state, reading.problem, (reading.fact,))
    if subject.has_notifiers_first:
        found = "on: notifiers and kmsg dumpers run before the capture, and may hang it"
    else:
        found = "off: the capture kernel is started before anything else is done"
    return Check(GROUP, name, "ok", found, (reading.fact,))
