"""
The image of the capture kernel: the saver, the Python it runs on, kernel modules, the plan.

Nothing of the tree that it is made from is run, so it may be that of another
system or architecture. Equal requests make equal images, byte for byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.capture.initramfs.compression import Compression, choose_compression, compress
from postpanic.capture.initramfs.contents import ENTRY, find_python_modules
from postpanic.capture.initramfs.elf import strip
from postpanic.capture.initramfs.firmware import find_firmware
from postpanic.capture.initramfs.libraries import LibraryFinder
from postpanic.capture.initramfs.modules import ModuleTree
from postpanic.capture.initramfs.packing import find_substitute, pack_python
from postpanic.capture.initramfs.programs import add_account_files, find_programs
from postpanic.capture.initramfs.python_tree import find_python
from postpanic.capture.initramfs.root import RootTree
from postpanic.saver.plan import PLAN_PATH, SavePlan
from postpanic.saver.plan_json import encode_plan

__all__ = ["BuiltImage", "ImageRequest", "build_image"]

MODULES_DIR = "/lib/modules"
_PAGE_BYTES = 4096
_DIRECTORIES = ("/dev", "/etc", "/mnt", "/proc", "/run", "/sys", "/tmp", "/var")  # noqa: S108 - of the image
# Documentation/admin-guide/devices.txt
_DEVICES = {"/dev/console": (5, 1), "/dev/kmsg": (1, 11), "/dev/null": (1, 3), "/dev/urandom": (1, 9)}
_CATEGORIES = (
    ("modules", f"{MODULES_DIR[1:]}/"),
    ("firmware", "lib/firmware/"),
    ("python", "usr/lib/postpanic/"),
    ("python", "usr/bin/python3"),
    ("python", "usr/lib/python3"),
    ("python", "usr/lib64/python3"),
    ("configuration", "etc/"),
)


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """
    What an image is to hold.

    Attributes
    ----------
    plan : SavePlan
        What the saver is to do; the files of the kernel modules are put into it here.
    modules_dir : Path
        ``lib/modules/RELEASE`` of the capture kernel.
    modules : mapping
        Names or aliases of the modules that are needed, in the order in which
        they are wanted, with their parameters; what they need comes in by itself.
    root : Path
        Where Python, libraries, programs and firmware are taken from.
    programs : tuple of str
        Programs besides, as paths in *root* or names: ``ssh``. Scripts bring what runs them.
    files : mapping
        More files by their path in the image; mode 0600, or 0700 for programs: what begins with ``#!`` or is ELF.
    compression : str
        ``auto`` is the best that the kernel's configuration names.
    https : bool
        Whether TLS goes in.
    boot_dir : Path, optional
        Where the kernel's ``config-RELEASE`` is; without it, ``boot`` of *root*.
    entry : str
        The module whose ``main()`` is PID 1.
    keep : tuple of str
        Python modules that the saver never needs, and this entry does.
    """

    plan: SavePlan
    modules_dir: Path
    modules: Mapping[str, str] = field(default_factory=dict)
    root: Path = Path("/")
    programs: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    compression: Compression | Literal["auto"] = "auto"
    https: bool = False
    boot_dir: Path | None = None
    entry: str = ENTRY
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BuiltImage:
    """
    An image, and what there is to say about it.

    Attributes
    ----------
    data : bytes
        The compressed archive, as the kernel takes it.
    plan : SavePlan
        As it is in the image.
    unpacked_bytes : int
        What the files take in memory: whole pages.
    entries : int
        Files, directories and devices.
    sha256 : str
        Of *data*.
    compression : str
        Of *data*.
    categories : mapping
        What goes where: bytes in memory by kind, largest first.
    files : mapping
        Size of each file, by path.
    remarks : tuple of str
        What a user may want to know.
    """

    data: bytes
    plan: SavePlan
    unpacked_bytes: int
    entries: int
    sha256: str
    compression: Compression
    categories: Mapping[str, int]
    files: Mapping[str, int]
    remarks: tuple[str, ...] = ()


def build_image(request: ImageRequest) -> BuiltImage:
    """
    Build an image.

    Raises
    ------
    FactAbsentError
        If a module, a library, a program, or Python with numpy and zstandard is missing.
    CorruptError
        If a file that goes in is damaged.
    UnsupportedError
        If there is no such compression, or the running Python is not CPython.
    UsageError
        If the path of a file leads out of the image.
    ProcessError
        If Python's modules cannot be compiled.
    """
    image = ImageTree()
    for path in _DIRECTORIES:
        image.add_directory(path)
    for path, (major, minor) in _DEVICES.items():
        image.add_device(path, major, minor)
    root = RootTree(request.root)
    libraries = LibraryFinder(root, find_substitute)
    interpreter, remarks = _add_python(image, request, root, libraries)
    modules = _add_modules(image, request, root)
    found = find_programs(root, (*request.programs, *_list_hook_programs(request)), libraries)
    for path, content in found.items():
        if content is not None:
            image.add_bytes(path, content, 0o755)
        elif path != interpreter:
            image.add_symlink(path, interpreter)
    add_account_files(image, libraries)
    _add_libraries(image, libraries)
    for path, content in sorted(request.files.items()):
        image.add_bytes(path, content, 0o700 if content.startswith((b"#!", b"\x7fELF")) else 0o600)
    plan = dataclasses.replace(request.plan, modules=modules)
    image.add_bytes(str(PLAN_PATH), encode_plan(plan), 0o600)
    return _finish(image, request, plan, remarks)


def _add_python(
    image: ImageTree, request: ImageRequest, root: RootTree, libraries: LibraryFinder
) -> tuple[str, tuple[str, ...]]:
    python = find_python(root)
    found = find_python_modules(python, request.plan, https=request.https, roots=(request.entry,), keep=request.keep)
    compiled = python.is_running_version
    packed = pack_python(python, found, libraries, request.entry, compiled=compiled)
    for path, content in packed.files.items():
        image.add_bytes(path, content, 0o755 if path in packed.programs else 0o644)
    if compiled:
        return packed.interpreter, ()
    return packed.interpreter, (
        f"Python 3.{python.minor} is not the running version: its modules go in uncompiled, and load slower",
    )


def _add_modules(image: ImageTree, request: ImageRequest, root: RootTree) -> tuple[str, ...]:
    tree = ModuleTree(request.modules_dir)
    parameters = {name.replace("-", "_"): text for name, text in request.modules.items()}
    lines = []
    for name in tree.resolve(request.modules):
        path = f"{MODULES_DIR}/{name}.ko"
        image.add_bytes(path, tree.read(name))
        lines.append(f"{path} {parameters.get(name, '')}".rstrip())
        for wanted in tree.read_info(name).firmware:
            for file, content in find_firmware(root, wanted, request.modules_dir.name):
                image.add_bytes(f"/lib/firmware/{file}", content)
    return tuple(lines)


def _list_hook_programs(request: ImageRequest) -> list[str]:
    """Return the programs of hooks that do not come as files of their own."""
    hooks = (*request.plan.before, *request.plan.after)
    given = {path.lstrip("/") for path in request.files}
    return [hook.command[0] for hook in hooks if hook.command and hook.command[0].lstrip("/") not in given]


def _add_libraries(image: ImageTree, libraries: LibraryFinder) -> None:
    directory = libraries.find_directory()
    for name, library in sorted(libraries.libraries.items()):
        image.add_bytes(f"{directory}/{name}", strip(library.content), 0o755)
    for path, content in sorted(libraries.loaders.items()):
        image.add_bytes(path, strip(content), 0o755)


def _finish(image: ImageTree, request: ImageRequest, plan: SavePlan, remarks: tuple[str, ...]) -> BuiltImage:
    compression = request.compression
    if compression == "auto":
        compression = choose_compression(request.modules_dir, request.boot_dir or request.root / "boot")
    data = compress(image.encode(), compression)
    sizes = image.list_sizes()
    categories: dict[str, int] = {}
    for path, size in sizes.items():
        kind = next((kind for kind, beginning in _CATEGORIES if path.startswith(beginning)), "libraries and programs")
        categories[kind] = categories.get(kind, 0) + _round_up(size)
    return BuiltImage(
        data=data,
        plan=plan,
        unpacked_bytes=sum(_round_up(size) for size in sizes.values()),
        entries=sum(1 for _ in image),
        sha256=hashlib.sha256(data).hexdigest(),
        compression=compression,
        categories=dict(sorted(categories.items(), key=lambda item: -item[1])),
        files=sizes,
        remarks=remarks,
    )


def _round_up(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _PAGE_BYTES
