"""What the machine boots: the subject's kernel, with an image in which our PID 1 has the subject's image to load."""

from __future__ import annotations

from dataclasses import replace

from postpanic.capture.crashing import KINDS, LKDTM_TRIGGER
from postpanic.capture.hooks.borrowed_image import append_archive
from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.image import MODULES_DIR, ImageRequest, build_image
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.errors import NotReadyError, PostpanicError
from postpanic.rehearse.boards import Board
from postpanic.rehearse.debugger import list_strikes
from postpanic.rehearse.job import (
    HUNG_TASK,
    IMAGE_PATH,
    JOB_PATH,
    KERNEL_PATH,
    NMI,
    OUT_OF_MEMORY,
    GuestJob,
    encode_job,
)
from postpanic.rehearse.staging import Staging
from postpanic.rehearse.subject import Subject
from postpanic.saver.plan import PLAN_PATH, FilePlan
from postpanic.saver.plan_json import encode_plan

__all__ = ["build_initramfs", "can_crash", "needs_strike"]

_ENTRY = "postpanic.rehearse.guest"
_KEEP = ("postpanic.capture", "postpanic.rehearse", "tarfile", "bz2", "_bz2", "lzma", "_lzma")
_COLLECT_DEVICE = "/dev/vda"


def build_initramfs(subject: Subject, staging: Staging, board: Board, crash: str) -> bytes:
    """
    Build the machine's own image.

    Raises
    ------
    NotReadyError
        If the kernel cannot crash like this, or something that goes in is missing.
    """
    tree = ModuleTree(subject.modules_dir)
    wanted = [*staging.controller.modules, "virtio_pci", "virtio_blk"]
    wanted += [target.filesystem for target in subject.targets if isinstance(target, FilePlan)]
    modules = [name for name in dict.fromkeys(wanted) if name in tree]
    if not can_crash(subject, crash):
        raise NotReadyError(
            f"kernel {subject.host.release} has no module lkdtm, by which to crash like this: {crash}",
            hint=f"without it: {', '.join(_list_unaided(subject))}",
        )
    if needs_module(crash) and "lkdtm" in tree:
        modules.append("lkdtm")
    prepared = subject.prepared
    job = GuestJob(
        machine=subject.host.machine,
        command_line=f"{prepared.command_line.text} {board.command_line}",
        modules=tuple(f"{MODULES_DIR}/{name}.ko" for name in tree.resolve(modules)),
        crash=crash,
        needs_strike=needs_strike(subject, crash),
        settings=_settings_of(subject, crash),
        free_bytes={str(number): room for number, room in staging.free_bytes.items()},
        out_device=_COLLECT_DEVICE,
    )
    files = {
        KERNEL_PATH: prepared.kernel.image.read_bytes(),
        IMAGE_PATH: _append_plan(subject, staging),
        str(JOB_PATH): encode_job(job),
    }
    request = ImageRequest(
        # Neither network nor servers are this machine's business before it crashes.
        plan=replace(staging.plan, before=(), after=()),
        modules_dir=subject.modules_dir,
        modules=dict.fromkeys(modules, ""),
        root=subject.host.root,
        compression="none",
        files=files,
        entry=_ENTRY,
        keep=_KEEP,
    )
    try:
        return build_image(request).data
    except PostpanicError as exc:
        raise NotReadyError(f"the machine's own image: {exc.message}", where=exc.where, hint=exc.hint) from exc


def can_crash(subject: Subject, crash: str) -> bool:
    """Tell whether the subject's kernel can crash like this."""
    return crash in _list_unaided(subject) or "lkdtm" in ModuleTree(subject.modules_dir)


def _list_unaided(subject: Subject) -> list[str]:
    return ["sysrq", NMI, OUT_OF_MEMORY, HUNG_TASK, *list_strikes(subject.host.machine)]


def needs_module(crash: str) -> bool:
    """Tell whether a machine that crashes itself like this does so by the kernel's test module."""
    return crash in KINDS and KINDS[crash].trigger == LKDTM_TRIGGER


def needs_strike(subject: Subject, crash: str) -> bool:
    """Tell whether the subject's kernel has to be crashed from outside: it has no module for it."""
    return crash in list_strikes(subject.host.machine) and "lkdtm" not in ModuleTree(subject.modules_dir)


def _append_plan(subject: Subject, staging: Staging) -> bytes:
    """Return the subject's image, with what the machine has otherwise behind it: files that come later win."""
    tree = ImageTree()
    lines = list(staging.plan.modules)
    modules = ModuleTree(subject.prepared.kernel.modules_dir)
    for name in modules.sort_by_dependency([one for one in staging.lent if one in modules]):
        path = f"{MODULES_DIR}/{name}.ko"
        if path not in [line.split(" ", 1)[0] for line in lines]:
            tree.add_bytes(path, modules.read(name))
            lines.append(path)
    for path, content in staging.files.items():
        tree.add_bytes(path, content, 0o700 if content.startswith(b"#!") else 0o600)
    tree.add_bytes(str(PLAN_PATH), encode_plan(replace(staging.plan, modules=tuple(lines))), 0o600)
    return append_archive(subject.image, tree.encode())


def _settings_of(subject: Subject, crash: str) -> dict[str, int]:
    """Give the sysctls for the crash: the subject's policy, and that which makes a panic of it."""
    settings = dict(subject.settings)
    needed = {
        "bug": {"kernel.panic_on_oops": 1},
        "null": {"kernel.panic_on_oops": 1},
        "softlockup": {"kernel.softlockup_panic": 1, "kernel.watchdog_thresh": 2},
        "hardlockup": {"kernel.hardlockup_panic": 1, "kernel.watchdog_thresh": 2},
        HUNG_TASK: {"kernel.hung_task_panic": 1, "kernel.hung_task_timeout_secs": 5},
        NMI: {"kernel.unknown_nmi_panic": 1},
        OUT_OF_MEMORY: {"vm.panic_on_oom": 2, "vm.overcommit_memory": 1},
    }
    return settings | needed.get(crash, {})
