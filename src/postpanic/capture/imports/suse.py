"""``/etc/sysconfig/kdump`` of openSUSE and SLE: kdump(5)."""

from __future__ import annotations

from collections.abc import Mapping

from postpanic.capture.imports.draft import Draft
from postpanic.capture.imports.servers import url_target

__all__ = ["import_suse"]

_REASONS = {
    "KDUMP_CRASHKERNEL": "postpanic crashkernel sets the reservation",
    "KDUMP_UPDATE_BOOTLOADER": "postpanic crashkernel sets the reservation",
    "KDUMP_AUTO_RESIZE": "postpanic crashkernel --shrink",
    "KDUMP_FADUMP": "firmware-assisted dumps of POWER are not supported",
    "KDUMP_FADUMP_SHELL": "firmware-assisted dumps of POWER are not supported",
    "KDUMP_FADUMP_COMMANDLINE_APPEND": "firmware-assisted dumps of POWER are not supported",
    "KDUMP_TRANSFER": "nothing is run in place of saving; hooks.after runs a program beside it",
    "KDUMP_CONTINUE_ON_ERROR": "an error of one part never ends the others",
    "KDUMP_VERBOSE": "the saver says one line for each step",
    "KDUMP_SMTP_SERVER": "no mail is sent by the capture kernel",
    "KDUMP_SMTP_USER": "no mail is sent by the capture kernel",
    "KDUMP_SMTP_PASSWORD": "no mail is sent by the capture kernel",
    "KDUMP_NOTIFICATION_TO": "no mail is sent by the capture kernel",
    "KDUMP_NOTIFICATION_CC": "no mail is sent by the capture kernel",
    "KDUMP_HOST_KEY": "the server's host key must be in target.known_hosts",
}
_FALSE = {"", "no", "false", "0", "off"}


def import_suse(values: Mapping[str, str], draft: Draft) -> None:
    """Take over the assignments of ``/etc/sysconfig/kdump``."""
    _take_targets(values, draft)
    level = values.get("KDUMP_DUMPLEVEL", "")
    if level.isdigit() and int(level) < 32:
        draft.put("dump", "level", int(level), "KDUMP_DUMPLEVEL", level)
    _take_format(values.get("KDUMP_DUMPFORMAT", ""), draft)
    if values.get("KDUMP_CPUS", "").isdigit() and int(values["KDUMP_CPUS"]) > 0:
        draft.put("capture", "nr_cpus", int(values["KDUMP_CPUS"]), "KDUMP_CPUS", values["KDUMP_CPUS"])
    for name, key in (("KDUMP_KERNELVER", "kernel"), ("KDUMP_COMMANDLINE", "command_line")):
        if values.get(name):
            draft.put("capture", key, values[name], name, values[name])
    draft.put_appended(values.get("KDUMP_COMMANDLINE_APPEND", ""), "KDUMP_COMMANDLINE_APPEND")
    draft.put_kexec(values.get("KEXEC_OPTIONS", ""), "KEXEC_OPTIONS")
    if values.get("KDUMP_REQUIRED_PROGRAMS"):
        text = values["KDUMP_REQUIRED_PROGRAMS"]
        paths = [word for word in text.split() if word.startswith("/")]
        draft.put("capture", "include", paths, "KDUMP_REQUIRED_PROGRAMS", text)
    for name, when in (("KDUMP_PRESCRIPT", "before"), ("KDUMP_POSTSCRIPT", "after")):
        if values.get(name):
            draft.put_hook(when, values[name], name)
    if values.get("KDUMP_IMMEDIATE_REBOOT", "yes").lower() in _FALSE:
        draft.put("after", "success", "shell", "KDUMP_IMMEDIATE_REBOOT", values["KDUMP_IMMEDIATE_REBOOT"])
    if values.get("KDUMP_NET_TIMEOUT", "").isdigit():
        seconds = min(max(int(values["KDUMP_NET_TIMEOUT"]), 1), 600)
        draft.put("network", "wait", seconds, "KDUMP_NET_TIMEOUT", values["KDUMP_NET_TIMEOUT"])
    if values.get("KDUMP_NETCONFIG", "auto") not in {"auto", ""}:
        draft.leave("KDUMP_NETCONFIG", values["KDUMP_NETCONFIG"], "this machine's own network is taken over")
    draft.leave_all(values, _REASONS, hidden=("KDUMP_SMTP_PASSWORD",))


def _take_targets(values: Mapping[str, str], draft: Draft) -> None:
    key = next((word for word in values.get("KDUMP_SSH_IDENTITY", "").split() if word), "")
    if key:
        key = key if key.startswith("/") else f"/root/.ssh/{key}"
        draft.take("KDUMP_SSH_IDENTITY", values["KDUMP_SSH_IDENTITY"], "target.key")
    for url in (values.get("KDUMP_SAVEDIR") or "/var/crash").split():
        shown = _hide_password(url)
        target = url_target(url, key)
        if target is None:
            draft.leave("KDUMP_SAVEDIR", shown, "no target of this kind: file, nfs, ssh, sftp")
        else:
            draft.targets.append(target)
            note = "; there is no login by password: target.key" if shown != url else ""
            draft.take("KDUMP_SAVEDIR", shown, f"target: {target['kind']}{note}")
    keep, free = values.get("KDUMP_KEEP_OLD_DUMPS", ""), values.get("KDUMP_FREE_DISK_SIZE", "")
    lasting = [target for target in draft.targets if target["kind"] != "raw"]
    if keep.lstrip("-").isdigit():
        number = int(keep)
        # There the new dump is not counted, and -1 deletes all old ones.
        for target in lasting:
            target["keep"] = number + 1 if number > 0 else 1 if number < 0 else 0
        draft.take("KDUMP_KEEP_OLD_DUMPS", keep, "target.keep, which counts the new one")
    if free.isdigit() and int(free):
        for target in lasting:
            target["min_free"] = f"{int(free)} MiB"
        draft.take("KDUMP_FREE_DISK_SIZE", free, "target.min_free")


def _take_format(text: str, draft: Draft) -> None:
    if text == "none":
        draft.leave("KDUMP_DUMPFORMAT", text, "to save only the log there is no setting: it is saved first, always")
    elif text == "ELF":
        draft.leave("KDUMP_DUMPFORMAT", text, "dumps are kdump-compressed; postpanic convert makes ELF of them")
    elif text:
        draft.take("KDUMP_DUMPFORMAT", text, "kdump-compressed, with zstd")


def _hide_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    scheme, sep, login = head.partition("://")
    user, colon, _ = login.partition(":")
    return f"{scheme}{sep}{user}:…@{tail}" if at and colon else url
