"""
What the kernels were built with: the one that runs, and the one that is to save.

Sources: ``Documentation/admin-guide/kdump/kdump.rst`` (what both kernels need),
``kernel/Kconfig.kexec``, ``lib/Kconfig.debug`` (BTF), ``init/Kconfig``
(KALLSYMS_ALL). Where the configuration is nowhere to be found, some options
still show by what they make appear in sysfs and procfs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from postpanic.capture.status.model import Check, Fact, State
from postpanic.capture.status.subject import Subject

__all__ = ["check_kernel"]

GROUP = "kernel"


@dataclass(frozen=True)
class Option:
    """
    An option, or several of which one is enough.

    Attributes
    ----------
    names : tuple of str
        Without ``CONFIG_``.
    lacking : State
        What it means when none is set.
    use : str
        What it is for.
    title : str
        What stands for the names.
    sign : str
        A file that is there only with it, where no configuration is.
    machines : tuple of str
        Where there is such an option; empty: everywhere.
    of_capture : bool
        Whether the capture kernel needs it, not the one that runs.
    """

    names: tuple[str, ...]
    lacking: State
    use: str
    sign: str = ""
    title: str = ""
    machines: tuple[str, ...] = ()
    of_capture: bool = False


_OPTIONS = (
    Option(("KEXEC_FILE", "KEXEC"), "failing", "loads the capture kernel", "sys/kernel/kexec_crash_loaded", "KEXEC"),
    Option(("CRASH_DUMP",), "failing", "reserves memory, and starts the capture kernel", "sys/kernel/kexec_crash_size"),
    Option(("KEXEC_FILE",), "warning", "loads it by kexec_file_load, which a locked down kernel needs"),
    Option(("PROC_KCORE",), "warning", "lets what is loaded be read back and verified", "proc/kcore"),
    Option(("CRASH_DUMP",), "failing", "is what a capture kernel is", of_capture=True),
    Option(("PROC_VMCORE",), "failing", "shows the dead kernel's memory as /proc/vmcore", of_capture=True),
    Option(
        ("RELOCATABLE",),
        "failing",
        "lets it run where memory was reserved",
        machines=("x86_64", "aarch64", "riscv64", "loongarch64", "s390x", "ppc64le", "i686"),
        of_capture=True,
    ),
    Option(("BLK_DEV_INITRD",), "failing", "lets it have an image", of_capture=True),
    Option(("DEVTMPFS",), "failing", "makes its device nodes", of_capture=True),
    Option(("DEBUG_INFO_BTF",), "warning", "leaves types in the dump: it opens with nothing else", "sys/kernel/btf"),
    Option(("KALLSYMS",), "warning", "leaves symbols in the dump", "proc/kallsyms"),
    Option(("KALLSYMS_ALL",), "warning", "leaves symbols of data in the dump, too"),
    Option(
        ("UNWINDER_ORC", "UNWINDER_FRAME_POINTER", "FRAME_POINTER"),
        "warning",
        "lets stacks be unwound from the dump alone",
        machines=("x86_64",),
    ),
    Option(("CRASH_HOTPLUG",), "ok", "keeps the load right when memory or processors come and go (6.6)"),
    Option(("CRASH_DM_CRYPT",), "ok", "hands keys of encrypted disks to the capture kernel (6.16)"),
    Option(("MAGIC_SYSRQ",), "ok", "crashes on request", "proc/sysrq-trigger"),
    Option(("PSTORE",), "ok", "keeps the log's end in firmware or memory", "sys/module/pstore"),
)
_SIGNATURES = ("KEXEC_SIG", "KEXEC_SIG_FORCE", "KEXEC_BZIMAGE_VERIFY_SIG", "KEXEC_IMAGE_VERIFY_SIG")


def check_kernel(subject: Subject) -> Iterator[Check]:
    """Look at the options of both kernels."""
    host = subject.host
    running = subject.kernel_config
    source = find_config_source(subject, host.release)
    yield from _check_options(subject, [one for one in _OPTIONS if not one.of_capture], running, source, "")
    release = find_capture_release(subject)
    capture = running if release == host.release else host.read_kernel_config(release)
    if release != host.release:
        source = find_config_source(subject, release)
    which = "" if release == host.release else f" of {release}"
    yield from _check_options(subject, [one for one in _OPTIONS if one.of_capture], capture, source, which)
    yield _check_signatures(running, find_config_source(subject, host.release))


def find_capture_release(subject: Subject) -> str:
    """Tell the release of the kernel that is to save, as far as it has one by name."""
    wanted = subject.kernel or subject.config.capture.kernel
    if subject.tool is not None or wanted == "same" or wanted.startswith("/"):
        return subject.host.release
    return wanted


def find_config_source(subject: Subject, release: str) -> str:
    """Name the file that a kernel's configuration is in; empty if there is none that can be read."""
    places = [f"boot/config-{release}", f"lib/modules/{release}/config", f"usr/lib/modules/{release}/config"]
    for place in places:
        if subject.read(place).text is not None:
            return f"/{place}"
    is_own = release == subject.host.release and subject.host.path("proc/config.gz").exists()
    return "/proc/config.gz" if is_own else ""


