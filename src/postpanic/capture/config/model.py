"""What ``/etc/postpanic.toml`` says: one dataclass for each of its tables."""

# ruff: noqa: RUF009 - key() declares a field as dataclasses.field() does

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from postpanic.capture.config import values as v
from postpanic.capture.config.tables import key, one_table, required, tables, tables_by_kind
from postpanic.capture.config.targets import TARGETS, TargetConfig
from postpanic.saver.plan import FinalAction

__all__ = [
    "AfterConfig",
    "CaptureConfig",
    "Config",
    "DumpConfig",
    "HookConfig",
    "HooksConfig",
    "InterfaceConfig",
    "LimitsConfig",
    "NetworkConfig",
    "PanicConfig",
    "RouteConfig",
]

_HOUR_S = 3600.0
_ACTION: v.Value[FinalAction] = v.choice("reboot", "poweroff", "halt", "shell")


@dataclass(frozen=True, kw_only=True)
class DumpConfig:
    """``[dump]``: what is saved; a target may say otherwise."""

    level: tuple[int, ...] = key(
        v.LEVELS,
        (31,),
        "Which pages are left out, as makedumpfile's -d. Of a list the next one is tried where the dump does not fit.",
        shown="31",
    )
    compression: str = key(v.choice("zstd", "none"), "zstd", "How pages are compressed.")
    compression_level: int | None = key(
        v.integer(-7, 19), None, "Of zstd; without it the saver takes a fast one.", shown="the saver's"
    )
    self_test: bool = key(
        v.FLAG,
        default=True,
        summary="Check that the crashing task, the kernel's text and the page tables are in the dump.",
    )


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """``[capture]``: the capture kernel and its image."""

    kernel: str = key(
        v.TEXT, "same", '"same" as the one that runs, the release of another one, or the path of its file.'
    )
    command_line: tuple[str, ...] | None = key(
        v.COMMAND_LINE,
        None,
        "Of the capture kernel, to take the place of what is made of this kernel's.",
        shown="this kernel's, with what capturing needs",
    )
    command_line_append: tuple[str, ...] = key(v.COMMAND_LINE, (), "Words to add to it.")
    command_line_remove: tuple[str, ...] = key(
        v.list_of(v.TEXT), (), 'Words to leave out of it: "quiet", "console=ttyS1", or "console" for each of them.'
    )
    nr_cpus: int = key(v.integer(1, 256), 1, "Processors that the capture kernel uses; each takes memory.")
    kexec: Literal["auto", "file", "legacy"] = key(
        v.choice("auto", "file", "legacy"),
        "auto",
        "Which system call loads it: kexec_file_load, or kexec_load by way of the program kexec (on arm64 without it); "
        "auto takes the second where the first is not there.",
    )
    reset_vga: bool = key(
        v.FLAG,
        default=False,
        summary="Of the program kexec: put a VGA card back into text mode, for screens that stay dark.",
    )
    console_vga: bool = key(
        v.FLAG,
        default=False,
        summary="Of the program kexec: say on the screen that the capture kernel is about to start.",
    )
    core_headers: Literal["auto", "elf32", "elf64"] = key(
        v.choice("auto", "elf32", "elf64"),
        "auto",
        "Of the program kexec: elf32 for capture kernels of 32 bits, elf64 for memory above 4 GiB.",
    )
    hotplug: bool = key(
        v.FLAG,
        default=False,
        summary="Of the program kexec: let the kernel follow memory and processors that come and go.",
    )
    kexec_options: tuple[str, ...] = key(v.list_of(v.TEXT), (), "Further options of the program kexec.")
    save_memory: bool = key(
        v.FLAG, default=True, summary="Switch off what costs the capture kernel memory and saving does not need."
    )
    image: Literal["own", "initramfs-tools", "dracut"] = key(
        v.choice("own", "initramfs-tools", "dracut"),
        "own",
        "Whose image the saver is in: postpanic's own, or the distribution's, which also opens LVM, LUKS, RAID, "
        "multipath and iSCSI.",
    )
    image_compression: str = key(
        v.choice("auto", "zstd", "xz", "gzip", "none"), "auto", "Of the image; auto takes the best the kernel can read."
    )
    modules: tuple[str, ...] = key(v.list_of(v.TEXT), (), "Kernel modules to load beside those that are found.")
    firmware: tuple[str, ...] = key(
        v.list_of(v.RELATIVE_PATH), (), "Files below /lib/firmware to put in beside those that modules name."
    )
    include: tuple[str, ...] = key(
        v.list_of(v.PATH),
        (),
        "Files and programs to put into the image, at the same path; programs with their libraries.",
    )
    devices: Literal["needed", "all"] = key(
        v.choice("needed", "all"),
        "needed",
        "Which devices get a driver: those that the targets need, so that a disk that hung the host does not hang "
        "the capture, or all.",
    )


