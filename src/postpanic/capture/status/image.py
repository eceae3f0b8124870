"""Whether the image on the disk is that of the configuration, and whether it will be loaded at the next boot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from postpanic.capture.arming.arm import find_stale
from postpanic.capture.arming.prepare import Prepared, prepare
from postpanic.capture.status.distributions import DEBIAN, DumpTool
from postpanic.capture.status.kernel_options import find_capture_release, find_config_source
from postpanic.capture.status.model import Check, Fact, State
from postpanic.capture.status.reservation import check_next_reservation
from postpanic.capture.status.subject import Subject
from postpanic.errors import PostpanicError
from postpanic.units import format_size

__all__ = ["check_boot", "check_image"]

GROUP = "image"
_ARM = "postpanic arm"
_COMPRESSIONS = {
    b"\x28\xb5\x2f\xfd": "CONFIG_RD_ZSTD",
    b"\x1f\x8b": "CONFIG_RD_GZIP",
    b"\xfd7zXZ\x00": "CONFIG_RD_XZ",
    b"\x02\x21\x4c\x18": "CONFIG_RD_LZ4",
    b"BZh": "CONFIG_RD_BZIP2",
}
_UNITS = ("postpanic.service", "postpanic-arm.service", "kdump.service", "kdump-early.service", "kdump-tools.service")
_PLAN_CHANGED = "what is to be saved where changed"


def check_image(subject: Subject) -> Iterator[Check]:
    """Look at the image."""
    if subject.tool is not None:
        yield from _check_tool(subject, subject.tool)
        return
    path = subject.state_paths.image
    source = subject.show(path)
    if subject.is_state_hidden:
        says = subject.read("var/lib/postpanic/armed.json").fact
        yield Check(GROUP, "image", "unknown", "only root can see it", (says,), needs_root=True)
        return
    try:
        size = path.stat().st_size
    except OSError as exc:
        says = Fact(source, (exc.strerror or str(exc)).lower())
        state: State = "failing" if subject.is_armed_by_us else "not applicable"
        yield Check(GROUP, "image", state, "there is none", (says,), _ARM if state == "failing" else "")
        return
    yield Check(GROUP, "image", "ok", format_size(size), (Fact(source, f"{size} bytes"),))
    yield from _check_compression(subject, path, find_capture_release(subject))
    yield _check_fresh(subject, path, source)


def _check_compression(subject: Subject, path: Path, release: str) -> Iterator[Check]:
    """Look whether the capture kernel can unpack the image (``usr/Kconfig``: ``CONFIG_RD_…``)."""
    try:
        with path.open("rb") as stream:
            head = stream.read(6)
    except OSError:
        return
    option = next((option for magic, option in _COMPRESSIONS.items() if head.startswith(magic)), "")
    config = subject.host.read_kernel_config(release)
    if not option or config is None:
        # An archive as it is, which every kernel reads; or nothing is known of the kernel.
        return
    name, value = "compression", config.get(option, "n")
    evidence = (Fact(find_config_source(subject, release), f"{option}={value}"),)
    if value == "y":
        yield Check(GROUP, name, "ok", f"the capture kernel can unpack it ({option})", evidence)
    else:
        found = f"kernel {release} cannot unpack it: {option} is not set"
        mend = 'in /etc/postpanic.toml: [capture] image_compression = "auto"; postpanic arm'
        yield Check(GROUP, name, "failing", found, evidence, mend)


def _check_fresh(subject: Subject, path: Path, source: str) -> Check:
    if subject.config_problem is not None:
        return Check(GROUP, "fresh", "unknown", "the configuration cannot be used (see targets)")
    prepared = _prepare(subject)
    if not isinstance(prepared, Prepared):
        needs_root = not subject.host.is_root
        return Check(
            GROUP, "fresh", "unknown", f"cannot be told: {prepared}", (Fact(source, ""),), needs_root=needs_root
        )
    reasons = find_stale(prepared, subject.state, path)
    if not reasons:
        changed = "no file that went into it has changed"
        return Check(
            GROUP, "fresh", "ok", changed, (Fact("/var/lib/postpanic/armed.json", "all digests are the same"),)
        )
    facts = tuple(Fact("/var/lib/postpanic/armed.json", reason) for reason in reasons)
    # Only then would the dump go to another place than it is meant to; what else has changed is newer, not needed.
    is_wrong = _PLAN_CHANGED in reasons and subject.is_armed_by_us
    return Check(GROUP, "fresh", "failing" if is_wrong else "warning", f"stale: {'; '.join(reasons)}", facts, _ARM)


def _prepare(subject: Subject) -> Prepared | PostpanicError:
    try:
        return prepare(subject.config, subject.host, kernel=subject.kernel, find_network=subject.find_network)
    except PostpanicError as exc:
        return exc


def _check_tool(subject: Subject, tool: DumpTool) -> Iterator[Check]:
    """Look at kernel and image of a distribution's tool, which rebuilds by the times of files."""
    yield Check(GROUP, "configuration", "ok", f"{tool.name} ({tool.why})", tuple(_list_settings(tool)))
    for name, place, mend in (("kernel", tool.kernel, ""), ("image", tool.initrd, tool.rebuild)):
        found = subject.resolve(place)
        if found is None:
            lacking: State = "failing" if not subject.is_loaded else "warning"
            fix = mend or f"install the kernel's package again, or change {tool.config}"
            yield Check(GROUP, name, lacking, f"{place} is not there", (Fact(place, "not there"),), fix)
            continue
        size = found.stat().st_size if found.is_file() else 0
        shown = subject.show(found)
        link = f" -> {shown}" if shown != place else ""
        yield Check(GROUP, name, "ok", f"{place}{link}", (Fact(shown, f"{size} bytes"),))
    yield _check_tool_fresh(subject, tool)


