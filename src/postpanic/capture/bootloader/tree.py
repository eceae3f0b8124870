"""The files of a machine that boot loaders have to do with, read within bounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from postpanic.capture.host import Host
from postpanic.capture.initramfs.root import RootTree
from postpanic.capture.kexec.images import MACHINES
from postpanic.errors import FileFaultError

__all__ = ["BootTree", "find_machine"]

FILE_LIMIT_BYTES = 4 << 20
_PROGRAM_PLACES = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/sbin", "usr/local/bin")
_LOADER_GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def find_machine(root: Path) -> str:
    """Tell which machine a tree is for, by the programs in it; empty where they do not say."""
    tree = RootTree(root)
    pythons = [f"/usr/bin/{name}" for name in tree.list_names("/usr/bin") if name.startswith("python3")]
    for name in ("/usr/bin/sh", "/bin/sh", "/usr/bin/bash", "/bin/busybox", "/usr/bin/env", *pythons):
        found = tree.find(name)
        if found is not None:
            with found.open("rb") as stream:
                head = stream.read(20)
            if head[:4] == b"\x7fELF" and len(head) == 20:
                return MACHINES.get(int.from_bytes(head[18:20], "little" if head[5] == 1 else "big"), "")
    return ""


@dataclass(frozen=True)
class BootTree:
    """
    A machine's files, paths written as from its own root.

    Attributes
    ----------
    host : Host
    """

    host: Host

    @property
    def _root(self) -> RootTree:
        # It remembers directories, and here they come and go.
        return RootTree(self.host.root)

    @property
    def is_running(self) -> bool:
        """Whether this is the machine that runs, and not a copy of files."""
        return self.host.root == Path("/")

    def find(self, path: str) -> Path | None:
        """Return where a file really is, links followed; None if there is none."""
        return self._root.find(path)

    def place(self, path: str) -> Path:
        """
        Return where a file is to be made, or is: links of its directories are followed as the machine itself would.

        Raises
        ------
        FileFaultError
            If the path leads through what is no directory.
        """
        pure = PurePosixPath("/", path)
        if ".." in pure.parts:
            raise FileFaultError("not a path of a configuration file", where=path)
        found = self.find(path)
        if found is not None:
            return found
        missing: list[str] = []
        for part in (pure, *pure.parents):
            resolved = self._root.resolve(str(part))
            if resolved is not None and (not missing or self._root.is_directory(str(part))):
                place = self._root.place(resolved)
                # What looks missing may be a link that leads nowhere within the tree.
                if missing and (place / missing[-1]).is_symlink():
                    break
                return place.joinpath(*reversed(missing))
            missing.append(part.name)
        raise FileFaultError("leads through what is no directory, or a link to nowhere", where=path)

    def has(self, path: str) -> bool:
        """Tell whether there is such a file."""
        return self.find(path) is not None

    def has_directory(self, path: str) -> bool:
        """Tell whether there is such a directory."""
        return self._root.is_directory(path)

    def read(self, path: str) -> bytes | None:
        """
        Read a file; None if there is none.

        Raises
        ------
        FileFaultError
            If it may not be read, or is larger than any configuration.
        """
        found = self.find(path)
        if found is None:
            return None
        try:
            with found.open("rb") as stream:
                content = stream.read(FILE_LIMIT_BYTES + 1)
        except OSError as exc:
            raise FileFaultError(f"cannot be read: {(exc.strerror or str(exc)).lower()}", where=str(found)) from exc
        if len(content) > FILE_LIMIT_BYTES:
            raise FileFaultError(f"has more than {FILE_LIMIT_BYTES >> 20} MiB: no configuration", where=str(found))
        return content

    def read_text(self, path: str) -> str:
        """Read a text file; empty if there is none. What is not UTF-8 survives being written again."""
        return (self.read(path) or b"").decode(errors="surrogateescape")

    def list_files(self, directory: str, suffix: str) -> list[str]:
        """Return the paths of a directory's files with a suffix, sorted; none where there is no directory."""
        names = [name for name in self._root.list_names(directory) if name.lower().endswith(suffix)]
        return [path for name in names if self.has(path := f"{directory.rstrip('/')}/{name}")]

    def list_names(self, directory: str) -> list[str]:
        """Return the names in a directory, sorted; none where there is no directory."""
        return list(self._root.list_names(directory))

    def find_program(self, *names: str) -> str:
        """Return the path of the first program that is installed; empty if none is."""
        places = (f"/{place}/{name}" for name in names for place in _PROGRAM_PLACES)
        return next((place for place in places if self.has(place)), "")

    def read_efi_text(self, name: str) -> str:
        """
        Read a text that a boot loader left in an EFI variable: ``LoaderInfo``, ``StubInfo``; empty without it.

        Source: the Boot Loader Interface (``systemd.io/BOOT_LOADER_INTERFACE``): UTF-16, ended by a NUL,
        behind four bytes of attributes (``Documentation/filesystems/efivarfs.rst``).
        """
        found = self.find(f"/sys/firmware/efi/efivars/{name}-{_LOADER_GUID}")
        if found is None:
            return ""
        try:
            with found.open("rb") as stream:
                content = stream.read(4096)
        except OSError:
            return ""
        return content[4:].decode("utf-16-le", errors="replace").split("\0", 1)[0]