@dataclass(frozen=True, kw_only=True)
class PanicConfig:
    """``[panic]``: what makes the kernel panic. Keys that are not given are left as they are."""

    panic: int | None = key(
        v.integer(-1, 86400),
        None,
        "kernel.panic: reboot so many seconds after a panic that was not captured.",
        shown="left as it is",
    )
    panic_on_oops: bool | None = key(v.FLAG, default=True, summary="kernel.panic_on_oops: an oops is a panic.")
    softlockup_panic: bool | None = key(
        v.FLAG, None, "kernel.softlockup_panic: a processor that schedules nothing for 20 s.", shown="left as it is"
    )
    hardlockup_panic: bool | None = key(
        v.FLAG, None, "kernel.hardlockup_panic: a processor that takes no interrupts for 10 s.", shown="left as it is"
    )
    hung_task_panic: bool | None = key(
        v.FLAG, None, "kernel.hung_task_panic: a task that sleeps without end.", shown="left as it is"
    )
    hung_task_timeout_secs: int | None = key(
        v.integer(0, 86400 * 30), None, "kernel.hung_task_timeout_secs: how long that is.", shown="left as it is"
    )
    panic_on_rcu_stall: bool | None = key(
        v.FLAG, None, "kernel.panic_on_rcu_stall: a grace period that does not end.", shown="left as it is"
    )
    panic_on_warn: bool | None = key(
        v.FLAG,
        None,
        "kernel.panic_on_warn: every warning; only for kernels that are being tested.",
        shown="left as it is",
    )
    panic_on_oom: int | None = key(
        v.integer(0, 2),
        None,
        "vm.panic_on_oom: 1 when memory is used up, 2 also that of a control group.",
        shown="left as it is",
    )
    sysrq: int | None = key(
        v.integer(0, 511),
        None,
        "kernel.sysrq: which requests the keyboard may make; 8 has the crash.",
        shown="left as it is",
    )


@dataclass(frozen=True, kw_only=True)
class RouteConfig:
    """``[[network.interface.route]]``: a route."""

    destination: str = key(v.TEXT, "default", '"default" or a network, as in "192.0.2.0/24".')
    gateway: str = key(v.ADDRESS, "", "By way of this host; without it the network is on the link.")
    source: str = key(v.ADDRESS, "", "The address to send from.")


