"""What single scenarios bring into their guests beyond what all have: a disk with programs, modules and files."""

from __future__ import annotations

import os
import random
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.process import find_program, run
from postpanic.rehearse.disks import make_empty_disk, make_ext4_disk
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.programs import ProgramStore
from tests.vm.guest import BOOT_MODULES, LOAD_MODULES, SCENARIOS_DIR
from tests.vm.kernel_modules import build_module
from tests.vm.recipes import Setting

__all__ = ["find_sources", "make_extra_disk"]

FILE_PLACES = ("/usr/bin", "/usr/lib", "/usr/share")
FILE_SIZES_BYTES = (16 << 10, 64 << 20)
ARCHIVED_SHARE = 0.2
JOURNAL_SIZE_BYTES = 72 << 20
XFS_SIZE_BYTES = 320 << 20
SLACK_BYTES = 64 << 20


def find_sources(setting: Setting) -> list[Path]:
    """Return the files of ``scenarios/`` that a setting names."""
    return [SCENARIOS_DIR / f"{name}.c" for name in (*setting.programs, *setting.built_modules)]


def make_extra_disk(
    directory: Path, kernel: Kernel, suites: Sequence[str], setting: Setting, cache_dir: Path
) -> Path | None:
    """
    Make a scenario's own disk in *directory*: ``bin/``, ``modules/`` with ``load-modules``, ``images/``, ``files/``.

    Parameters
    ----------
    suites : sequence of str
        Where the kernel is from.
    cache_dir : Path
        Where programs of the host that it has not installed are kept.

    Returns
    -------
    Path or None
        None where the setting asks for nothing that needs a disk.
    """
    if not (setting.programs or setting.modules or setting.built_modules or setting.images or setting.files_mib):
        return None
    content = directory / "extra"
    for name in ("bin", "modules", "images", "files"):
        (content / name).mkdir(parents=True)
    _build_programs(setting, content / "bin")
    modules = ModuleTree(kernel.modules_dir)
    there = modules.sort_by_dependency([*BOOT_MODULES, *LOAD_MODULES])
    order = [name for name in modules.sort_by_dependency(setting.modules) if name not in there]
    for name in order:
        (content / "modules" / f"{name}.ko").write_bytes(modules.read(name))
    for name in setting.built_modules:
        build_module(SCENARIOS_DIR / f"{name}.c", kernel, suites, cache_dir, content / "modules")
        order.append(name)
    (content / "load-modules").write_text("".join(f"{name}.ko\n" for name in order))
    for name in setting.images:
        _make_image(name, content / "images" / name, cache_dir)
    _gather_files(content / "files", setting.files_mib << 20)
    size_bytes = sum(path.stat().st_size + 4096 for path in content.rglob("*"))
    disk = make_ext4_disk(directory / "extra.img", size_bytes + size_bytes // 10 + SLACK_BYTES, content=content)
    shutil.rmtree(content)
    return disk


def _build_programs(setting: Setting, target: Path) -> None:
    compiler = find_program("gcc", hint="install gcc and libc6-dev")
    sources = [SCENARIOS_DIR / f"{name}.c" for name in setting.programs]
    options = ("-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
    for source in sources:
        run([compiler, *options, "-o", target / source.stem, source])


def _make_image(name: str, path: Path, cache_dir: Path) -> None:
    if name == "xfs":
        make_empty_disk(path, XFS_SIZE_BYTES)
        # Of the oldest kernel's suite: newer tools make what that kernel does not know.
        program = ProgramStore(cache_dir).fetch("xfsprogs", "sbin/mkfs.xfs", ("bookworm", "bookworm-security"))
        run([*program.command, "-q", path])
    else:
        make_empty_disk(path, JOURNAL_SIZE_BYTES)
        run([find_program("mke2fs"), "-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=4", path])


def _gather_files(target: Path, limit_bytes: int) -> None:
    """Copy files of the host, a share of them as a compressed archive, until there is enough."""
    found = _choose_files(limit_bytes)
    total_bytes = 0
    if limit_bytes:
        # Debian's own archives are as dense; the level only decides how long it takes.
        with tarfile.open(target / "archive.tar.gz", "w:gz", compresslevel=6) as archive:
            for path in found:
                total_bytes += path.stat().st_size
                archive.add(path, recursive=False)
                if total_bytes > limit_bytes * ARCHIVED_SHARE:
                    break
        total_bytes = (target / "archive.tar.gz").stat().st_size
    for number, path in enumerate(found):
        if total_bytes > limit_bytes:
            break
        total_bytes += path.stat().st_size
        _link_or_copy(path, target / f"{number:05d}")


def _choose_files(limit_bytes: int) -> Iterator[Path]:
    if limit_bytes == 0:
        return iter(())
    found = sorted(path for place in FILE_PLACES for path in _walk(Path(place)))
    random.Random(1).shuffle(found)
    return iter(found)


def _walk(place: Path) -> Iterable[Path]:
    for parent, _, names in os.walk(place):
        for name in names:
            path = Path(parent, name)
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            if FILE_SIZES_BYTES[0] <= path.stat().st_size <= FILE_SIZES_BYTES[1]:
                yield path


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
