"""
What may forbid to load a capture kernel: lockdown, Secure Boot, switches.

Sources: ``security/lockdown/lockdown.c``; ``kernel/kexec_file.c`` and
``kernel/kexec.c``; ``Documentation/admin-guide/sysctl/kernel.rst``
(``kexec_load_disabled``, ``kexec_load_limit_panic``).
"""

from __future__ import annotations

from collections.abc import Iterator

from postpanic.capture.status.kernel_options import find_config_source
from postpanic.capture.status.model import Check, Fact, State
from postpanic.capture.status.subject import Subject

__all__ = ["check_security"]

GROUP = "security"
_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-*"


def check_security(subject: Subject) -> Iterator[Check]:
    """Look at what the kernel allows."""
    yield _check_lockdown(subject)
    yield _check_secure_boot(subject)
    yield _check_switch(subject)


def _check_lockdown(subject: Subject) -> Check:
    reading = subject.read("sys/kernel/security/lockdown")
    lockdown = subject.host.read_lockdown()
    if lockdown is None:
        if reading.is_there and reading.text is None:
            return Check(GROUP, "lockdown", "unknown", reading.problem, (reading.fact,), needs_root=True)
        if not subject.has_sysfs:
            return Check(GROUP, "lockdown", "unknown", "no sysfs here", (reading.fact,))
        has_others = bool(subject.list_names("sys/kernel/security"))
        found = "this kernel has none" if has_others else "securityfs is not mounted, or the kernel has none"
        return Check(GROUP, "lockdown", "not applicable", found, (reading.fact,))
    if lockdown == "none":
        return Check(GROUP, "lockdown", "ok", "off: whatever kernel can be loaded", (reading.fact,))
    config = subject.kernel_config
    source = find_config_source(subject, subject.host.release)
    method = subject.state.method if subject.is_armed_by_us and subject.state else ""
    if subject.config.capture.kexec == "legacy" and subject.tool is None:
        return Check(
            GROUP,
            "lockdown",
            "failing",
            f"{lockdown}: kexec_load is forbidden, and the configuration asks for it",
            (reading.fact, Fact(subject.config_source, 'capture.kexec = "legacy"')),
            f'in {subject.config_source}: [capture] kexec = "auto"; postpanic arm',
        )
    if config is not None and config.get("CONFIG_KEXEC_SIG") != "y" and config.get("CONFIG_KEXEC_FILE") == "y":
        found = f"{lockdown}: only a signed kernel may be loaded, and this one cannot check signatures"
        says = Fact(source, "CONFIG_KEXEC_SIG not set")
        loaded = " (what is loaded was loaded before)" if subject.is_loaded else ""
        state: State = "warning" if subject.is_loaded else "failing"
        mend = "boot without lockdown= (or Secure Boot), or use the distribution's signed kernel"
        return Check(GROUP, "lockdown", state, found + loaded, (reading.fact, says), mend)
    rest = "; what is loaded cannot be read back" if lockdown == "confidentiality" else ""
    how = f", loaded by {method}" if method else ""
    return Check(GROUP, "lockdown", "ok", f"{lockdown}: only a signed kernel can be loaded{rest}{how}", (reading.fact,))


def _check_secure_boot(subject: Subject) -> Check:
    on = subject.host.read_secure_boot()
    if on is None:
        if not subject.exists("sys/firmware/efi"):
            says = Fact("/sys/firmware/efi", "not there")
            if not subject.has_sysfs:
                return Check(GROUP, "Secure Boot", "unknown", "no sysfs here", (says,))
            return Check(GROUP, "Secure Boot", "not applicable", "not booted by UEFI", (says,))
        names = [name for name in subject.list_names("sys/firmware/efi/efivars") if name.startswith("SecureBoot-")]
        says = Fact(_SECURE_BOOT, "not readable" if names else "not there")
        return Check(GROUP, "Secure Boot", "unknown", "the firmware does not tell", (says,), needs_root=bool(names))
    if not on:
        return Check(GROUP, "Secure Boot", "ok", "off", (Fact(_SECURE_BOOT, "0"),))
    return Check(GROUP, "Secure Boot", "ok", "on: the capture kernel must be signed", (Fact(_SECURE_BOOT, "1"),))


def _check_switch(subject: Subject) -> Check:
    disabled = subject.read("proc/sys/kernel/kexec_load_disabled")
    limit = subject.read("proc/sys/kernel/kexec_load_limit_panic")
    facts = tuple(one.fact for one in (disabled, limit) if one.text is not None)
    if disabled.number is None:
        if not subject.exists("proc/sys/kernel"):
            return Check(GROUP, "loading", "unknown", "no sysctls here", (disabled.fact,))
        return Check(GROUP, "loading", "not applicable", "this kernel has no such switch", (disabled.fact,))
    if disabled.number or limit.number == 0:
        what = "kernel.kexec_load_disabled is 1" if disabled.number else "kernel.kexec_load_limit_panic is 0"
        if subject.is_loaded:
            return Check(GROUP, "loading", "ok", f"{what}: what is loaded stays until the next boot", facts)
        mend = "grep -rs kexec_load /etc/sysctl.conf /etc/sysctl.d /usr/lib/sysctl.d; arm before it is set, and reboot"
        return Check(GROUP, "loading", "failing", f"{what}: nothing can be loaded until the next boot", facts, mend)
    left = f", {limit.number} loads left" if limit.number is not None and limit.number > 0 else ""
    return Check(GROUP, "loading", "ok", f"allowed{left}", facts)
