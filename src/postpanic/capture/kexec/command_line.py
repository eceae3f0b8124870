"""
The capture kernel's command line, made from the running kernel's.

What finds consoles and tames hardware is kept; what sizes memory for a large
machine, boots the host's own root or ends in another panic is taken out; what
a kernel in a small reservation needs is added. Words are taken apart as the
kernel does it (``next_arg()``, ``lib/cmdline.c``): white space separates,
double quotes keep it together, ``-`` and ``_`` in names are the same
(``parameq()``, ``kernel/params.c``), and what follows ``--`` is for PID 1.
Parameters: ``Documentation/admin-guide/kernel-parameters.txt``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from postpanic.errors import NotReadyError, UsageError

__all__ = [
    "LIMIT_BYTES",
    "CaptureCommandLine",
    "CommandLineChanges",
    "build_command_line",
    "quote_parameter",
    "split_command_line",
    "word_name",
]

LIMIT_BYTES = 2047 - 30
"""``COMMAND_LINE_SIZE`` of x86 and arm64 is 2048 with the NUL; the loader adds ``elfcorehdr=0x…``."""

_WORD = re.compile(r'(?:[^\s"]|"[^"]*(?:"|\Z))+')

# Of the host's boot, which is not repeated here: its root and its init.
_BOOT = "BOOT_IMAGE initrd root rootflags rootfstype rootwait rootdelay ro rw resume resume_offset noresume init rdinit"
_BOOT += " ip nfsroot nfsaddrs netroot ignition.firstboot"
# They hide the console's messages.
_SILENCE = "quiet splash rhgb vt.handoff"
# They size memory for the whole machine, which the capture kernel does not have.
_MEMORY = "crashkernel mem memmap hugepages hugepagesz default_hugepagesz hugetlb_cma cma kernelcore movablecore"
_MEMORY += " log_buf_len swiotlb slub_debug slab_debug page_owner debug_pagealloc kmemleak trace_buf_size trace_event"
_MEMORY += " ftrace ftrace_filter zswap.enabled memblock reserve_mem"
# A panic of the capture kernel saves nothing: it must not look for reasons.
_PANIC = "panic oops panic_on_warn panic_on_taint panic_print panic_sys_info softlockup_panic hardlockup_panic"
_PANIC += " hung_task_panic nmi_watchdog crash_kexec_post_notifiers unknown_nmi_panic"
# They name processors that do not start.
_CPUS = "nr_cpus maxcpus possible_cpus isolcpus nohz_full rcu_nocbs irqaffinity nosmp disable_cpu_apicid"

REMOVED = frozenset(f"{_BOOT} {_SILENCE} {_MEMORY} {_PANIC} {_CPUS}".replace("-", "_").split())
REMOVED_PREFIXES = ("rd.", "systemd.", "fsck.")

# Devices are as the crash has left them; rootfstype: of tmpfs the image might have half the memory only.
_NEEDED = "irqpoll reset_devices rootfstype=ramfs PYTHONHASHSEED=0"
_SAVERS = (
    "cgroup_disable=memory transparent_hugepage=never novmcoredd cma=0 hugetlb_cma=0 kfence.sample_interval=0 "
    # The inodes of all tracepoints and debug files: 8.6 MiB of slab on Debian 12's 6.1, and nobody looks at them.
    "initcall_blacklist=tracer_init_tracefs debugfs=off"
)
_REPEATABLE = frozenset(
    {"console", "dyndbg", "earlycon", "initcall_blacklist", "modprobe.blacklist", "module_blacklist"}
)
_MACHINE_SAVERS = {
    "x86_64": "numa=off nokaslr mce=off hest_disable acpi_no_memhotplug pcie_ports=compat",
    "aarch64": "swiotlb=noforce",
}


@dataclass(frozen=True)
class CommandLineChanges:
    """
    What the user wants otherwise.

    Attributes
    ----------
    replace : str or None
        The whole command line; nothing is added, removed or judged but its length.
    append : str
        Words at the end; one of a parameter that we set, too, replaces ours.
    remove : tuple of str
        Words to take out, ours included: a name takes out the parameter with any value, ``name=value`` that one.
    cpus : int
        Processors of the capture kernel.
    panic_s : int
        Seconds until a reboot, should the capture kernel itself panic; 0: never.
    save_memory : bool
        Whether to switch off what costs memory.
    init_arguments : tuple of str
        For PID 1.
    """

    replace: str | None = None
    append: str = ""
    remove: tuple[str, ...] = ()
    cpus: int = 1
    panic_s: int = 10
    save_memory: bool = True
    init_arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptureCommandLine:
    """The command line, and how it differs from the host's."""

    text: str
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def split_command_line(text: str) -> list[str]:
    """
    Take a command line apart, quotes left as they stand.

    >>> split_command_line('quiet dyndbg="file a.c +p; file b.c +p"  x')
    ['quiet', 'dyndbg="file a.c +p; file b.c +p"', 'x']
    """
    return _WORD.findall(text)