def _check_options(
    subject: Subject, options: Sequence[Option], config: dict[str, str] | None, source: str, which: str
) -> Iterator[Check]:
    for option in options:
        name = f"CONFIG_{option.title or option.names[0]}{' (capture)' if option.of_capture else ''}"
        if option.machines and subject.host.machine not in option.machines:
            yield Check(GROUP, name, "not applicable", f"{subject.host.machine or 'this machine'} has no such option")
        elif config is None:
            yield _check_by_sign(subject, option, name, which)
        else:
            yield _check_one(option, name, config, source, which)


def _check_one(option: Option, name: str, config: dict[str, str], source: str, which: str) -> Check:
    found = {f"CONFIG_{one}": config.get(f"CONFIG_{one}", "n") for one in option.names}
    says = Fact(
        source, ", ".join(f"{key}={value}" if value != "n" else f"{key} not set" for key, value in found.items())
    )
    if any(value in {"y", "m"} for value in found.values()):
        return Check(GROUP, name, "ok", f"{option.use}: set{which}", (says,))
    mend = f"use a kernel built with {next(iter(found))}=y" if option.lacking != "ok" else ""
    return Check(GROUP, name, option.lacking, f"{option.use}: not set{which}", (says,), mend)


def _check_by_sign(subject: Subject, option: Option, name: str, which: str) -> Check:
    places = "/boot/config-*, /proc/config.gz, /lib/modules/*/config"
    absent = Fact(places, "none can be read")
    if option.sign and not which:
        if subject.host.path(option.sign).exists():
            return Check(GROUP, name, "ok", f"{option.use}: set", (absent, Fact(f"/{option.sign}", "is there")))
        if subject.host.path("proc/version").exists() and option.lacking == "failing":
            facts = (absent, Fact(f"/{option.sign}", "not there"))
            mend = f"use a kernel built with CONFIG_{option.names[0]}=y"
            return Check(GROUP, name, option.lacking, f"{option.use}: not set", facts, mend)
    return Check(GROUP, name, "unknown", f"no configuration of the kernel{which}", (absent,))


def _check_signatures(config: dict[str, str] | None, source: str) -> Check:
    if config is None:
        return Check(GROUP, "signatures", "unknown", "no configuration of the kernel")
    values = [f"CONFIG_{name}" for name in _SIGNATURES if config.get(f"CONFIG_{name}", "n") == "y"]
    evidence = (Fact(source, ", ".join(f"{name}=y" for name in values) or "no CONFIG_KEXEC_SIG"),)
    if "CONFIG_KEXEC_SIG_FORCE" in values:
        return Check(GROUP, "signatures", "ok", "only a signed kernel can be loaded", evidence)
    if "CONFIG_KEXEC_SIG" in values:
        return Check(GROUP, "signatures", "ok", "checked where lockdown asks for it", evidence)
    return Check(GROUP, "signatures", "ok", "not checked, so none can be loaded under lockdown", evidence)
