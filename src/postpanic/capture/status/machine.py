"""What of the machine itself decides over a capture: watchdogs, fences, encrypted disks, where the kernel is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from postpanic.capture.status.model import Check, Fact, State
from postpanic.capture.status.subject import Subject
from postpanic.capture.status.targets import list_local_stacks

__all__ = ["check_encryption", "check_kaslr", "check_watchdogs"]

_SHORT_S = 30
"""A capture kernel is not even up in less: a watchdog that nobody feeds ends it first."""
_KEYS = "sys/kernel/config/crash_dm_crypt_keys"


def check_watchdogs(subject: Subject) -> Iterator[Check]:
    """Look at what resets the machine when nobody says that it is alive (``sysfs-class-watchdog``)."""
    group = "watchdogs"
    names = [name for name in subject.list_names("sys/class/watchdog") if name.startswith("watchdog")]
    if not names:
        state: State = "not applicable" if subject.exists("sys/class") else "unknown"
        yield Check(group, "hardware", state, "none", (Fact("/sys/class/watchdog", "none"),))
    for name in names:
        yield _check_watchdog(subject, group, name)
    systemd = _find_systemd_watchdog(subject)
    if systemd is not None:
        yield Check(group, "systemd", "ok", f"{systemd.says}: systemd feeds a watchdog", (systemd,))
    yield from _check_fence(subject, group)


def _check_watchdog(subject: Subject, group: str, name: str) -> Check:
    place = f"sys/class/watchdog/{name}"
    state = subject.read(f"{place}/state")
    identity = subject.host.read_text(f"{place}/identity") or name
    timeout = subject.read(f"{place}/timeout")
    facts = (state.fact, timeout.fact)
    if state.text is None:
        found = f"{identity}: whether it runs cannot be seen"
        return Check(group, name, "unknown", found, (state.fact,), needs_root=state.is_there)
    if state.text != "active":
        return Check(group, name, "ok", f"{identity}: {state.text}", facts)
    if identity == "Software Watchdog":
        return Check(group, name, "ok", f"{identity}: it dies with this kernel", facts)
    seconds = timeout.number or 0
    module = subject.host.path(f"{place}/device/driver/module")
    driver = module.resolve().name if module.exists() else ""
    after = f"runs, and resets the machine after {seconds} s" if seconds else "runs, and resets the machine"
    if subject.tool is not None:
        found = f"{identity}: {after} unless {subject.tool.name}'s image feeds it"
        return Check(group, name, "warning", found, facts, f"lsinitrd or lsinitramfs {subject.tool.initrd} | grep wdt")
    if not subject.config.limits.watchdog:
        mend = f"in {subject.config_source}: [limits] watchdog = true; postpanic arm"
        return Check(group, name, _cut_state(seconds), f"{identity}: {after}; nobody feeds it", facts, mend)
    capture = subject.config.capture
    if driver and (driver not in {one.replace("-", "_") for one in capture.modules} or capture.devices != "all"):
        found = f"{identity}: {after}; its driver {driver} is not in the image, so nobody feeds it"
        mend = f'in /etc/postpanic.toml: [capture] modules = ["{driver}"], devices = "all"; postpanic arm'
        return Check(group, name, _cut_state(seconds), found, facts, mend)
    return Check(group, name, "ok", f"{identity}: {after}; the saver feeds it", facts)


def _cut_state(seconds: int) -> State:
    return "failing" if 0 < seconds < _SHORT_S else "warning"


def _find_systemd_watchdog(subject: Subject) -> Fact | None:
    for place in ("etc/systemd/system.conf", "usr/lib/systemd/system.conf"):
        text = subject.host.read_text(place) or ""
        match = re.search(r"^[ \t]*RuntimeWatchdogSec[ \t]*=[ \t]*(\S+)", text, re.MULTILINE)
        if match and match[1] not in {"0", "off", "infinity"}:
            return Fact(f"/{place}", f"RuntimeWatchdogSec={match[1]}")
    return None


def _check_fence(subject: Subject, group: str) -> Iterator[Check]:
    """Look for a cluster, whose other nodes may cut the power of one that says nothing."""
    if not subject.exists("etc/corosync/corosync.conf"):
        return
    says = Fact("/etc/corosync/corosync.conf", "is there")
    told = [
        directive for tool in subject.tools for directive, _ in tool.settings if directive.startswith("fence_kdump")
    ]
    if told:
        yield Check(group, "cluster", "ok", "the other nodes are told by fence_kdump", (says,))
        return
    found = "the other nodes may cut the power while the dump is saved"
    mend = "stonith_admin -L; configure fence_kdump, or a delay that is longer than a capture"
    yield Check(group, "cluster", "warning", found, (says,), mend)


def check_encryption(subject: Subject) -> Iterator[Check]:
    """Look for encrypted volumes below the targets: nobody is there to type a passphrase."""
    group, name = "encryption", "targets"
    if not subject.mounts:
        yield Check(group, name, "unknown", "what is mounted cannot be seen")
        return
    stacks = list(dict.fromkeys(list_local_stacks(subject)))
    locked = [what for kind, what in stacks if kind == "LUKS"]
    if not locked:
        says = Fact("/sys/class/block/*/dm/uuid", "; ".join(what for _, what in stacks) or "no device mapper")
        yield Check(group, name, "not applicable", "no target of this machine is encrypted", (says,))
        return
    facts = tuple(Fact("/sys/class/block/*/dm/uuid", what) for what in locked)
    count = subject.read(f"{_KEYS}/count")
    if count.number:
        yield Check(group, name, "ok", f"{count.number} keys are kept for the capture kernel", (*facts, count.fact))
        return
    found = f"{locked[0]}: the capture kernel opens it only with a key file in its image, or a TPM"
    has_keys = (subject.kernel_config or {}).get("CONFIG_CRASH_DM_CRYPT") == "y"
    if subject.tool is not None and has_keys:
        mend = "kdumpctl setup-crypttab"
    else:
        mend = "save to a partition that is not encrypted, or to a server (a raw or swap partition will do)"
    yield Check(group, name, "warning", found, (*facts, count.fact), mend)


def check_kaslr(subject: Subject) -> Iterator[Check]:
    """Look at where the kernel is, and whether the dump will say so."""
    group = "analysis"
    words = subject.find_words("nokaslr", "kaslr")
    config = subject.kernel_config
    built = config.get("CONFIG_RANDOMIZE_BASE", "n") if config is not None else "?"
    evidence = (Fact("CONFIG_RANDOMIZE_BASE", built), Fact("/proc/cmdline", " ".join(words) or "no nokaslr"))
    if "nokaslr" in words or built == "n":
        yield Check(group, "KASLR", "ok", "off: the kernel is where it was linked to be", evidence)
    else:
        found = "on: the dump's VMCOREINFO says where the kernel is; a log alone must have its Kernel Offset line"
        state: State = "ok" if built == "y" else "unknown"
        yield Check(group, "KASLR", state, found if built == "y" else "whether it is on is not known", evidence)
    reading = subject.read("sys/kernel/vmcoreinfo")
    if reading.text is None:
        if reading.is_there:
            yield Check(group, "VMCOREINFO", "unknown", reading.problem, (reading.fact,), needs_root=True)
        elif subject.has_sysfs:
            mend = "use a kernel built with CONFIG_CRASH_DUMP=y (CONFIG_VMCORE_INFO)"
            yield Check(group, "VMCOREINFO", "warning", "this kernel makes none", (reading.fact,), mend)
        else:
            yield Check(group, "VMCOREINFO", "unknown", "no sysfs here", (reading.fact,))
        return
    place = subject.host.read_vmcoreinfo_place()
    found = f"at {place[0]:#x}" if place else "there; its place is shown to root only"
    yield Check(group, "VMCOREINFO", "ok", found, (reading.fact,), needs_root=False)
