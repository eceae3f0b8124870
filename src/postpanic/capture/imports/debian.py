"""``/etc/default/kdump-tools`` of Debian and Ubuntu: kdump-tools(5)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from postpanic.capture.imports.draft import Draft
from postpanic.capture.imports.servers import nfs_target, ssh_target

__all__ = ["import_debian"]

_REASONS = {
    "KDUMP_INITRD": "the image is postpanic's own; capture.image = \"initramfs-tools\" takes the distribution's",
    "KDUMP_COMPRESSION": "pages are compressed with zstd in the dump itself",
    "FTP": "FTP is no target: the other end cannot say whether a file is whole; ssh, nfs or http",
    "FTP_USER": "FTP is no target",
    "FTP_PASSWORD": "FTP is no target",
    "FTP_PORT": "FTP is no target",
    "HOSTTAG": "dumps are named by the host's name",
}
_ACTIONS = {"reboot": "reboot", "halt": "halt", "poweroff": "poweroff"}


def import_debian(values: Mapping[str, str], draft: Draft) -> None:
    """
    Take over the assignments of ``/etc/default/kdump-tools``.

    With several servers it tries one after the other; so do targets and fallbacks here.
    """
    directory = values.get("KDUMP_COREDIR") or "/var/crash"
    _take_targets(values, directory, draft)
    if "USE_KDUMP" in values:
        used = values["USE_KDUMP"] not in {"", "0"}
        outcome = "postpanic arm" if used else "it was switched off: postpanic arm switches it on"
        draft.take("USE_KDUMP", values["USE_KDUMP"], outcome)
    if values.get("KDUMP_KERNEL"):
        draft.put("capture", "kernel", values["KDUMP_KERNEL"], "KDUMP_KERNEL", values["KDUMP_KERNEL"])
    if values.get("MAKEDUMP_ARGS"):
        draft.put_level(values["MAKEDUMP_ARGS"], "MAKEDUMP_ARGS")
    if values.get("KDUMP_CMDLINE"):
        draft.put("capture", "command_line", values["KDUMP_CMDLINE"], "KDUMP_CMDLINE", values["KDUMP_CMDLINE"])
    draft.put_appended(values.get("KDUMP_CMDLINE_APPEND", ""), "KDUMP_CMDLINE_APPEND")
    draft.put_kexec(values.get("KDUMP_KEXEC_ARGS", ""), "KDUMP_KEXEC_ARGS")
    if values.get("KDUMP_DUMP_DMESG"):
        draft.take("KDUMP_DUMP_DMESG", values["KDUMP_DUMP_DMESG"], "the log is always saved, and first")
    if values.get("KDUMP_FAIL_CMD"):
        _take_command(values["KDUMP_FAIL_CMD"], draft)
    draft.leave_all(values, _REASONS, hidden=("FTP_PASSWORD",))


def _take_targets(values: Mapping[str, str], directory: str, draft: Draft) -> None:
    made: list[dict[str, object]] = []
    if values.get("SSH"):
        made.append(ssh_target(values["SSH"], directory, values.get("SSH_KEY") or "/root/.ssh/kdump_id_rsa"))
        draft.take("SSH", values["SSH"], "target.user, target.server; its host key must be in target.known_hosts")
        if values.get("SSH_KEY"):
            draft.take("SSH_KEY", values["SSH_KEY"], "target.key")
    if values.get("NFS"):
        numbers = {"timeo": values.get("NFS_TIMEO"), "retrans": values.get("NFS_RETRANS")}
        options = ",".join(f"{name}={value}" for name, value in numbers.items() if value)
        made.append(nfs_target(values["NFS"], "", options))
        draft.take("NFS", values["NFS"], "target.server, target.export")
        for name in ("NFS_TIMEO", "NFS_RETRANS"):
            if values.get(name):
                draft.take(name, values[name], "target.options")
    for name in ("NFS_MOUNT_RETRY", "SSH_KDUMP_RETRY"):
        if values.get(name, "").isdigit() and made:
            made[-1]["attempts"] = max(int(values[name]), 1)
            draft.take(name, values[name], "target.attempts")
    if not made:
        made.append({"kind": "file", "path": directory})
        draft.take("KDUMP_COREDIR", directory, "target.path")
    draft.targets, draft.fallbacks = made[:1], made[1:]
    _take_number(values.get("KDUMP_NUM_DUMPS", ""), draft)


def _take_number(number: str, draft: Draft) -> None:
    if number.isdigit():
        for target in (*draft.targets, *draft.fallbacks):
            target["keep"] = int(number)
        draft.take("KDUMP_NUM_DUMPS", number, "target.keep")


def _take_command(command: str, draft: Draft) -> None:
    words = [word for word in re.split(r"[\s;]+", command) if word and not word.startswith("-")]
    action = _ACTIONS.get(words[0].rsplit("/", 1)[-1]) if len(words) == 1 else None
    if action:
        draft.put("after", "failure", action, "KDUMP_FAIL_CMD", command)
    else:
        draft.leave("KDUMP_FAIL_CMD", command, "after.failure is one of reboot, poweroff, halt, shell")