@dataclass(frozen=True, kw_only=True)
class InterfaceConfig:
    """``[[network.interface]]``: a network interface; those that others are made of come first."""

    name: str = required(v.TEXT, "The interface's name on this machine.")
    kind: Literal["physical", "vlan", "bond"] = key(v.choice("physical", "vlan", "bond"), "physical", "What it is.")
    mac: str = key(v.HARDWARE_ADDRESS, "", "Its hardware address.", shown="that of the interface of this name")
    parent: str = key(v.TEXT, "", "Of a VLAN: the interface below it.")
    vlan_id: int = key(v.integer(0, 4094), 0, "Of a VLAN.")
    members: tuple[str, ...] = key(v.list_of(v.TEXT), (), "Of a bond: the interfaces in it.")
    bond_options: tuple[tuple[str, str], ...] = key(
        v.HEADERS, (), "Of a bond: names and values as in /sys/class/net/*/bonding."
    )
    mtu: int = key(v.integer(0, 65535), 0, "Its MTU; 0 is the driver's.")
    method: Literal["none", "static", "dhcp", "auto6"] = key(
        v.choice("none", "static", "dhcp", "auto6"),
        "none",
        "How it gets its addresses: static, dhcp, auto6 (router advertisements), or none of its own.",
    )
    addresses: tuple[str, ...] = key(v.list_of(v.PREFIX), (), 'Static ones: "192.0.2.7/24", "2001:db8::7/64".')
    routes: tuple[RouteConfig, ...] = tables(RouteConfig, "Its routes.", name="route")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """``[network]``: how to reach the servers. Without interfaces this machine's own set-up is taken over."""

    interfaces: tuple[InterfaceConfig, ...] = tables(InterfaceConfig, "Interfaces, in order.", name="interface")
    nameservers: tuple[str, ...] = key(v.list_of(v.ADDRESS), (), "Name servers.", shown="this machine's")
    wait_s: float = key(v.duration(1, 600), 30.0, "How long to wait for a link.", name="wait", shown='"30 s"')


@dataclass(frozen=True, kw_only=True)
class HookConfig:
    """``[[hooks.before]]``, ``[[hooks.after]]``: a program that is run in the capture kernel."""

    command: tuple[str, ...] = required(
        v.list_of(v.TEXT), "The program's path on this machine, and its arguments; it is put into the image."
    )
    timeout_s: float = key(
        v.duration(1, _HOUR_S), 60.0, "After which it is killed; saving goes on.", name="timeout", shown='"60 s"'
    )


@dataclass(frozen=True, kw_only=True)
class HooksConfig:
    """``[hooks]``: programs before and after saving."""

    before: tuple[HookConfig, ...] = tables(HookConfig, "Before anything is saved.")
    after: tuple[HookConfig, ...] = tables(HookConfig, "When all is saved, or has failed.")


@dataclass(frozen=True, kw_only=True)
class AfterConfig:
    """``[after]``: what becomes of the machine."""

    success: FinalAction = key(_ACTION, "reboot", "When a dump was saved.")
    failure: FinalAction = key(_ACTION, "reboot", "When none was.")


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """``[limits]``: time and memory of the capture."""

    timeout_s: float = key(
        v.duration(30, 7 * 24 * _HOUR_S),
        _HOUR_S,
        "Of everything; then the machine is rebooted whatever its state.",
        name="timeout",
        shown='"1 h"',
    )
    device_wait_s: float = key(
        v.duration(1, 600), 30.0, "How long to wait for devices to appear.", name="device_wait", shown='"30 s"'
    )
    buffer_bytes: int = key(
        v.SIZE, 0, "Memory for pages on their way; 0 lets the saver choose by what is free.", name="buffer"
    )
    threads: int = key(v.integer(1, 64), 1, "Threads that compress; more than nr_cpus are of no use.")
    watchdog: bool = key(v.FLAG, default=True, summary="Feed the hardware's watchdogs while saving.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole file."""

    targets: tuple[TargetConfig, ...] = tables_by_kind(TARGETS, "Places to save to, all at once.", name="target")
    fallbacks: tuple[TargetConfig, ...] = tables_by_kind(
        TARGETS, "Places to try one after the other when none of the targets has a dump.", name="fallback"
    )
    dump: DumpConfig = one_table(DumpConfig, "What is saved.")
    capture: CaptureConfig = one_table(CaptureConfig, "The capture kernel and its image.")
    panic: PanicConfig = one_table(PanicConfig, "What makes the kernel panic.")
    network: NetworkConfig = one_table(NetworkConfig, "How to reach the servers.")
    hooks: HooksConfig = one_table(HooksConfig, "Programs before and after saving.")
    after: AfterConfig = one_table(AfterConfig, "What becomes of the machine.")
    limits: LimitsConfig = one_table(LimitsConfig, "Time and memory of the capture.")
