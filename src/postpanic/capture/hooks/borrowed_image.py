"""
Put the saver into an image that the distribution's own program builds.

The machine's configuration of that program is used, the machine's own image is
not touched, and nothing is installed: what is ours goes in by options of the
program, and the saver, with all that it needs, is one more archive behind the
program's own, in a directory of its own. The kernel unpacks archives one after
the other, whatever they are compressed with.

Sources: ``Documentation/driver-api/early-userspace/buffer-format.rst``;
mkinitramfs(8), initramfs-tools(7), initramfs.conf(5); dracut(8), dracut.modules(7).
"""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from postpanic.capture.initramfs.archive import ImageTree
from postpanic.errors import CorruptError, NotReadyError, ProcessError
from postpanic.process import find_program, run

__all__ = [
    "DIRECTORY",
    "append_archive",
    "build_with_dracut",
    "build_with_initramfs_tools",
    "keep_boot_words",
    "move_archive",
]

DIRECTORY = "postpanic"
"""Of the saver, in the distribution's image."""
TIMEOUT_S = 600.0
_HEADER_BYTES = 110
_MAGIC = b"070701"
_SCRIPT = Path(__file__).parent / "start-saver"
_INITRAMFS_TOOLS_HEAD = """\
#!/bin/sh
case "$1" in prereqs) exit 0 ;; esac
"""
_INITRAMFS_TOOLS_CONFIG = """\
# A capture kernel has little memory: only what this machine needs.
MODULES={modules}
BUSYBOX=y
RESUME=none
"""
_DRACUT_HEAD = "#!/bin/sh\n"
# In newer releases hooks that are not dracut's own are below /var.
_DRACUT_HOOKS = ("usr/lib/dracut/hooks/pre-mount", "var/lib/dracut/hooks/pre-mount")
# By these a distribution's image finds what the root is on.
_BOOT_NAMES = frozenset({"root", "cryptopts", "cryptdevice", "ip", "ifname", "netroot", "vlan", "bond", "bridge"})
_BOOT_PREFIXES = ("rd.", "iscsi", "ISCSI")


def keep_boot_words(host_line: str) -> list[str]:
    """List the words of this kernel's command line by which a distribution's image finds the root's volumes."""
    words = [
        word for word in host_line.split() if word.split("=", 1)[0] in _BOOT_NAMES or word.startswith(_BOOT_PREFIXES)
    ]
    return [word for word in words if not word.startswith(("rd.shell", "rd.emergency", "rd.break"))]


def build_with_initramfs_tools(
    release: str, *, modules: Literal["dep", "most"] = "dep", root: Path = Path("/")
) -> bytes:
    """
    Build an image by mkinitramfs that starts the saver, which is to be put behind it.

    Parameters
    ----------
    release : str
        Of the kernel.
    modules : str
        As in initramfs.conf: ``dep`` takes the drivers of this machine's root, ``most`` all of those that disks have.
    root : Path
        Of the system whose program is run.

    Raises
    ------
    NotReadyError
        If the program is not there or fails.
    """
    with tempfile.TemporaryDirectory(prefix="postpanic-", dir=root / "var/tmp") as name:
        directory = Path(name)
        config = directory / "conf"
        if (root / "etc/initramfs-tools").is_dir():
            shutil.copytree(root / "etc/initramfs-tools", config, symlinks=True)
        for part in ("conf.d", "hooks", "scripts/local-premount", "scripts/nfs-premount"):
            (config / part).mkdir(parents=True, exist_ok=True)
        for part in ("initramfs.conf", "modules", "update-initramfs.conf"):
            (config / part).touch()
        (config / "conf.d/zz-postpanic").write_text(_INITRAMFS_TOOLS_CONFIG.format(modules=modules))
        for part in ("local-premount", "nfs-premount"):
            script = config / "scripts" / part / "postpanic"
            script.write_text(_INITRAMFS_TOOLS_HEAD + _SCRIPT.read_text())
            script.chmod(0o755)
        image = directory / "image"
        _run_in(root, ["mkinitramfs", "-d", config, "-o", image, release], "install initramfs-tools")
        return image.read_bytes()


