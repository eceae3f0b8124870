"""Where the dump would go: whether each place is there, can be reached, and has room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from postpanic.capture.arming.prepare import CaptureKernel, choose_kernel
from postpanic.capture.config import FileTarget, HttpTarget, NfsTarget, RawTarget, SshTarget, TargetConfig
from postpanic.capture.resolve import resolve
from postpanic.capture.resolve.mounts import find_place
from postpanic.capture.resolve.resolve import Resolved
from postpanic.capture.resolve.sysfs import list_stacks
from postpanic.capture.status.distributions import DumpTool, ToolTarget
from postpanic.capture.status.dump_size import DumpSize, estimate_dump
from postpanic.capture.status.model import Check, Fact
from postpanic.capture.status.subject import Subject
from postpanic.errors import NotReadyError, PostpanicError
from postpanic.units import format_size

__all__ = ["check_targets", "describe_targets", "list_local_stacks"]

GROUP = "targets"
_HARDLY_FITS = 3
"""A dump that is compressed well may still be this much smaller than the estimate."""


@dataclass(frozen=True)
class _Server:
    name: str
    port: int


def check_targets(subject: Subject) -> Iterator[Check]:
    """Look at each target, of the configuration or of the distribution's tool."""
    tool = subject.tool
    if tool is None and subject.config_problem is not None:
        problem = subject.config_problem
        says = Fact(subject.config_source, str(problem))
        if "permission denied" in problem.message:
            yield Check(GROUP, "configuration", "unknown", problem.message, (says,), needs_root=True)
            return
        mend = problem.hint or f"mend {subject.config_source}"
        yield Check(GROUP, "configuration", "failing", problem.message, (says,), mend)
        return
    level = tool.level if tool is not None else subject.config.dump.level[-1]
    size = estimate_dump(subject, level)
    yield _describe_size(size, level)
    found = list(_check_tool(subject, tool, size) if tool is not None else _check_own(subject, size))
    whole = [check for check in found if not check.name.startswith(("room ", "reach "))]
    spoilt = {check.name.split(" ", 1)[1] for check in found if check.state == "failing" and check not in whole}
    is_one_good = any(check.state != "failing" and check.name not in spoilt for check in whole)
    for check in found:
        # One good place is enough for a dump.
        yield replace(check, state="warning") if check.state == "failing" and is_one_good else check


def describe_targets(subject: Subject) -> list[str]:
    """Tell the targets from others, by their configuration."""
    if subject.tool is not None:
        return [target.description for target in subject.tool.targets]
    return [repr(target) for target in (*subject.config.targets, *subject.config.fallbacks)]


def _describe_size(size: DumpSize | None, level: int) -> Check:
    if size is None:
        says = Fact("/proc/meminfo", "not there, or not as expected")
        return Check(GROUP, "dump size", "unknown", "no figures of this machine's memory", (says,))
    found = f"at level {level} about {format_size(size.packed_bytes)}, at most {format_size(size.kept_bytes)}"
    return Check(GROUP, "dump size", "ok", found, size.evidence)


def _check_own(subject: Subject, size: DumpSize | None) -> Iterator[Check]:
    kernel: CaptureKernel | PostpanicError
    try:
        kernel = choose_kernel(subject.kernel or subject.config.capture.kernel, subject.host)
    except PostpanicError as exc:
        kernel = exc
    names: Counter[str] = Counter()
    for prefix, targets in (("", subject.config.targets), ("fallback ", subject.config.fallbacks)):
        for target in targets:
            name = f"{prefix}{_name(target)}"
            names[name] += 1
            if names[name] > 1:
                name = f"{name} ({names[name]})"
            yield _check_one(subject, name, target, kernel)
            own = estimate_dump(subject, target.level[-1]) if target.level else size
            yield from _check_room_of(subject, name, target, own)
            server = _server_of(target)
            if server is not None:
                yield _check_server(subject, name, server)


def _check_one(subject: Subject, name: str, target: TargetConfig, kernel: CaptureKernel | PostpanicError) -> Check:
    source = subject.config_source or "the default configuration"
    if isinstance(kernel, PostpanicError):
        return Check(GROUP, name, "unknown", kernel.message, (Fact(source, ""),), kernel.hint)
    config = replace(subject.config, targets=(target,), fallbacks=())
    try:
        resolved: Resolved = resolve(
            config,
            kernel.modules_dir,
            root=subject.host.root,
            same_kernel=kernel.is_running,
            find_network=subject.find_network,
        )
    except NotReadyError as exc:
        return _explain(subject, name, source, exc)
    except PostpanicError as exc:
        return Check(GROUP, name, "failing", exc.message, (Fact(source, str(exc)),), exc.hint or f"mend {source}")
    facts = tuple(Fact(source, line) for line in resolved.needs.evidence)
    # Room is a check of its own.
    warnings = [line for line in resolved.needs.warnings if not line.endswith(" free")]
    found = resolved.needs.evidence[0].partition(": ")[2] if resolved.needs.evidence else "found"
    if warnings:
        facts += tuple(Fact(source, line) for line in warnings)
        return Check(GROUP, name, "warning", "; ".join(line.removeprefix(f"{name}: ") for line in warnings), facts)
    return Check(GROUP, name, "ok", found, facts)


