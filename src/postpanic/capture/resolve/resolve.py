"""From the configuration to the plan: everything that can be found out before the crash is found out here."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from postpanic.capture.config import Config, FileTarget, HttpTarget, NfsTarget, RawTarget, SshTarget, TargetConfig
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.capture.resolve.disks import LocalDisks
from postpanic.capture.resolve.drivers import choose_driver_modules, read_module_options
from postpanic.capture.resolve.needs import FoundNetwork, Needs, merge_needs
from postpanic.capture.resolve.networks import plan_given_network
from postpanic.capture.resolve.servers import Servers
from postpanic.capture.resolve.settings import settings_of
from postpanic.capture.resolve.sysfs import find_drivers, stable_path
from postpanic.capture.resolve.watchdogs import Watchdog, find_watchdogs
from postpanic.errors import NotReadyError
from postpanic.saver.plan import DevicePlan, HookPlan, SavePlan, TargetPlan

__all__ = ["NetworkFinder", "Resolved", "list_servers", "resolve"]


NetworkFinder = Callable[[Config, Sequence[str]], FoundNetwork]
"""Finds how to reach servers, by name or address."""


@dataclass(frozen=True)
class Resolved:
    """
    What a configuration means on this machine.

    Attributes
    ----------
    plan : SavePlan
        Without its modules: their files are the image's business.
    modules : tuple of str
        Names, in no order.
    module_options : dict
        Parameters for modules, by name.
    needs : Needs
        Files and programs, evidence and warnings.
    """

    plan: SavePlan
    modules: tuple[str, ...]
    module_options: dict[str, str]
    needs: Needs


def resolve(
    config: Config,
    modules_dir: Path,
    *,
    root: Path = Path("/"),
    same_kernel: bool = True,
    find_network: NetworkFinder | None = None,
) -> Resolved:
    """
    Find devices, drivers, files and networks for a configuration.

    Parameters
    ----------
    modules_dir : Path
        ``lib/modules/RELEASE`` of the capture kernel.
    root : Path
        Below which this machine's files are.
    same_kernel : bool
        Whether the capture kernel is the one that runs.
    find_network : callable, optional
        Is asked where servers are among the targets, and no network is given.

    Raises
    ------
    NotReadyError
        If a target cannot be reached from a capture kernel; says which and why.
    """
    is_borrowed = config.capture.image != "own"
    resolver = _TargetResolver(config, LocalDisks(root, allows_stacks=is_borrowed), Servers(root))
    targets = [resolver.resolve(target) for target in config.targets]
    fallbacks = [resolver.resolve(target) for target in config.fallbacks]
    needs = merge_needs(part for _, part in (*targets, *fallbacks))
    tree = ModuleTree(modules_dir)
    network = _find_network(config, find_network, tree, root, same_kernel=same_kernel)
    sysfs = root / "sys"
    places = (*needs.places, *(network.devices if network else ()))
    watchdogs = find_watchdogs(sysfs) if config.limits.watchdog and not is_borrowed else []
    places += tuple(one.place for one in watchdogs)
    drivers = [driver for place in places for driver in find_drivers(place, sysfs)]
    # A distribution's image loads the drivers of its disks by itself.
    modules = dict.fromkeys([] if is_borrowed else choose_driver_modules(drivers, tree, same_kernel=same_kernel))
    modules |= dict.fromkeys((*needs.modules, *_network_modules(network, tree), *config.capture.modules))
    devices, warnings = _plan_devices(config, needs, network, watchdogs, sysfs)
    plan = replace(
        _plan_rest(config, root),
        devices=devices,
        network=replace(network.plan, wait_s=config.network.wait_s) if network else None,
        targets=tuple(plan for plan, _ in targets),
        fallbacks=tuple(plan for plan, _ in fallbacks),
    )
    needs = replace(
        needs,
        programs=(*needs.programs, *(hook.command[0] for hook in (*plan.before, *plan.after))),
        evidence=(
            *needs.evidence,
            *(network.evidence if network else ()),
            *(f"{one.name}: {one.identity or 'a watchdog'}, which runs, is fed" for one in watchdogs),
        ),
        warnings=(*needs.warnings, *warnings),
    )
    options = read_module_options(root)
    return Resolved(plan, tuple(modules), {name: options[name] for name in modules if name in options}, needs)


def _plan_rest(config: Config, root: Path) -> SavePlan:
    """Plan what needs nothing of the machine but its name."""
    return SavePlan(
        node=_read_node(root),
        before=tuple(HookPlan(command=hook.command, timeout_s=hook.timeout_s) for hook in config.hooks.before),
        after=tuple(HookPlan(command=hook.command, timeout_s=hook.timeout_s) for hook in config.hooks.after),
        after_success=config.after.success,
        after_failure=config.after.failure,
        threads=config.limits.threads,
        buffer_bytes=config.limits.buffer_bytes,
        self_test=config.dump.self_test,
        feed_watchdogs=config.limits.watchdog,
        timeout_s=config.limits.timeout_s,
    )


class _TargetResolver:
    def __init__(self, config: Config, disks: LocalDisks, servers: Servers) -> None:
        self._config = config
        self._disks = disks
        self._servers = servers
        self._count = 0

    def resolve(self, target: TargetConfig) -> tuple[TargetPlan, Needs]:
        settings = settings_of(target, self._config.dump)
        self._count += 1
        match target:
            case FileTarget():
                return self._disks.resolve_file(target, settings)
            case RawTarget():
                return self._disks.resolve_raw(target, settings)
            case NfsTarget():
                return self._servers.resolve_nfs(target, settings)
            case SshTarget():
                return self._servers.resolve_ssh(target, settings, self._count)
            case HttpTarget():
                return self._servers.resolve_http(target, settings, self._count)


def list_servers(config: Config) -> list[str]:
    """List the servers of all targets, each once."""
    from urllib.parse import urlsplit

    names: list[str] = []
    for target in (*config.targets, *config.fallbacks):
        if isinstance(target, NfsTarget | SshTarget):
            names.append(target.server)
        elif isinstance(target, HttpTarget):
            names.append(urlsplit(target.url).hostname or "")
    return list(dict.fromkeys(names))


def _find_network(
    config: Config, find: NetworkFinder | None, tree: ModuleTree, root: Path, *, same_kernel: bool
) -> FoundNetwork | None:
    servers = list_servers(config)
    if not servers:
        return None
    if config.network.interfaces:
        return plan_given_network(config.network, servers, tree, root=root, same_kernel=same_kernel)
    if find is None:
        raise NotReadyError(f"no network can be set up to reach {servers[0]}", hint="save to a disk of this machine")
    return find(config, servers)


def _network_modules(network: FoundNetwork | None, tree: ModuleTree) -> list[str]:
    """Name the network's modules that the capture kernel has; cards bring theirs by themselves."""
    if network is None:
        return []
    cards = bool(network.devices)
    return [name for name in network.modules if not cards or name in tree or name in tree.built_in]