def build_with_dracut(release: str, *, root: Path = Path("/"), options: tuple[str, ...] = ()) -> bytes:
    """
    Build an image by dracut that starts the saver, which is to be put behind it.

    Parameters
    ----------
    options : tuple of str
        Further ones for dracut; by default the image is for this machine alone.

    Raises
    ------
    NotReadyError
        If the program is not there or fails.
    """
    with tempfile.TemporaryDirectory(prefix="postpanic-", dir=root / "var/tmp") as name:
        directory = Path(name)
        for part in _DRACUT_HOOKS:
            script = directory / "tree" / part / "90-postpanic.sh"
            script.parent.mkdir(parents=True)
            # Sourced, never run: it has no right to say exit.
            script.write_text(_DRACUT_HEAD + _SCRIPT.read_text())
            script.chmod(0o755)
        image = directory / "image"
        tools = ["chroot", "mount"]
        words: list[str | Path] = ["dracut", "--force", "--no-early-microcode", *(options or ("--hostonly",))]
        words += ["--include", directory / "tree", "/", "--install", " ".join(tools), "--kver", release, image]
        _run_in(root, words, "install dracut")
        return image.read_bytes()


def append_archive(image: bytes, archive: bytes) -> bytes:
    """Put an archive behind an image: each begins at a multiple of four bytes, with zeroes before it."""
    return image + bytes(-len(image) % 4) + archive


def move_archive(archive: bytes, directory: str) -> bytes:
    """
    Move all files of an archive into a directory.

    Parameters
    ----------
    archive : bytes
        As :class:`~postpanic.capture.initramfs.archive.ImageTree` makes it.

    Raises
    ------
    CorruptError
        If it is no such archive.
    """
    tree = ImageTree()
    for name, mode, device, content in _read_entries(archive):
        path = f"{directory}/{name}"
        if stat.S_ISDIR(mode):
            tree.add_directory(path, stat.S_IMODE(mode))
        elif stat.S_ISLNK(mode):
            tree.add_symlink(path, content.decode())
        elif stat.S_ISCHR(mode):
            tree.add_device(path, *device, stat.S_IMODE(mode))
        else:
            tree.add_bytes(path, content, stat.S_IMODE(mode))
    return tree.encode()


def _read_entries(archive: bytes) -> Iterator[tuple[str, int, tuple[int, int], bytes]]:
    """Give name, mode, device numbers and content of each entry of a newc archive."""
    at = 0
    while True:
        header = archive[at : at + _HEADER_BYTES]
        if len(header) < _HEADER_BYTES or header[:6] != _MAGIC:
            raise CorruptError(f"no header of a cpio archive at {at}")
        try:
            fields = [int(header[place : place + 8], 16) for place in range(6, _HEADER_BYTES, 8)]
        except ValueError as exc:
            raise CorruptError(f"no header of a cpio archive at {at}") from exc
        mode, size, major, minor, name_size = fields[1], fields[6], fields[9], fields[10], fields[11]
        name_at = at + _HEADER_BYTES
        name = archive[name_at : name_at + name_size - 1].decode()
        if name == "TRAILER!!!":
            return
        content_at = -(-(name_at + name_size) // 4) * 4
        yield name, mode, (major, minor), archive[content_at : content_at + size]
        at = -(-(content_at + size) // 4) * 4


def _run_in(root: Path, words: list[str | Path], hint: str) -> None:
    """Run a program of a system, by chroot if it is not this one."""
    if root == Path("/"):
        command: list[str | Path] = [find_program(str(words[0]), hint=hint), *words[1:]]
    else:
        inside = [f"/{word.relative_to(root)}" if isinstance(word, Path) else word for word in words]
        command = [find_program("chroot"), root, "/usr/bin/env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *inside]
    try:
        run(command, timeout_s=TIMEOUT_S)
    except ProcessError as exc:
        raise NotReadyError(f"the distribution's image cannot be built: {exc.message}", hint=hint) from exc
