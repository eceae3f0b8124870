"""kdump.conf(5) and ``/etc/sysconfig/kdump`` of Fedora, RHEL and their like (kdump-utils)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from postpanic.capture.imports.draft import Draft
from postpanic.capture.imports.servers import nfs_target, ssh_target

__all__ = ["import_fedora", "knows_directive"]

_FILESYSTEMS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")
_ACTIONS = ("reboot", "halt", "poweroff", "shell")
_REASONS = {
    "auto_reset_crashkernel": "postpanic crashkernel sets the reservation",
    "force_rebuild": "the image is built anew when something in it has changed",
    "force_no_rebuild": "the image is built anew when something in it has changed",
    "dracut_args": 'the image is not dracut\'s; with capture.image = "dracut" dracut reads its own configuration',
    "kdump_emergency": "a saver that fails is started again, simpler; nothing is run instead",
    "fence_kdump_args": "clusters are not told by the saver; a program in hooks.before can do it",
    "fence_kdump_nodes": "clusters are not told by the saver; a program in hooks.before can do it",
    "net": "no longer a setting of kdump.conf: nfs or ssh",
    "options": "parameters of modules are taken from modprobe.d",
    "link_delay": "no longer a setting; network.wait",
    "disk_timeout": "no longer a setting; limits.device_wait",
    "debug_mem_level": "the saver says how much memory was free at the least",
    "blacklist": "only what the targets need is loaded",
    "virtiofs": "a virtiofs is no target yet",
    "minix": "a minix file system is no target",
}
_SYSCONFIG_REASONS = {
    "KDUMP_BOOTDIR": "the kernel is found where the distribution puts it; else capture.kernel has a path",
    "KDUMP_IMG": "the kernel is found where the distribution puts it; else capture.kernel has a path",
    "FADUMP_COMMANDLINE_APPEND": "firmware-assisted dumps of POWER are not supported",
    "VMCORE_CREATION_NOTIFICATION": "hooks.after runs a program when the dump is saved",
}


_TAKEN = (
    *(
        "raw",
        "nfs",
        "ssh",
        "path",
        "sshkey",
        "core_collector",
        "kdump_pre",
        "kdump_post",
        "extra_bins",
        "extra_modules",
    ),
    *("failure_action", "default", "final_action"),
)


def knows_directive(name: str) -> bool:
    """Tell whether this is a setting of kdump.conf."""
    return name in _TAKEN or name in _FILESYSTEMS or name in _REASONS


def import_fedora(directives: Sequence[tuple[str, str]], sysconfig: Mapping[str, str], draft: Draft) -> None:
    """
    Take over a kdump.conf.

    Parameters
    ----------
    directives : sequence of (str, str)
        Lines of kdump.conf.
    sysconfig : mapping
        Assignments of ``/etc/sysconfig/kdump``.
    """
    values = dict(directives)
    path = values.get("path") or "/var/crash"
    for name, value in directives:
        _take(name, value, path, values, draft)
    if not draft.targets:
        draft.targets.append({"kind": "file", "path": path})
        if "path" not in values:
            draft.take("path", "(default)", "target.path")
    _take_sysconfig(sysconfig, draft)


def _take(name: str, value: str, path: str, values: Mapping[str, str], draft: Draft) -> None:
    if name in _FILESYSTEMS:
        draft.targets.append({"kind": "file", "device": value, "filesystem": name, "path": path})
        draft.take(name, value, "target.device, target.filesystem")
    elif name == "raw":
        draft.targets.append({"kind": "raw", "device": value})
        draft.take(name, value, "target.device: it must hold nothing that is known")
    elif name == "nfs":
        draft.targets.append(nfs_target(value, path))
        draft.take(name, value, "target.server, target.export")
    elif name == "ssh":
        draft.targets.append(ssh_target(value, path, values.get("sshkey") or "/root/.ssh/kdump_id_rsa"))
        draft.take(name, value, "target.user, target.server; its host key must be in target.known_hosts")
    elif name in {"path", "sshkey"}:
        draft.take(name, value, "target.path" if name == "path" else "target.key")
    elif name == "core_collector":
        draft.put_level(value, name)
    elif name in {"kdump_pre", "kdump_post"}:
        draft.put_hook("before" if name == "kdump_pre" else "after", value, name)
    elif name in {"extra_bins", "extra_modules"}:
        key = "include" if name == "extra_bins" else "modules"
        draft.put("capture", key, value.split(), name, value)
    elif name in {"failure_action", "default", "final_action"}:
        _take_action(name, value, path, draft)
    else:
        draft.leave(name, value, _REASONS.get(name, "is not a setting of kdump.conf that is known"))


def _take_action(name: str, value: str, path: str, draft: Draft) -> None:
    when = "success" if name == "final_action" else "failure"
    if value == "dump_to_rootfs":
        draft.fallbacks.append({"kind": "file", "path": path})
        draft.take(name, value, "fallback: the file system that has the path")
    elif value in _ACTIONS:
        draft.put("after", when, value, name, value)
    else:
        draft.leave(name, value, f"must be one of {', '.join(_ACTIONS)}")


def _take_sysconfig(values: Mapping[str, str], draft: Draft) -> None:
    if values.get("KDUMP_KERNELVER"):
        draft.put("capture", "kernel", values["KDUMP_KERNELVER"], "KDUMP_KERNELVER", values["KDUMP_KERNELVER"])
    if values.get("KDUMP_COMMANDLINE"):
        text = values["KDUMP_COMMANDLINE"]
        draft.put("capture", "command_line", text, "KDUMP_COMMANDLINE", text)
    if values.get("KDUMP_COMMANDLINE_REMOVE"):
        text = values["KDUMP_COMMANDLINE_REMOVE"]
        draft.put("capture", "command_line_remove", text.split(), "KDUMP_COMMANDLINE_REMOVE", text)
    draft.put_appended(values.get("KDUMP_COMMANDLINE_APPEND", ""), "KDUMP_COMMANDLINE_APPEND")
    draft.put_kexec(values.get("KEXEC_ARGS", ""), "KEXEC_ARGS")
    draft.leave_all(values, _SYSCONFIG_REASONS)
