"""A tree of files that may belong to another system: paths are followed as that system would."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from postpanic.errors import FactAbsentError

__all__ = ["RootTree"]

# As many as the kernel follows: MAXSYMLINKS in include/linux/namei.h.
_LINKS_LIMIT = 40
# Where these are links to /usr the links are made at installation, and no package has them.
_MERGED = frozenset({"bin", "lib", "lib32", "lib64", "libx32", "sbin"})


class RootTree:
    """
    A directory taken as the root of a file system.

    Symbolic links are followed inside of it: an absolute one starts at this
    root, ``..`` does not lead out of it. Paths are written as the system
    itself would write them: ``/usr/lib/libz.so.1``.

    Parameters
    ----------
    directory : Path
        ``/``, or where packages of any system and architecture are unpacked.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._directories: dict[str, str | None] = {"/": "/"}

    def resolve(self, path: str) -> str | None:
        """Return the path without symbolic links; None if nothing is there."""
        return self._follow(path, [_LINKS_LIMIT])

    def find(self, path: str) -> Path | None:
        """Return where a regular file really is, outside of the tree's own view; None if there is no such file."""
        resolved = self.resolve(path)
        if resolved is None:
            return None
        place = self.place(resolved)
        return place if place.is_file() else None

    def place(self, resolved: str) -> Path:
        """Return the outside path of what :meth:`resolve` returned."""
        return self.directory / resolved.lstrip("/")

    def read(self, path: str) -> bytes:
        """
        Return a file's content.

        Raises
        ------
        FactAbsentError
            If there is no such file, or it may not be read.
        """
        found = self.find(path)
        if found is None:
            raise FactAbsentError(f"no file {path}", where=str(self.directory))
        try:
            return found.read_bytes()
        except OSError as exc:
            raise FactAbsentError(f"{path}: {exc.strerror}", where=str(self.directory)) from exc

    def is_directory(self, path: str) -> bool:
        """Tell whether the path is a directory, or leads to one."""
        resolved = self.resolve(path)
        return resolved is not None and self.place(resolved).is_dir()

    def list_names(self, path: str) -> Iterator[str]:
        """Yield the names in a directory, sorted; none where there is no directory."""
        resolved = self.resolve(path)
        if resolved is not None and self.place(resolved).is_dir():
            yield from sorted(path.name for path in self.place(resolved).iterdir())

    def _follow(self, path: str, links: list[int]) -> str | None:
        pure = PurePosixPath("/", path)
        parent = self._follow_directory(str(pure.parent), links)
        if parent is None or pure.name in {"", ".."}:
            return self._follow_directory(str(pure), links) if parent is not None else None
        return self._step(parent, pure.name, links)

    def _follow_directory(self, path: str, links: list[int]) -> str | None:
        # Many files share few directories.
        if path not in self._directories:
            current: str | None = "/"
            for name in PurePosixPath(path).parts[1:]:
                if current is None:
                    break
                current = self._step(current, name, links)
            self._directories[path] = current
        return self._directories[path]

    def _step(self, directory: str, name: str, links: list[int]) -> str | None:
        if name == "..":
            return str(PurePosixPath(directory).parent)
        path = f"{directory.rstrip('/')}/{name}"
        place = self.place(path)
        try:
            mode = place.lstat().st_mode
            if not stat.S_ISLNK(mode):
                return path
            links[0] -= 1
            target = str(place.readlink())
        except FileNotFoundError:
            return self._step("/usr", name, links) if directory == "/" and name in _MERGED else None
        except OSError:
            return None
        if links[0] < 0:
            return None
        return self._follow(str(PurePosixPath(directory, target)), links)
