"""
The files of the boot services.

Sources: systemd.unit(5), systemd.service(5), udev(7), kernel-install(8), openrc-run(8); Debian's kernel handbook,
``/etc/kernel/postinst.d``; ``Documentation/core-api/cpu_hotplug.rst``: where the kernel follows memory and processors
itself, ``crash_hotplug`` is 1 and nothing has to be loaded anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from postpanic.capture.host import Host

__all__ = ["ARM_UNIT", "COLLECT_UNIT", "TELL_UNIT", "ServiceFile", "ServiceKind", "detect_kind", "list_files"]

ServiceKind = Literal["systemd", "openrc", "local.d"]

ARM_UNIT, COLLECT_UNIT, TELL_UNIT = "postpanic.service", "postpanic-collect.service", "postpanic-tell.service"
_UNITS = "etc/systemd/system"
_WRITTEN = '# Written by "postpanic service --enable"; "postpanic service --disable" removes it.\n'

# Without the default dependencies it is not stopped at shutdown: a panic on the way down is captured, too.
_ARM = """\
[Unit]
Description=Be ready to capture a crash of the kernel
DefaultDependencies=no
After=basic.target local-fs.target network-online.target postpanic-collect.service
Wants=network-online.target
ConditionKernelCommandLine=crashkernel
ConditionVirtualization=!container

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command} arm -q
ExecReload={command} arm -q
ExecStop={command} disarm
TimeoutStartSec=900

[Install]
WantedBy=multi-user.target
"""
# Before swap is switched on: a dump may be on it. The cause is looked for when the machine is armed and up: that takes
# minutes where the dump is large.
_COLLECT = """\
[Unit]
Description=Fetch and check what a crash of the kernel left
DefaultDependencies=no
After=local-fs.target
Before=swap.target multi-user.target shutdown.target
Conflicts=shutdown.target
ConditionVirtualization=!container

[Service]
Type=oneshot
ExecStart={command} collect{later}
# A damaged dump is a finding, no failure of the boot.
SuccessExitStatus=2
TimeoutStartSec=0

[Install]
WantedBy=multi-user.target
"""
# When dumps are collected there is neither a network nor a mail server, and the machine is not armed again.
_TELL = """\
[Unit]
Description=Look for the cause of a crash of the kernel, and tell of it
DefaultDependencies=no
After=basic.target network-online.target postpanic-collect.service postpanic.service
Wants=network-online.target
Before=shutdown.target
Conflicts=shutdown.target
ConditionVirtualization=!container

[Service]
Type=oneshot
ExecStart={command} collect --no-devices{tell}
SuccessExitStatus=2
TimeoutStartSec=0

[Install]
WantedBy=multi-user.target
"""
_RULES = """\
SUBSYSTEM=="cpu", ATTRS{{crash_hotplug}}=="1", GOTO="postpanic_end"
SUBSYSTEM=="memory", ATTRS{{crash_hotplug}}=="1", GOTO="postpanic_end"
SUBSYSTEM=="cpu", ACTION=="add", GOTO="postpanic_reload"
SUBSYSTEM=="cpu", ACTION=="remove", GOTO="postpanic_reload"
SUBSYSTEM=="memory", ACTION=="online", GOTO="postpanic_reload"
SUBSYSTEM=="memory", ACTION=="offline", GOTO="postpanic_reload"
GOTO="postpanic_end"
LABEL="postpanic_reload"
RUN+="{reload}"
LABEL="postpanic_end"
"""
_POSTINST = """\
# A kernel package of the release that runs brings other modules under the same name.
if [ "$1" = "$(uname -r)" ] && [ "$(cat /sys/kernel/kexec_crash_loaded 2>/dev/null)" = 1 ]; then
    {command} arm -q || echo "postpanic: the capture kernel was not loaded anew" >&2
fi
exit 0
"""
_KERNEL_INSTALL = """\
# A kernel package of the release that runs brings other modules under the same name.
[ "$1" = add ] || exit 0
if [ "$2" = "$(uname -r)" ] && [ "$(cat /sys/kernel/kexec_crash_loaded 2>/dev/null)" = 1 ]; then
    {command} arm -q || echo "postpanic: the capture kernel was not loaded anew" >&2