def _plan_devices(
    config: Config, needs: Needs, network: FoundNetwork | None, watchdogs: Sequence[Watchdog], sysfs: Path
) -> tuple[DevicePlan, list[str]]:
    if config.capture.devices == "all" or config.capture.image != "own":
        return DevicePlan(bind_all=True, wait_s=config.limits.device_wait_s), []
    if not (sysfs / "class/block").is_dir():
        warning = "the machine's devices are not known here: every device gets a driver, modules must be named"
        return DevicePlan(bind_all=True, wait_s=config.limits.device_wait_s), [warning]
    paths: list[str] = list(network.sysfs_paths) if network else []
    for place in needs.places:
        path = stable_path(place, sysfs)
        if not path:
            warning = f"{place.name} has no place of its own: every device gets a driver in the capture kernel"
            return DevicePlan(bind_all=True, wait_s=config.limits.device_wait_s), [warning]
        paths.append(path)
    paths += filter(None, (stable_path(one.place, sysfs) for one in watchdogs))
    return DevicePlan(sysfs_paths=tuple(dict.fromkeys(paths)), wait_s=config.limits.device_wait_s), []


def _read_node(root: Path) -> str:
    """Give the machine's name, as it can be part of a file's name."""
    name = platform.node() if root == Path("/") else ""
    if not name:
        try:
            name = (root / "etc/hostname").read_text(errors="replace").strip()
        except OSError:
            name = ""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name.partition(".")[0])[:64] or "localhost"
