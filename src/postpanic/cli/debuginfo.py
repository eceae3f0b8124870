"""``postpanic debuginfo``: write the debug information that a dump holds."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from postpanic.cli.environment import cache_directory
from postpanic.cli.verb import Verb
from postpanic.errors import FactAbsentError, PostpanicError, UsageError
from postpanic.units import format_size

__all__ = ["command"]


@click.command(cls=Verb, name="debuginfo")
@click.argument("dump", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DUMP...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the kernel, or the one module, to FILE.",
)
@click.option("--module", "module_name", metavar="NAME", help="Write this module instead of the kernel.")
@click.option(
    "--modules",
    "modules_directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write every loaded module to DIR as well.",
)
@click.option("--no-cache", is_flag=True, help="Synthesize anew, and do not keep it.")
def command(
    dump: tuple[Path, ...],
    output: Path | None,
    module_name: str | None,
    modules_directory: Path | None,
    no_cache: bool,
) -> int:
    """
    Write the debug information that a dump holds.

    The kernel's symbols, types and unwind tables are read from its own memory
    in the dump, and written as an ELF file with a symbol table, DWARF types
    and the kernel's text, at the addresses it was linked for. gdb, drgn,
    crash and readelf can use it in place of the vmlinux of the distribution.
    It has no source lines, no inlined functions and no local variables:
    a kernel does not carry these.

        postpanic debuginfo dump.201901010000 -o vmlinux
        gdb -batch -ex 'ptype struct task_struct' vmlinux
        postpanic debuginfo dump.201901010000 --module virtio_net -o virtio_net.debug
        postpanic debuginfo dump.201901010000 -o vmlinux --modules modules/

    Files are replaced when they exist. The exit status is 3 if the dump does
    not hold what is needed, or the module was not loaded.
    """
    if output is None and modules_directory is None:
        raise UsageError("nowhere to write to", hint="-o FILE, or --modules DIR")
    if module_name is not None and output is None:
        raise UsageError("--module needs -o FILE")
    from postpanic.cli.progress import Progress
    from postpanic.dumps.open import open_dump
    from postpanic.kernel.debuginfo.build import build
    from postpanic.kernel.debuginfo.cache import DebuginfoCache
    from postpanic.kernel.memory import open_kernel_memory

    cache = None if no_cache else DebuginfoCache(cache_directory())
    wants_modules = module_name is not None or modules_directory is not None
    with Progress() as progress, open_dump(dump) as opened:
        progress("reading symbols and types from the dump")
        made = build(open_kernel_memory(opened), cache=cache, include_text=True, modules=wants_modules)
        if module_name is not None and module_name not in made.modules:
            raise FactAbsentError(f"{module_name} is none of the {len(made.modules)} modules that were loaded")
        if output is not None:
            _copy(made.vmlinux if module_name is None else made.modules[module_name], output)
            print(f"{output}: {format_size(output.stat().st_size)}", file=sys.stderr)
        if modules_directory is not None:
            modules_directory.mkdir(parents=True, exist_ok=True)
            for name, path in made.modules.items():
                _copy(path, modules_directory / f"{_file_name(name)}.ko.debug")
            print(f"{modules_directory}: {len(made.modules)} modules", file=sys.stderr)
    for note in made.report.notes:
        print(f"warning: {note}", file=sys.stderr)
    return 0


def _file_name(module: str) -> str:
    """Refuse a module name that would leave the directory: the name is the dump's word."""
    if not module or "/" in module or module.startswith(".") or "\0" in module:
        raise PostpanicError(f"a module is called {module!r}, which is no file name")
    return module


def _copy(source: Path, target: Path) -> None:
    """Copy so that *target* is either the old file or the whole new one."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    except OSError as exc:
        raise PostpanicError(f"cannot be written: {(exc.strerror or str(exc)).lower()}", where=str(target)) from exc
    finally:
        temporary.unlink(missing_ok=True)
