"""Modules of our own for the lab's kernels, built against Debian's headers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from postpanic.process import find_program, run
from postpanic.rehearse.kernels import Kernel
from postpanic.rehearse.packages import Archive
from postpanic.rehearse.programs import ProgramStore
from postpanic.rehearse.store import Bundle, PackageStore

__all__ = ["CROSS_TOOLS", "build_module", "build_modules", "resolve_headers"]

CROSS_TOOLS = {"": "", "arm64": "aarch64-linux-gnu-"}
"""What the names of the compiler and its companions begin with, by Debian's architecture; empty: the host's."""
_NEWER_COMPILERS = ("CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT", "CONFIG_CC_HAS_SANE_FUNCTION_ALIGNMENT")
"""
What gcc 12 does not have: the first is a word that it does not know; without the second no function is called cold,
as these are not aligned, on which arm64's ftrace relies (``include/linux/compiler_types.h``).
"""
_KBUILD = re.compile(r"linux-kbuild-[\w.+~]+")
_BUILD_TIMEOUT_S = 600.0


def resolve_headers(archive: Archive, name: str) -> Bundle:
    """Find a kernel's headers, those that all its flavours share, and the programs that build with them."""
    main = archive.find(re.escape(name))[-1]
    found = {main.name: main}
    for wanted in main.depends:
        if wanted.startswith("linux-headers-") or _KBUILD.fullmatch(wanted):
            found[wanted] = archive.find(re.escape(wanted))[-1]
    return Bundle(replace(main, depends=()), tuple(replace(part, depends=()) for part in found.values()))


def _resolve_programs(archive: Archive, name: str) -> Bundle:
    """Find the programs that a kernel's modules are built with, as they run here."""
    package = replace(archive.find(name)[-1], depends=())
    return Bundle(package, (package,))


def build_module(source: Path, kernel: Kernel, suites: Sequence[str], cache_dir: Path, target: Path) -> Path:
    """
    Build a module for a kernel.

    Parameters
    ----------
    source : Path
        Its only source; the module has its name.
    suites : sequence of str
        Where the kernel is from.
    cache_dir : Path
        Where the headers are kept.
    target : Path
        Directory that gets the module.

    Raises
    ------
    ProcessError
        If the headers cannot be fetched, or it does not build.
    """
    return build_modules([source], kernel, suites, cache_dir, target)[0]


def build_modules(
    sources: Sequence[Path],
    kernel: Kernel,
    suites: Sequence[str],
    cache_dir: Path,
    target: Path,
    architecture: str = "",
) -> list[Path]:
    """
    Build several modules at once, each of one source: see :func:`build_module`.

    Parameters
    ----------
    architecture : str
        A key of :data:`CROSS_TOOLS`: Debian's name of the kernel's architecture.
    """
    name, tools = f"linux-headers-{kernel.release}", CROSS_TOOLS[architecture]
    compiler = find_program(f"{tools}gcc", hint=f"install gcc-{tools.removesuffix('-')}" if tools else "install gcc")
    _, entry = PackageStore(cache_dir, "headers", architecture).fetch(suites, name, resolve_headers)
    programs = entry
    if architecture:
        # Those of the headers' own architecture would not run here.
        kbuild = (entry / "usr/src" / name / "scripts").readlink().parent.name
        _, programs = PackageStore(cache_dir, "headers").fetch(suites, re.escape(kbuild), _resolve_programs)
    with tempfile.TemporaryDirectory() as directory:
        tree, work = Path(directory, "tree"), Path(directory, "module")
        _make_tree(entry / "usr/src" / name, entry, tree, cache_dir, programs)
        work.mkdir()
        for source in sources:
            shutil.copy(source, work)
        (work / "Makefile").write_text(f"obj-m := {' '.join(f'{source.stem}.o' for source in sources)}\n")
        # The host's compiler, whichever the kernel was built with; its types come from the kernel's.
        words = [f"M={work}", f"CC={compiler.name}", f"CROSS_COMPILE={tools}", "modules"]
        words += [f"-j{os.cpu_count() or 1}"] if len(sources) > 1 else []
        words += [f"{option}=" for option in ("CONFIG_DEBUG_INFO_BTF_MODULES", *_NEWER_COMPILERS)]
        run([find_program("make"), "-C", tree, *words], timeout_s=_BUILD_TIMEOUT_S)
        return [Path(shutil.copy(work / f"{source.stem}.ko", target)) for source in sources]


def _mirror(source: Path, target: Path, loader: Sequence[str]) -> None:
    """Link a directory's files, and run its programs with a C library that is new enough for them."""
    target.mkdir()
    for path in source.iterdir():
        place = target / path.name
        if path.is_dir():
            _mirror(path, place, loader)
        elif path.read_bytes()[:4] != b"\x7fELF":
            place.symlink_to(path)
        else:
            # Newer packages have dispatchers: they start the program for the architecture that is built for.
            real = [path.with_name(f"{path.name}.real-{kind}") for kind in ("x86", "lsb-64")]
            program = shlex.quote(str(next((each for each in real if each.exists()), path)))
            place.write_text(f'#!/bin/sh\nexec {shlex.join(loader)} {program} "$@"\n')
            place.chmod(0o755)


def _mirror_configuration(include: Path, target: Path) -> None:
    """Link what is generated for a kernel, and take out of its configuration what is of newer compilers."""
    (target / "generated").mkdir(parents=True)
    for path in (*include.iterdir(), *(include / "generated").iterdir()):
        if path.name == "autoconf.h":
            wanted = (line for line in path.read_text().splitlines() if not set(line.split()) & set(_NEWER_COMPILERS))
            (target / "generated" / path.name).write_text("".join(f"{line}\n" for line in wanted))
        elif path.name != "generated":
            (target / path.relative_to(include)).symlink_to(path.resolve())


def _make_tree(headers: Path, entry: Path, tree: Path, cache_dir: Path, programs: Path) -> None:
    """
    Make a build tree of unpacked headers: theirs has the paths of installed ones in it.

    Parameters
    ----------
    entry, programs : Path
        What the headers are unpacked into, and the programs that build with them.
    """
    loader = ProgramStore(cache_dir).fetch("makedumpfile", "usr/bin/makedumpfile").command[:-1]
    tree.mkdir()
    for path in headers.iterdir():
        if path.name == "Makefile":
            text = path.read_text().replace(f"/usr/src/{headers.name}", str(tree))
            text = text.replace("/usr/src/", f"{entry}/usr/src/")
            (tree / path.name).write_text(text)
        elif path.name in {"scripts", "tools"}:
            place = Path(os.path.normpath(path.parent / path.readlink())).relative_to(entry)
            _mirror(programs / place, tree / path.name, loader)
        elif path.name in {".config", ".kernelvariables", "Module.symvers"}:
            shutil.copy(path, tree)
        elif path.name == "include":
            _mirror_configuration(path, tree / path.name)
        else:
            (tree / path.name).symlink_to(path.resolve())
