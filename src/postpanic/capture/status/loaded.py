"""What is loaded, by whom, and whether it is what it should be."""

from __future__ import annotations

import re
from collections.abc import Iterator

from postpanic.capture.kexec.verify import Check as LoadCheck
from postpanic.capture.status.model import Check, Fact, State
from postpanic.capture.status.subject import Subject

__all__ = ["check_loaded", "find_loader", "mend_load"]

GROUP = "capture kernel"
_RULES = ("etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")
_TOOL_RULE, _OUR_RULE = re.compile("kdump|kexec"), re.compile("postpanic")
_LOADED_FILE = "/sys/kernel/kexec_crash_loaded"
_COMPARED = frozenset({"kernel", "initramfs", "command line"})
"""What is compared with files: for a tool of the distribution it is a guess which ones it has loaded."""


def check_loaded(subject: Subject) -> Iterator[Check]:
    """Look at what is loaded."""
    yield from _check_fadump(subject)
    yield _check_loaded(subject)
    if subject.is_loaded:
        yield _check_loader(subject)
        for check in subject.verification.checks:
            if check.name != "loaded":
                yield _translate(subject, check)
        yield _check_hotplug(subject)


def find_loader(subject: Subject) -> str:
    """Tell whose capture kernel is loaded; empty: nobody's, or not known."""
    if not subject.is_loaded:
        return ""
    if subject.is_armed_by_us:
        return "postpanic"
    return subject.tool.name if subject.tool is not None else ""


def mend_load(subject: Subject) -> str:
    """Name the command that loads."""
    return subject.tool.arm if subject.tool is not None else "postpanic arm"


def _check_loaded(subject: Subject) -> Check:
    loaded = subject.is_loaded
    if loaded is None:
        says = (Fact(_LOADED_FILE, "not there"),)
        if not subject.has_sysfs:
            return Check(GROUP, "loaded", "unknown", "no sysfs here", says)
        mend = "use a kernel built with CONFIG_KEXEC_FILE=y"
        return Check(GROUP, "loaded", "failing", "this kernel cannot have one", says, mend)
    says = (Fact(_LOADED_FILE, str(int(loaded))),)
    if loaded:
        return Check(GROUP, "loaded", "ok", "the kernel says so", says)
    if subject.fadump:
        return Check(GROUP, "loaded", "not applicable", "the firmware starts the kernel again by itself", says)
    if not subject.crash_size_bytes:
        return Check(
            GROUP,
            "loaded",
            "failing",
            "no capture kernel, for lack of memory",
            says,
            "reserve memory first (see above)",
        )
    return Check(GROUP, "loaded", "failing", "no capture kernel", says, mend_load(subject))


def _check_loader(subject: Subject) -> Check:
    if subject.is_armed_by_us and subject.state is not None:
        says = Fact("/var/lib/postpanic/armed.json", f"{subject.state.kernel}, by {subject.state.method}")
        return Check(GROUP, "loaded by", "ok", f"postpanic ({subject.state.method})", (says,))
    if subject.is_state_hidden:
        says = subject.read("var/lib/postpanic/armed.json").fact
        return Check(GROUP, "loaded by", "unknown", "perhaps postpanic", (says,), needs_root=True)
    tool = subject.tool
    if tool is not None:
        says = Fact(tool.config, f"{tool.name} is set up ({tool.why})")
        by_name = {check.name: check.outcome for check in subject.verification.checks}
        compared = {by_name.get("kernel"), by_name.get("initramfs")}
        sure = ", by its kernel and image" if compared == {"good"} else ", as far as its configuration tells"
        return Check(GROUP, "loaded by", "ok", tool.name + sure, (says,))
    says = Fact("/var/lib/postpanic/armed.json", "nothing of this boot")
    found = "neither postpanic nor a tool that is known"
    return Check(GROUP, "loaded by", "unknown", found, (says,), "postpanic arm")


def _translate(subject: Subject, check: LoadCheck) -> Check:
    states: dict[str, State] = {"good": "ok", "bad": "failing", "unverified": "unknown"}
    state = states[check.outcome]
    if state == "failing" and check.name in _COMPARED and not subject.is_armed_by_us:
        state = "warning"
    says = Fact("/proc/kcore, /proc/iomem", check.evidence)
    mend = mend_load(subject) if state in {"failing", "warning"} else ""
    needs_root = state == "unknown" and not subject.host.is_root
    return Check(GROUP, check.name, state, check.evidence, (says,), mend, needs_root)


def _check_hotplug(subject: Subject) -> Check:
    """Look at what keeps the load right when memory or processors come and go: the kernel itself, or a rule of udev."""
    readings = [subject.read(f"sys/devices/system/{kind}/crash_hotplug") for kind in ("cpu", "memory")]
    facts = tuple(reading.fact for reading in readings)
    if all(reading.text == "1" for reading in readings):
        return Check(GROUP, "hotplug", "ok", "the kernel follows memory and processors by itself", facts)
    # A rule loads what its own tool has.
    rule = _TOOL_RULE if subject.tool is not None else _OUR_RULE
    for directory in _RULES:
        rules = [name for name in subject.list_names(directory) if rule.search(name)]
        if rules:
            says = Fact(f"/{directory}/{rules[0]}", "loads again")
            return Check(
                GROUP, "hotplug", "ok", "it is loaded again when memory or processors come or go", (*facts, says)
            )
    found = f"when memory or processors have come or gone, it must be loaded again ({mend_load(subject)})"
    return Check(GROUP, "hotplug", "ok", found, facts)


def _check_fadump(subject: Subject) -> Iterator[Check]:
    """Look at the firmware-assisted dump of POWER machines."""
    place = "sys/kernel/fadump/" if subject.exists("sys/kernel/fadump") else "sys/kernel/fadump_"
    enabled, registered = subject.read(f"{place}enabled"), subject.read(f"{place}registered")
    if enabled.text is None:
        return
    facts = (enabled.fact, registered.fact)
    if not subject.fadump:
        yield Check(GROUP, "fadump", "not applicable", "the firmware's dump is off: kdump is used", facts)
    elif subject.fadump == "registered":
        yield Check(GROUP, "fadump", "ok", "registered: the firmware keeps the memory", facts)
    else:
        mend = f"echo 1 >/{place}registered"
        yield Check(GROUP, "fadump", "failing", "enabled, and not registered", facts, mend)