def _list_settings(tool: DumpTool) -> Iterator[Fact]:
    for name, value in tool.settings:
        yield Fact(tool.config if name != "kexec command" else "kexec_cmd", f"{name} {value}")


def _check_tool_fresh(subject: Subject, tool: DumpTool) -> Check:
    kernel, image = subject.resolve(tool.kernel), subject.resolve(tool.initrd)
    if kernel is None or image is None:
        return Check(GROUP, "fresh", "unknown", "kernel or image is not there")
    # Debian's capture kernel boots the host's own root, and reads the configuration there.
    config = None if tool.name == DEBIAN else subject.resolve(tool.config)
    reasons = []
    release = subject.host.release
    if (
        release
        and kernel.name.startswith(("vmlinuz-", "vmlinux-", "Image-"))
        and not kernel.name.endswith(f"-{release}")
    ):
        reasons.append(f"it is of kernel {kernel.name.partition('-')[2]}, {release} runs")
    made = image.stat().st_mtime
    newer = [path for path in (kernel, config) if path is not None and path.stat().st_mtime > made]
    reasons += [f"{subject.show(path)} is newer than the image" for path in newer]
    says = Fact(subject.show(image), f"{image.stat().st_size} bytes")
    if reasons:
        return Check(GROUP, "fresh", "warning", "; ".join(reasons), (says,), f"{tool.rebuild}; {tool.arm}")
    return Check(GROUP, "fresh", "ok", "newer than kernel and configuration", (says,))


def check_boot(subject: Subject) -> Iterator[Check]:
    """Look at what arms the machine again after a reboot."""
    group = "boot"
    yield check_next_reservation(subject)
    units = [(unit, link) for unit, link in subject.list_tool_units() if unit in _UNITS]
    for runlevel in subject.list_names("etc/runlevels"):
        place = f"etc/runlevels/{runlevel}"
        units += [(name, f"/{place}/{name}") for name in subject.list_names(place) if name in {"postpanic", "kdump"}]
    units += [
        (name, f"/etc/local.d/{name}") for name in subject.list_names("etc/local.d") if name.startswith("postpanic")
    ]
    if not units and not subject.exists("etc"):
        yield Check(group, "service", "unknown", "no /etc here")
        return
    facts = tuple(Fact(link, "is enabled") for _, link in units)
    if not units:
        says = Fact("/etc/systemd/system/*.wants, /etc/runlevels, /etc/local.d", "nothing that arms")
        mend = f"systemctl enable {subject.tool.unit}" if subject.tool is not None else "postpanic service --enable"
        yield Check(group, "service", "warning", "nothing arms the machine at the next boot", (says,), mend)
        return
    names = list(dict.fromkeys(unit for unit, _ in units))
    ours = [name for name in names if name.startswith("postpanic")]
    theirs = [tool for tool in subject.tools if tool.is_enabled and tool.unit in names]
    if ours and theirs:
        found = f"{ours[0]} and {theirs[0].unit} both load a capture kernel: the later one wins"
        yield Check(group, "service", "warning", found, facts, f"systemctl disable {theirs[0].unit}")
        return
    others = [name for name in names if name not in ours]
    if subject.is_armed_by_us and not ours:
        found = f"{others[0]} loads another capture kernel at the next boot, not postpanic"
        mend = f"systemctl disable {others[0]}; postpanic service --enable"
        yield Check(group, "service", "warning", found, facts, mend)
        return
    yield Check(group, "service", "ok", f"{', '.join(names)} at each boot", facts)
