"""
What is left of a crash beside the dump: pstore, netconsole, consoles.

Sources: ``vpanic()`` in ``kernel/panic.c`` (``__crash_kexec()`` comes before
``kmsg_dump()`` unless ``crash_kexec_post_notifiers`` is set);
``Documentation/admin-guide/pstore-blk.rst``, ``ramoops.rst``;
``Documentation/networking/netconsole.rst``; ``/proc/consoles`` in
``Documentation/filesystems/proc.rst``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from postpanic.capture.status.model import Check, Fact, State
from postpanic.capture.status.subject import Subject

__all__ = ["check_other_evidence"]

GROUP = "other evidence"
_BACKEND = "sys/module/pstore/parameters/backend"
_NOTIFIERS = "echo Y >/sys/module/kernel/parameters/crash_kexec_post_notifiers"
_CONSOLE = re.compile(r"^(\S+)[ \t]+\S+[ \t]+\(([^)\n]*)\)", re.MULTILINE)
_BOOT_CONSOLES = ("earlycon", "earlyprintk", "keep_bootcon")
_FIRST_WORDS = {"efi_pstore": "EFI variables", "efi": "EFI variables", "erst": "ERST", "ramoops": "reserved memory"}


def check_other_evidence(subject: Subject) -> Iterator[Check]:
    """Look at each of them."""
    backend = _read_backend(subject)
    yield _check_backend(subject, backend)
    yield _check_order(subject, backend)
    yield _check_records(subject, backend)
    yield _check_netconsole(subject)
    yield from _check_consoles(subject)
    yield _check_early(subject)


def _read_backend(subject: Subject) -> str:
    name = subject.read(_BACKEND).text or ""
    return name if re.fullmatch(r"[\w-]{1,64}", name) else ""


def _lacking(subject: Subject) -> State:
    """Say what it means that sysfs does not show something: below another root, nothing."""
    return "not applicable" if subject.has_sysfs else "unknown"


def _check_backend(subject: Subject, backend: str) -> Check:
    reading = subject.read(_BACKEND)
    if not backend:
        if not subject.has_sysfs:
            return Check(GROUP, "pstore", "unknown", "no sysfs here", (reading.fact,))
        found = "no back-end: nothing outlives a reboot but a dump"
        return Check(GROUP, "pstore", "not applicable", found, (reading.fact,))
    where = _FIRST_WORDS.get(backend, "")
    facts = [reading.fact]
    for name in ("mem_address", "mem_size", "record_size", "console_size", "ecc", "max_reason"):
        value = subject.read(f"sys/module/{backend}/parameters/{name}")
        if value.text is not None:
            facts.append(value.fact)
    return Check(GROUP, "pstore", "ok", f"{backend}{f', in {where}' if where else ''}", tuple(facts))


def _check_order(subject: Subject, backend: str) -> Check:
    name = "pstore, order"
    reading = subject.read("sys/module/kernel/parameters/crash_kexec_post_notifiers")
    if not backend:
        return Check(GROUP, name, _lacking(subject), "no back-end is known", (reading.fact,))
    if not subject.is_loaded:
        return Check(GROUP, name, "ok", "with no capture kernel loaded a panic is recorded", (reading.fact,))
    if subject.has_notifiers_first:
        return Check(GROUP, name, "ok", "a panic is recorded before the capture kernel starts", (reading.fact,))
    found = "the capture kernel starts before anything is recorded: if it fails, nothing is left"
    mend = f"{_NOTIFIERS} (and crash_kexec_post_notifiers on the command line; notifiers may hang the capture)"
    return Check(GROUP, name, "warning", found, (reading.fact,), mend)


def _check_records(subject: Subject, backend: str) -> Check:
    name = "pstore, records"
    if not backend:
        return Check(GROUP, name, _lacking(subject), "no back-end is known")
    mounted = any(mount.filesystem == "pstore" for mount in subject.mounts)
    says = Fact("/proc/self/mountinfo", "a pstore is mounted" if mounted else "no pstore is mounted")
    if not mounted and subject.mounts:
        mend = "mount -t pstore pstore /sys/fs/pstore"
        return Check(GROUP, name, "warning", "not mounted: records cannot be read", (says,), mend)
    place = subject.host.path("sys/fs/pstore")
    try:
        names = sorted(entry.name for entry in place.iterdir())
    except OSError as exc:
        found = (exc.strerror or str(exc)).lower()
        return Check(GROUP, name, "unknown", found, (Fact("/sys/fs/pstore", found),), needs_root=True)
    if not names:
        return Check(GROUP, name, "ok", "none of an earlier crash", (Fact("/sys/fs/pstore", "empty"),))
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    found = f"{len(names)} of an earlier crash, which take the room of the next"
    return Check(GROUP, name, "warning", found, (Fact("/sys/fs/pstore", shown),), "postpanic pstore")


def _check_netconsole(subject: Subject) -> Check:
    places = "sys/kernel/config/netconsole"
    words = subject.find_words("netconsole", "netconsole.netconsole")
    targets = []
    for name in subject.list_names(places):
        values = {
            key: subject.host.read_text(f"{places}/{name}/{key}") or ""
            for key in ("enabled", "dev_name", "remote_ip", "remote_port", "extended")
        }
        targets.append((name, values))
    facts = tuple(
        Fact(f"/{places}/{name}", " ".join(f"{key}={value}" for key, value in values.items() if value))
        for name, values in targets
    )
    facts += tuple(Fact("/proc/cmdline", word) for word in words)
    enabled = [values for _, values in targets if values["enabled"] == "1"]
    if enabled:
        to = ", ".join(f"{one['remote_ip']}:{one['remote_port']} by {one['dev_name']}" for one in enabled)
        return Check(GROUP, "netconsole", "ok", f"the log goes to {to}", facts)
    if targets:
        mend = f"echo 1 >/{places}/{targets[0][0]}/enabled"
        return Check(GROUP, "netconsole", "warning", f"{targets[0][0]} is set up, and not enabled", facts, mend)
    if not subject.exists("sys/module/netconsole"):
        says = (Fact("/sys/module/netconsole", "not there"), *facts)
        if words:
            found = f"{words[-1]} is asked for, and the module is not loaded"
            return Check(GROUP, "netconsole", "warning", found, says, "modprobe netconsole; dmesg | grep netcon")
        return Check(GROUP, "netconsole", _lacking(subject), "not in use", says)
    parameter = subject.read("sys/module/netconsole/parameters/netconsole")
    found = "loaded; its targets are in no configfs that is mounted"
    return Check(GROUP, "netconsole", "ok" if words else "unknown", found, (parameter.fact, *facts))


def _check_consoles(subject: Subject) -> Iterator[Check]:
    reading = subject.read("proc/consoles")
    if reading.text is None:
        yield Check(GROUP, "consoles", "unknown", reading.problem, (reading.fact,))
        return
    active = dict(_CONSOLE.findall(reading.text))
    asked = [word.partition("=")[2].strip('"').split(",")[0] for word in subject.find_words("console")]
    facts = (reading.fact, Fact("/proc/cmdline", " ".join(subject.find_words("console")) or "no console="))
    # Of the kernel's spellings: null and an empty name are no console on purpose, ttySnull and hvc are late.
    missing = [name for name in asked if name and name != "null" and not _is_active(name, active)]
    if missing:
        found = f"console={missing[0]} is asked for, and is none; the capture kernel inherits it"
        mend = f"take console={missing[0]} off the kernel's command line, or name the right one"
        yield Check(GROUP, "consoles", "warning", found, facts, mend)
    elif not active:
        found = "none: a panic is printed nowhere"
        yield Check(GROUP, "consoles", "warning", found, facts, "add console=ttyS0 to the kernel's command line")
    else:
        serial = [name for name in active if not re.fullmatch(r"tty\d+", name)]
        rest = "" if serial else ", no serial one: a screen keeps a panic only until the capture kernel starts"
        yield Check(GROUP, "consoles", "ok", ", ".join(active) + rest, facts)
    level = subject.read("proc/sys/kernel/printk")
    words = (level.text or "").split()
    if words and words[0].isdigit():
        number = int(words[0])
        found = f"messages below level {number} are printed" + (", those of a panic among them" if number else "")
        state: State = "ok" if number else "warning"
        mend = "" if number else "dmesg -n 4"
        yield Check(GROUP, "console level", state, found, (level.fact,), mend)


def _is_active(name: str, active: dict[str, str]) -> bool:
    """Tell whether a console is among those that are; ``tty`` is the foreground one, ``uart…`` has turned into ttyS."""
    return (
        name in active
        or (name in {"tty", "tty0"} and any(re.fullmatch(r"tty\d+", one) for one in active))
        or (name.startswith("uart") and any(one.startswith("ttyS") for one in active))
        or (name.startswith("pl011") and any(one.startswith("ttyAMA") for one in active))
    )


def _check_early(subject: Subject) -> Check:
    words = subject.find_words(*_BOOT_CONSOLES)
    says = Fact("/proc/cmdline", " ".join(words) or "neither earlycon nor earlyprintk")
    if not words:
        found = "none: what the capture kernel says before its console is up is not seen"
        state: State = "not applicable" if subject.words else "unknown"
        return Check(GROUP, "early console", state, found, (says,))
    return Check(GROUP, "early console", "ok", " ".join(words), (says,))