def _explain(subject: Subject, name: str, source: str, exc: NotReadyError) -> Check:
    """Tell what is not there from what cannot be seen: as a user, or in another machine's tree."""
    facts = (Fact(source, str(exc)),)
    by_rights = not subject.host.is_root and ("permission denied" in exc.message.lower() or "root" in exc.hint)
    if by_rights:
        return Check(GROUP, name, "unknown", exc.message, facts, needs_root=True)
    is_unseen = not subject.is_running and not subject.exists("proc/self/mountinfo")
    if is_unseen or (subject.find_network is None and "network" in exc.message):
        return Check(GROUP, name, "unknown", exc.message, facts)
    return Check(GROUP, name, "failing", exc.message, facts, exc.hint or f"mend the target in {source}")


def _name(target: TargetConfig) -> str:
    match target:
        case FileTarget():
            return f"file {target.path}" + (f" of {target.device}" if target.device else "")
        case RawTarget():
            return f"raw {target.device}"
        case NfsTarget():
            return f"nfs {target.server}:{target.export}"
        case SshTarget():
            return f"ssh {target.user}@{target.server}:{target.path}"
        case HttpTarget():
            return f"http {urlsplit(target.url).hostname}"


def _server_of(target: TargetConfig) -> _Server | None:
    match target:
        case NfsTarget():
            return _Server(target.server, 2049)
        case SshTarget():
            return _Server(target.server, target.port)
        case HttpTarget():
            parts = urlsplit(target.url)
            return _Server(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        case _:
            return None


def _check_server(subject: Subject, name: str, server: _Server) -> Check:
    asked = f"connect {server.name}:{server.port}"
    if subject.connect is None:
        return Check(GROUP, f"reach {name}", "unknown", "not asked", (Fact(asked, "not tried"),))
    problem = subject.connect(server.name, server.port)
    if not problem:
        return Check(GROUP, f"reach {name}", "ok", f"{server.name} answers", (Fact(asked, "connected"),))
    mend = f"ip route get {server.name}; see whether the server runs, and port {server.port} is open"
    return Check(GROUP, f"reach {name}", "failing", f"{server.name}: {problem}", (Fact(asked, problem),), mend)


def _check_room_of(subject: Subject, name: str, target: TargetConfig, size: DumpSize | None) -> Iterator[Check]:
    match target:
        case FileTarget(device=None):
            yield _check_room(subject, name, target.path, size, target.limit_bytes, _spells_keep(target))
        case RawTarget():
            yield _check_raw_room(subject, name, str(target.device), size)
        case _:
            yield Check(GROUP, f"room {name}", "unknown", "only the capture kernel will see it")


def _spells_keep(target: FileTarget) -> str:
    return f"; {target.keep_count} dumps are kept" if target.keep_count else ""


def _check_room(
    subject: Subject, name: str, path: str, size: DumpSize | None, limit_bytes: int = 0, rest: str = ""
) -> Check:
    name = f"room {name}"
    directory = subject.host.path(path)
    while not directory.is_dir() and directory != subject.host.root and directory != directory.parent:
        directory = directory.parent
    if not subject.is_running and not subject.mounts:
        return Check(GROUP, name, "unknown", "of another machine's disk", (Fact(subject.show(directory), "a copy"),))
    try:
        room = subject.read_room(directory)
    except OSError as exc:
        return Check(GROUP, name, "unknown", (exc.strerror or str(exc)).lower(), (Fact(subject.show(directory), ""),))
    shown = f"{format_size(room.free_bytes)} of {format_size(room.total_bytes)} free{rest}"
    facts = (Fact(f"statvfs {subject.show(directory)}", shown),)
    if room.is_read_only:
        mend = f"dmesg | grep -i remount; mount -o remount,rw {path}"
        return Check(GROUP, name, "warning", "mounted read-only, perhaps after an error", facts, mend)
    free = min(room.free_bytes, limit_bytes) if limit_bytes else room.free_bytes
    is_limit = free < room.free_bytes
    found = f"limit = {format_size(limit_bytes)} is less than the dump" if is_limit else shown
    mend = f"raise limit in {subject.config_source}" if is_limit else f"du -xh --max-depth=1 {path}, and make room"
    return _judge_room(name, free, size, found, facts, mend)


def _check_raw_room(subject: Subject, name: str, device: str, size: DumpSize | None) -> Check:
    name = f"room {name}"
    place = _find_block(subject, device)
    sectors = subject.read(f"sys/class/block/{place}/size") if place else None
    if sectors is None or sectors.number is None:
        return Check(GROUP, name, "unknown", "its size cannot be read", (Fact(f"/sys/class/block/{place}/size", ""),))
    room = sectors.number * 512
    mend = "name a larger device, or save to a directory"
    return _judge_room(name, room, size, format_size(room), (sectors.fact,), mend)


def _find_block(subject: Subject, device: str) -> str:
    """Give a device's name in sysfs, by its path, or by udev's links for its tag."""
    tag, equals, value = device.partition("=")
    path = f"dev/disk/by-{tag.lower()}/{value}" if equals else device
    found = subject.resolve(path)
    return found.name if found is not None else ""


def _judge_room(name: str, free: int, size: DumpSize | None, found: str, facts: tuple[Fact, ...], mend: str) -> Check:
    if size is None:
        return Check(GROUP, name, "unknown", f"{found}; how large a dump would be is not known", facts)
    facts += size.evidence
    if free < size.packed_bytes // _HARDLY_FITS:
        what = f"{found}: a dump of about {format_size(size.packed_bytes)} does not fit"
        return Check(GROUP, name, "failing", what, facts, mend)
    if free < size.packed_bytes:
        what = f"{found}: a dump of about {format_size(size.packed_bytes)} hardly fits"
        return Check(GROUP, name, "warning", what, facts, mend)
    return Check(GROUP, name, "ok", found, facts)


def _check_tool(subject: Subject, tool: DumpTool, size: DumpSize | None) -> Iterator[Check]:
    for target in tool.targets:
        yield _check_tool_target(subject, tool, target)
        if target.kind == "file" and not target.device:
            yield _check_room(subject, target.description, target.path, size)
        elif target.kind in {"file", "raw"}:
            yield _check_raw_room(subject, target.description, target.device, size)
        elif target.server and target.port:
            yield _check_server(subject, target.description, _Server(target.server, target.port))


def _check_tool_target(subject: Subject, tool: DumpTool, target: ToolTarget) -> Check:
    name = target.description
    says = Fact(tool.config, name)
    if target.kind not in {"file", "raw"}:
        return Check(GROUP, name, "ok", f"as {tool.config} has it", (says,))
    if target.device:
        place = _find_block(subject, target.device)
        if place:
            return Check(GROUP, name, "ok", f"{target.device} is {place}", (says,))
        if not subject.exists("dev/disk"):
            return Check(GROUP, name, "unknown", "no /dev/disk here", (says,))
        mend = f"mend {tool.config}: blkid lists the devices"
        return Check(GROUP, name, "failing", f"there is no {target.device}", (says,), mend)
    if not subject.mounts:
        return Check(GROUP, name, "unknown", "what is mounted cannot be seen", (says,))
    try:
        place_ = find_place(target.path, subject.mounts, subject.host.root, where=name)
    except NotReadyError as exc:
        return Check(GROUP, name, "failing", exc.message, (says,), f"mend {tool.config}")
    mount = place_.mount
    found = f"{place_.path} of the {mount.filesystem} on {mount.source}"
    facts = (says, Fact("/proc/self/mountinfo", f"{mount.source} {mount.directory} {mount.filesystem}"))
    if mount.filesystem in {"tmpfs", "ramfs", "overlay"}:
        mend = f"name a directory on a disk in {tool.config}"
        return Check(GROUP, name, "failing", f"{found}: nothing of it survives", facts, mend)
    return Check(GROUP, name, "ok", found, facts)


def list_local_stacks(subject: Subject) -> Iterator[tuple[str, str]]:
    """Yield what lies between a target of this machine and its disks: kind and description."""
    paths = (
        [target.path for target in subject.tool.targets if target.kind == "file" and not target.device]
        if subject.tool is not None
        else [
            one.path
            for one in (*subject.config.targets, *subject.config.fallbacks)
            if isinstance(one, FileTarget) and one.device is None
        ]
    )
    for path in paths:
        try:
            mount = find_place(path, subject.mounts, subject.host.root).mount
        except PostpanicError:
            continue
        directory = subject.host.path(f"sys/dev/block/{mount.device}")
        if not directory.exists():
            directory = subject.host.path(f"sys/class/block/{Path(mount.source).name}")
        if directory.exists():
            for stack in list_stacks(directory, subject.host.path("sys")):
                yield stack.kind, stack.description
