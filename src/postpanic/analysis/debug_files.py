"""
Give drgn the debug information of the kernel and of each loaded module.

Files of the user and of the standard places are matched by build ID, which
drgn does; what they do not cover comes from the files synthesized from the
dump.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import drgn

from postpanic.errors import FactAbsentError, FileFaultError, MismatchError
from postpanic.kernel.debuginfo.build import SynthesizedDebuginfo

__all__ = ["DebugKind", "DebugPolicy", "DebugSource", "load_debug_files"]

KERNEL = "kernel"
"""Name of the main module, as drgn calls it."""


class DebugKind(enum.Enum):
    """Where the debug information of one module comes from."""

    REAL = "real"
    SYNTHESIZED = "synthesized"
    NONE = "none"


class DebugPolicy(enum.Enum):
    """Which debug information may be used."""

    AUTO = "auto"
    """Real where it is given or found, synthesized for the rest."""
    REAL = "real"
    """Real only; a module without it stays without."""
    SYNTHESIZED = "synthesized"
    """From the dump only, whatever lies on the disk."""


@dataclass(frozen=True, slots=True)
class DebugSource:
    """Debug information of one module: ``kernel`` or a loadable module's name."""

    module: str
    kind: DebugKind
    file: Path | None
    reason: str = ""
    """Why there is none, or what is missing; empty when nothing is."""


def _has_debug_file(module: drgn.Module) -> bool:
    return bool(module.debug_file_status == drgn.ModuleFileStatus.HAVE)


def _source_of(module: drgn.Module, kind: DebugKind, reason: str = "") -> DebugSource:
    path = module.debug_file_path
    return DebugSource(module.name, kind, Path(path) if path else None, reason)


def _refuse_vmlinux(vmlinux: Path, wanted: bytes | None) -> FileFaultError:
    """Say why drgn did not take a vmlinux: it only says that it did not."""
    probe = drgn.Program().extra_module("vmlinux", create=True)
    try:
        probe.try_file(vmlinux, force=True)
    except (OSError, ValueError, LookupError) as exc:
        return MismatchError(f"cannot be used as a vmlinux: {exc}", where=str(vmlinux))
    hint = "leave it out: the dump can be opened without one"
    if probe.build_id is None:
        return MismatchError(
            "has no build ID, so nothing shows that it belongs to the dump", where=str(vmlinux), hint=hint
        )
    if wanted is not None and probe.build_id != wanted:
        return MismatchError(
            f"its build ID is {probe.build_id.hex()}, the dump's kernel has {wanted.hex()}",
            where=str(vmlinux),
            hint=hint,
        )
    return MismatchError("has no debug information of the dump's kernel (DWARF)", where=str(vmlinux), hint=hint)


def _load_main(
    prog: drgn.Program,
    main: drgn.MainModule,
    policy: DebugPolicy,
    vmlinux: Path | None,
    synthesize: Callable[[], SynthesizedDebuginfo],
) -> DebugSource:
    if vmlinux is not None:
        try:
            main.try_file(vmlinux)
        except (OSError, ValueError) as exc:
            raise MismatchError(f"cannot be read as a vmlinux: {exc}", where=str(vmlinux)) from exc
        if not _has_debug_file(main):
            raise _refuse_vmlinux(vmlinux, main.build_id)
        return _source_of(main, DebugKind.REAL)
    if policy is not DebugPolicy.SYNTHESIZED:
        # Whether drgn found anything shows in the module; it does not always raise when it has not.
        with contextlib.suppress(drgn.MissingDebugInfoError):
            prog.load_module_debug_info(main)
        if _has_debug_file(main):
            return _source_of(main, DebugKind.REAL)
        if policy is DebugPolicy.REAL:
            raise FactAbsentError(
                "no debug information of the dump's kernel was found",
                hint="give a vmlinux, or let it be synthesized from the dump",
            )
    synthesized = synthesize()
    main.try_file(synthesized.vmlinux, force=True)
    return _source_of(main, DebugKind.SYNTHESIZED)


def _load_modules(
    prog: drgn.Program,
    policy: DebugPolicy,
    files: Sequence[Path],
    synthesize: Callable[[], SynthesizedDebuginfo],
) -> list[DebugSource]:
    modules = [module for module, _ in prog.loaded_modules() if module.name != KERNEL]
    if files:
        try:
            prog.load_debug_info(list(files))
        except drgn.MissingDebugInfoError:
            pass
        except (OSError, ValueError) as exc:
            raise MismatchError(f"cannot be read as a module's debug information: {exc}", where=str(files[0])) from exc
    if policy is not DebugPolicy.SYNTHESIZED:
        with contextlib.suppress(drgn.MissingDebugInfoError):
            prog.load_module_debug_info(*modules)
    real = {module.name for module in modules if _has_debug_file(module)}
    if policy is not DebugPolicy.REAL and len(real) < len(modules):
        made = synthesize().modules
        for module in modules:
            if module.name not in real and module.name in made:
                module.try_file(made[module.name], force=True)
    sources = []
    for module in modules:
        if module.name in real:
            sources.append(_source_of(module, DebugKind.REAL))
        elif _has_debug_file(module):
            sources.append(_source_of(module, DebugKind.SYNTHESIZED))
        else:
            sources.append(_source_of(module, DebugKind.NONE, "nothing in the dump describes it"))
    return sources


def load_debug_files(
    prog: drgn.Program,
    *,
    policy: DebugPolicy,
    vmlinux: Path | None,
    modules: Sequence[Path],
    debuginfod: bool,
    synthesize: Callable[[], SynthesizedDebuginfo],
) -> list[DebugSource]:
    """
    Give *prog* debug information for the kernel and every loaded module.

    Parameters
    ----------
    vmlinux, modules : Path
        Files of the user; real debug information even where *policy* says
        synthesized, since he named them.
    debuginfod : bool
        Whether a debuginfod server may be asked, after the standard places.
    synthesize : callable
        Makes the files from the dump; called only when they are needed.

    Returns
    -------
    list of DebugSource
        The kernel first, then the modules as they are linked in the kernel.

    Raises
    ------
    MismatchError
        If *vmlinux* is not the dump's: the build IDs are in the message.
    FactAbsentError
        If only real debug information is allowed and there is none.
    """
    prog.set_enabled_debug_info_finders(["standard", "debuginfod"] if debuginfod else ["standard"])
    # drgn makes the kernel's module first, with the build ID that files are matched by.
    main = next(module for module, _ in prog.loaded_modules() if isinstance(module, drgn.MainModule))
    kernel = _load_main(prog, main, policy, vmlinux, synthesize)
    try:
        return [kernel, *_load_modules(prog, policy, modules, synthesize)]
    except (drgn.FaultError, LookupError) as exc:
        reason = f"the list of modules cannot be read: {exc}"
        return [DebugSource(kernel.module, kernel.kind, kernel.file, "; ".join(filter(None, (kernel.reason, reason))))]