def word_name(word: str) -> str:
    """
    Return the name of a parameter, in the one spelling that stands for all.

    >>> word_name('"vt.handoff=7"'), word_name("transparent-hugepage=never")
    ('vt.handoff', 'transparent_hugepage')
    """
    return word.lstrip('"').split("=", 1)[0].rstrip('"').replace("-", "_")


def quote_parameter(name: str, value: str) -> str:
    """
    Spell a parameter, in quotes where its value has white space.

    Raises
    ------
    UsageError
        If the value has a double quote, for which the kernel knows no spelling.

    >>> quote_parameter("dyndbg", "module nvme +p")
    'dyndbg="module nvme +p"'
    """
    if '"' in value:
        raise UsageError(f"kernel parameter {name}: a value cannot have a double quote: {value!r}")
    return f'{name}="{value}"' if re.search(r"\s", value) else f"{name}={value}"


def build_command_line(
    host_line: str, machine: str, changes: CommandLineChanges | None = None, *, boot_apic_id: int | None = None
) -> CaptureCommandLine:
    """
    Make the capture kernel's command line.

    Parameters
    ----------
    host_line : str
        The running kernel's, ``/proc/cmdline``.
    machine : str
        As ``uname -m`` spells it.
    boot_apic_id : int, optional
        Of the processor that the host booted on, x86: it must not be started from another one, so it is left out
        when the capture kernel has several (``disable_cpu_apicid``).

    Raises
    ------
    UsageError
        If what the user wants cannot be spelled: an open quote, a number of processors below 1.
    NotReadyError
        If the command line is too long.
    """
    changes = changes or CommandLineChanges()
    if changes.cpus < 1:
        raise UsageError(f"{changes.cpus} processors for the capture kernel, at least 1 is needed")
    for text in (changes.append, changes.replace or ""):
        if text.count('"') % 2:
            raise UsageError(f"kernel command line with an open quote: {text!r}")
    if changes.replace is not None:
        return CaptureCommandLine(_join(split_command_line(changes.replace), changes.init_arguments))
    host_words = split_command_line(host_line)
    # What follows is for the host's init.
    host_words = host_words[: host_words.index("--")] if "--" in host_words else host_words
    appended = split_command_line(changes.append)
    overruled = {word_name(word) for word in appended if not _is_repeatable(word)}
    own = [word for word in _own_words(machine, changes, boot_apic_id) if word_name(word) not in overruled]
    replaced = {word_name(word) for word in own if not _is_repeatable(word)}
    unwanted = _Unwanted(replaced | overruled, changes.remove)
    kept = [word for word in host_words if not unwanted.of_host(word)]
    added = [word for word in own if not unwanted.by_user(word)] + appended
    words = _drop_repeated([*kept, *added])
    removed = tuple(word for word in host_words if word not in words)
    return CaptureCommandLine(
        _join(words, changes.init_arguments), removed, tuple(word for word in added if word not in kept)
    )


def _own_words(machine: str, changes: CommandLineChanges, boot_apic_id: int | None) -> list[str]:
    words = [*_NEEDED.split(), f"nr_cpus={changes.cpus}", f"panic={changes.panic_s}"]
    if changes.cpus > 1 and boot_apic_id is not None:
        words.append(f"disable_cpu_apicid={boot_apic_id}")
    if changes.save_memory:
        words += [*_SAVERS.split(), *_MACHINE_SAVERS.get(machine, "").split()]
    return words


class _Unwanted:
    def __init__(self, ours: set[str], remove: Sequence[str]) -> None:
        self._ours = ours
        self._words = {word.replace("-", "_") for word in remove}

    def of_host(self, word: str) -> bool:
        name = word_name(word)
        return name in REMOVED or name in self._ours or name.startswith(REMOVED_PREFIXES) or self.by_user(word)

    def by_user(self, word: str) -> bool:
        name, _, value = word.partition("=")
        return word_name(word) in self._words or f"{name.replace('-', '_')}={value}".replace("-", "_") in self._words


def _is_repeatable(word: str) -> bool:
    """Tell whether each occurrence of a parameter counts, not the last one alone."""
    return word_name(word) in _REPEATABLE


def _drop_repeated(words: Iterable[str]) -> list[str]:
    """Keep the last of equal words: among consoles the last one is ``/dev/console``."""
    return list(dict.fromkeys(reversed(list(words))))[::-1]


def _join(words: Sequence[str], init_arguments: Sequence[str]) -> str:
    text = " ".join([*words, "--", *init_arguments] if init_arguments else words)
    length = len(text.encode(errors="surrogateescape"))
    if length > LIMIT_BYTES:
        longest = ", ".join(f"{word[:40]!r}" for word in sorted(words, key=len, reverse=True)[:3])
        raise NotReadyError(
            f"the capture kernel's command line has {length} bytes, {LIMIT_BYTES} fit; the longest words: {longest}",
            hint="take out what it does not need: command_line_remove",
        )
    return text
