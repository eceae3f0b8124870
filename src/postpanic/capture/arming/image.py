"""Build the image for what was prepared, and say what it was made of."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from postpanic.capture.arming.prepare import Prepared
from postpanic.capture.config import Config
from postpanic.capture.hooks.borrowed_image import (
    DIRECTORY,
    append_archive,
    build_with_dracut,
    build_with_initramfs_tools,
    move_archive,
)
from postpanic.capture.host import Host
from postpanic.capture.initramfs.compression import Compression, choose_compression, compress
from postpanic.capture.initramfs.firmware import find_firmware
from postpanic.capture.initramfs.image import BuiltImage, ImageRequest, build_image
from postpanic.capture.initramfs.python_tree import find_python
from postpanic.capture.initramfs.root import RootTree
from postpanic.errors import AbsentError, FileFaultError, NotReadyError
from postpanic.saver.plan import SavePlan
from postpanic.units import format_size

__all__ = ["BuiltFile", "build"]

_ELF_MAGIC = b"\x7fELF"
_SCRIPT_MAGIC = b"#!"
_BORROWED_ENTRY = "postpanic.saver.borrowed"
_INCLUDE_LIMIT_BYTES = 64 << 20
_WATCHED_MODULES = ("os", "numpy", "numpy.version", "zstandard", "zstandard.backend_c")


@dataclass(frozen=True)
class BuiltFile:
    """
    An image, and the files of this machine that it was made of.

    Attributes
    ----------
    content : bytes
    plan : SavePlan
        As it is in the image.
    unpacked_bytes : int
        What it takes in memory.
    modules : tuple of str
        Names of the kernel modules, in the order in which they are loaded.
    inputs : tuple of str
        Paths; when one of them changes the image is stale.
    remarks : tuple of str
        What is worth knowing.
    """

    content: bytes
    plan: SavePlan
    unpacked_bytes: int
    modules: tuple[str, ...]
    inputs: tuple[str, ...]
    compression: str
    remarks: tuple[str, ...] = ()


def build(config: Config, prepared: Prepared, host: Host) -> BuiltFile:
    """
    Build the image.

    Raises
    ------
    NotReadyError
        If something that it needs is not there.
    """
    resolved, kernel = prepared.resolved, prepared.kernel
    options = resolved.module_options
    root = RootTree(host.root)
    try:
        programs, files, inputs = _collect_files(config, prepared, root)
        request = ImageRequest(
            plan=resolved.plan,
            modules_dir=kernel.modules_dir,
            modules={name: options.get(name, "") for name in resolved.modules},
            root=host.root,
            programs=tuple(programs),
            files=files,
            compression=cast("Compression | Literal['auto']", config.capture.image_compression),
            https=resolved.needs.has_https,
        )
        if config.capture.image == "own":
            built = build_image(request)
        else:
            built = _build_borrowed(config.capture.image, request, kernel.release, host)
        inputs += _list_inputs(built, root)
    except AbsentError as exc:
        raise NotReadyError(exc.message, where=exc.where, hint=exc.hint) from exc
    except FileFaultError as exc:
        raise NotReadyError(f"a file for the image is at fault: {exc.message}", where=exc.where, hint=exc.hint) from exc
    modules = tuple(Path(line.split(" ", 1)[0]).name.removesuffix(".ko") for line in built.plan.modules)
    return BuiltFile(
        built.data,
        built.plan,
        built.unpacked_bytes,
        modules,
        tuple(dict.fromkeys(inputs)),
        built.compression,
        built.remarks,
    )


def _build_borrowed(
    tool: Literal["initramfs-tools", "dracut"], request: ImageRequest, release: str, host: Host
) -> BuiltImage:
    """Build the distribution's image, and put ours behind it."""
    compression = request.compression
    if compression == "auto":
        compression = choose_compression(request.modules_dir, host.path("boot"))
    built = build_image(replace(request, compression="none", entry=_BORROWED_ENTRY))
    builder = build_with_dracut if tool == "dracut" else build_with_initramfs_tools
    saver = compress(move_archive(built.data, DIRECTORY), compression)
    data = append_archive(builder(release, root=host.root), saver)
    remark = f"{format_size(len(data) - len(saver))} of the image are {tool}'s, more when it is unpacked"
    return replace(built, data=data, compression=compression, remarks=(*built.remarks, remark))


def _collect_files(config: Config, prepared: Prepared, root: RootTree) -> tuple[list[str], dict[str, bytes], list[str]]:
    """Read what goes into the image besides the saver: programs, files by path, and where they come from."""
    needs = prepared.resolved.needs
    programs = [*needs.programs, *(["ssh"] if needs.has_ssh else [])]
    files: dict[str, bytes] = {}
    inputs = [str(one.source) for one in needs.files]
    for one in needs.files:
        files[one.path] = _read(one.source)
    for path in config.capture.include:
        place = root.find(path)
        if place is None:
            raise NotReadyError(f"there is no file {path}", where="capture.include")
        content = _read(place)
        inputs.append(str(place))
        if content.startswith((_ELF_MAGIC, _SCRIPT_MAGIC)):
            programs.append(path)
        else:
            files[path] = content
    for name in config.capture.firmware:
        found = dict(find_firmware(root, name, prepared.kernel.release))
        if not found:
            raise NotReadyError(f"there is no firmware {name}", where="capture.firmware")
        files |= {f"/lib/firmware/{path}": content for path, content in found.items()}
    return programs, files, inputs


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise NotReadyError("is no file", where=str(path))
        with path.open("rb") as stream:
            content = stream.read(_INCLUDE_LIMIT_BYTES + 1)
    except OSError as exc:
        raise NotReadyError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    if len(content) > _INCLUDE_LIMIT_BYTES:
        raise NotReadyError(f"has more than {_INCLUDE_LIMIT_BYTES >> 20} MiB", where=str(path))
    return content


def _list_inputs(built: BuiltImage, root: RootTree) -> list[str]:
    """List what tells an update of Python, of its packages or of a library."""
    python = find_python(root)
    modules = (python.find_module(name) for name in _WATCHED_MODULES)
    paths = [python.interpreter, *(module.path for module in modules if module is not None), *built.files]
    return [str(found) for path in paths if (found := root.find(path)) is not None]