fi
exit 0
"""
_OPENRC = """\
description="Be ready to capture a crash of the kernel"
depend() {{
    use localmount net
    after bootmisc
    keyword -shutdown
}}
start() {{
    {command} collect{later} >/dev/null
    ebegin "Loading the capture kernel"
    {command} arm -q
    armed=$?
    eend $armed
    {command} collect --no-devices{tell} >/dev/null
    return $armed
}}
stop() {{
    ebegin "Unloading the capture kernel"
    {command} disarm >/dev/null
    eend $?
}}
"""
_LOCAL_START = """\
{command} collect{later}
{command} arm -q
{command} collect --no-devices{tell}
"""


@dataclass(frozen=True)
class ServiceFile:
    """
    A file, or a link, of a service.

    Attributes
    ----------
    path : str
        From the root of the host, without the first slash.
    text : str
        Its content; of a link, where it leads.
    mode : int
    is_link : bool
    """

    path: str
    text: str
    mode: int = 0o644
    is_link: bool = False


def detect_kind(host: Host) -> ServiceKind | None:
    """Tell what runs services on a host, else by its files what would; None: nothing that is known."""
    # A host may have the files of both: sd_booted(3), and OpenRC's own directory.
    if host.path("run/systemd/system").exists():
        return "systemd"
    if host.path("run/openrc").is_dir():
        return "openrc"
    if any(host.path(place).exists() for place in ("usr/lib/systemd/systemd", "lib/systemd/systemd")):
        return "systemd"
    if any(host.path(place).exists() for place in ("sbin/openrc-run", "usr/sbin/openrc-run", "usr/bin/openrc-run")):
        return "openrc"
    return "local.d" if host.path("etc/local.d").is_dir() else None


def list_files(kind: ServiceKind, host: Host, command: str, tell: str = "") -> list[ServiceFile]:
    """
    List what a service consists of.

    Parameters
    ----------
    command : str
        That runs postpanic, in words that every one of the files can take.
    tell : str
        Options of ``postpanic collect``.
    """
    words = {
        "command": command,
        "tell": f" {tell}" if tell else "",
        "later": " --triage-later" + (" --tell-later" if tell else ""),
    }
    script = "#!/bin/sh\n" + _WRITTEN
    if kind == "systemd":
        reload = (
            "/bin/sh -c 'systemctl is-active -q postpanic.service && systemctl --no-block reload postpanic.service'"
        )
        found = [
            ServiceFile(f"{_UNITS}/{ARM_UNIT}", _WRITTEN + _ARM.format(**words)),
            ServiceFile(f"{_UNITS}/{COLLECT_UNIT}", _WRITTEN + _COLLECT.format(**words)),
            ServiceFile(f"{_UNITS}/{TELL_UNIT}", _WRITTEN + _TELL.format(**words)),
        ]
        units = [ARM_UNIT, COLLECT_UNIT, TELL_UNIT]
        found += [ServiceFile(f"{_UNITS}/multi-user.target.wants/{unit}", f"../{unit}", is_link=True) for unit in units]
    elif kind == "openrc":
        reload = "/bin/sh -c 'rc-service --ifstarted postpanic restart'"
        header = "#!/sbin/openrc-run\n" + _WRITTEN
        found = [
            ServiceFile("etc/init.d/postpanic", header + _OPENRC.format(**words), 0o755),
            ServiceFile("etc/runlevels/default/postpanic", "/etc/init.d/postpanic", is_link=True),
        ]
    else:
        return [ServiceFile("etc/local.d/postpanic.start", script + _LOCAL_START.format(**words), 0o755)]
    found.append(ServiceFile("etc/udev/rules.d/98-postpanic.rules", _WRITTEN + _RULES.format(reload=reload)))
    if host.path("etc/kernel/postinst.d").is_dir():
        found.append(ServiceFile("etc/kernel/postinst.d/zz-postpanic", script + _POSTINST.format(**words), 0o755))
    if any(host.path(place).exists() for place in ("usr/bin/kernel-install", "bin/kernel-install")):
        text = script + _KERNEL_INSTALL.format(**words)
        found.append(ServiceFile("etc/kernel/install.d/95-postpanic.install", text, 0o755))
    return found
